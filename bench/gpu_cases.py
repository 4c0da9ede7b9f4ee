"""The cases of stage `ops`: what is called, what it is checked against, what it is compared with,
what it should keep.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bench import gpu_floors as floors
from bench.cases import (
    GPU_LARGE,
    GPU_LAYER_TOKENS,
    GPU_OTHERS,
    GPU_TOKENS,
    LAYER_1B,
    SQUARE,
    Case,
    selection,
)
from bench.optimizers import HYPER
from sparse_ft import ops
from sparse_ft.ops._registry import reference

TINY_TOKENS, TINY = 64, (256, 128)
KINDS = ("rows", "columns", "blocks", "entries")


@dataclass(frozen=True)
class Work:
    """Callables on tensors that exist.

    The variants to time, and two that return the tensors to compare.

    again: what repeats are compared by, on the device; None: `got`. launches: whose launches are
    counted; None: "ours".
    """

    variants: dict
    got: Callable
    want: Callable
    again: Callable | None = None
    launches: Callable | None = None


def cases(size):
    tiny = size == "tiny"
    tokens, shape, large = (TINY_TOKENS, TINY, TINY) if tiny else (GPU_TOKENS, SQUARE, GPU_LARGE)
    densities = (0.05,) if tiny else floors.DENSITIES
    many = () if tiny else floors.MANY
    found = [
        wgrad(kind, tokens, shape, d)
        for kind in KINDS
        for d in densities + (many if kind == "blocks" else ())
    ]
    found += [
        wgrad("blocks", tokens, shape, 0.05, block, f", {block} x {block}")
        for block in ((16,) if tiny else (16, 32, 128))
    ]
    if not tiny:
        for name, other in GPU_OTHERS.items():
            found += [wgrad(kind, tokens, other, 0.01, what=f", {name}") for kind in KINDS]
    layer = (tokens, [TINY] * 3, 0.25) if tiny else (GPU_LAYER_TOKENS, LAYER_1B, 0.01)
    found.append(grouped(*layer))
    found += [
        adamw(kind, large, d)
        for kind in KINDS
        for d in (densities if kind == "entries" else densities[-1:])
    ]
    found.append(adamw("columns", TINY if tiny else (1024, 1024), 0.05, 3 if tiny else 576))
    found += [
        moved(op, kind, large, 0.05)
        for op in ("gather_selected", "scatter_selected")
        for kind in KINDS
    ]
    return found + [stream(op, 1 << 10 if tiny else floors.STREAM) for op in floors.STREAMS]


def _operands(tokens, shape, device):
    # grad_output, input
    return [torch.randn(tokens, size, device=device).bfloat16() for size in shape]


def wgrad(kind, tokens, shape, density, block=64, what=""):
    phases, method = floors.selected_wgrad(kind, tokens, shape, density, floors.H200)
    if kind == "blocks" and method != "strips":
        phases = floors.blocks_wgrad(tokens, shape, density, block)

    def make(device):
        grad_output, input = _operands(tokens, shape, device)
        chosen = selection(kind, shape, density, block, device=device)
        index, layout = chosen.index.long(), chosen.layout
        # As the forward keeps it.
        given = input[:, index].contiguous() if kind == "columns" else input

        def ours():
            return ops.selected_wgrad(grad_output, given, *layout)

        def dense():
            return grad_output.T @ input

        variants = {
            "ours": ours,
            "dense": dense,
            "dense + gather": lambda: ops.gather_selected(dense(), *layout),
        }
        if kind == "rows":
            variants["library"] = lambda: grad_output.index_select(1, index).T @ input
        if kind == "columns":
            variants["library"] = lambda: grad_output.T @ given

        def want():
            exact = grad_output.float().T @ input.float()
            return [ops.gather_selected(exact, *layout)]

        return Work(variants, lambda: [ours()], want)

    name = floors.name("selected_wgrad", kind, density) + what
    promise = functools.partial(_wgrad_promise, kind, density)
    about = name, kind, density, "bfloat16", shape, tokens
    return Case(*about, phases=phases, make=make, promise=promise)


def grouped(tokens, shapes, density, block=64):
    """All weights of a layer in one call, which share a launch where their tiles are alike."""

    def make(device):
        operands = [_operands(tokens, shape, device) for shape in shapes]
        chosen = [selection("blocks", shape, density, block, device=device) for shape in shapes]
        layouts = [each.layout for each in chosen]
        kinds, indices, *blocks = zip(*layouts)
        problems = (
            *map(list, zip(*operands)),
            list(kinds),
            list(indices),
            [size for pair in zip(*blocks) for size in pair],
        )

        def alone():
            return [ops.selected_wgrad(*pair, *layout) for pair, layout in zip(operands, layouts)]

        def want():
            return [
                ops.gather_selected(a.float().T @ b.float(), *layout)
                for (a, b), layout in zip(operands, layouts)
            ]

        variants = {"ours": lambda: ops.selected_wgrad_grouped(*problems), "one by one": alone}
        variants["library"] = lambda: [a.T @ b for a, b in operands]
        return Work(variants, variants["ours"], want)

    phases = floors.grouped_wgrad([(tokens, shape) for shape in shapes], density)
    name = floors.name("selected_wgrad_grouped", "blocks", density) + f", {len(shapes)} layers"

    def promise(times, bound, ceilings):
        return "each by itself", times["one by one"]

    about = name, "blocks", density, "bfloat16", shapes[0], tokens
    return Case(*about, phases=phases, make=make, promise=promise)


def _wgrad_promise(kind, density, times, bound, ceilings):
    if kind in ("rows", "columns"):
        return "85 % of gather + library product", times["library"] / 0.85
    if kind == "blocks":
        # At any density.
        return "80 % of its floor, and dense + gather", min(bound / 0.8, times["dense + gather"])
    if density <= 0.001:
        return "half of the dense product", 0.5 * times["dense"]
    return "1.10 x the dense product", 1.10 * times["dense"]


def adamw(kind, shape, density, tensors=1):
    nnz = tensors * density * shape[0] * shape[1]

    def make(device):
        chosen = selection(kind, shape, density, device=device)
        layout_kind, index, *block = chosen.layout
        layouts = [layout_kind] * tensors, [index] * tensors, block * tensors
        weights = [torch.randn(shape, device=device).bfloat16() for _ in range(tensors)]
        values = [chosen.gather(weight, dtype=torch.float32) for weight in weights]
        grads, moments = (
            [torch.randn_like(v) for v in values],
            [[torch.zeros_like(v) for v in values] for _ in range(2)],
        )
        steps, fused_steps = ([torch.zeros((), device=device) for _ in values] for _ in range(2))
        state, keywords = (
            (values, grads, *moments, steps, weights),
            {name: [x] * tensors for name, x in HYPER.items()},
        )

        def once(function):
            copies = [[t.clone() for t in tensors] for tensors in state]
            function(*copies, *layouts, **keywords)
            return [t for tensors in copies for t in tensors]

        def scatter():
            for weight, value in zip(weights, values):
                ops.scatter_selected_(weight, value, *chosen.layout)

        def fused():
            torch._foreach_add_(fused_steps, 1)
            torch._fused_adamw_(
                values, grads, *moments, [], fused_steps, amsgrad=False, maximize=False, **HYPER
            )
            scatter()

        found_inf = torch.zeros((), device=device)
        # As under mixed precision: the look is a launch of its own.
        looks = dict(found_inf=found_inf, skip_nonfinite=True)
        ours = {"ours": lambda: ops.masked_adamw_(*state, *layouts, **keywords)}
        variants = {**ours, "scatter alone": scatter, "fused on values, scatter": fused}

        def looking():
            ops.masked_adamw_(*state, *layouts, **keywords, **looks)

        return Work(
            variants,
            lambda: once(ops.masked_adamw_),
            lambda: once(reference("masked_adamw_")),
            launches=looking,
        )

    def promise(times, bound, ceilings):
        streams = nnz * (28 + floors.index_bytes(kind)) / ceilings.copy
        return "1.25 x (streams + scatter alone)", 1.25 * (streams + times["scatter alone"])

    what = f", {tensors} tensors" if tensors > 1 else ""
    about = floors.name("masked_adamw_", kind, density) + what, kind, density, "bfloat16", shape
    phases = floors.adamw(kind, nnz, density)
    return Case(*about, phases=phases, make=make, promise=promise, tolerance=1e-3)


def moved(op, kind, shape, density):
    nnz = density * shape[0] * shape[1]

    def make(device):
        chosen = selection(kind, shape, density, device=device)
        on_host = chosen.to("cpu")
        weight = torch.randn(shape, device=device).bfloat16()
        values = torch.randn(chosen.values_shape(shape), device=device)
        if op == "gather_selected":
            variants = {
                "ours": lambda: ops.gather_selected(weight, *chosen.layout, dtype=torch.float32)
            }
            if kind in ("rows", "columns"):
                index, dim = chosen.index.long(), ("rows", "columns").index(kind)
                variants["library"] = lambda: weight.index_select(dim, index).float()

            def again():
                return [variants["ours"]()]

            return Work(
                variants,
                lambda: [again()[0].cpu()],
                lambda: [on_host.gather(weight.cpu(), dtype=torch.float32)],
                again,
            )
        before = weight.clone()

        def ours():
            ops.scatter_selected_(weight, values, *chosen.layout)

        def got():
            ours()
            return [weight.cpu()]

        def again():
            ours()
            return [weight]

        return Work(
            {"ours": ours}, got, lambda: [on_host.scatter_(before.cpu(), values.cpu())], again
        )

    about = floors.name(op, kind, density), kind, density, "bfloat16", shape
    return Case(*about, phases=floors.copied(kind, nnz, density), make=make, tolerance=1e-6)


TWO = (2, 2), (2, 2), (0, 0), (1, 1)  # kernel size, stride, padding, dilation


def stream(op, count):
    """Ops that touch every element of activations once.

    `count` elements in rows of 1024 or fewer.
    """

    def make(device):
        x, y, z = (torch.randn(count // 1024, 1024, device=device).bfloat16() for _ in range(3))
        weight, pictures = (
            torch.ones(1024, device=device, dtype=torch.bfloat16),
            y.view(-1, 64, 4, 4),
        )
        variance, zero, changed = (
            torch.linspace(0.5, 2.0, 64, device=device),
            weight.new_zeros(64),
            z.view(-1, 64, 4, 4),
        )
        # An op that fails takes no other one with it.
        bits = ops.positive_bits(x) if op == "where_bits" else None
        rstd = ops.rms_norm(x, weight, 1e-6, 0.0)[1] if op == "rms_norm_backward" else None
        silu, norm = torch.nn.functional.silu, torch.nn.functional.rms_norm
        ours = {
            "rms_norm": lambda: ops.rms_norm(x, weight, 1e-6, 0.0),
            "rms_norm_backward": lambda: ops.rms_norm_backward(y, x, rstd, weight, 0.0),
            "gated_product": lambda: ops.gated_product(x, y, "silu"),
            "gated_product_backward": lambda: ops.gated_product_backward(z, x, y, "silu"),
            "positive_bits": lambda: ops.positive_bits(x),
            "relu_bits": lambda: ops.relu_bits(x, z),
            "where_bits": lambda: ops.where_bits(y, bits, 1.0),
            # again: nothing changes
            "batch_norm_": lambda: ops.batch_norm_(changed, zero, zero + 1, None, None, 0.0, True),
            "batch_norm_backward": lambda: ops.batch_norm_backward(
                pictures, weight[:64], variance, 1e-5
            ),
            "max_pool": lambda: ops.max_pool(pictures, *TWO),
        }[op]
        library = {
            "rms_norm": lambda: norm(x, (1024,), weight, 1e-6),
            "gated_product": lambda: silu(x) * y,
            "positive_bits": lambda: x > 0,
            "relu_bits": lambda: x.relu(),
            "where_bits": lambda: torch.where(x > 0, y, 0),
            "max_pool": lambda: torch.nn.functional.max_pool2d(pictures, *TWO, return_indices=True),
        }.get(op)
        return Work(
            {"ours": ours, **({"library": library} if library else {})},
            lambda: _first(ours()),
            lambda: _plain(op, x, y, z),
        )

    phases, shape = floors.streamed(count, floors.STREAMS[op]), (count // 1024, 1024)
    return Case(op, "stream", dtype="bfloat16", shape=shape, phases=phases, make=make)


def _first(result):
    return list(result[:1]) if isinstance(result, tuple) else [result]


def _plain(op, x, y, z):
    """The first result of the op in fp32, by torch and its autograd."""
    a, b, c = (t.float().requires_grad_() for t in (x, y, z))
    if op.startswith("rms_norm"):
        out = torch.nn.functional.rms_norm(a, (1024,), eps=1e-6)
        return [out] if op == "rms_norm" else [torch.autograd.grad(out, a, b)[0]]
    if op.startswith("gated_product"):
        out = torch.nn.functional.silu(a) * b
        return [out] if op == "gated_product" else [torch.autograd.grad(out, a, c)[0]]
    if op == "where_bits":
        return [torch.where(a > 0, b, 0)]
    if op == "batch_norm_backward":
        rstd = (torch.linspace(0.5, 2.0, 64, device=x.device) + 1e-5).rsqrt()
        return [b.view(-1, 64, 4, 4) * rstd.view(-1, 1, 1)]
    if op == "max_pool":
        return [torch.nn.functional.max_pool2d(b.view(-1, 64, 4, 4), *TWO)]
    places = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], device=x.device)
    signs = z if op == "batch_norm_" else x
    return [((signs > 0).reshape(-1, 8) * places).sum(1)]
