"""A run that trains densely, as the selective one must."""

import torch
from torch import nn

import sparse_ft as sft

from .networks import build, checkpoint_blocks
from .optimizers import FAMILIES, OPTIMIZERS
from .runs import DTYPES, EPSILON, Run, has_numbers


class Dense(Run):
    """Dense training: the gradient is masked, decay acts on selected entries.

    Values wider than a weight are copies of it.

    exact: in fp64. jitter: of the inputs (or, where these are tokens, of the weights), for another
    rounding of the same run.
    """

    is_selective = False

    def __init__(self, case, exact=False, jitter=0):
        super().__init__(case)
        self.exact, self.jitter = exact, jitter
        if exact:
            self.dtype, self.autocast = torch.float64, False

    def make(self, seed):
        case = self.case
        born = build(case.network, seed, DTYPES[case.born or case.dtype]).train(case.training)
        self.wide = (
            {name: parameter.detach().clone() for name, parameter in born.named_parameters()}
            if case.born
            else {}
        )
        self.model = born.to(DTYPES[case.dtype]).to(self.dtype)
        if self.jitter and not has_numbers(case):
            self.shake()
        checkpoint_blocks(self.model, case.checkpointing)
        self.model.requires_grad_(False)
        self.plan = self.plan_on(self.model)
        self.weights = {name: self.model.get_parameter(name).requires_grad_() for name in self.plan}
        self.masks = {}
        for name, what in self.plan.items():
            weight = self.weights[name]
            mask = (
                torch.ones(weight.shape, dtype=torch.bool)
                if what == "all"
                else what.mask(self.shape(name))
            )
            self.masks[name] = mask.view(weight.shape)
        self.make_optimizers()

    def shake(self):
        """Round the weights in another way."""
        generator = torch.Generator().manual_seed(self.jitter)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(
                    parameter
                    * torch.randn(parameter.shape, generator=generator)
                    * EPSILON[self.case.dtype]
                )

    def shape(self, name):
        return sft.matrix_shape(self.model, name)

    def make_optimizers(self):
        family = FAMILIES[OPTIMIZERS[self.case.optimizer].family]
        self.lr, self.decoupled = family.lr, family.decoupled
        self.masters = {name: self.master(name) for name in self.plan}
        for name, wide in self.wide.items():
            if name in self.masters and self.plan[name] != "all":
                self.masters[name].data.copy_(wide)
        self.wide = {}  # a second optimiser finds the weights as they are then
        options = {
            name: option for name, option in self.case.options.items() if name != "weight_decay"
        }
        self.optimizers = [family.make(list(self.masters.values()), family.lr, **options)]

    def master(self, name):
        """What the optimiser steps: the weight, or a copy of it that is as wide as values are."""
        weight = self.weights[name]
        if self.exact or self.plan[name] == "all":
            return weight
        chosen = OPTIMIZERS[self.case.optimizer].master or self.case.values_dtype
        wide = DTYPES[chosen] if chosen else torch.promote_types(torch.float32, weight.dtype)
        return weight if wide == weight.dtype else nn.Parameter(weight.detach().to(wide))

    def zero_grad(self):
        for weight in self.weights.values():
            if self.case.set_to_none:
                weight.grad = None
            elif weight.grad is not None:
                weight.grad.zero_()

    def trained(self, name):
        return self.weights[name]

    def step(self, step):
        self.backward(step)
        found = {}
        decay, lr = (
            self.case.options.get("weight_decay", 0.0),
            self.optimizers[0].param_groups[0]["lr"],
        )
        with torch.no_grad():
            for name, weight in self.weights.items():
                master, mask = self.masters[name], self.masks[name]
                gradient = (
                    None
                    if weight.grad is None
                    else weight.grad.masked_fill(~mask, 0).to(master.dtype)
                )
                if master is weight:
                    weight.grad = gradient
                else:
                    master.grad = gradient
                found[name] = None if gradient is None else self.gathered(name, gradient)
            self.gradients.append(found)
            if self.case.scaler and all(gradient is None for gradient in found.values()):
                raise RuntimeError("a GradScaler wants a gradient at every step")
            if self.case.clip is not None:
                nn.utils.clip_grad_norm_(list(self.masters.values()), self.case.clip, foreach=False)
            for name, master in self.masters.items():
                if master.grad is None:
                    continue
                if self.decoupled:
                    master.copy_(torch.where(self.masks[name], master * (1 - lr * decay), master))
                else:
                    master.grad.add_((decay * master).masked_fill(~self.masks[name], 0))
        self.optimizers[0].step()
        self.show()

    def show(self):
        """The weights show their wider copies."""
        with torch.no_grad():
            for name, weight in self.weights.items():
                if self.masters[name] is not weight:
                    weight.copy_(
                        torch.where(self.masks[name], self.masters[name].to(weight.dtype), weight)
                    )

    def gathered(self, name, tensor):
        what = self.plan[name]
        return tensor.clone() if what == "all" else what.gather(tensor.reshape(self.shape(name)))

    def finish(self):
        self.final = {
            name: parameter.detach().clone() for name, parameter in self.model.named_parameters()
        }
