"""selected_wgrad_grouped: several weight gradients at their selected entries in one call."""

from torch import Tensor

from ._library import wrote
from ._registry import Whole, launcher, op, reference
from ._wgrad_group import ARGUMENTS, Group, check_layouts, group_into, group_of
from .selected_wgrad import check_into, selected_wgrad, selected_wgrad_, shapes

TRITON = "selected_wgrad.selected_wgrad_grouped_triton"


def _shapes(group: Group) -> list[Tensor]:
    return [shapes(*problem, group.dtype) for problem in group.problems]


def _check_into(group: Group) -> None:
    for values_grad, problem in zip(group.values_grads, group.problems):
        check_into(values_grad, *problem)


def _one_by_one(group: Group) -> list[Tensor]:
    return [selected_wgrad(*problem.flat(), dtype=group.dtype) for problem in group.problems]


def _one_by_one_(group: Group) -> None:
    _check_into(group)  # of all, before any is written
    for values_grad, problem in zip(group.values_grads, group.problems):
        selected_wgrad_(values_grad, *problem.flat())


def _triton(group: Group) -> list[Tensor]:
    return launcher(TRITON)(group.of_triton(), dtype=group.dtype)


def _triton_(group: Group) -> None:
    launcher(f"{TRITON}_")(group.values_grads, group.of_triton())
    wrote(*group.values_grads)


@op(
    f"selected_wgrad_grouped({ARGUMENTS}, *, ScalarType? dtype=None) -> Tensor[] values",
    takes=group_of,
    shapes=_shapes,
    cpu=Whole(_one_by_one),
    triton=Whole(_triton),
    before=check_layouts,
)
def selected_wgrad_grouped(group: Group) -> list[Tensor]:
    """`[selected_wgrad(...) for each problem]`, the same bits, for a caller that holds several
    gradients at one time.

    grad_outputs: [T, rows] each. inputs: [T, columns] each; T, shapes, kinds and dtypes may differ
    from problem to problem. kinds, indices: one a problem. blocks: block_h, block_w, block_h,
    block_w, …. dtype: of the results, default that of each accumulator. On a GPU, blocks of 16-bit
    operands share launches, 16 problems each, where they have one tile; every other problem is a
    call of its own, as all are on the CPU. Raises ValueError or TypeError that names the argument.

    Experts that hold their weights in one parameter (`sparse_ft.experts`) have the gradients of a
    grouped product at one time.
    """
    one = reference("selected_wgrad")
    return [one(*problem.flat(), dtype=group.dtype) for problem in group.problems]


@op(
    f"selected_wgrad_grouped_(Tensor(a!)[] values_grads, {ARGUMENTS}) -> ()",
    takes=group_into,
    shapes=_check_into,
    cpu=Whole(_one_by_one_),
    triton=Whole(_triton_),
    before=check_layouts,
)
def selected_wgrad_grouped_(group: Group) -> None:
    """`values_grads[i] += selected_wgrad_grouped(…)[i]` in place; nothing is written if any problem
    is refused.
    """
    one = reference("selected_wgrad_")
    for values_grad, problem in zip(group.values_grads, group.problems):
        one(values_grad, *problem.flat())
