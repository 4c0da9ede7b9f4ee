"""SelectiveAdamW: AdamW with state for the selected entries only, one fused call per device,
written through.
"""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch

from ..ops._adamw_native import step_on_cpu_
from ..ops._adamw_tensor import Flags, Settings
from ..parallel.dtensors import is_sharded_tensor, local_of
from .batches import Batch, linked_owner
from .groups import groups_of
from .in_backward import InBackward, name_of
from .loading import SELECTIONS, boxed, selections_of, unboxed
from .origins import check_origin, decays_to_origin
from .prepared import Prepared, native_call_of
from .settings import check_settings, settings_of
from .shards import PreparedShard, found_anywhere
from .skipping import SkippedSteps, any_nonfinite
from .storage import Storage


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
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ValueError(f"seed: expected an integer, got {seed!r}")
        if stochastic_rounding:
            defaults["seed"] = seed
        if decay_to not in ("zero", "origin"):
            raise ValueError(f"decay_to: expected 'zero' or 'origin', got {decay_to!r}")
        if decay_to == "origin":
            defaults["decay_to"] = decay_to
        self._storage = Storage(bool(stochastic_rounding), bool(correction), optim_bits)
        self.skip_nonfinite = skip_nonfinite
        self.unscale_in_step = bool(unscale_in_step)
        self._skipped = SkippedSteps()
        self._prepared: dict[int, Prepared] = {}  # id of a parameter -> what is known of it
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
        self._prepared = {}
        self._count()
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
                if self._backward and is_sharded_tensor(p):
                    raise ValueError(
                        f"in_backward: {name} is split over the ranks (fully_shard), and its"
                        " gradient comes after its backward; use in_backward=False"
                    )
        except ValueError:
            self.param_groups.pop()
            raise
        self._count()
        if self._backward:
            self._backward.attach(len(self.param_groups) - 1)

    def state_dict(self) -> dict:
        """As torch's; its groups also hold digests of what is selected, by which `load_state_dict`
        tells another selection.
        """
        state = super().state_dict()
        for group, saved in zip(self.param_groups, state["param_groups"]):
            selections = selections_of(group)
            if any(selections):
                saved[SELECTIONS] = selections
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
        self._prepared.pop(id(parameter), None)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's. With in_backward it also leaves a backward behind that `step()` did not
        follow: one that failed.
        """
        super().zero_grad(set_to_none)
        if self._backward:
            self._backward.leave_behind()

    def _replaced(self, parameter: torch.Tensor) -> None:
        """Another one has taken its place in a group."""
        self._prepared.pop(id(parameter), None)
        self._count()
        if self._backward:
            self._backward.detach(parameter)
            self._backward.attach()

    def _count(self) -> None:
        """Number the parameters, as `state_dict` does."""
        params = itertools.chain.from_iterable(group["params"] for group in self.param_groups)
        self._number = {id(p): number for number, p in enumerate(params)}

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
        batches = self._batches()
        if not batches:
            return loss
        found_inf = self._found_inf(batches)
        for batch in batches:
            look = self.skip_nonfinite and len(batches) == 1 and not batch.shards
            self._step_on(batch, found_inf, look)
            for shard in batch.shards:
                shard.end()
        if self.skip_nonfinite:
            self._skipped.add(found_inf)
        return loss

    def _found_inf(self, batches: list[Batch]) -> torch.Tensor | None:
        """What tells the step whether to skip, or will tell once it has looked; None:
        nothing does.
        """
        found_inf = getattr(self, "found_inf", None)  # a GradScaler's
        shards = [shard for batch in batches for shard in batch.shards]
        if shards:
            return self._found_on_any_rank(batches, shards, found_inf)
        if not self.skip_nonfinite:
            return found_inf
        if len(batches) > 1:
            found = any_nonfinite([p.grad for p in batch.parameters()] for batch in batches)
            return found if found_inf is None else torch.maximum(found, found_inf.to(found.device))
        device = batches[0].device
        if found_inf is None:
            return torch.zeros((), dtype=torch.float32, device=device)
        return found_inf.to(device)

    def _found_on_any_rank(
        self, batches: list[Batch], shards: list[PreparedShard], found_inf: torch.Tensor | None
    ) -> torch.Tensor | None:
        """`_found_inf`, where each rank sees a part of the gradients."""
        if found_inf is not None:
            found_inf = local_of(found_inf)
        if self.skip_nonfinite:
            found = any_nonfinite([p.grad for p in batch.parameters()] for batch in batches)
            found_inf = found if found_inf is None else torch.maximum(found, found_inf)
        return None if found_inf is None else found_anywhere(found_inf, shards)

    def _batches(self) -> list[Batch]:
        """The parameters that have a gradient, by what a call has in common."""
        batches: dict[tuple, Batch] = {}
        if not self._prepared:
            self._count()  # accelerate has put others in the places of what FSDP2 has split
        for group in self.param_groups:
            device = batch = None
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p.device != device:
                    device = p.device
                    settings = settings_of(group, device)
                    key = device, group["maximize"], settings.lr_at is None
                    batch = batches.get(key)
                    if batch is None:
                        batch = batches[key] = Batch(device, group["maximize"])
                self._add(batch, p, group, settings)
        return list(batches.values())

    def _add(
        self, batch: Batch, p: torch.Tensor, group: dict[str, Any], settings: Settings
    ) -> None:
        if p.grad.is_sparse:
            raise RuntimeError(
                "grad: SelectiveAdamW takes dense gradients, got a sparse one of shape"
                f" {tuple(p.shape)}"
            )
        prepared = self._prepared.get(id(p))
        is_new = prepared is None
        if is_new:
            prepared = self._prepared[id(p)] = self._prepare(p)
        if type(prepared) is PreparedShard:
            prepared.begin(self._state_of(p))
            batch.shards.append(prepared)
        else:
            prepared.state = self._state_of(p)
        prepared.seed = self._storage.seed_of(p, group, self._number[id(p)])
        prepared.settings = settings
        prepared.to_origin = decays_to_origin(group)
        owner = linked_owner(p)
        if owner is None:
            batch.others.append(prepared)
            return
        batch.linked.append(prepared)
        batch.owners.append(owner)
        if is_new and p.is_cpu:
            prepared.spread(owner)

    def _prepare(self, p: torch.Tensor) -> Prepared:
        return PreparedShard(p) if is_sharded_tensor(p) else Prepared(p)

    def _state_of(self, p: torch.Tensor) -> dict[str, torch.Tensor]:
        state = self.state[p]
        if not state:
            state.update(self._storage.format_of(p).new(p))  # whole or not at all
        if state["step"].device != p.device:  # a loaded one is still where its checkpoint was
            state["step"] = state["step"].to(p.device)
        return state

    def _step_one(self, p: torch.Tensor, group: dict[str, Any]) -> None:
        """The step of one parameter that has its gradient."""
        batch = Batch(p.device, group["maximize"])
        self._add(batch, p, group, settings_of(group, p.device))
        self._step_on(batch)

    def _step_on(
        self, batch: Batch, found_inf: torch.Tensor | None = None, look: bool = False
    ) -> None:
        """look: at the gradients first, and set found_inf if one is not finite."""
        flags = Flags(
            maximize=batch.maximize,
            grad_scale=_on(batch.device, getattr(self, "grad_scale", None)),
            found_inf=_on(batch.device, found_inf),
            skip_nonfinite=look,
        )
        if found_inf is not None:
            for owner in batch.owners:
                owner.sync()  # a skipped step writes nothing, yet the weights count as shown below
        native = None
        if batch.device.type == "cpu":
            native = native_call_of(batch.linked, batch.owners, batch.others)
        if native is not None:
            step_on_cpu_(native, flags)
        else:
            batch.step_by_name(flags)
        for owner in batch.owners:
            owner._mark_shown()


def _on(device: torch.device, scalar: torch.Tensor | None) -> torch.Tensor | None:
    return scalar if scalar is None else scalar.to(device)
