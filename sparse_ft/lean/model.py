"""lean: put lean forwards into a model that exists, and take them out again."""

import functools

from . import recognise
from .attention import use_lean_attention
from .report import LeanReport, LeanRow

_RECORD = "_sparse_ft_lean"  # on the model: the names of the modules that were changed, and the attention it had


def lean(model):
    """Let `model` keep for backward only what backward needs, in place, on this model only. Returns a `LeanReport`.

    model: nn.Module; its results stay as they were up to rounding. Classes, parameters, state_dict and hooks stay; each
    changed module gets a `forward` of its own, which `sft.revert` takes away again. Works before and after `sft.convert`;
    doing it again changes nothing. What is not known is left alone, and the report says so.
    """
    rows, changed = [], []
    record = model.__dict__.get(_RECORD, ([], None))
    for name, module in model.named_modules():
        if is_lean(module):
            rows.append(LeanRow(name, type(module).__name__, True, ""))
            continue
        found = recognise.lean_forward(module)
        if found is None:
            continue
        forward, why = found
        if forward is not None:
            module.__dict__["forward"] = functools.partial(forward, module)
            changed.append(name)
        rows.append(LeanRow(name, type(module).__name__, forward is not None, why))
    attention = use_lean_attention(model) or record[1]
    model.__dict__[_RECORD] = record[0] + changed, attention
    return LeanReport(rows, attention is not None)


def is_lean(module):
    """Whether `lean` gave this module its forward."""
    forward = module.__dict__.get("forward")
    return isinstance(forward, functools.partial) and getattr(forward.func, "__module__", "").startswith(__package__)


def unlean(model):
    """Undo `lean`: every module runs its class's forward again. Returns whether there was anything to undo."""
    record = model.__dict__.pop(_RECORD, None)
    if record is None:
        return False
    for module in model.modules():
        if is_lean(module):
            del module.__dict__["forward"]
    if record[1] is not None:
        model.set_attn_implementation(record[1])
    return True
