"""SelectiveAdamW: AdamW with state for the selected entries only, one fused call per device,
written through.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from ..nn.steps import Heard
from .gathering import Gathered
from .groups import groups_of
from .in_backward import InBackward, check_steps_in_backward, name_of
from .loading import boxed, name_selections, unboxed
from .origins import check_decay_to, check_origin
from .settings import check_settings
from .skipping import SkippedSteps, found_before
from .storage import Storage, check_seed


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

    decay_to: "origin": weight decay pulls selected entries towards their pretrained value, which
    `sft.convert(..., origin=True)` keeps, as methods mean it that train the difference (NeuroAda,
    SHiRA, SpIEL, S2FT, RoSA); a parameter group may say its own.

    stochastic_rounding, seed, correction, optim_bits: how values and moments are kept in 16 or 8
    bits; see `sparse_ft.optim.storage`.

    State per parameter: step (float32 scalar), exp_avg, exp_avg_sq in the parameter's shape and,
    but for the options above, in its dtype; after `sft.reselect` generation (uint8) and births,
    which tell the age of each entry. Weight decay acts on selected entries only. Raises ValueError
    that names the argument.
    """

    writes_through = True  # tells `sparse_ft.nn.steps` that the weights show the new values already
    heard: Heard | None = None  # between a step and the hook that it ends with
    _backward = None  # the InBackward of one that steps there

    def __init__(
        self,
        params: Iterable,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        maximize: bool = False,
        no_decay: str | Iterable[str] = (),
        skip_nonfinite: bool = False,
        in_backward: bool = False,
        unscale_in_step: bool = False,
        stochastic_rounding: bool = False,
        correction: bool = False,
        seed: int = 0,
        optim_bits: int = 32,
        decay_to: str = "zero",
    ) -> None:
        defaults: dict[str, Any] = dict(
            lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, maximize=maximize
        )
        check_settings(defaults)
        if in_backward and skip_nonfinite:
            raise ValueError(
                "skip_nonfinite: it looks at all gradients before any step, and in_backward=True"
                " never has them all"
            )
        check_seed(seed)
        if stochastic_rounding:
            defaults["seed"] = seed
        check_decay_to(decay_to)
        if decay_to == "origin":
            defaults["decay_to"] = decay_to
        self._storage = Storage(bool(stochastic_rounding), bool(correction), optim_bits)
        self.skip_nonfinite = skip_nonfinite
        self.unscale_in_step = bool(unscale_in_step)
        self._skipped = SkippedSteps()
        self._gathered = Gathered(self._storage)
        self._backward = InBackward(self) if in_backward else None
        super().__init__(groups_of(params, no_decay), defaults)

    def __getstate__(self) -> dict:
        own = dict(
            skip_nonfinite=self.skip_nonfinite,
            unscale_in_step=self.unscale_in_step,
            _skipped=self.skipped_steps,
            _backward=bool(self._backward),
            _storage=self._storage,
        )
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict) -> None:
        """Also what `load_state_dict` ends with, on an optimiser that has its hooks."""
        super().__setstate__(state)
        unboxed(self.state)
        self._gathered = Gathered(self._storage)
        self._gathered.count(self.param_groups)
        if isinstance(self.__dict__.get("_skipped"), int):
            self._skipped = SkippedSteps(self._skipped)
        if isinstance(self._backward, bool):  # what a copy or a pickle knows of it
            self._backward = InBackward(self) if self._backward else None
        if self._backward:
            self._backward.attach()

    def add_param_group(self, param_group: dict) -> None:
        settings = {**self.defaults, **param_group}
        check_settings(settings)
        super().add_param_group(param_group)
        try:
            for i, p in enumerate(self.param_groups[-1]["params"]):
                name = name_of(self.param_groups[-1], i)
                self._storage.check(p, name)
                check_origin(p, name, settings)
                if self._backward:
                    check_steps_in_backward(p, name)
        except ValueError:
            self.param_groups.pop()
            raise
        self._gathered.count(self.param_groups)
        if self._backward:
            self._backward.attach(len(self.param_groups) - 1)

    def state_dict(self) -> dict:
        """As torch's; its groups also hold digests of what is selected, by which `load_state_dict`
        tells another selection.
        """
        state = super().state_dict()
        name_selections(self.param_groups, state["param_groups"])
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        """As torch's, but state keeps its own dtypes where torch casts it to the parameter's.

        Raises ValueError or TypeError, naming the parameter, where something is missing, has
        another shape or kind of dtype, or has no place in this optimiser; nothing is loaded then.
        """

        def checked(_: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
            found = boxed(self, state_dict, self._storage)
            for own, group in zip(self.param_groups, found["param_groups"]):
                check_settings(group)
                for i, p in enumerate(own["params"]):
                    check_origin(p, name_of(own, i), group)
            return found

        last = self.register_load_state_dict_pre_hook(checked)
        try:
            super().load_state_dict(state_dict)
        finally:
            last.remove()

    def forget(self, parameter: torch.Tensor) -> None:
        """Free the state of a parameter, which begins anew with its next gradient."""
        self.state.pop(parameter, None)
        self._gathered.forget(parameter)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's. With in_backward it also leaves a backward behind that `step()` did not
        follow: one that failed.
        """
        super().zero_grad(set_to_none)
        if self._backward:
            self._backward.leave_behind()

    def _replaced(self, parameter: torch.Tensor) -> None:
        """Another one has taken its place in a group."""
        self._gathered.forget(parameter)
        self._gathered.count(self.param_groups)
        if self._backward:
            self._backward.detach(parameter)
            self._backward.attach()

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """GradScaler asks whether it hands over grad_scale and found_inf instead of dividing the
        gradients first.

        in_backward: it must, to be told that the parameters have stepped on scaled gradients.
        """
        if self.unscale_in_step or self._backward:
            return True
        return any(p.dtype == torch.float16 for group in self.param_groups for p in group["params"])

    @property
    def skipped_steps(self) -> int:
        """How many steps skip_nonfinite has skipped. Waits for the device that knows."""
        return int(self._skipped)

    def got_gradient(self, parameter: torch.Tensor) -> bool:
        """Whether the last step had a gradient of it, for who wants to warn."""
        if self._backward:
            return id(parameter) in self._backward.reached
        return parameter.grad is not None

    @torch.compiler.disable(
        reason="the step of SelectiveAdamW is one compiled call a device already"
    )
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
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
        self.heard, heard = None, Heard()
        batches = self._gathered.batches(self.param_groups, self.state, heard)
        if not batches:
            return loss
        found_inf = found_before(batches, getattr(self, "found_inf", None), self.skip_nonfinite)
        for batch in batches:
            look = self.skip_nonfinite and len(batches) == 1 and not batch.shards
            batch.step(found_inf, getattr(self, "grad_scale", None), look)
        if self.skip_nonfinite and found_inf is not None:
            self._skipped.add(found_inf)
        if found_inf is None:
            self.heard = heard  # for the hook on steps, which takes it
        return loss

    def _step_one(self, p: torch.Tensor, group: dict[str, Any]) -> None:
        """The step of one parameter that has its gradient."""
        self._gathered.batch_of(p, group, self.state).step()
