"""Candidates: gradients of entries that do not train yet, collected while others do (SpIEL)."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from .. import ops
from ..annotations import AnyModule
from ..converted import converted_part, record_of
from ..nn.linear import Adopted, SelectiveLinear
from ..plan import ALL, Plan
from ..reselection import Seed
from ..salience import Score, select
from ..selection import Entries
from .schedule import check_count


class Collected:
    """What is known of the candidates of one weight.

    current: of this step. sums, squares: of the steps before.
    """

    def __init__(self, module: AnyModule, entries: Entries):
        device = module._parameters["values"].device
        self.entries = entries
        zeros = torch.zeros(len(entries), dtype=torch.float32, device=device)
        self.current, self.sums, self.squares = zeros, zeros.clone(), zeros.clone()
        self.calls: list[Any] = []  # hooks


class Candidates:
    """The entries outside of the selection with the largest gradients, and what these add up to.

    model: converted; its selective linear layers count, others of its weights are left out and
    named in `.left`. Each holds its whole input until its backward. per_tensor: how many of each.

    `find(batches)` looks for them, with one layer's dense gradient at a time; from then on every
    backward adds their exact gradients, by `selected_wgrad`, and `step()` after `optimizer.step()`
    ends a step. `sums[name]` and `entries[name]` tell what was collected, `seeds()` what
    `sft.reselect` begins with where they join. `remove()` ends it. Raises ValueError that names the
    argument.
    """

    def __init__(self, model: nn.Module, per_tensor: int):
        check_count("per_tensor", per_tensor)
        record = record_of(model)
        if record is None:
            way_out = converted_part(model) or "; call sft.convert(model, plan) first"
            raise ValueError(f"model: it is not converted{way_out}")
        self._model, self._per_tensor = model, per_tensor
        self.steps = 0
        self.left: list[str] = []
        self._modules: dict[str, nn.Module] = {}
        self._collected: dict[str, Collected] = {}
        for name, what in record.plan.items():
            module = model.get_submodule(name.rpartition(".")[0])
            if isinstance(module, Adopted) and name.endswith("weight") and what != ALL:
                self._modules[name] = module
            elif what != ALL:
                self.left.append(name)
        if not self._modules:
            raise ValueError("model: none of its selected weights is of a linear layer")

    @property
    def entries(self) -> dict[str, Entries]:
        """{name: the candidates of this weight}."""
        return {name: one.entries for name, one in self._collected.items()}

    @property
    def sums(self) -> dict[str, torch.Tensor]:
        """{name: fp32 [candidates], the sums of their gradients over the steps}."""
        return {name: one.sums for name, one in self._collected.items()}

    def find(
        self,
        batches: Iterable[Any],
        loss: Callable[[nn.Module, Any], torch.Tensor] | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> Plan:
        """Begin anew with the entries of the largest |E g| over `batches` that do not train.

        settings: `accumulate`, `passes`, `recompute`, … of `sft.select`. Returns them as a plan.
        The model is left as it was, its gradients too.
        """
        self.remove()
        chosen = select(
            self._model,
            budget=self._per_tensor,
            structure="entries",
            score=_outside(self._modules),
            targets=list(self._modules),
            batches=batches,
            loss=loss,
            seed=seed,
            **settings,
        )
        for name, entries in chosen.items():
            self._collect(name, entries)
        return chosen

    def step(self) -> None:
        """A step of the optimiser is done: what its backwards gave is one gradient."""
        self.steps += 1
        for one in self._collected.values():
            one.sums += one.current
            one.squares.addcmul_(one.current, one.current)
            one.current.zero_()

    def seeds(self) -> dict[str, Seed]:
        """{name: `Seed`} for `sft.reselect`: means of gradients and of their squares.

        Raises RuntimeError before the first step.
        """
        if not self.steps:
            raise RuntimeError("candidates: no step was collected yet; train, and call step()")
        found = {}
        for name, one in self._collected.items():
            index = one.entries.index.long()
            mean, squares = one.sums / self.steps, one.squares / self.steps
            found[name] = Seed(index, mean, squares, self.steps)
        return found

    def remove(self) -> None:
        """Collect no more, and forget what was collected."""
        for one in self._collected.values():
            for hook in one.calls:
                hook.remove()
        self._collected = {}
        self.steps = 0

    def _collect(self, name: str, entries: Entries) -> None:
        module = self._modules[name]
        one = Collected(module, entries)
        hook = functools.partial(_watch, one)
        one.calls.append(module.register_forward_hook(hook))
        self._collected[name] = one


def _watch(one: Collected, module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
    """Have the backward through this output add the candidates' gradients."""
    if not (torch.is_grad_enabled() and output.requires_grad):
        return
    input = inputs[0].detach()

    def add(grad_output: torch.Tensor) -> None:
        right = input.to(grad_output.dtype)
        is_linear = isinstance(module, SelectiveLinear)
        left, right = (grad_output, right) if is_linear else (right, grad_output)
        left = left.reshape(-1, left.size(-1)).contiguous()
        right = right.reshape(-1, right.size(-1)).contiguous()
        one.current += ops.selected_wgrad(left, right, one.entries.layout)

    output.register_hook(add)


def _outside(modules: dict[str, AnyModule]) -> Score:
    """|E g| of the entries that are not selected; the others come last."""
    by_memory = {module._parameters["weight"].data_ptr(): module for module in modules.values()}

    def finish(acc: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        selection = by_memory[weight.data_ptr()]._sparse_ft_state.selection
        taken = selection.mask(acc.shape).to(acc.device)
        return acc.abs_().masked_fill_(taken, -1.0)

    return Score(
        lambda acc, weight, gradient: acc.add_(gradient), finish, name="gradient", additive=True
    )
