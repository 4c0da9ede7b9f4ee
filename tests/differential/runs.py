"""The same training twice: of the selected entries by the library, and dense with the gradient
masked.
"""

import contextlib
import warnings

import torch
from helpers.warned import messages_of
from torch import nn

import sparse_ft as sft

from .events import EVENTS
from .models import VOCABULARY
from .networks import build, checkpoint_blocks
from .optimizers import FAMILIES, OPTIMIZERS

DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16}
CONTEXTS = {  # in which forward and backward run
    None: contextlib.nullcontext,
    "anomaly": torch.autograd.detect_anomaly,
    "save_on_cpu": torch.autograd.graph.save_on_cpu,
    "copies saved": lambda: torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone),
}
EPSILON = {name: torch.finfo(dtype).eps for name, dtype in DTYPES.items()}
SCALE = 256.0  # of a GradScaler: a power of two, which rounds nothing


def inputs_of(case, step, part, dtype, jitter=0):
    """The input of one forward, in the memory layout that the case names. jitter: other than 0,
    another rounding of it.
    """
    network = case.network
    shape = (network.batch, *network.shape) if network.batch is not None else network.shape
    generator = torch.Generator().manual_seed(1 + case.seed + 100 * step + part)
    if not has_numbers(case):
        return torch.randint(VOCABULARY, shape, generator=generator)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    if jitter:
        x = (
            x
            + x
            * torch.randn(shape, generator=generator.manual_seed(jitter), dtype=torch.float64)
            * EPSILON[case.dtype]
        )
    if network.data == "features" and case.dtype == "bf16":
        x = x.bfloat16().double()
    if case.layout == "expanded" and network.batch:
        return x[:1].to(dtype).expand(shape)
    if case.layout == "channels last" and x.dim() in (4, 5):
        return x.to(
            dtype, memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d
        )
    if case.layout == "transposed" and x.dim() > 1:
        return x.to(dtype).transpose(0, -1).contiguous().transpose(0, -1)
    if case.layout == "sliced":
        wide = torch.empty(*shape[:-1], 2 * shape[-1], dtype=dtype)
        return wide[..., ::2].copy_(x)
    return x.to(dtype)


def has_numbers(case):
    """Whether the inputs are numbers and not tokens."""
    return case.network.data in ("features", "sequence", "images")


def loss_of(case, out, step, part):
    """Mean squared distance to a random target.

    Of a few outputs, for a mean over many has tiny gradients.
    """
    generator = torch.Generator().manual_seed(7 + case.seed + 100 * step + part)
    target = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    wide = out if out.dtype == torch.float64 else out.float()
    return (wide - target.to(wide.dtype)).square().sum() / max(1, out.numel()) ** 0.5


class Run:
    """What both runs have in common. losses: a number a step.

    gradients: {name: selected entries} a step; seen: outputs of forwards that nothing followed;
    input_gradients: one a forward, where the case wants them.
    """

    def __init__(self, case):
        self.case, self.dtype, self.autocast = case, DTYPES[case.dtype], case.autocast
        self.losses, self.gradients, self.seen, self.input_gradients, self.messages = (
            [],
            [],
            [],
            [],
            [],
        )
        self.frozen_name, self.jitter = None, 0

    def plan_on(self, model):
        return {
            name: choice.on(sft.matrix_shape(model, name))
            for name, choice in self.case.plan.items()
        }

    def train(self):
        """The whole run; returns itself."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.make(self.case.seed)
            for step in range(self.case.steps):
                self.thaw()
                for event in self.events_at(step, within=False):
                    self.happen(event, step)
                if self.case.schedule:
                    for group in [
                        group for optimizer in self.optimizers for group in optimizer.param_groups
                    ]:
                        group["lr"] = self.lr * 0.7**step
                self.step(step)
            self.thaw()
            self.finish()
        self.messages = messages_of(caught)
        return self

    def events_at(self, step, within):
        return [e for e in self.case.events if e.step == step and e.within == within]

    def happen(self, event, step):
        kind = EVENTS[event.kind]
        act = kind.on_selective if self.is_selective else kind.on_dense
        act(
            self,
            event,
            lambda: self.forward(inputs_of(self.case, step, 50, self.dtype, self.jitter)).detach(),
        )

    def forward(self, x):
        context = (
            torch.autocast("cpu", torch.bfloat16) if self.autocast else contextlib.nullcontext()
        )
        torch.manual_seed(self.case.seed)  # of dropout
        with context:
            return self.model(x)

    def backward(self, step):
        """The gradients of a step, from as many parts as the case accumulates; returns the loss."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=self.case.set_to_none)
        self.zero_grad()
        total = 0.0
        for part in range(self.case.accumulate):
            x = inputs_of(self.case, step, part, self.dtype, self.jitter)
            if self.case.input_grad:
                x.requires_grad_()
            with CONTEXTS[self.case.context]():
                loss = loss_of(self.case, self.forward(x), step, part) / self.case.accumulate
                if self.case.backward == "of two":
                    other = inputs_of(self.case, step, part + 20, self.dtype, self.jitter)
                    loss = loss + loss_of(self.case, self.forward(other), step, part + 20)
                if part == 0:
                    for event in self.events_at(step, within=True):
                        self.happen(event, step)
                self.differentiate(self.scaled(loss))
            total += loss.detach()
            if self.case.input_grad:
                self.input_gradients.append(None if x.grad is None else x.grad / self.scale)
        self.losses.append(float(total))
        return total

    def differentiate(self, loss):
        if self.case.backward == "retained":
            loss.backward(retain_graph=True)
        if self.case.backward != "by autograd.grad":
            return loss.backward()
        trained = [p for p in map(self.trained, self.plan) if p.requires_grad]
        for parameter, gradient in zip(
            trained, torch.autograd.grad(loss, trained, allow_unused=True), strict=True
        ):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def freeze(self, name):
        """Let one parameter not train until `thaw`, which returns its name; None: none."""
        self.thaw()
        self.frozen_name = name
        if name is not None:
            self.trained(name).requires_grad_(False)

    def thaw(self):
        name, self.frozen_name = self.frozen_name, None
        if name is not None:
            self.trained(name).requires_grad_()
        return name

    def zero_grad(self):
        pass

    def scaled(self, loss):
        return loss

    scale = 1.0


class Selective(Run):
    """The library's run. left: (model, its weights) of each model that was copied and must not move
    any more;
    silent: names of selected parameters that had no gradient at some step, though they train."""

    is_selective = True

    def __init__(self, case):
        super().__init__(case)
        self.left, self.silent = [], set()
        self.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE) if case.scaler else None

    def make(self, seed):
        self.make_model(seed)
        if self.case.lean in ("before", "loss"):
            sft.lean(self.model, loss=self.case.lean == "loss")
        self.convert()
        if self.case.lean == "after":
            sft.lean(self.model)
        self.model.to(self.dtype)
        self.make_optimizers()

    def make_model(self, seed):
        """The model before it is converted, in the dtype that it is born in."""
        born = DTYPES[self.case.born] if self.case.born else self.dtype
        self.model = build(self.case.network, seed, born).train(self.case.training)
        checkpoint_blocks(self.model, self.case.checkpointing)
        self.classes = {name: type(module) for name, module in self.model.named_modules()}
        self.flags = {name: p.requires_grad for name, p in self.model.named_parameters()}
        self.plan = self.plan_on(self.model)

    def convert(self):
        chosen = self.case.values_dtype
        sft.convert(
            self.model,
            self.plan,
            lean=self.case.lean == "with",
            values_dtype=DTYPES[chosen] if chosen else None,
            origin=self.case.origin,
        )

    def make_optimizers(self):
        ours = OPTIMIZERS[self.case.optimizer]
        self.lr = FAMILIES[ours.family].lr
        parts = [list(self.model.parameters())]
        if self.case.split:
            trained = [self.trained(name) for name in self.plan]
            parts = [trained[::2], trained[1::2]]
        self.optimizers = [ours.make(part, self.lr, **self.case.options) for part in parts]

    def trained(self, name):
        """The parameter that trains in the place of `name`."""
        path, _, attribute = name.rpartition(".")
        owner = self.model.get_submodule(path)
        if self.plan[name] == "all":
            return owner._parameters[attribute]
        return getattr(owner, f"{attribute}_selected", owner).values

    def leave_behind(self):
        self.left.append((self.model, self.weights()))

    def weights(self):
        """{name: a copy of the weight as it stands}; a state_dict is synchronised."""
        state = self.model.state_dict()
        return {name: state[name].clone() for name in self.flags}

    @property
    def scale(self):
        return self.scaler.get_scale() if self.scaler else 1.0

    def scaled(self, loss):
        return self.scaler.scale(loss) if self.scaler else loss

    def step(self, step):
        if self.case.closure:
            self.optimizers[0].step(lambda: self.prepare(step))
            return
        self.prepare(step)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer) if self.scaler else optimizer.step()
        if self.scaler:
            self.scaler.update()

    def prepare(self, step):
        """Everything before the optimiser's step; returns the loss."""
        loss = self.backward(step)
        if self.scaler and self.case.clip is not None:
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
        if not OPTIMIZERS[self.case.optimizer].in_backward:
            scale = self.scale if self.scaler and self.case.clip is None else 1.0
            found = {name: self.trained(name).grad for name in self.plan}
            self.gradients.append(
                {
                    name: None if grad is None else grad.clone() / scale
                    for name, grad in found.items()
                }
            )
            self.silent |= {
                name for name in found if found[name] is None and name != self.frozen_name
            }
        if self.case.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.case.clip)
        return loss

    def finish(self):
        self.final = self.weights()
        self.after_revert = sft.revert(self.model)
        # Of something else, while the old optimisers live.
        torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1).step()
