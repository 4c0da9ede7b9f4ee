"""Stage `truth`: every op on a device against its reference in fp64 on the CPU, on tiny tensors.

Nothing is timed before this. Floats may be apart by rounding, in norm; integers not at all.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench.cases import selection
from bench.errors import error_of
from bench.gpu_cases import KINDS, cases
from bench.gpu_checks import check, poison
from bench.gpu_results import OK, RED, Results, why_of
from sparse_ft import ops
from sparse_ft.ops._registry import reference

STAGE = "truth"
# In fp32 a product in tf32 is off by 3e-4, one in fp32 by less than 1e-6.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
TOKENS = 33
# (rows, columns), block: what kernels like, and what they do not.
SHAPES = {"even": ((128, 64), 16), "odd": ((37, 53), 5)}
HYPER = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1}
WINDOW = (3, 2), (2, 1), (1, 0), (1, 2)  # kernel size, stride, padding, dilation


@dataclass(frozen=True)
class Call:
    """One call of an op, on the CPU."""

    op: str
    arguments: tuple[Any, ...]
    keywords: dict[str, Any] = field(default_factory=dict)


def calls(dtype: torch.dtype) -> Iterator[tuple[str, Call]]:
    """(what it is called, a call): every op, those of a structure for each and at each shape."""
    for name, call in elementwise(dtype):
        yield name, call
    for kind in KINDS:
        for shape, block in SHAPES.values():
            for call in of_structure(kind, shape, block, dtype):
                yield f"{call.op} {kind}", call


def numbers(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape).to(dtype)


def elementwise(dtype: torch.dtype) -> Iterator[tuple[str, Call]]:
    input, grad, other = (numbers(dtype, 4, 3, 8, 10) for _ in range(3))
    flat, flat_grad, weight = numbers(dtype, 6, 80), numbers(dtype, 6, 80), numbers(dtype, 80)
    of_channels = [numbers(dtype, 3), numbers(dtype, 3)]
    mean, variance = torch.randn(3), torch.rand(3) + 0.1
    rstd = (flat.float().square().mean(1) + 1e-6).rsqrt()
    bits = ops.positive_bits(input)
    for activation in ("silu", "gelu", "gelu_tanh"):
        yield (f"activation {activation}", Call("activation", (input, activation)))
        given = grad, input, activation
        yield f"activation_backward {activation}", Call("activation_backward", given)
        given = input, other, activation
        yield f"gated_product {activation}", Call("gated_product", given)
        given = grad, input, other, activation
        yield f"gated_product_backward {activation}", Call("gated_product_backward", given)
    named = {
        "rms_norm": (flat, weight, 1e-6, 0.0),
        "rms_norm_backward": (flat_grad, flat, rstd, weight, 1.0),
        "batch_norm_": (input, mean, variance, *of_channels, 1e-5, True),
        "batch_norm_backward": (grad, of_channels[0], variance, 1e-5, bits),
        "max_pool": (input, *WINDOW, False),
        "positive_bits": (input,),
        "relu_bits": (input, torch.zeros_like(input)),
        "where_bits": (grad, bits, 0.5),
    }
    for op, arguments in named.items():
        yield op, Call(op, arguments)


def of_structure(
    kind: str, shape: tuple[int, int], block: int, dtype: torch.dtype
) -> Iterator[Call]:
    rows, columns = shape
    chosen = selection(kind, shape, 0.2, block)
    layout = tuple(chosen.layout)
    matrix, values = numbers(dtype, *shape), torch.randn(chosen.values_shape(shape))
    values = chosen.gather(chosen.scatter_(torch.zeros(shape), values))  # nothing in the padding
    grad_output, input = numbers(dtype, TOKENS, rows), numbers(dtype, TOKENS, columns)
    # As the forward keeps it.
    input = input[:, chosen.index.long()].contiguous() if kind == "columns" else input
    name, index, *sides = layout
    listed = [grad_output], [input], [name], [index], sides
    yield Call("gather_selected", (matrix, *layout))
    yield Call("scatter_selected_", (matrix, values, *layout))
    yield Call("scatter_selected_", (matrix, values, *layout), {"accumulate": True})
    yield Call("swap_selected_", (matrix, chosen.gather(numbers(dtype, *shape)), *layout))
    yield Call("selected_wgrad", (grad_output, input, *layout))
    yield Call("selected_wgrad_", (values, grad_output, input, *layout))
    yield Call("selected_wgrad_grouped", listed)
    yield Call("selected_wgrad_grouped_", ([values], *listed))
    yield from adamw(matrix, values, layout)


def adamw(matrix: Tensor, values: Tensor, layout: tuple[Any, ...]) -> Iterator[Call]:
    """A step of one value that is written through and of a plain one."""
    kind, index, *sides = layout
    plain = torch.randn(7)
    both = [values, plain]
    grads = [torch.randn_like(each) for each in both]
    moments = [[torch.rand_like(each) for each in both] for _ in range(2)]
    steps = [torch.tensor(3.0), torch.tensor(4.0)]
    state = both, grads, *moments, steps, [matrix], [kind], [index], sides
    keywords = {name: [number] * len(both) for name, number in HYPER.items()}
    yield Call("masked_adamw_", state, keywords)
    looks = {"grad_scale": torch.tensor(4.0), "found_inf": torch.zeros(()), "skip_nonfinite": True}
    yield Call("masked_adamw_", state, {**keywords, **looks})


def mapped(function: Callable[[Tensor], Tensor], thing: Any) -> Any:
    """`function` of every tensor in nested tuples, lists and dicts."""
    if isinstance(thing, Tensor):
        return function(thing)
    if isinstance(thing, (list, tuple)):
        return type(thing)(mapped(function, each) for each in thing)
    if isinstance(thing, dict):
        return {name: mapped(function, each) for name, each in thing.items()}
    return thing


def tensors_of(thing: Any) -> list[Tensor]:
    found: list[Tensor] = []
    mapped(lambda tensor: found.append(tensor) or tensor, thing)
    return found


def after(function: Callable[..., Any], call: Call, move: Callable[[Tensor], Tensor]) -> list:
    """Everything that a call returns or may have written to, on the CPU."""
    arguments, keywords = mapped(move, call.arguments), mapped(move, call.keywords)
    result = function(*arguments, **keywords)
    return [tensor.cpu() for tensor in tensors_of([result, arguments, keywords])]


def exact(tensor: Tensor) -> Tensor:
    """In fp64, but for lone numbers, steps among them, whose dtype is part of the contract."""
    is_rounded = tensor.is_floating_point() and tensor.dim() > 0
    return tensor.double() if is_rounded else tensor.clone()


def apart(call: Call, device: torch.device) -> float:
    """The relative error of a call on a device; raises ArithmeticError where integers differ."""
    got = after(getattr(ops, call.op), call, lambda t: t.clone().to(device))
    want = after(reference(call.op), call, exact)
    for one, other in zip(got, want, strict=True):
        if not one.is_floating_point() and not torch.equal(one, other):
            differ = int((one != other).sum())
            raise ArithmeticError(f"{differ} of {other.numel()} integers differ")
    floats = [(one, other) for one, other in zip(got, want) if one.is_floating_point()]
    return error_of([one for one, _ in floats], [other for _, other in floats]) if floats else 0.0


def judge(named: Sequence[tuple[Call, torch.dtype]], device: torch.device) -> tuple[str, str]:
    """(status, note) of the calls of one name, which may differ in shape and dtype."""
    notes = []
    for call, dtype in named:
        poison(device)
        error = apart(call, device)
        if not error <= TOLERANCES[dtype]:
            allowed = f"allowed {TOLERANCES[dtype]:.0e} in {dtype}"
            return RED, f"relative error {error:.2e}, {allowed}"
        notes.append(error)
    return OK, f"error at most {max(notes):.1e} in {len(named)} calls"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", type=torch.device)
    given = parser.parse_args(arguments)
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)  # `empty` then holds NaN
    results = Results(device=str(given.device), torch=torch.__version__)
    named: dict[str, list[tuple[Call, torch.dtype]]] = {}
    for dtype in TOLERANCES:
        for name, call in calls(dtype):
            named.setdefault(name, []).append((call, dtype))
    work = {name: lambda each=each: judge(each, given.device) for name, each in named.items()}
    for case in cases("tiny"):
        work[f"bench: {case.name}"] = lambda case=case: check(case, given.device, repeats=1)
    for name, question in work.items():
        try:
            status, note = question()
        except Exception as problem:  # noqa: BLE001 - the other ops go on
            status, note = RED, why_of(problem)
        results.add(STAGE, name, status=status, note=note)
    return 0  # what is red has a row


if __name__ == "__main__":
    sys.exit(main())
