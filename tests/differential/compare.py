"""Whether a selective run is the dense one: which of a case's promises was not kept, if any."""

import traceback

import torch

from .dense_run import Dense
from .optimizers import OPTIMIZERS
from .runs import DTYPES, Selective, build

BITS = {8: torch.int64, 4: torch.int32, 2: torch.int16}


class Refused(Exception):
    """torch itself does not run this case, dense."""


ROUNDINGS = 4  # more dense runs, where one was nearer to the exact one than rounding lets it expect


def failure(case):
    """What a case breaks, in words, or None. Raises Refused where dense training raises, too."""
    dense = trained(case)
    exact = dense if case.dtype == "fp64" else trained(case, exact=True)
    if not all(map(is_finite, dense.losses + exact.losses)):
        raise Refused("the dense run is not finite")
    try:
        selective = Selective(case).train()
    except Exception:
        return traceback.format_exc()
    for check in (unselected, reverted, left_alone, spoken, first_loss):
        found = check(case, selective, dense)
        if found:
            return f"{check.__name__}: {found}"
    found = inexact(case, selective, [dense], exact)
    if found and exact is not dense:
        more = [trained(case, jitter=number + 1) for number in range(ROUNDINGS)]
        found = inexact(case, selective, [dense, *more], exact)
    return found


def trained(case, **settings):
    try:
        return Dense(case, **settings).train()
    except (RuntimeError, ValueError, NotImplementedError, IndexError, AssertionError) as error:
        raise Refused(str(error)) from error


def inexact(case, selective, dense, exact):
    """What is further from the exact run than twice the furthest of some dense runs."""
    for check in (losses, gradients, input_gradients, outputs, entries):
        found = check(case, selective, dense, exact)
        if found:
            return f"{check.__name__}: {found}"
    return None


def is_finite(number):
    return number == number and abs(number) < 1e6


def bits(tensor):
    return tensor.detach().contiguous().view(BITS[tensor.element_size()])


def unselected(case, selective, dense):
    """Entries that are not selected have the bits that they were born with."""
    born = build(case.network, case.seed, DTYPES[case.born or case.dtype]).to(selective.dtype)
    for name, parameter in born.named_parameters():
        changed = bits(parameter) != bits(selective.final[name])
        if name in dense.masks:
            changed &= ~dense.masks[name]
        if changed.any():
            return f"{int(changed.sum())} unselected entries of {name} changed"


def reverted(case, selective, dense):
    """revert gives back classes, flags, hooks and attributes, and the trained weights
    bit for bit.
    """
    model = selective.after_revert
    for name, parameter in model.named_parameters():
        if not torch.equal(bits(parameter), bits(selective.final[name])):
            return f"{name} has other bits after revert"
        if parameter.requires_grad != selective.flags.get(name):
            return f"{name} has requires_grad={parameter.requires_grad} after revert"
    if {name: type(module) for name, module in model.named_modules()} != selective.classes:
        return "the classes are others after revert"
    for (name, module), twin in zip(model.named_modules(), dense.model.modules(), strict=True):
        if vars(module).keys() != vars(twin).keys():
            return (
                f"{name} has other attributes after revert:"
                f" {sorted(vars(module).keys() ^ vars(twin).keys())}"
            )
        if len(module._forward_hooks) + len(module._forward_pre_hooks) != len(
            twin._forward_hooks
        ) + len(twin._forward_pre_hooks):
            return f"{name} has hooks after revert"


def left_alone(case, selective, dense):
    """A model that was copied does not follow its copy."""
    for model, weights in selective.left:
        now = model.state_dict()
        for name, weight in weights.items():
            if not torch.equal(bits(now[name]), bits(weight)):
                return f"{name} of the model that was copied has moved"


def spoken(case, selective, dense):
    """Every selected parameter got a gradient or a warning names it; nothing else is warned of."""
    missing = "no gradient reached"
    named = [message for message in selective.messages if missing in message]
    # Nobody tells who stepped there.
    for name in selective.silent if case.optimizer != "master copies" else ():
        if selective.plan[name] != "all" and not any(name in message for message in named):
            return f"{name} had no gradient, and no warning names it"
    never = {name for name in selective.plan if all(step[name] is None for step in dense.gradients)}
    for message in named:
        if not any(name in message for name in selective.silent | never):
            return f"a warning without a cause: {message}"
    known = {message.split("\n")[0] for message in dense.messages}
    frozen = any(event.kind in ("freeze", "toggle") for event in case.events)
    for message in selective.messages:
        of_frozen = frozen and "frozen since sft.convert" in message
        if not (message in named or of_frozen or message.split("\n")[0] in known):
            return f"an unexpected warning: {message}"


def first_loss(case, selective, dense):
    """Forwards have the bits of the dense ones, where nothing is lean."""
    if case.lean is None and selective.losses[0] != dense.losses[0]:
        return f"the first loss is {selective.losses[0]!r}, dense {dense.losses[0]!r}"


def losses(case, selective, dense, exact):
    for step, (got, want, *plain) in enumerate(beside(selective, dense, exact, "losses")):
        theirs = max(abs(number - want) for number in plain)
        if abs(got - want) > 2 * theirs + slack(case) * (1 + abs(want)) * (step + 1):
            return f"the loss of step {step} is {got!r}, dense {plain[0]!r}, exact {want!r}"


def gradients(case, selective, dense, exact):
    if OPTIMIZERS[case.optimizer].in_backward:
        return None
    for step, (got, want, *plain) in enumerate(beside(selective, dense, exact, "gradients")):
        for name in got:
            if (got[name] is None) != (plain[0][name] is None):
                return (
                    f"step {step}: {name} has {'no' if got[name] is None else 'a'} gradient, dense"
                    " has the contrary"
                )
        found = further(case, got, plain, want, step)
        if found:
            return f"step {step}: gradient of {found}"


def input_gradients(case, selective, dense, exact):
    for number, tensors in enumerate(beside(selective, dense, exact, "input_gradients")):
        got, want, *plain = ({"input": tensor} for tensor in tensors)
        found = further(case, got, plain, want, number)
        if found:
            return f"forward {number}: gradient of {found}"


def outputs(case, selective, dense, exact):
    for number, tensors in enumerate(beside(selective, dense, exact, "seen")):
        got, want, *plain = ({"output": tensor} for tensor in tensors)
        found = further(case, got, plain, want, case.steps)
        if found:
            return f"forward without backward {number}: {found}"


def entries(case, selective, dense, exact):
    return further(case, selective.final, [run.final for run in dense], exact.final, case.steps)


def beside(selective, dense, exact, name):
    """One tuple for each thing that the runs noted under `name`.

    The selective run's, the exact run's, each dense run's.
    """
    return zip(*(getattr(run, name) for run in (selective, exact, *dense)), strict=True)


def slack(case):
    """What rounding may do to numbers near 1 in one step, beside twice what it does to the dense
    run.
    """
    if case.dtype == "fp64":
        return 1e-10
    return 2e-2 if case.dtype == "bf16" or case.autocast else 2e-6


def further(case, got, plain, want, step):
    """Where `got` is further from the exact numbers than twice the plain runs' furthest and a
    slack.
    """
    names = [name for name in want if want[name] is not None and got[name] is not None]
    for name in names:
        if got[name].shape != want[name].shape:
            return f"{name} has shape {tuple(got[name].shape)}, dense {tuple(want[name].shape)}"
        if not got[name].isfinite().all():
            return f"{name} is not finite"
    largest = max([1.0, *(want[name].abs().max().item() for name in names if want[name].numel())])
    allowance = slack(case) * largest * (step + 1)
    noise = max([0.0, *(distance(run[name], want[name]) for run in plain for name in names)])
    for name in names:
        far = distance(got[name], want[name])
        if far > 2 * noise + allowance:
            return (
                f"{name} is {far:.3e} from exact, dense at most {noise:.3e}, slack {allowance:.1e}"
            )


def distance(a, b):
    return (a.double() - b.double()).abs().max().item() if a.numel() else 0.0
