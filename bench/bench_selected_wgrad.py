"""selected_wgrad: the weight gradient at the selected entries, against dense products,
sampled_addmm and loops of GEMMs.
"""

import functools

import torch

from bench.cases import SHAPES, Case, selection
from bench.cases import TOKENS as MODEL_TOKENS
from bench.suite import Unavailable, must, without_bf16
from sparse_ft import ops

OP = "selected_wgrad"
TESTS = ["tests/ops/test_selected_wgrad.py", "tests/native/test_selected_wgrad.py"]
GEMM_BF16 = True
SIDE = 2048  # tokens, rows and columns of the cases that carry a promise
DENSITIES = {  # fp32, quick; full adds what lies between
    "entries": (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0),
    "rows": (0.01, 0.05, 0.1, 0.25, 1.0),
    "columns": (0.01, 0.05, 0.1, 0.25, 1.0),
    "blocks": (0.01, 0.05, 0.1, 0.25, 1.0),
}
CLOSE = (
    0.25  # density from which dense + gather comes near, and sampled_addmm takes most of a second
)
HALF = (0.01, 0.05, 0.1)  # densities of entries measured with bf16 operands


def cases(size):
    if size == "tiny":
        return [
            Case(_name(kind, 0.1, dtype), kind, 0.1, dtype, (128, 128), 16, 0.02)
            for kind in DENSITIES
            for dtype in ("float32", "bfloat16")
        ]
    found = [
        Case(_name(kind, d, "float32"), kind, d, "float32", (SIDE, SIDE), SIDE, 1.0)
        for kind in DENSITIES
        for d in DENSITIES[kind]
    ]
    found += [
        Case(_name("entries", d, "bfloat16"), "entries", d, "bfloat16", (SIDE, SIDE), SIDE, 1.0)
        for d in HALF
    ]
    if size == "full":
        found += [
            Case(
                f"{_name(kind, 0.01, 'float32')}, {model} {layer}",
                kind,
                0.01,
                "float32",
                shape,
                MODEL_TOKENS[model],
                4.0,
            )
            for model, layers in SHAPES.items()
            for layer, shape in layers.items()
            for kind in DENSITIES
        ]
    return found


def _name(kind, density, dtype):
    return f"{kind} {100 * density:g} % {'fp32' if dtype == 'float32' else 'bf16'}"


def bound(case, ceilings):
    """The larger of the dense product's time at same-run GEMM rate × density, and the bytes to move
    at copy bandwidth.
    """
    arithmetic = (
        2 * case.tokens * case.shape[0] * case.shape[1] * case.density / ceilings.gemm[case.dtype]
    )
    return max(arithmetic, moved_bytes(case) / ceilings.copy)


def moved_bytes(case):
    """Bytes that must be read and written at least.

    The used features of both operands, the fp32 result.
    """
    (rows, columns), element = case.shape, getattr(torch, case.dtype).itemsize
    used = {"rows": (case.density * rows, columns), "columns": (rows, case.density * columns)}.get(
        case.kind, (rows, columns)
    )
    return case.tokens * sum(used) * element + 4 * case.density * rows * columns


def providers(case):
    dtype = getattr(torch, case.dtype)
    # [T, rows], [T, columns]
    grad_output, input = (torch.randn(case.tokens, size).to(dtype) for size in case.shape)
    chosen = selection(case.kind, case.shape, case.density)
    index = chosen.index.long()

    def dense():
        if case.dtype == "bfloat16" and without_bf16():
            raise Unavailable(without_bf16())
        return lambda: grad_output.T @ input

    found = {
        "ours": lambda: lambda: ops.selected_wgrad(grad_output, input, *chosen.layout),
        "dense": dense,
    }
    if case.dtype == "bfloat16":
        found["dense, converted to fp32"] = lambda: lambda: grad_output.float().T @ input.float()
    if case.dtype == "float32" and case.density >= CLOSE:
        found["dense + gather"] = lambda: (
            lambda: ops.gather_selected(grad_output.T @ input, *chosen.layout)
        )
    if case.kind == "entries" and case.dtype == "float32" and case.density < CLOSE:
        found["sampled_addmm"] = lambda: _sampled(grad_output, input, index)
    if case.density == 1:  # nothing to choose: what is left to compare with is dense + gather
        return found
    if case.kind == "rows":
        found["gather + GEMM"] = lambda: lambda: grad_output.index_select(1, index).T @ input
    if case.kind == "columns":
        found["gather + GEMM"] = lambda: lambda: grad_output.T @ input.index_select(1, index)
    if case.kind == "blocks":
        found["loop of GEMMs"] = lambda: _loop(grad_output, input, chosen)
    return found


def _sampled(grad_output, input, index):
    """torch.sparse.sampled_addmm on a CSR pattern that was made beforehand."""
    rows, columns = grad_output.size(1), input.size(1)
    counts = torch.bincount(index // columns, minlength=rows)
    start = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    pattern = torch.sparse_csr_tensor(
        start,
        index % columns,
        input.new_zeros(index.size(0)),
        (rows, columns),
        check_invariants=False,
    )
    return lambda: torch.sparse.sampled_addmm(pattern, grad_output.T, input, beta=0.0)


def _loop(grad_output, input, chosen):
    """One product a block, into its place in values."""
    (height, width), places = chosen.block_size, chosen.index.tolist()
    values = input.new_empty(len(chosen), height, width)

    def loop():
        for out, (row, column) in zip(values, places):
            torch.mm(
                grad_output[:, row * height : (row + 1) * height].T,
                input[:, column * width : (column + 1) * width],
                out=out,
            )
        return values

    return loop


# (density, at least so many times faster)
ENTRIES = ((0.001, 40), (0.01, 14), (0.05, 5.5), (0.1, 3.5))
ENTRIES_BF16 = ((0.01, 7), (0.05, 3), (0.1, 1.8))
SAMPLED = ((0.01, 1.5), (0.05, 2), (0.1, 2))
BLOCKS = ((0.05, 15), (0.1, 8), (0.25, 3.5))
OF_ROOFLINE = ((0.01, 0.55), (0.05, 0.7), (0.1, 0.7), (0.25, 0.7))


def _of_roofline(found, name):
    """Share of the larger of the dense product's own time × density, in paired rounds, and the
    bytes at copy bandwidth.
    """
    case, arithmetic, taken = found.cases[name], found.ratio(name, "dense"), found.median(name)
    if arithmetic is None:
        return None
    return max(case.density * arithmetic, moved_bytes(case) / found.ceilings.copy / taken)


def musts(found):
    """Each with the key `<kind>-<percent>-<dtype>.<what>`."""
    result = []

    def add(kind, targets, what, text, measure, dtype="float32", unmeasured=""):
        for density, target in targets:
            name = _name(kind, density, dtype)
            if name in found.cases:
                key = f"{name.replace(' % ', '-').replace(' ', '-')}.{what}"
                line = f"{name}: {text}"
                row = must(found, OP, key, line, measure(name), target, unmeasured=unmeasured)
                result.append(row)

    def than(slow):
        return lambda name: found.ratio(name, slow)

    faster = "times as fast as "
    dense, sampled = than("dense"), than("sampled_addmm")
    add("entries", ENTRIES, "than_dense", f"{faster}dense fp32", dense)
    half = "bfloat16", without_bf16()
    add("entries", ENTRIES_BF16, "than_dense", f"{faster}dense bf16", dense, *half)
    add("entries", SAMPLED, "than_sampled_addmm", f"{faster}sampled_addmm", sampled)
    add("blocks", BLOCKS, "than_dense", f"(64 × 64) {faster}dense fp32", dense)
    for kind in ("rows", "columns"):
        share = functools.partial(_of_roofline, found)
        add(kind, OF_ROOFLINE, "of_roofline", "share of its roofline", share)
    slowest = {name: found.ratio(name, "ours", "dense + gather") or 0 for name in found.cases}
    name = max(slowest, key=slowest.get, default="")
    line = "at any density: time over dense fp32 + gather, at worst"
    worst = slowest.get(name) or None
    key = "any.over_dense_and_gather"
    return [*result, must(found, OP, key, line, worst, 1.05, at_least=False, note=name)]
