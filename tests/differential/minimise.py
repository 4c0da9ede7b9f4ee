"""Make a failing case smaller, one dimension at a time, and print what is left as a program."""

import time

from .case import Case, Choice
from .compare import Refused, failure

PLAIN = Case(None, {})
FIELDS = (
    "lean", "autocast", "checkpointing", "accumulate", "optimizer", "options", "clip", "scaler",
    "closure", "split", "schedule", "set_to_none", "layout", "input_grad", "training",
    "values_dtype", "born", "dtype", "backward", "context",
)  # fmt: skip


def smaller(case):
    """Cases that are a little plainer than `case`, the boldest first."""
    for number in range(len(case.events)):
        yield case._replace(events=case.events[:number] + case.events[number + 1 :])
    for field in FIELDS:
        if getattr(case, field) != getattr(PLAIN, field):
            yield case._replace(**{field: getattr(PLAIN, field)})
    if case.optimizer != PLAIN.optimizer:
        yield case._replace(optimizer=PLAIN.optimizer, options={}, scaler=False)
    if len(case.plan) > 1:
        for name in case.plan:
            yield case._replace(plan={name: case.plan[name]})
        for name in case.plan:
            yield case._replace(
                plan={other: choice for other, choice in case.plan.items() if other != name}
            )
    layers = case.network.layers
    for number in range(len(layers)):
        rest = layers[:number] + layers[number + 1 :]
        gone = layers[number].name + "."
        plan = {name: choice for name, choice in case.plan.items() if not name.startswith(gone)}
        if rest and plan:
            yield case._replace(network=case.network._replace(layers=rest), plan=plan)
    for name, choice in case.plan.items():
        for plainer in (Choice("all"), Choice("rows", 1.0), Choice("rows"), Choice(choice.kind)):
            if choice == plainer:
                break
            yield case._replace(plan={**case.plan, name: plainer})
    last = max((event.step for event in case.events), default=0)
    if case.steps > max(1, last + 1):
        yield case._replace(steps=max(1, last + 1))
        yield case._replace(steps=case.steps - 1)
    for event in case.events:
        if event.step > 1:
            yield case._replace(
                events=tuple(e._replace(step=e.step - 1) if e is event else e for e in case.events)
            )
    if case.network.batch not in (None, 1):
        yield case._replace(network=case.network._replace(batch=1))


def minimised(case, seconds=60.0, fails=failure):
    """(the smallest case that was found to fail, how it fails)."""
    end, found = time.monotonic() + seconds, fails(case)
    going = True
    while going:
        going = False
        for candidate in smaller(case):
            if time.monotonic() > end:
                return case, found
            try:
                result = fails(candidate)
            except (Refused, KeyError, ValueError, IndexError, RuntimeError, TypeError):
                continue  # the change made no case of it
            if result is not None:
                case, found, going = candidate, result, True
                break
    return case, found


def program(case):
    """A program that shows how a case fails: run it with tests/ on PYTHONPATH."""
    plain = {field: default for field, default in zip(Case._fields[2:], PLAIN[2:])}
    lines = [
        f"    {field}={getattr(case, field)!r},"
        for field in Case._fields
        if getattr(case, field) != plain.get(field, ...)
    ]
    return "\n".join(
        [
            "from differential.case import Case, Choice, Event",
            "from differential.compare import failure",
            "from differential.networks import Layer, Network",
            "",
            "print(failure(Case(",
            *lines,
            ")))",
        ]
    )
