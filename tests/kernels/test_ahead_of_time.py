"""What the compiler makes of every kernel, without a GPU.

Registers, stack, shared memory and instructions.

A launcher is called with its kernel replaced by a recorder, so that what is compiled is what it
would launch.
"""

import os

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("ahead-of-time compilation fails under TRITON_INTERPRET=1", allow_module_level=True)

import triton.language as tl  # noqa: E402
from compiled import (  # noqa: E402
    CAPABILITIES,
    check_resources,
    check_short_divisions,
    compile_launch,
    count,
    specialise,
)

from sparse_ft.kernels import (  # noqa: E402
    activation,
    batch_norm,
    batch_norm_backward,
    gated_product,
    gather_selected,
    masked_adamw,
    max_pool,
    move,
    positive_bits,
    rms_norm,
    scatter_selected,
)

DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
ARCHITECTURES = pytest.mark.parametrize("capability", CAPABILITIES)
SIDE = 1024
LAYOUTS = {
    "rows": ("rows", torch.arange(64), 1, 1),
    "columns": ("columns", torch.arange(64), 1, 1),
    "blocks": ("blocks", torch.zeros(3, 2, dtype=torch.int32), 16, 16),
    "entries": ("entries", torch.arange(1000), 1, 1),
}
FOUR = pytest.mark.parametrize("layout", ["rows", "columns", "blocks", "entries"])


@FOUR
@DTYPES
@ARCHITECTURES
def test_gather(layout, dtype, capability, record, tmp_path):
    launches = record(move, "_move_kernel")
    gather_selected.gather_selected_triton(
        torch.empty(SIDE, SIDE, dtype=dtype), *LAYOUTS[layout], dtype=torch.float32
    )
    check_resources(compile_launch(launches[0], capability, tmp_path), capability)


@FOUR
@DTYPES
@ARCHITECTURES
def test_scatter(layout, dtype, capability, record, tmp_path):
    launches = record(move, "_move_kernel")
    matrix = torch.empty(SIDE, SIDE, dtype=dtype)
    values = torch.empty(
        {"rows": (64, SIDE), "columns": (SIDE, 64), "blocks": (3, 16, 16), "entries": (1000,)}[
            layout
        ]
    )
    scatter_selected.scatter_selected_triton_(matrix, values, *LAYOUTS[layout])
    if layout == "rows" and dtype == torch.bfloat16:
        scatter_selected.scatter_selected_triton_(matrix, values, *LAYOUTS[layout], accumulate=True)
        scatter_selected.swap_selected_triton_(matrix, values.to(dtype), *LAYOUTS[layout])
    for launch in launches:
        check_resources(compile_launch(launch, capability, tmp_path), capability)


ADAMW_KERNELS = "nonfinite", "steps", "masked_adamw"


def adamw_launches(record, layout, dtype, count=8, offset=0, kernels=ADAMW_KERNELS, **varied):
    launches = [record(masked_adamw, f"_{name}_kernel") for name in kernels]
    shape = {
        "rows": (64, SIDE),
        "columns": (SIDE, 64),
        "blocks": (3, 16, 16),
        "entries": (1000,),
    }.get(layout, (64,))
    numel = torch.Size(shape).numel()
    state = [
        [torch.empty(numel + offset, dtype=dtype)[offset:].view(shape)] * count for _ in range(4)
    ]
    kind, index, *block = LAYOUTS.get(layout, (None, None))
    linked = (
        [torch.empty(SIDE, SIDE, dtype=torch.bfloat16)] * count,
        [kind] * count,
        [index] * count,
        block * count,
    )
    hyper = {name: [0.5] * count for name in ("lr", "beta1", "beta2", "eps", "weight_decay")}
    masked_adamw.masked_adamw_triton_(
        *state, [torch.zeros(())] * count, *(linked if kind else ([], [], [], [])), **hyper,
        grad_scale=torch.ones(1), found_inf=torch.zeros(1), skip_nonfinite=True,
        **{name: [make(shape)] * count for name, make in varied.items()},
    )  # fmt: skip
    return [recorded[0] for recorded in launches]


@pytest.mark.parametrize("layout", ["rows", "columns", "blocks", "entries", "plain"])
@DTYPES
@ARCHITECTURES
def test_adamw(layout, dtype, capability, record, tmp_path):
    nonfinite, _, update = adamw_launches(record, layout, dtype)
    result = compile_launch(update, capability, tmp_path)
    check_resources(result, capability)
    # values, grads and two moments, 8 entries a thread
    streams = 4 * (1 if dtype == torch.bfloat16 else 2)
    assert count(result, "LDG.E.128") >= streams, "narrow loads"
    if layout == "plain":
        check_resources(compile_launch(nonfinite, capability, tmp_path), capability)


VARIED = {
    "generations": lambda shape: torch.zeros(shape, dtype=torch.uint8),
    "births": lambda shape: torch.zeros(3),
    "factors": lambda shape: torch.ones(shape),
    "origins": lambda shape: torch.ones(shape, dtype=torch.bfloat16),
}


@pytest.mark.parametrize("layout", ["rows", "entries", "plain"])
@DTYPES
@ARCHITECTURES
def test_adamw_with_ages_factors_and_origins(layout, dtype, capability, record, tmp_path):
    kernels = *ADAMW_KERNELS, "ages"
    _, _, update, ages = adamw_launches(record, layout, dtype, kernels=kernels, **VARIED)
    result = compile_launch(update, capability, tmp_path)
    check_resources(result, capability)
    streams = 4 * (1 if dtype == torch.bfloat16 else 2)
    assert count(result, "LDG.E.128") >= streams, "narrow loads"
    if layout == "plain":
        check_resources(compile_launch(ages, capability, tmp_path), capability)


def test_adamw_claims_alignment_only_where_there_is_some(record):
    aligned, unaligned = (
        adamw_launches(record, "plain", torch.float32, offset=i)[2][2]["ALIGNED"] for i in (0, 1)
    )
    assert aligned and not unaligned


@ARCHITECTURES
def test_adamw_steps(capability, record, tmp_path):
    check_resources(
        compile_launch(adamw_launches(record, "plain", torch.float32)[1], capability, tmp_path),
        capability,
    )


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh"])
@DTYPES
@ARCHITECTURES
def test_activation(name, dtype, capability, record, tmp_path):
    launches = [record(activation, f"_activation{part}_kernel") for part in ("", "_backward")]
    x = torch.empty(32, 2 * SIDE, dtype=dtype)
    activation.activation_triton(x, name, x)
    activation.activation_backward_triton(x, x, name, x)
    for (launch,), operands in zip(launches, (1, 2)):
        result = compile_launch(launch, capability, tmp_path)
        check_resources(result, capability)
        assert count(result, "LDG.E.128") >= operands, "narrow loads"


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "relu"])
@DTYPES
@ARCHITECTURES
def test_gated_product(activation, dtype, capability, record, tmp_path):
    launches = [record(gated_product, f"_gated_product{part}_kernel") for part in ("", "_backward")]
    gate, up = torch.empty(32, 2 * SIDE, dtype=dtype).chunk(2, 1)
    output = gate.contiguous()
    gated_product.gated_product_triton(gate, up, activation, output)
    gated_product.gated_product_backward_triton(output, gate, up, activation, output, output)
    for (launch,), operands in zip(launches, (2, 3)):
        result = compile_launch(launch, capability, tmp_path)
        check_resources(result, capability)
        assert count(result, "LDG.E.128") >= operands, "narrow loads"


@pytest.mark.parametrize("weighted", [True, False])
@DTYPES
@ARCHITECTURES
def test_rms_norm(weighted, dtype, capability, record, tmp_path):
    launches = [record(rms_norm, f"_rms_norm{part}_kernel") for part in ("", "_backward")]
    x, rstd = torch.empty(32, 2816, dtype=dtype), torch.empty(32)
    weight = torch.empty(2816, dtype=dtype) if weighted else None
    rms_norm.rms_norm_triton(x, weight, 1e-6, 1.0, x, rstd)
    rms_norm.rms_norm_backward_triton(x, x, rstd, weight, 1.0, x)
    for (launch,) in launches:
        result = compile_launch(launch, capability, tmp_path)
        check_resources(result, capability)
        assert count(result, "LDG.E.128") >= 2, "narrow loads"


@DTYPES
@ARCHITECTURES
def test_positive_bits(dtype, capability, record, tmp_path):
    launches = [
        record(positive_bits, f"_{name}_kernel") for name in ("positive_bits", "where_bits")
    ]
    x, bits = torch.empty(32, SIDE, dtype=dtype), torch.empty(4 * SIDE, dtype=torch.uint8)
    positive_bits.positive_bits_triton(x, bits, x)
    positive_bits.where_bits_triton(x, bits, 1.25, x)
    for (launch,) in launches:
        result = compile_launch(launch, capability, tmp_path)
        check_resources(result, capability)
        assert count(result, "LDG.E.128") >= 1, "narrow loads"


@pytest.mark.parametrize("inner", [1, 3136])
@DTYPES
@ARCHITECTURES
def test_batch_norm(dtype, inner, capability, record, tmp_path):
    launches = [record(batch_norm, "_batch_norm_kernel")]
    launches += [record(batch_norm_backward, "_batch_norm_backward_kernel")]
    x, of_channels = torch.empty(32, 64, inner, dtype=dtype), torch.empty(64)
    bits = torch.empty(x.numel() // 8, dtype=torch.uint8)
    batch_norm.batch_norm_triton_(x, *[of_channels] * 4, 1e-5, True, bits)
    batch_norm_backward.batch_norm_backward_triton(x, of_channels, of_channels, 1e-5, bits, x)
    for (launch,) in launches:
        result = compile_launch(launch, capability, tmp_path)
        check_resources(result, capability)
        check_short_divisions(result)


@DTYPES
@ARCHITECTURES
def test_max_pool(dtype, capability, record, tmp_path):
    launches = record(max_pool, "_max_pool_kernel")
    x, y = torch.empty(4, 3, 112, 112, dtype=dtype), torch.empty(4, 3, 56, 56, dtype=dtype)
    max_pool.max_pool_triton(x, (3, 3), (2, 2), (1, 1), (1, 1), False, y, y.to(torch.uint8))
    result = compile_launch(launches[0], capability, tmp_path)
    check_resources(result, capability)
    check_short_divisions(result)


def test_activations_beyond_two_to_the_31_compile(record, tmp_path):
    """Their offsets have 64 bits, and so their divisions, which are seen."""
    launches = record(max_pool, "_max_pool_kernel")
    x = torch.empty(1, 1 << 16, 1 << 16, dtype=torch.bfloat16, device="meta")
    y = torch.empty(1, 1 << 15, 1 << 15, dtype=torch.bfloat16, device="meta")
    max_pool.max_pool_triton(x, (2, 2), (2, 2), (0, 0), (1, 1), False, y, y.to(torch.uint8))
    result = compile_launch(launches[0], 90, tmp_path)
    check_resources(result, 90)
    with pytest.raises(AssertionError, match="64-bit divisions"):
        check_short_divisions(result)


def test_sizes_of_one_compile(record, tmp_path):
    """Triton compiles an argument that is 1 in as a constant, which the interpreter never does."""
    one, index = torch.ones(1, 1), torch.zeros(1, dtype=torch.int64)
    launches = [record(move, "_move_kernel")]
    for kind, i, values in (
        ("blocks", torch.zeros(1, 2, dtype=torch.int64), one[None]),
        ("entries", index, one[0]),
    ):
        gather_selected.gather_selected_triton(one, kind, i, 1, 1)
        scatter_selected.scatter_selected_triton_(one, values, kind, i, 1, 1)
    launches.append(adamw_launches(record, "plain", torch.float32, count=1)[1:2])
    for launch in sum(launches, []):
        compile_launch(launch, 90, tmp_path)


def test_entries_beyond_two_to_the_31_compile(record, tmp_path):
    """Sizes arrive as 64-bit arguments then."""
    launches = record(move, "_move_kernel")
    gather_selected.gather_selected_triton(torch.empty(SIDE, SIDE), *LAYOUTS["entries"])
    kernel, args, kwargs = launches[0]
    args = [2**33 if isinstance(x, int) and x == 1000 else x for x in args]
    assert "i64" in specialise(kernel, args, kwargs)[0]["signature"].values()
    check_resources(compile_launch((kernel, args, kwargs), 90, tmp_path), 90)


@triton.jit
def _hoard_kernel(x_ptr, BLOCK: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, BLOCK))
    tl.store(x_ptr + tl.arange(0, BLOCK), x * tl.sum(x))  # all of x stays alive across the sum


def test_a_spill_is_seen(tmp_path):
    options = dict(BLOCK=65536, num_warps=4, enable_fp_fusion=True)
    spilling = compile_launch((_hoard_kernel, (torch.empty(65536),), options), 80, tmp_path)
    assert count(spilling, "STL") and count(spilling, "LDL")
    with pytest.raises(AssertionError, match="bytes of stack"):
        check_resources(spilling, 80)
