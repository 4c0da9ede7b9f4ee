"""ZerothOrder: training by forward passes alone, on the entries that are selected (Sparse MeZO)."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch.optim import Optimizer


class _Entry(NamedTuple):
    """One parameter during a step. kept: its bits before. seed: of its noise."""

    parameter: torch.Tensor
    kept: torch.Tensor
    seed: int
    group: dict[str, Any]
    threshold: float | None

    def noise(self) -> torch.Tensor:
        """z, the same whenever it is asked for; zero where the entry is too large to take part."""
        device = self.parameter.device
        generator = torch.Generator(device).manual_seed(self.seed)
        shape, dtype = self.parameter.shape, self.parameter.dtype
        noise = torch.randn(shape, generator=generator, dtype=dtype, device=device)
        if self.threshold is None:
            return noise
        return noise.masked_fill_(self.kept.abs() > self.threshold, 0)

    def show(self, distance: float) -> None:
        """`kept + distance * z`."""
        self.parameter.copy_(torch.add(self.kept, self.noise(), alpha=distance))

    def restore(self) -> None:
        self.parameter.copy_(self.kept)

    def move(self, slope: float) -> None:
        """A step of gradient descent along z: the decay is on the weight, as in AdamW."""
        lr, decay = self.group["lr"], self.group["weight_decay"]
        moved = torch.mul(self.kept, 1 - lr * decay)
        self.parameter.copy_(moved.add_(self.noise(), alpha=-lr * slope))


class ZerothOrder(Optimizer):
    """`theta -= lr * (L(theta + eps z) - L(theta - eps z)) / (2 eps) * z`, z standard normal.

    params: those that train, of a converted model (`sft.convert`): the selected entries alone are
    perturbed, in place, and moved. `step(closure)` calls `closure`, which returns the loss, twice,
    without gradients: no graph, no activation is kept, and there is no backward. z is made anew
    from its seed each time it is needed; of the entries a copy is kept meanwhile, from which they
    are restored bit for bit, whatever closure raises. Dropout is the same in both passes.

    small_only: an entry takes part only while it is at most h in magnitude, where h is the largest
    magnitude in its parameter when this optimiser is made: with `sft.select(...,
    score="magnitude_bottom", scope="layer")` this is Sparse MeZO, whose mask |theta| <= h is made
    anew in each forward (Liu et al., 2024; MeZO: Malladi et al., 2023). weight_decay: of what takes
    part and what does not. Over 16-bit weights epsilon must be large enough to be seen in them.
    seed: with equal seeds and batches, equal steps.

    In several processes with batches of their own (process_group: None is all, False this one
    alone) the two losses are averaged, and all ranks take the same step. A step whose losses are
    not finite changes nothing and returns them.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-6,
        epsilon: float = 1e-3,
        weight_decay: float = 0.0,
        small_only: bool = False,
        seed: int = 0,
        process_group: Any = None,
    ) -> None:
        for name, number in (("lr", lr), ("epsilon", epsilon), ("weight_decay", weight_decay)):
            if not (math.isfinite(number) and number >= 0):
                raise ValueError(f"{name}: expected a finite number from 0 on, got {number!r}")
        if epsilon == 0:
            raise ValueError("epsilon: expected a positive number, got 0")
        self._process_group = process_group
        defaults = {
            "lr": lr,
            "epsilon": epsilon,
            "weight_decay": weight_decay,
            "small_only": small_only,
            "seed": seed,
            "step": 0,
        }
        super().__init__(params, defaults)
        for group, parameter in self._trained():
            if group["small_only"]:
                self.state[parameter]["threshold"] = parameter.detach().abs().max().item()

    def got_gradient(self, parameter: torch.Tensor) -> bool:
        """It needs none."""
        return True

    def _trained(self) -> Iterator[tuple[dict[str, Any], torch.Tensor]]:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.requires_grad:
                    yield group, parameter

    def _entries(self) -> list[_Entry]:
        found = []
        for place, (group, parameter) in enumerate(self._trained()):
            seed = ((group["seed"] * 1_000_003 + group["step"]) * 65_537 + place) % (1 << 63)
            threshold = self.state.get(parameter, {}).get("threshold")
            found.append(_Entry(parameter, parameter.detach().clone(), seed, group, threshold))
        return found

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> torch.Tensor:  # type: ignore[override]
        """One step; returns the mean of the two losses, a scalar. closure: the model's loss."""
        if closure is None:
            raise ValueError("closure: a function that returns the loss is needed, got None")
        entries = self._entries()
        try:
            with torch.random.fork_rng(_cuda_devices(entries)):
                above = self._loss(closure, entries, 1.0)
            below = self._loss(closure, entries, -1.0)
        finally:
            for entry in entries:
                entry.restore()
        losses = self._over_ranks(torch.stack([above, below]))
        if losses.isfinite().all():
            difference = float(losses[0] - losses[1])
            for entry in entries:
                entry.move(difference / (2 * entry.group["epsilon"]))
        for group in self.param_groups:
            group["step"] += 1
        return losses.mean()

    def _loss(self, closure: Callable[[], Any], entries: list[_Entry], sign: float) -> torch.Tensor:
        for entry in entries:
            entry.show(sign * entry.group["epsilon"])
        loss = closure()
        if not isinstance(loss, torch.Tensor):
            loss = torch.as_tensor(loss, device="cpu")
        loss = loss.detach()
        if loss.numel() != 1:
            raise ValueError(f"closure: expected a scalar loss, got shape {tuple(loss.shape)}")
        return loss.reshape(()).to(torch.promote_types(torch.float32, loss.dtype))

    def _over_ranks(self, losses: torch.Tensor) -> torch.Tensor:
        there = torch.distributed.is_available() and torch.distributed.is_initialized()
        if self._process_group is False or not there:
            return losses
        torch.distributed.all_reduce(losses, group=self._process_group)
        return losses / torch.distributed.get_world_size(self._process_group)


def _cuda_devices(entries: list[_Entry]) -> list[int]:
    """Whose random numbers closure may use, beside the CPU's."""
    devices = {entry.parameter.device for entry in entries}
    return sorted(device.index or 0 for device in devices if device.type == "cuda")
