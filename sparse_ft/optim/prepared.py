"""PreparedRows: what the native core needs to know of parameters that step again and again, checked
once.
"""

import torch

from .._torch import is_undisturbed
from ..ops import _native
from ..ops._adamw_rows import row_of
from ..ops._library import plain
from .kept import ABSMAXES, state_of
from .pages import use_huge_pages


class PreparedRows:
    """Rows for `ops.masked_adamw.step_rows`, kept from step to step while the tensors that they
    tell of stay in place.
    """

    def __init__(self):
        # id of a parameter -> (what tells that its row holds, the row, who must live for that)
        self._known = {}

    def rows(self, entries):
        """A row for each (parameter, five numbers, state, owner, seed); None unless the native core
        takes them all.
        """
        if _native.C is None or not is_undisturbed():
            return None
        rows = []
        for p, settings, state, owner, seed in entries:
            (stride, dtype, count, *_), row, _ = self._of(p, state, owner, seed)
            grad = p.grad
            if row is None or type(grad) is not torch.Tensor or grad.dtype != dtype:
                return None
            if grad.stride() != stride or grad.numel() != count or grad.is_neg():
                return None
            address = grad.data_ptr()
            if not address and count:  # zeros without memory
                return None
            rows.append((row[0], address, *row[1], *settings, 0))
        return rows

    def _of(self, p, state, owner, seed):
        exp_avg, exp_avg_sq, step = state["exp_avg"], state["exp_avg_sq"], state["step"]
        holds = (
            p.stride(), p.dtype, p.numel(), p.data_ptr(), p.is_neg(), seed,
            exp_avg.numel(), exp_avg.data_ptr(), exp_avg_sq.numel(), exp_avg_sq.data_ptr(), step.data_ptr(),
        )  # fmt: skip
        for name in ("correction", *ABSMAXES):
            if name in state:
                holds += state[name].numel(), state[name].data_ptr()
        selection = None
        if owner is not None:
            weight, selection = owner._weight(), owner._sparse_ft_state.selection
            holds += (
                weight.stride(),
                weight.dtype,
                weight.data_ptr(),
                id(selection),
                owner._sparse_ft_state.tracked._version,
            )
            holds += (selection.index.data_ptr(),)
        known = self._known.get(id(p))
        if known is None or known[0] != holds:
            through = () if owner is None else (owner._matrix(), *selection.layout)
            ordinary = plain((p, *state.values(), *through[:1]))
            row = row_of(state_of(p, state, seed), step, *through) if ordinary else None
            if row is not None and owner is not None:
                use_huge_pages(
                    selection.kind, weight, p, *(t for t in state.values() if t is not step)
                )  # they have come to stay
            known = self._known[id(p)] = holds, row, (p, selection)
        return known
