"""SelectiveAdamW: AdamW with state for the selected entries only, one fused call per device,
written through.
"""

import itertools

import torch

from ..nn.steps import owner_of
from ..ops import masked_adamw_
from ..ops._rounding import seed_of
from ..ops.masked_adamw import step_rows
from .groups import groups_of
from .in_backward import InBackward, name_of
from .kept import ABSMAXES, Kept
from .loading import SELECTIONS, SETTINGS, boxed, selections_of, unboxed
from .prepared import PreparedRows
from .skipping import SkippedSteps, any_nonfinite


class SelectiveAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter, 2019) over whatever trains: `values` of selective modules and
    plain parameters alike.

    params: `model.parameters()`, `model.named_parameters()` or parameter groups; frozen parameters
    are left out.
    lr: float or one-element tensor. betas, eps, weight_decay, maximize: as in `torch.optim.AdamW`.
    no_decay: glob patterns on parameter names ("*.bias", "*norm*") whose weight_decay is 0; needs
    named parameters; a selected parameter goes by the name that it has in the plan, too, and a
    pattern that matches nothing is warned of. skip_nonfinite: look for inf and NaN in the gradients
    first; if there is one the whole step is skipped, nothing is written, and `skipped_steps` counts
    it.

    On a GPU `step()` reads nothing back to the host, so that `torch.cuda.graph` can capture a whole
    training step. Take one step before the capture (it makes the state), and give lr as a float32
    tensor on the device: a replay reads it anew, so schedulers work, and counts `skipped_steps`.
    What is a number, or a tensor in host memory, is captured as it is then.

    in_backward: each parameter steps inside the backward, as soon as its gradient is there, and the
    gradient is freed: those of all layers never exist together. The same bits as without. `step()`
    then only closes the iteration: call it once after each backward. What needs all gradients first
    does not go with it: clipping (`clip_grad_norm_` finds no gradient and returns 0: nothing can
    tell it), accumulation (a second backward before `step()` raises), GradScaler (`step()` raises),
    skip_nonfinite (refused), several processes (the backward raises).

    unscale_in_step: True: under a GradScaler the step itself divides by the scale, in its one pass
    and without a look from the host, so that a CUDA graph can hold it. False: the scaler does,
    before the step, so that gradients may be clipped between; trainers that ask (Lightning) clip no
    others. float16 gradients, which a scaler does not divide, are always divided in the step.

    On a CPU its first step moves weights of 4 MiB or more with selected entries or columns into
    huge pages, where Linux gives
    them: no memory, 0.3 ms a MiB once (see `sparse_ft.optim.pages`).

    Values in 16 bits without an fp32 master (`sft.convert(..., values_dtype=torch.bfloat16)`) lose
    updates below half a unit in the last place. Two ways keep them; plain parameters in full
    precision are left as they are:
    stochastic_rounding: values and moments in 16 bits are rounded up or down by chance, right in
    expectation (Gupta et al., Deep Learning with Limited Numerical Precision, 2015). seed: what
    decides, with a parameter's place among the others, the step and the entry; neither threads nor
    the backend do, and a run resumed from `state_dict` goes on with the same bits.
    correction: state has an int16 that with the bfloat16 value is the fp32 master, bit for bit;
    moments are fp32 then. As many bytes as fp32 values take, but for a gradient of 2 an entry
    instead of 4.

    optim_bits: 8 keeps exp_avg and exp_avg_sq in 8 bits (uint8, and one float32 absmax a block of
    128 entries, as they lie in memory), with the dynamic codes of Dettmers et al., 8-bit Optimizers
    via Block-wise Quantization, 2022: 2.06 bytes an entry instead of 8. The step itself is fp32,
    and values are stored as without it. Parameters of fewer than 4096 entries keep full moments, as
    in bitsandbytes; float64 is refused. An inf or NaN in a gradient reaches all 128 entries of its
    block.

    State per parameter: step (float32 scalar), exp_avg, exp_avg_sq in the parameter's shape and,
    but for the options above, in its dtype. Weight decay acts on selected entries only. Raises
    ValueError that names the argument.
    """

    writes_through = True  # tells `sparse_ft.nn.steps` that the weights show the new values already
    _backward = None  # the InBackward of one that steps there

    def __init__(
        self,
        params,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=1e-2,
        *,
        maximize=False,
        no_decay=(),
        skip_nonfinite=False,
        in_backward=False,
        unscale_in_step=False,
        stochastic_rounding=False,
        correction=False,
        seed=0,
        optim_bits=32,
    ):
        _check_hyperparameters(lr, betas, eps, weight_decay)
        if in_backward and skip_nonfinite:
            raise ValueError(
                "skip_nonfinite: it looks at all gradients before any step, and in_backward=True"
                " never has them all"
            )
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ValueError(f"seed: expected an integer, got {seed!r}")
        self._kept = Kept(bool(stochastic_rounding), bool(correction), optim_bits)
        self._kept.check()
        defaults = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, maximize=maximize)
        if stochastic_rounding:
            defaults["seed"] = seed
        self.skip_nonfinite, self.unscale_in_step = skip_nonfinite, bool(unscale_in_step)
        self._skipped, self._prepared = SkippedSteps(), PreparedRows()
        self._backward = InBackward(self) if in_backward else None
        super().__init__(groups_of(params, no_decay), defaults)

    def __getstate__(self):
        own = dict(
            skip_nonfinite=self.skip_nonfinite,
            unscale_in_step=self.unscale_in_step,
            _skipped=self.skipped_steps,
            _backward=bool(self._backward),
            _kept=self._kept,
        )
        return {**super().__getstate__(), **own}

    def __setstate__(self, state):
        """Also what `load_state_dict` ends with, on an optimiser that has its hooks."""
        super().__setstate__(state)
        unboxed(self.state)
        self._prepared = PreparedRows()
        self._count()
        if isinstance(self.__dict__.get("_skipped"), int):
            self._skipped = SkippedSteps(self._skipped)
        if isinstance(self._backward, bool):  # what a copy or a pickle knows of it
            self._backward = InBackward(self) if self._backward else None
        if self._backward:
            self._backward.attach()

    def add_param_group(self, param_group):
        settings = {**self.defaults, **param_group}
        _check_hyperparameters(*(settings[name] for name in SETTINGS))
        super().add_param_group(param_group)
        try:
            for i, p in enumerate(self.param_groups[-1]["params"]):
                self._kept.check_parameter(p, name_of(self.param_groups[-1], i))
        except ValueError:
            self.param_groups.pop()
            raise
        self._count()
        if self._backward:
            self._backward.attach(len(self.param_groups) - 1)

    def state_dict(self):
        """As torch's; its groups also hold digests of what is selected, by which `load_state_dict`
        tells another selection.
        """
        state = super().state_dict()
        for group, saved in zip(self.param_groups, state["param_groups"]):
            selections = selections_of(group)
            if any(selections):
                saved[SELECTIONS] = selections
        return state

    def load_state_dict(self, state_dict):
        """As torch's, but state keeps its own dtypes where torch casts it to the parameter's.

        Raises ValueError or TypeError, naming the parameter, where something is missing, has
        another shape or kind of dtype, or has no place in this optimiser; nothing is loaded then.
        """

        def checked(_, state_dict):
            found = boxed(self, state_dict, self._kept)
            for group in found["param_groups"]:
                _check_hyperparameters(*(group[name] for name in SETTINGS))
            return found

        last = self.register_load_state_dict_pre_hook(checked)
        try:
            super().load_state_dict(state_dict)
        finally:
            last.remove()

    def zero_grad(self, set_to_none=True):
        """As torch's. With in_backward it also leaves a backward behind that `step()` did not
        follow: one that failed.
        """
        super().zero_grad(set_to_none)
        if self._backward:
            self._backward.leave_behind()

    def _count(self):
        """Number the parameters, as `state_dict` does."""
        params = itertools.chain.from_iterable(group["params"] for group in self.param_groups)
        self._number = {id(p): number for number, p in enumerate(params)}

    @property
    def _step_supports_amp_scaling(self):
        """GradScaler asks whether it hands over grad_scale and found_inf instead of dividing the
        gradients first.

        in_backward: it must, to be told that the parameters have stepped on scaled gradients.
        """
        if self.unscale_in_step or self._backward:
            return True
        return any(p.dtype == torch.float16 for group in self.param_groups for p in group["params"])

    @property
    def skipped_steps(self):
        """How many steps skip_nonfinite has skipped. Waits for the device that knows."""
        return int(self._skipped)

    def got_gradient(self, parameter):
        """Whether the last step had a gradient of it, for who wants to warn."""
        return (
            id(parameter) in self._backward.reached
            if self._backward
            else parameter.grad is not None
        )

    @torch.compiler.disable(
        reason="the step of SelectiveAdamW is one compiled call a device already"
    )
    @torch.no_grad()
    def step(self, closure=None):
        """One step on every parameter that has a gradient. closure: re-evaluates the model, its
        loss is returned.

        With in_backward the parameters have stepped already, and this tells that the next gradients
        are of another step.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._backward:
            self._backward.finish()
            return loss
        batches = self._gather()
        found_inf = self._found_inf(batches)
        for (device, maximize, _), entries in batches.items():
            self._step_on(
                device, maximize, entries, found_inf, look=self.skip_nonfinite and len(batches) == 1
            )
        if self.skip_nonfinite and batches:
            self._skipped.add(found_inf)
        return loss

    def _found_inf(self, batches):
        """What tells the step whether to skip, or will tell once it has looked; None:
        nothing does.
        """
        found_inf = getattr(self, "found_inf", None)  # a GradScaler's
        if not self.skip_nonfinite or not batches:
            return found_inf
        if len(batches) > 1:
            found = any_nonfinite(batches.values())
            return found if found_inf is None else torch.maximum(found, found_inf.to(found.device))
        ((device, *_),) = batches
        return (
            torch.zeros((), dtype=torch.float32, device=device)
            if found_inf is None
            else found_inf.to(device)
        )

    def _gather(self):
        """(parameter, settings, state, owner, seed) of each gradient, by what a call has in common;
        with an owner first.
        """
        batches = {}
        for group in self.param_groups:
            device = None
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p.device != device:
                    device, settings = p.device, _settings(group, p.device)
                key = device, group["maximize"], _stays(settings[0])
                batches.setdefault(key, []).append(self._entry(p, group, settings))
        return {key: sorted(batch, key=lambda e: e[3] is None) for key, batch in batches.items()}

    def _entry(self, p, group, settings):
        if p.grad.is_sparse:
            raise RuntimeError(
                "grad: SelectiveAdamW takes dense gradients, got a sparse one of shape"
                f" {tuple(p.shape)}"
            )
        seed = seed_of(group.get("seed", 0), self._number[id(p)]) if self._kept.rounds(p) else None
        return p, settings, self._state_of(p), _linked(p), seed

    def _step_one(self, p, group):
        """The step of one parameter that has its gradient."""
        self._step_on(
            p.device, group["maximize"], [self._entry(p, group, _settings(group, p.device))]
        )

    def _state_of(self, p):
        state = self.state[p]
        if not state:
            state.update(self._kept.new(p))  # whole or not at all
        if state["step"].device != p.device:  # a loaded one is still where its checkpoint was
            state["step"] = state["step"].to(p.device)
        return state

    def _step_on(self, device, maximize, entries, found_inf=None, look=False):
        """look: at the gradients first, and set found_inf if one is not finite."""
        params, settings, states, owners, seeds = zip(*entries)
        owners = [owner for owner in owners if owner is not None]
        scale, found_inf = (
            x if x is None else x.to(device) for x in (getattr(self, "grad_scale", None), found_inf)
        )
        if found_inf is not None:
            for owner in owners:
                owner.sync()  # a skipped step writes nothing, yet the weights count as shown below
        flags = dict(maximize=maximize, grad_scale=scale, found_inf=found_inf, skip_nonfinite=look)
        rows = self._prepared.rows(entries) if device.type == "cpu" else None
        if rows is not None:
            state = [tensor for s in states for tensor in s.values()]
            step_rows(rows, [*params, *state, *(owner._weight() for owner in owners)], **flags)
        else:
            _step_through_op(params, settings, states, owners, seeds, flags)
        for owner in owners:
            owner._mark_shown()


def _settings(group, device):
    """lr, beta1, beta2, eps, weight_decay: numbers, except an lr that need not be read
    on the host.
    """
    lr = group["lr"]
    lr = lr.detach().to(device, torch.float32) if _stays(lr) and device.type != "cpu" else float(lr)
    return lr, *(float(x) for x in (*group["betas"], group["eps"], group["weight_decay"]))


def _stays(lr):
    return isinstance(lr, torch.Tensor) and not lr.is_cpu


def _step_through_op(params, settings, states, owners, seeds, flags):
    layouts = [owner._sparse_ft_state.selection.layout for owner in owners]
    lrs = None
    if _stays(settings[0][0]):
        lrs, settings = [lr for lr, *_ in settings], [(0.0, *others) for _, *others in settings]
    masked_adamw_(
        [p.detach() for p in params],
        [p.grad for p in params],
        *([s[name] for s in states] for name in ("exp_avg", "exp_avg_sq", "step")),
        [owner._matrix() for owner in owners],
        [kind for kind, *_ in layouts],
        [index for _, index, *_ in layouts],
        [n for _, _, *block in layouts for n in block],
        **dict(zip(("lr", "beta1", "beta2", "eps", "weight_decay"), map(list, zip(*settings)))),
        lrs=lrs,
        **_storage(states, seeds),
        **flags,
    )


def _storage(states, seeds):
    """What the op must know of state that is not stored plainly."""
    storage = {}
    if any("correction" in state for state in states):
        storage["corrections"] = [
            state.get("correction", state["step"].new_empty(0)) for state in states
        ]
    if any("exp_avg_absmax" in state for state in states):
        storage["absmaxes"] = [
            state.get(name, state["step"].new_empty(0)) for state in states for name in ABSMAXES
        ]
    if any(seed is not None for seed in seeds):
        storage["seeds"] = [-1 if seed is None else seed for seed in seeds]
    return storage


def _linked(p):
    """The owner whose weight this step can write through into, or None (its module then scatters
    before its next forward).
    """
    owner = owner_of(p)
    if owner is None:
        return None
    weight = owner._weight_or_none()
    if weight is None:
        return None
    return owner if weight.is_cpu and p.is_cpu or weight.device == p.device else None


def _check_hyperparameters(lr, betas, eps, weight_decay):
    if isinstance(lr, torch.Tensor) and lr.numel() != 1:
        raise ValueError(
            f"lr: expected a float or a tensor of one element, got shape {tuple(lr.shape)}"
        )
    for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
        if not _stays(value) and (
            isinstance(value, str) or not float(value) >= 0
        ):  # on a device it is not looked at
            raise ValueError(f"{name}: expected a number of at least 0, got {value!r}")
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise ValueError(f"betas: expected two numbers, got {betas}")
    for i, beta in enumerate(betas):
        if not 0 <= float(beta) < 1:
            raise ValueError(f"betas: expected numbers in [0, 1), got {beta} at position {i}")
