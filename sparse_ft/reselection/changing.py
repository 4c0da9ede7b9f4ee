"""reselect: other entries of a converted model train from now on.

What has no reason to change stays the same object: parameters, so that the optimiser's groups,
schedulers, DistributedDataParallel and compiled graphs go on with them. One parameter's old and new
tensors are alive at a time.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..converted import holders_of, record_of, selected_in
from ..messages import check_module, described, did_you_mean
from ..nn.embedding import SelectiveEmbedding
from ..nn.foreign import refuse_quantised
from ..nn.lost import LOST, lost_from
from ..nn.sharded import refuse_sharded
from ..optim import SelectiveAdamW
from ..optim.exchange import check_moves
from ..optim.member import Member
from ..plan import ALL, Plan
from ..ranks import Ranks, told
from ..selection import Selection
from .exchange import Exchange
from .report import ReselectReport
from .seed import Seed

WORDS = {"dropped": ("keep", "restore"), "age": ("entry", "tensor")}
SETTINGS = (*WORDS, "process_group")
REVERT = "sft.revert(model), then convert with another plan"


def reselect(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    plan: Mapping[str, Selection | str],
    *,
    dropped: str = "keep",
    seeds: Mapping[str, Seed] | None = None,
    age: str = "entry",
    process_group: Any = None,
) -> ReselectReport:
    """Let the selections of `plan` train from now on, and go on with the training.

    Call it between `optimizer.step()` and the next forward; gradients that are still there are
    dropped. Entries that were selected before keep their value (an fp32 master too), both moments
    and their age. plan: Plan or mapping {parameter name: Selection}; what it does not name stays as
    it is, and what it names has selected entries already. optimizer: SelectiveAdamW, or one
    whose state is shaped as its parameters; None: there is none yet.

    dropped: "keep": entries that train no more leave their trained value in the weight; "restore":
    the pretrained one comes back (`sft.convert(..., origin=True)`). Returns a report.
    seeds: {name: Seed}: what entries that join begin with. Without, their moments start at zero.
    age: "entry": those that join begin their bias correction anew, as in SpIEL (a byte an entry);
    "tensor": they are as old as their tensor, as in methods whose code knows no other, and move by
    up to 6.6 learning rates in their first steps.

    Where the shape of `values` stays, the Parameter does. Where it does not, another one takes its
    place in the optimiser's groups; that is refused in several processes, whose
    DistributedDataParallel holds the old one (process_group as in `sft.convert`; False: this
    process is on its own). Raises KeyError, ValueError, TypeError or IndexError that names the
    argument, before anything changes. Interrupted later, every parameter is wholly before or wholly
    after its exchange, and the plan of the model says which.
    """
    with Ranks("sft.reselect", process_group) as ranks:
        check_module("model", model)
        if optimizer is not None and not hasattr(optimizer, "param_groups"):
            raise TypeError(f"optimizer: expected an optimiser or None, got {described(optimizer)}")
        while record_of(model) is None and isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        refuse_sharded(model, "choose once, before fully_shard")
        check_settings({"dropped": dropped, "age": age})
        if seeds is not None and not isinstance(seeds, Mapping):
            raise TypeError(f"seeds: expected a mapping {{name: Seed}}, got {described(seeds)}")
        changes = _changes(model, plan)
        exchanges = [
            _exchange(model, holder, optimizer, selection, dropped, (seeds or {}).get(name), age)
            for name, (holder, selection) in changes.items()
        ]
        _check_seeds(seeds or {}, changes, optimizer)
        if ranks.size > 1:
            _check_counts(exchanges)
            ranks.agree({each.name: told(each.selection) for each in exchanges})
    report = ReselectReport()
    with torch.no_grad():
        for exchange in exchanges:
            report.append(exchange.carry_out())
    return report


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise TypeError for what `reselect` does not take as a setting, ValueError for a word that it
    does not know.
    """
    for name, value in settings.items():
        if name not in SETTINGS:
            raise TypeError(f"{name}: no such setting{did_you_mean(name, SETTINGS)}")
        words = WORDS.get(name)
        if words and value not in words:
            raise ValueError(f"{name}: expected {words[0]!r} or {words[1]!r}, got {value!r}")


def _changes(model: nn.Module, plan: Any) -> dict[str, tuple[Any, Selection]]:
    """{name: (its module, its new selection)} of those that change."""
    record = record_of(model)
    if record is None:
        raise ValueError(
            "model: it is not converted (call reselect on the module that sft.convert was called"
            " on)"
        )
    lost = lost_from(model, selected_in(record.plan))
    if lost:
        raise ValueError(f"model: {', '.join(lost[:3])}: {LOST}")
    holders = holders_of(model)
    changes = {}
    for name, what in (plan if isinstance(plan, Plan) else Plan(plan)).items():
        if what == ALL and record.plan.get(name) == ALL:
            continue
        if name not in holders or what == ALL:
            raise _misnamed(name, what, record.plan, holders)
        state = holders[name]._sparse_ft_state
        refuse_quantised("plan", holders[name], REVERT)
        try:
            what.check(state.matrix_shape)
        except (IndexError, ValueError) as error:
            raise type(error)(f"plan: {name!r}: {error}") from None
        if isinstance(holders[name], SelectiveEmbedding) and what.kind != "rows":
            raise ValueError(f"plan: {name!r}: an embedding trains rows here, got {what!r}")
        if what != state.selection:
            changes[name] = (
                holders[name],
                what.on(state.matrix_shape).to(state.selection.index.device),
            )
    return changes


def _misnamed(name: str, what: Any, plan: Plan, holders: dict[str, Any]) -> Exception:
    way_out = REVERT
    if name in plan:
        return ValueError(
            f"plan: {name!r} trains {_how(plan[name])} and is to train {_how(what)}; {way_out}"
        )
    return KeyError(
        f"plan: {name!r} has no selected entries that could be others"
        f"{did_you_mean(name, list(holders))}; {way_out}"
    )


def _how(what: Any) -> str:
    return "whole" if what == ALL else "selected entries"


def _exchange(
    model: nn.Module,
    holder: Any,
    optimizer: torch.optim.Optimizer | None,
    selection: Selection,
    dropped: str,
    seed: Any,
    age: str,
) -> Exchange:
    state = holder._sparse_ft_state
    name, values = state.label, holder._parameters["values"]
    if state.slide is not None:
        raise ValueError(
            f"model: {name!r} stands between its origin and what was trained;"
            " sft.restore(model, alpha=1.0) first"
        )
    restores = dropped == "restore"
    if restores and state.origin is None:
        raise ValueError(
            f"dropped: the origin of {name!r} was not kept; sft.convert(..., origin=True) keeps it"
        )
    member = None
    if optimizer is not None:
        member = Member.find(optimizer, values)
        if member is None and values.requires_grad:
            raise ValueError(
                f"optimizer: it does not hold the values of {name!r}; make it from"
                " model.parameters() after sft.convert"
            )
    if member is not None and not isinstance(optimizer, SelectiveAdamW):
        if age == "entry":
            raise ValueError(
                f"age: {type(optimizer).__name__} has one age a parameter; use SelectiveAdamW, or"
                " age='tensor'"
            )
        check_moves(member.state, values)
    if seed is not None:
        _check_seed(name, seed, state.matrix_shape)
    return Exchange(model, holder, selection, member, restores, age == "entry", seed)


def _check_seed(name: str, seed: Any, shape: tuple[int, int]) -> None:
    if not isinstance(seed, Seed):
        raise TypeError(f"seeds: {name!r}: expected a Seed, got {described(seed)}")
    seed.check(name, shape[0] * shape[1])


def _check_seeds(seeds: Any, changes: dict[str, Any], optimizer: Any) -> None:
    for name in seeds:
        if name not in changes:
            raise ValueError(f"seeds: {name!r} does not change, so nothing joins it")
    if seeds and not isinstance(optimizer, SelectiveAdamW):
        raise ValueError(f"seeds: expected SelectiveAdamW, got {type(optimizer).__name__}")


def _check_counts(exchanges: list[Exchange]) -> None:
    changed = [each.name for each in exchanges if not each.keeps_parameter]
    if changed:
        raise ValueError(
            f"plan: {', '.join(changed[:3])}: as many values as before are needed in several"
            " processes, whose DistributedDataParallel holds these parameters;"
            " process_group=False where there is none"
        )
