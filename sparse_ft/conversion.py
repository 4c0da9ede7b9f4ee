"""convert and revert: put selective modules into a model that exists, and take them out again."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from .carried import attach, detach
from .converted import RECORD, Record, record_of, report_of, selected_in
from .lean_modules import lean as make_lean
from .lean_modules import lean_state, restore_lean_state, unlean
from .messages import check_module
from .nn.alias import SelectedParameter
from .nn.foreign import check_numbers, check_whole
from .nn.held_apart import warn_of_held_apart
from .nn.linear import is_adopted, restore
from .nn.lost import LOST, lost_from, unwatch, warn_of_adapters, watch
from .nn.origin import forget_whole, keep_whole
from .nn.selected import Selected
from .nn.sharded import WHOLE, refuse_sharded
from .nn.tied import is_tied, untie
from .nn.transformers_cut import refuse_cut_by_transformers
from .places import Settings, actions, check_names, find, matrix_shape
from .plan import ALL, Plan
from .quantised.module import warn_of_discarded
from .quantised.transformers_mark import as_before, let_train
from .ranks import Ranks, told
from .reparametrised import parts_of
from .reparametrised.placing import check_mergeable, is_frozen_by_put, merge_checked
from .report import Report
from .selection import Selection

DTYPES = torch.float16, torch.bfloat16, torch.float32, torch.float64  # of values


def convert(
    model: nn.Module,
    plan: Mapping[str, Selection | str] | None,
    lean: bool = False,
    values_dtype: torch.dtype | None = None,
    process_group: Any = None,
    origin: bool = False,
) -> Report:
    """Make exactly what `plan` names trainable, in place, on this model only. Returns a `Report`,
    which prints what trains.

    model: nn.Module. plan: Plan or mapping {parameter name: Selection | "all"}; everything else is
    frozen. Selected `nn.Linear`, transformers' `Conv1D` and row-selected `nn.Embedding` become
    selective modules; other selected parameters keep their module and get a transient dense
    gradient, that of one expert at a time where a parameter holds several.
    lean: also `sft.lean(model)`; the report says what it left. values_dtype: of `values`,
    kept when the model is cast: that of the weights or a wider one; None: fp32 (fp64 over fp64),
    which casts to fp64 widen. 16-bit values want an optimiser that rounds well: see
    `SelectiveAdamW`. Converting again with an equal plan changes nothing. All or nothing: KeyError
    (unknown name), IndexError, TypeError or ValueError leave the model as it was.

    process_group: in several processes (DDP, FSDP2), whose plans must be equal. None: those of all
    processes, where torch.distributed is initialised by now, which all must call this then; a
    ProcessGroup: those of its ranks; False: this process converts by itself (rank 0 alone, a stage
    of a pipeline). Plans that differ, and an error on any rank, raise on all. A rank may give None
    as its plan, and takes that of the first one; where the first one has the weights, the model may
    be on the meta device on the others, to be given weights and values together
    (`broadcast_from_rank0` of torch's `set_model_state_dict`, after `fully_shard`).
    origin: keep what trains as it is now (of selections the selected entries, in the dtype of the
    weight; what trains whole, whole): for `sft.restore` and decay to it. It goes into
    `model.state_dict()` as `<name>_origin`.
    """
    settings = Settings(values_dtype, origin)
    with Ranks("sft.convert", process_group) as ranks:
        check_module("model", model)
        own = _brought(model, plan)
        brought = ranks.ask(own)
        plan = _plan_of(plan, brought, ranks)
        on_meta = brought[0].numbers and not own.numbers  # the first will give its numbers
        record = record_of(model)
        if record is not None:
            return _convert_again(model, record, plan, lean, settings, ranks)
        _check(model, plan, values_dtype)
        _check_numbers(model, plan, origin, on_meta)
        report = _convert(model, plan, lean, settings, ranks)
    warn_of_adapters(model)
    warn_of_held_apart(model)
    return report


class _Brought(NamedTuple):
    """What a rank brings: a plan, and the numbers of all its weights."""

    plan: bool
    numbers: bool


def _brought(model: nn.Module, plan: Mapping[str, Selection | str] | None) -> _Brought:
    return _Brought(plan is not None, not any(weight.is_meta for weight in model.parameters()))


def _plan_of(
    plan: Mapping[str, Selection | str] | None, brought: list[_Brought], ranks: Ranks
) -> Plan:
    """The plan of this rank, or of the first one where it has none."""
    if not brought[0].plan:
        alone = "this process is by itself" if ranks.size == 1 else "that one has none either"
        raise TypeError(
            f"plan: None takes that of the first of several processes, and {alone}; sft.select"
            " makes one"
        )
    if plan is not None and not isinstance(plan, Plan):
        plan = Plan(plan)
    if plan is not None and all(each.plan for each in brought):
        return plan
    first = ranks.of_first(plan)
    return first if plan is None else plan


def _check_numbers(model: nn.Module, plan: Plan, origin: bool, on_meta: bool) -> None:
    """Raise ValueError for selected weights without numbers, unless another rank has them."""
    if on_meta and origin:
        raise ValueError(
            "origin: the model is on the meta device here, so there is nothing to keep; load it on"
            " every process, or convert without origin=True"
        )
    for name in [] if on_meta else selected_in(plan):
        check_numbers(name, find(model, name).parameter)


def _convert_again(
    model: nn.Module, record: Record, plan: Plan, lean: bool, settings: Settings, ranks: Ranks
) -> Report:
    """Nothing but the report (and a lean model) where all is as it was asked for before."""
    if record.plan != plan:
        raise ValueError("model: already converted with another plan; call sft.revert(model) first")
    for name, wanted in settings._asdict().items():
        had = getattr(record, name)
        if had != wanted:
            raise ValueError(
                f"{name}: the model was converted with {had}, got {wanted}; call sft.revert(model)"
                " first"
            )
    lost = lost_from(model, selected_in(plan))
    if lost:
        raise ValueError(f"model: {', '.join(lost[:3])}: {LOST}")
    _agree(ranks, plan, settings)
    return report_of(model, plan, make_lean(model) if lean else None)


def _check(model: nn.Module, plan: Plan, values_dtype: torch.dtype | None) -> None:
    """Raise for what cannot be converted, whatever its selections are."""
    if not plan:
        raise ValueError("plan: it is empty, so nothing would train; see sft.select")
    if values_dtype is not None and values_dtype not in DTYPES:
        raise TypeError(
            "values_dtype: expected None, float16, bfloat16, float32 or float64 of torch, got"
            f" {values_dtype!r}"
        )
    check_whole(model)
    for name, module in model.named_modules():
        if isinstance(module, Selected):
            raise ValueError(
                f"model: {name!r} is selective already; call sft.revert on the model that was"
                " converted (or sft.remove the delta that sft.apply put over quantised weights)"
            )
        if isinstance(module, nn.parallel.DistributedDataParallel):
            raise ValueError(
                "model: DistributedDataParallel wraps it already and would not share the gradients"
                " of new parameters; convert first, then wrap"
            )
    check_names(model, plan)
    refuse_cut_by_transformers(model, selected_in(plan))


def _convert(model: nn.Module, plan: Plan, lean: bool, settings: Settings, ranks: Ranks) -> Report:
    to_do = actions(model, plan, settings)
    ranks.ask(None)  # an error so far raises on all: what comes next may wait for other ranks
    whole = {name: find(model, name).parameter for name, what in plan.items() if what == ALL}
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    was_lean = lean_state(model)
    try:
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for delta in parts_of(model):
            delta.part.requires_grad_(True)
        for act in to_do:
            act()
        for parameter in whole.values():
            parameter.requires_grad_(True)
        if settings.origin:
            keep_whole(model, whole)
        report = report_of(model, plan, make_lean(model) if lean else None)
        let_train(model)
        watch(model, selected_in(plan))
        attach(model, _on_its_matrices(model, plan), *settings)
        model.__dict__[RECORD] = Record(plan, flags, *settings)
        _agree(ranks, plan, settings)
    except BaseException:
        model.__dict__.pop(RECORD, None)
        detach(model)
        unwatch(model)
        forget_whole(model)
        if lean:
            restore_lean_state(model, was_lean)
        _undo(model, flags)
        raise
    return report


def _on_its_matrices(model: nn.Module, plan: Plan) -> Plan:
    """`plan` with selections that serve the matrices of this model only."""
    return Plan(
        {
            name: what if what == ALL else what.on(matrix_shape(model, name))
            for name, what in plan.items()
        }
    )


def _agree(ranks: Ranks, plan: Plan, settings: Settings) -> None:
    """Raise on every rank unless all convert alike."""
    if ranks.size == 1:
        return
    wanted = {name: f"{value} #" for name, value in settings._asdict().items()}
    wanted |= {name: told(what) for name, what in plan.items()}
    ranks.agree(wanted)


def revert(model: nn.Module) -> nn.Module:
    """Take the selective modules out: the original classes come back, holding the trained weights
    bit for bit; quantised layers as they were, with a warning if they had trained
    (`sft.merge_quantised` writes it into them).

    Always works, whatever was done to the model since (weights resized, deleted, pruned, modules
    replaced): what was trained and has no place any more is named by a warning, and the weight
    stays as it is. Undoes `sft.lean`, too, and merges the deltas of `sparse_ft.reparametrised`.
    Returns the model. Raises ValueError when `model` was neither converted nor made lean nor given
    such deltas, or where one of these cannot be merged. After an exception (out of memory, Ctrl-C)
    the model is still converted, and another `revert` does the rest.
    """
    check_module("model", model)
    check_mergeable(model)
    if record_of(model) is not None:
        warn_of_discarded(model)
    return taken_out(model)


def taken_out(model: nn.Module) -> nn.Module:
    """`revert` without a word of what trained over quantised weights."""
    check_mergeable(model)
    has_deltas = any(parts_of(model)) or is_frozen_by_put(model)
    refuse_sharded(model, f"sft.state_dict(model) has plain weights; {WHOLE}")
    is_converted = record_of(model) is not None
    if is_converted:
        _write_back(model)
    was_lean = unlean(model)
    if is_converted:
        unconvert(model)
    elif not (was_lean or has_deltas):
        raise ValueError(
            "model: it was not converted (call revert on the module that sft.convert was called on)"
        )
    return merge_checked(model)


def unconvert(model: nn.Module) -> None:
    """Undo what `convert` did alone: the weights stay as they are, and a lean model stays lean."""
    unwatch(model)
    _undo(model, model.__dict__[RECORD].flags)
    detach(model)
    forget_whole(model)
    del model.__dict__[RECORD]


def _write_back(model: nn.Module) -> None:
    """All weights show their values, before anything else is undone: this may run out of memory."""
    for module in model.modules():
        if isinstance(module, Selected):
            module.write_back()


def _undo(model: nn.Module, flags: dict[str, bool]) -> None:
    """Take out what `convert` put in, also half done; the weights stay as they are. Called again,
    it does the rest.
    """
    as_before(model)
    for module in list(model.modules()):
        if is_tied(module):
            untie(module)
        if is_adopted(module):
            restore(module)
        elif isinstance(module, SelectedParameter):
            module.remove()
        for selected in SelectedParameter.of_reader(module):
            selected.remove()  # its owner was replaced
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(flags.get(name, parameter.requires_grad))
