"""GradientSource: runs the model on the batches, and hands each gradient to the score as soon as it
is there: no more than one layer's is alive.
"""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from .capture import Factors, NoProduct, capture, layers_of
from .draws import Draws
from .examples import example, number_of_examples
from .job import Job
from .recompute import recompute
from .score import Score
from .tally import Tally
from .untouched import Untouched, untouched
from .verifying import Verified, verified


class GradientSource:
    """Scores of gradients.

    The model runs when the first one is asked for, with `accumulate="passes"` each time that
    they are.
    """

    def __init__(self, score: Score, job: Job):
        self._score, self._job = score, job
        self.absolute = score.absolute
        self.reduced = _can_reduce(score, job)
        self._held: dict[str, torch.Tensor] | None = None
        self._capturable: Verified | None = None
        _check_can_differentiate(score, job.weights)

    def scores(self, last: bool = True) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, score) of every weight. last: nobody asks for them again."""
        if self._job.accumulate == "passes":
            for names in _parts(self._job.weights, self._job.passes):
                yield from _popped(self._collected(names))
            return
        if self._held is None:
            self._held = self._collected(list(self._job.weights))
        yield from _popped(self._held) if last else self._held.items()

    def _collected(self, names: list[str]) -> dict[str, torch.Tensor]:
        """{name: score} of these weights."""
        job = self._job
        job.ranks.begin()
        if job.accumulate == "passes":
            untouched(job.model, lambda saved: job.known_batches.keep())
        run, seen = self._run(names)
        seen = _over_ranks(job, self._score, seen, run.tallies)
        if not seen:
            raise ValueError(
                f"batches: expected at least one batch for score={self._score.name!r}, got none"
            )
        dead = [name for name, tally in run.tallies.items() if not tally.is_reached]
        if dead:
            raise ValueError(
                f"targets: no gradient reached {', '.join(map(repr, dead[:3]))}; the loss does not"
                f" depend on {'it' if len(dead) == 1 else 'them'}; name the others in targets="
            )
        finished = {}
        for name in names:
            count = seen if self._score.average else job.ranks.size
            finished[name] = run.tallies.pop(name).finished(count)
        return finished

    def _run(self, names: list[str]) -> tuple["Run", int]:
        """(a finished run, how many gradients there were).

        Layers that turn out to give more than one product go the plain way, from the
        beginning.
        """
        may = self._may_capture()
        while True:
            layers = {name: may.layers[name] for name in names if name in may.layers}
            if layers:
                untouched(self._job.model, lambda saved: self._job.known_batches.keep())
            captured = Verified(layers, may.counting)
            run = Run(self._score, self._job, names, captured, self.reduced)
            try:
                return run, run.over_batches()
            except NoProduct as found:
                del may.layers[found.name]
                if self._job.is_converted:
                    raise _not_again(found.name) from None

    def _may_capture(self) -> Verified:
        """The layers whose gradient may come as two factors."""
        if self._capturable is None:
            layers = {}
            by_factors = self.reduced or self._score.per == "example" or self._job.is_converted
            if by_factors:
                layers = layers_of(self._job.model, self._job.weights)
            if self._score.per == "example":
                self._capturable = verified(self._score, self._job, layers)
            else:
                self._capturable = Verified(layers)
            left = self._job.weights.keys() - self._capturable.layers.keys()
            if left and self._job.is_converted:
                raise _not_again(min(left))
        return self._capturable


class Run:
    """The gradients of some weights over all batches. captured: the layers that give factors."""

    def __init__(self, score: Score, job: Job, names: list[str], captured: Verified, reduced: bool):
        self._score, self._job, self._captured = score, job, captured
        on_cpu = job.accumulate == "cpu"
        self.tallies = {}
        for name in names:
            weight = job.weights[name].detach().reshape(job.shape(name))
            self.tallies[name] = Tally(score, job.structure, weight, reduced, on_cpu)
        self._dense = [name for name in names if name not in captured.layers]
        # A selective layer's weight is read in its own way, and nothing may take its place.
        self._watched = [] if job.is_converted else list(captured.layers)
        self._came: set[str] = set()  # gradients of this backward
        self._weights = torch.empty(0, device="cpu")  # what each example of this batch counts
        self._draws = Draws(job.seed, job.ranks)

    def over_batches(self) -> int:
        """Go through the batches; returns how many gradients there were: batches, or examples."""
        if self._score.per == "batch":
            return untouched(self._job.model, self._by_batch)
        seen = 0
        if self._captured.layers:
            seen = untouched(self._job.model, self._by_example_together)
        if self._dense:
            seen = untouched(self._job.model, self._by_example_alone)
        return seen

    def _by_batch(self, saved: Untouched) -> int:
        self._listen(saved, [*self._dense, *self._watched])
        capture(self._captured.layers, self._take_batch)
        seen = 0
        for batch in self._job.followed("gradients of batches"):
            self._backward(batch)
            seen += 1
        return seen

    def _by_example_together(self, saved: Untouched) -> int:
        """One backward a batch, whose factors are taken apart."""
        self._listen(saved, self._watched)
        capture(self._captured.layers, self._take_examples)
        seen = 0
        for batch in self._job.followed("gradients of batches"):
            self._weights = self._captured.weights(batch)
            self._backward(batch)
            seen += len(self._weights)
        return seen

    def _by_example_alone(self, saved: Untouched) -> int:
        """One backward an example."""
        self._listen(saved, self._dense)
        seen = 0
        for batch in self._job.followed("gradients of examples"):
            for number in range(number_of_examples(batch)):
                self._backward(example(batch, number))
                seen += 1
        return seen

    def _listen(self, saved: Untouched, names: list[str]) -> None:
        """Take each gradient of these weights as soon as it has accumulated."""
        if self._job.recompute:
            recompute(self._job.model, saved)
        if self._score.of_magnitudes:
            saved.take_magnitudes()
        weights = {name: self._job.weights[name] for name in names}
        for name, parameter in saved.stand_ins(weights).items():
            hook = functools.partial(self._take_gradient, name)
            saved.also(parameter.register_post_accumulate_grad_hook(hook).remove)

    def _backward(self, batch: Any) -> None:
        losses = losses_of(self._score, self._job, batch, self._draws)
        for loss, is_last in losses:
            self._came.clear()
            loss.sum().backward(retain_graph=not is_last)

    def _take_gradient(self, name: str, parameter: nn.Parameter) -> None:
        gradient: Any = parameter.grad  # there is one: it has accumulated
        parameter.grad = None
        if name in self._captured.layers:  # it is read past its layer's forward
            raise NoProduct(name)
        self._notice(name)
        if gradient.is_sparse:
            gradient = gradient.to_dense()
        self.tallies[name].add(gradient.reshape(self._job.shape(name)))

    def _take_batch(self, name: str, input: torch.Tensor, grad_output: torch.Tensor) -> None:
        self._notice(name)
        factors = Factors(self._captured.layers[name], input, grad_output)
        self.tallies[name].add_product(factors.of_batch())

    def _take_examples(self, name: str, input: torch.Tensor, grad_output: torch.Tensor) -> None:
        self._notice(name)
        factors = Factors(self._captured.layers[name], input, grad_output)
        for number, weight in enumerate(self._weights.tolist()):
            if weight:
                self.tallies[name].add_product(factors.of_example(number, weight))

    def _notice(self, name: str) -> None:
        """Refuse a gradient that comes in parts where the whole is needed."""
        if name in self._came and name in self._captured.layers:
            raise NoProduct(name)
        if name in self._came and not self._score.additive:
            raise RuntimeError(
                f"score: {self._score.name!r} needs the gradient of {name!r} whole, and it comes in"
                " parts (checkpoint(use_reentrant=True) of a weight that is used twice);"
                " use_reentrant=False gives it whole"
            )
        self._came.add(name)


def _not_again(name: str) -> ValueError:
    return ValueError(
        f"targets: gradients of {name!r} cannot be taken in a converted model: its layer is called"
        " more than once, its weight is read by somebody else, or an example's gradient cannot be"
        " told from the others'; leave it out, or sft.revert(model) first"
    )


def losses_of(
    score: Score, job: Job, batch: Any, draws: Draws
) -> Iterator[tuple[torch.Tensor, bool]]:
    """(loss, whether it is the last one of this batch)."""
    if score.objectives is None:
        yield job.loss(job.model, batch), True
        return
    losses = list(score.objectives(job.model, batch, draws.take()))
    for number, loss in enumerate(losses, 1):
        yield loss, number == len(losses)


def _can_reduce(score: Score, job: Job) -> bool:
    """Whether units can be added up before the score is finished."""
    keeps_sign = not score.absolute or job.structure.combine == "abs_of_sum"
    is_whole = score.absolute or job.structure.combine == "sum"
    return score.linear and keeps_sign and is_whole and not job.structure.is_entries


def _parts(weights: dict[str, nn.Parameter], number: int) -> list[list[str]]:
    """The names in `number` runs of about as many entries."""
    total = sum(weight.numel() for weight in weights.values())
    parts: list[list[str]] = [[] for _ in range(number)]
    before = 0
    for name, weight in weights.items():
        middle = before + weight.numel() / 2
        parts[min(number - 1, int(middle * number / max(total, 1)))].append(name)
        before += weight.numel()
    return [part for part in parts if part]


def _popped(held: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    for name in list(held):
        yield name, held.pop(name)


def _over_ranks(job: Job, score: Score, seen: int, tallies: dict[str, Tally]) -> int:
    """How many gradients all ranks have seen; the tallies then hold the sums over the ranks."""
    if job.ranks.size == 1:
        return seen
    job.ranks.agree({name: f"{job.shape(name)} of {job.weights[name].dtype} #" for name in tallies})
    mine = [name for name, tally in tallies.items() if tally.is_reached]
    told = job.ranks.exchange((seen, mine))
    reached = {name for _, names in told for name in names}
    for name, tally in tallies.items():
        if name in reached:
            tally.is_reached = True
            tally.over_ranks(job.ranks)
    return sum(count for count, _ in told)


def _check_can_differentiate(score: Score, weights: dict[str, nn.Parameter]) -> None:
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            f"score: {score.name!r} needs gradients, and torch.inference_mode() has none; call"
            " select outside of it (torch.no_grad() does no harm)"
        )
    for name, weight in weights.items():
        if weight.is_inference():
            raise ValueError(
                f"targets: {name!r} was made under torch.inference_mode() and takes no gradient;"
                " make or load the model outside of it"
            )
        if not weight.is_floating_point():
            raise TypeError(
                f"targets: {name!r} is {weight.dtype}, and only floating-point weights have"
                " gradients"
            )
