"""What the compiler makes of the kernels of selected_wgrad.

Tensor cores, 16-byte copies, no spills.
"""

import os

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("ahead-of-time compilation fails under TRITON_INTERPRET=1", allow_module_level=True)

import compiled  # noqa: E402
from compiled import (
    MMA,
    check_resources,
    check_tensor_cores,
    check_wide_copies,
    compile_launch,
    count,
    specialise,
)  # noqa: E402

from sparse_ft.kernels import (  # noqa: E402
    selected_wgrad_blocks,
    selected_wgrad_entries,
    selected_wgrad_gemm,
    selected_wgrad_strips,
)

ARCHITECTURES = pytest.mark.parametrize("capability", compiled.CAPABILITIES)
BLOCKS = {  # name: block size, blocks, shared side, panel x gathered features of the tile
    "16": (16, 16, 1, (16, 256)),
    "32": (32, 8, 0, (32, 256)),
    "64": (64, 4, 0, (64, 256)),
    "64-by-column": (64, 4, 1, (64, 256)),
    "lone": (64, 1, 0, (64, 64)),
    "128": (128, 4, 0, (128, 128)),
    "odd": (33, 9, 1, (64, 64)),
}


def blocks_launches(record, name, dtype=torch.bfloat16, tokens=64, accumulate=False, problems=1):
    """Launches of blocks that all share one panel."""
    size, num, shared, tile = BLOCKS[name]
    launches = [
        record(selected_wgrad_blocks, kernel) for kernel in ("_panel_kernel", "_sum_splits_kernel")
    ]
    index = torch.zeros(num, 2, dtype=torch.int32)
    index[:, 1 - shared] = torch.arange(num)
    operand = torch.empty(tokens, 1023 if name == "odd" else 1024, dtype=dtype)
    values = torch.empty(num, size, size)
    selected_wgrad_blocks.wgrad_of_blocks(
        [(values, operand, operand, index, size, size)] * problems, accumulate
    )
    options = launches[0][0][2]
    assert (options["BLOCK_P"], options["BLOCK_Q"]) == tile
    return sum(launches, [])


def check_reads_as_stored(result):
    """wgmma takes both operands token by token, so that neither is transposed on its way to the
    tensor cores.
    """
    lines = [line for line in result.sass.splitlines() if "HGMMA" in line]
    assert lines and all("tnspA.tnspB" in line for line in lines), (
        "an operand is transposed before it is multiplied"
    )


@pytest.mark.parametrize("name", BLOCKS)
@ARCHITECTURES
def test_blocks(name, capability, record, tmp_path):
    """Odd sizes have an address for each feature.

    Their copies are as narrow as an element, by nature.
    """
    result = compile_launch(blocks_launches(record, name)[0], capability, tmp_path)
    check_resources(result, capability)
    check_tensor_cores(result, MMA[capability])
    if name != "odd":
        check_wide_copies(result)
        if capability == 90:
            check_reads_as_stored(result)


@pytest.mark.parametrize(
    "name, problems, tiles", [("64", 3, 0), ("64", 16, 4), ("16", 3, 4), ("128", 3, 4)]
)
@ARCHITECTURES
def test_several_problems_and_tiles(
    name, problems, tiles, capability, record, tmp_path, monkeypatch
):
    """To pick a problem and to stay for several tiles costs neither registers that there are not
    nor wide copies.
    """
    monkeypatch.setattr(selected_wgrad_blocks, "PERSISTENT_FROM", 0 if tiles else 1e9)
    (launch,) = blocks_launches(record, name, problems=problems)
    assert len(launch[1][0]) == {3: 4, 16: 16}[problems] and launch[2]["PERSISTENT"] == bool(tiles)
    result = compile_launch(launch, capability, tmp_path)
    check_resources(result, capability)
    check_tensor_cores(result, MMA[capability])
    check_wide_copies(result)
    if capability == 90:
        check_reads_as_stored(result)


def test_the_tokens_of_a_problem_compile_nothing_anew(record):
    """Experts get other tokens at every step.

    Ones and multiples of 16 among them must not ask for a kernel of their own.
    """
    kinds = set()
    for tokens in (1, 3, 16, 48, 500):
        (launch,) = blocks_launches(record, "64", tokens=tokens, problems=2)
        source, _ = specialise(*launch)
        kinds.add(
            repr(
                {name: source[name] for name in ("signature", "attrs")}
                | {"ones": sorted(source["constexprs"])}
            )
        )
    assert len(kinds) == 1


@ARCHITECTURES
def test_blocks_of_float16(capability, record, tmp_path):
    result = compile_launch(blocks_launches(record, "64", torch.float16)[0], capability, tmp_path)
    check_resources(result, capability)
    check_tensor_cores(result, MMA[capability])
    check_wide_copies(result)


@ARCHITECTURES
def test_splits_are_added(capability, record, tmp_path):
    panel, add = blocks_launches(record, "lone", tokens=4096, accumulate=True)
    partial = panel[1][0][0][5]
    assert partial.dim() == 2 and partial.size(0) == 8, (
        "4096 tokens of one block are split in eight"
    )
    result = compile_launch(add, capability, tmp_path)
    check_resources(result, capability)
    assert count(result, "LDG.E.128") >= 2, "narrow loads"


def entries_launches(record, method, nnz=4000, dtype=torch.bfloat16, side=1024):
    names = ("_transpose_kernel", "_dots_kernel", "_take_kernel")
    launches = [record(selected_wgrad_entries, name) for name in names]
    operand = torch.empty(512, side, dtype=dtype)
    method(torch.empty(nnz), operand, operand, torch.arange(nnz, dtype=torch.int32), False)
    return {name: launched[0] for name, launched in zip(names, launches) if launched}


@pytest.mark.parametrize("nnz", [64, 4000], ids=["compact", "all"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@ARCHITECTURES
def test_dots(nnz, dtype, capability, record, tmp_path):
    """An entry is two contiguous runs.

    Only the features of few entries are gathered one by one, to become such runs.
    """
    launches = entries_launches(record, selected_wgrad_entries.dots, nnz, dtype)
    for name, launch in launches.items():
        result = compile_launch(launch, capability, tmp_path)
        check_resources(result, capability)
        # 64 features apart from each other are loads of an element each
        wide = 8 if name == "_dots_kernel" else nnz == 4000
        assert count(result, "LDG.E.128") >= wide, "narrow loads"
        assert name == "_dots_kernel" or count(result, "STG.E.128") >= 4, "narrow stores"


@ARCHITECTURES
def test_entries_of_strips(capability, record, tmp_path):
    launches = entries_launches(record, selected_wgrad_entries.by_strips)
    check_resources(compile_launch(launches["_take_kernel"], capability, tmp_path), capability)


def test_sizes_of_one_compile(record, tmp_path):
    """Triton compiles an argument that is 1 in as a constant, which the interpreter never does."""
    launches = list(entries_launches(record, selected_wgrad_entries.dots, nnz=1, side=1).values())
    launches += entries_launches(record, selected_wgrad_entries.by_strips, nnz=1, side=1).values()
    kernels = [
        record(selected_wgrad_blocks, kernel) for kernel in ("_panel_kernel", "_sum_splits_kernel")
    ]
    one, index = torch.ones(1, 1, dtype=torch.bfloat16), torch.zeros(1, 2, dtype=torch.int64)
    selected_wgrad_blocks.wgrad_of_blocks([(torch.ones(1, 1, 1), one, one, index, 1, 1)], True)
    for launch in launches + sum(kernels, []):
        compile_launch(launch, 90, tmp_path)


def test_offsets_of_values_past_two_to_the_31_compile(record, tmp_path):
    """A block of 2**32 values, which only a GPU could hold.

    64-bit offsets, within the registers.
    """
    launches, side = record(selected_wgrad_blocks, "_panel_kernel"), 1 << 16
    operand, index = (
        torch.empty(64, side, dtype=torch.bfloat16),
        torch.zeros(1, 2, dtype=torch.int32),
    )
    values = torch.empty(1, side, side, device="meta")
    selected_wgrad_blocks.wgrad_of_blocks([(values, operand, operand, index, side, side)], False)
    assert launches[0][2]["OFFSET"].primitive_bitwidth == 64
    for capability in compiled.CAPABILITIES:
        check_resources(compile_launch(launches[0], capability, tmp_path), capability)


def test_gathered_features_are_not_gathered_again(monkeypatch):
    """The forward keeps the selected columns, one copy for q, k and v.

    Their products read it as it is.
    """
    monkeypatch.setattr(selected_wgrad_gemm, "gather_selected_triton", None)
    grad_output, kept, index = torch.randn(9, 33), torch.randn(9, 4), torch.arange(4)
    assert selected_wgrad_gemm._features(kept, index) is kept
    assert torch.equal(
        selected_wgrad_gemm.wgrad_of_columns(grad_output, kept, index), grad_output.t() @ kept
    )
    with pytest.raises(TypeError):  # three fp32 numbers do not end on 16 bytes: our gather's work
        selected_wgrad_gemm.wgrad_of_columns(grad_output, torch.randn(9, 5), torch.arange(3))


def test_each_check_can_fail(record, tmp_path):
    kernel, arguments, options = blocks_launches(record, "64")[0]
    greedy = compile_launch((kernel, arguments, {**options, "num_stages": 8}), 90, tmp_path)
    with pytest.raises(AssertionError, match="bytes of shared memory"):
        check_resources(greedy, 90)
    crowded = compile_launch((kernel, arguments, {**options, "num_warps": 2}), 80, tmp_path)
    with pytest.raises(AssertionError, match="bytes of stack"):
        check_resources(crowded, 80)
    scalar = compile_launch(blocks_launches(record, "lone", torch.float32)[0], 90, tmp_path)
    with pytest.raises(AssertionError, match="no HGMMA"):
        check_tensor_cores(scalar, MMA[90])
    with pytest.raises(AssertionError, match="an operand is transposed"):
        check_reads_as_stored(scalar)
    narrow = {**options, "VECTOR_P": 2, "VECTOR_Q": 2}
    with pytest.raises(AssertionError, match="copies to shared memory below 16 bytes"):
        check_wide_copies(compile_launch((kernel, arguments, narrow), 90, tmp_path))


@pytest.mark.parametrize("kind", ["rows", "blocks"])
@ARCHITECTURES
def test_taking_from_strips(kind, capability, record, tmp_path):
    launches = record(selected_wgrad_strips, "_take_located_kernel")
    index = {"rows": torch.arange(4), "blocks": torch.zeros(4, 2, dtype=torch.int32)}[kind]
    values = torch.empty({"rows": (4, 64), "blocks": (4, 16, 16)}[kind], dtype=torch.bfloat16)
    operand = torch.zeros(8, 64)
    selected_wgrad_strips.wgrad_by_strips(values, operand, operand, kind, index, 16, 16, True)
    check_resources(compile_launch(launches[0], capability, tmp_path), capability)
