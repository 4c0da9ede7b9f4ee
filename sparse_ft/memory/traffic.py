"""Traffic: the bytes that a training step moves between devices, told beforehand.

Which tensors travel follows from the strategy; a forward of the dry run tells which activations do.

- "ddp" (DistributedDataParallel): gradients of what trains, by one all-reduce; and the model's
  buffers.
- "fsdp2" (`fully_shard` on each block and on the model): all parameters, by an all-gather in
  forward and, of blocks, another in backward; gradients of what trains, by a reduce-scatter; after
  the step `values`, by an all-gather, but of columns none.
- "tensor_parallel" (`parallelize_module`, as the model's `tp_plan` says): activations, by an
  all-reduce behind each layer that is cut by columns, and of the gradient in front of each that is
  cut by rows; gradients of `values`, by an all-reduce.
"""

import dataclasses
import fnmatch
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from ..nn import Selected
from ..texts import aligned, readable

# How often a ring sends the whole: to sum, and to hand round what was summed.
TIMES = {"all_gather": 1, "reduce_scatter": 1, "all_reduce": 2, "broadcast": 1}
CUT_BY_ROWS = ("colwise", "colwise_gather_output", "colwise_rep")  # of a weight [out, in]
CUT_BY_COLUMNS = ("rowwise", "rowwise_rep", "embedding_rowwise")
GATHERED = ("colwise_gather_output", "colwise_rep")
SILENT = ("replicate", "replicated_with_grad_allreduce")


class Message(NamedTuple):
    """What travels in one phase of a step, in collectives of one kind.

    bytes: of the whole, as each device has it before or after; padded to equal shares.
    """

    phase: str
    what: str
    collective: str
    bytes: int

    def sent(self, world_size: int) -> int:
        """Bytes that one device sends, and receives, as rings do it."""
        return TIMES[self.collective] * self.bytes * (world_size - 1) // world_size


@dataclasses.dataclass(frozen=True)
class Traveller:
    """A parameter, by what decides how it travels.

    kind: of the selection, where it is `values`; None elsewhere. rows: of the matrix that values
    are of, and of the tensor that is viewed as this matrix: their first dimension. again: whether a
    backward gathers it again. role: in tensor parallel, of the module that has it.
    """

    shape: tuple[int, ...]
    itemsize: int
    trains: bool
    kind: str | None
    rows: tuple[int, int]
    again: bool
    role: str | None

    @property
    def bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.itemsize

    def padded(self, world_size: int) -> int:
        """Bytes of as many equal shares along the first dimension."""
        first = self.shape[0] if self.shape else 1
        share = -(-first // world_size)
        return share * world_size * (self.bytes // max(first, 1))

    def is_aligned(self, world_size: int) -> bool:
        """Whether values are split as the weight is: columns, mostly."""
        if self.kind != "columns":
            return False
        of_matrix, of_weight = self.rows
        each = of_matrix // of_weight
        for rank in range(world_size):
            first, last = _share(of_weight, world_size, rank)
            if _share(of_matrix, world_size, rank) != (first * each, last * each):
                return False
        return True


def _share(length: int, world_size: int, rank: int) -> tuple[int, int]:
    """Which of `length` numbers a rank has, as `torch.chunk` splits them: first, and one past the
    last.
    """
    each = -(-length // world_size)
    return min(rank * each, length), min((rank + 1) * each, length)


@dataclasses.dataclass(frozen=True)
class Crossing:
    """The activations at a module that tensor parallel cuts.

    input, output: bytes; input is 0 where it needs no gradient. width: features of the output.
    """

    role: str
    input: int
    output: int
    width: int

    def padded(self, world_size: int) -> int:
        """Bytes of an output that is put together of equal shares of its features."""
        share = -(-self.width // world_size)
        return self.output // self.width * share * world_size


@dataclasses.dataclass(frozen=True)
class Facts:
    """What all strategies need to know of a model and a batch.

    why_whole: why tensor parallel cannot cut it; None where it can.
    """

    parameters: tuple[Traveller, ...]
    buffers: int
    crossings: tuple[Crossing, ...]
    why_whole: str | None


class Traffic:
    """The bytes that one training step moves: `.messages`, `.sent` (bytes that one device sends,
    and receives); prints. `on` tells it of other numbers of devices.
    """

    def __init__(self, facts: Facts, world_size: int, strategy: str) -> None:
        check(world_size, strategy)
        self._facts = facts
        self.world_size, self.strategy = world_size, strategy
        made = STRATEGIES[strategy](facts, world_size)
        self.messages = tuple(message for message in made if message.bytes)

    def on(self, world_size: int, strategy: str | None = None) -> "Traffic":
        """The same model and batch (that of one device) on `world_size` devices."""
        return Traffic(self._facts, world_size, strategy or self.strategy)

    @property
    def sent(self) -> int:
        return sum(message.sent(self.world_size) for message in self.messages)

    def __str__(self) -> str:
        lines = [("phase", "what", "collective", "bytes", "a device sends")]
        for message in self.messages:
            sent = readable(message.sent(self.world_size))
            words = message.phase, message.what, message.collective.replace("_", "-")
            lines.append((*words, readable(message.bytes), sent))
        total = f"{self.strategy} on {self.world_size} devices: each sends {readable(self.sent)}"
        return "\n".join([*aligned(lines, numbers=(3, 4)), f"{total} a step"])

    __repr__ = __str__


def check(world_size: Any, strategy: Any) -> None:
    """Raise ValueError for what is no number of devices, or no strategy that is known."""
    if isinstance(world_size, bool) or not isinstance(world_size, int) or world_size < 1:
        raise ValueError(f"world_size: expected a positive integer, got {world_size!r}")
    if strategy not in STRATEGIES:
        known = ", ".join(map(repr, STRATEGIES))
        raise ValueError(f"strategy: expected one of {known}, got {strategy!r}")


def _ddp(facts: Facts, world_size: int) -> Iterator[Message]:
    yield Message("forward", "buffers", "broadcast", facts.buffers)
    trained = sum(p.bytes for p in facts.parameters if p.trains)
    yield Message("backward", "gradients", "all_reduce", trained)


def _fsdp2(facts: Facts, world_size: int) -> Iterator[Message]:
    everything = facts.parameters
    gathered = sum(p.padded(world_size) for p in everything)
    again = sum(p.padded(world_size) for p in everything if p.again)
    trained = sum(p.padded(world_size) for p in everything if p.trains)
    shown = [p for p in everything if p.kind is not None and not p.is_aligned(world_size)]
    yield Message("forward", "parameters", "all_gather", gathered)
    yield Message("backward", "parameters", "all_gather", again)
    yield Message("backward", "gradients", "reduce_scatter", trained)
    after = sum(p.padded(world_size) for p in shown)
    yield Message("after the step", "values", "all_gather", after)


def _tensor_parallel(facts: Facts, world_size: int) -> Iterator[Message]:
    if facts.why_whole is not None:
        raise ValueError(f"strategy: 'tensor_parallel': {facts.why_whole}")
    crossings = facts.crossings
    summed = sum(c.output for c in crossings if c.role in CUT_BY_COLUMNS)
    gathered = sum(c.padded(world_size) for c in crossings if c.role in GATHERED)
    returned = sum(c.input for c in crossings if c.role in CUT_BY_ROWS)
    values = sum(p.bytes for p in facts.parameters if p.kind is not None and p.role is not None)
    shared = [p for p in facts.parameters if p.role in SILENT and p.role != "replicate"]
    yield Message("forward", "activations", "all_reduce", summed)
    yield Message("forward", "activations", "all_gather", gathered)
    yield Message("backward", "activations", "all_reduce", returned)
    whole = sum(p.bytes for p in shared if p.trains and p.kind is None)
    yield Message("backward", "gradients", "all_reduce", values + whole)


STRATEGIES: dict[str, Callable[[Facts, int], Iterator[Message]]] = {
    "ddp": _ddp,
    "fsdp2": _fsdp2,
    "tensor_parallel": _tensor_parallel,
}


class Watch:
    """While entered, the forwards of a model tell what a strategy must know of its activations."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._handles: list[Any] = []
        self._roles, self._why_whole = _roles(model)
        self._ran: list[str] = []  # blocks, in order
        self._reached: set[str] = set()  # those of them that a backward goes through
        self._crossings: list[Crossing] = []
        self._blocks = _blocks(model)

    def __enter__(self) -> "Watch":
        for name in self._blocks:
            block = self._model.get_submodule(name)
            self._handles.append(block.register_forward_hook(self._block_ran(name)))
        for name, role in self._roles.items():
            module = self._model.get_submodule(name)
            self._handles.append(module.register_forward_hook(self._module_ran(role)))
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()

    def _block_ran(self, name: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
            self._ran.append(name)
            if any(t.requires_grad for t in _tensors(output)):
                self._reached.add(name)

        return hook

    def _module_ran(self, role: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
            given = [t for t in _tensors(inputs) if t.requires_grad]
            returned = sum(t.nbytes for t in given)
            made = list(_tensors(output))
            width = made[0].size(-1)
            self._crossings.append(Crossing(role, returned, sum(t.nbytes for t in made), width))

        return hook

    def _gathered_again(self) -> set[str]:
        """Blocks that a backward gathers: each brings the one before it, also where it ends."""
        before = [
            self._ran[n] for n in range(len(self._ran) - 1) if self._ran[n + 1] in self._reached
        ]
        return {*self._reached, *before}

    def facts(self) -> Facts:
        """After one forward."""
        model = self._model
        gathered = self._gathered_again()
        selected = {id(m._parameters["values"]): m for m in _selected_in(model)}
        parameters = []
        for name, parameter in model.named_parameters():
            block = next((b for b in self._blocks if name.startswith(f"{b}.")), None)
            owner = selected.get(id(parameter))
            role = next((r for m, r in self._roles.items() if name.startswith(f"{m}.")), None)
            kept = Traveller(
                shape=tuple(parameter.shape),
                itemsize=parameter.itemsize,
                trains=parameter.requires_grad,
                kind=None if owner is None else owner.selection.kind,
                rows=(1, 1) if owner is None else _rows(owner),
                again=block in gathered,
                role=role,
            )
            parameters.append(kept)
        buffers = sum(buffer.nbytes for buffer in model.buffers())
        return Facts(tuple(parameters), buffers, tuple(self._crossings), self._why_whole)


def _selected_in(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, Selected)]


def _rows(owner: Any) -> tuple[int, int]:
    return owner.matrix_shape[0], owner._weight().size(0)


def _tensors(what: Any) -> Iterator[torch.Tensor]:
    """The floating-point tensors of the inputs or the output of a module."""
    if isinstance(what, torch.Tensor):
        if what.is_floating_point():
            yield what
    elif isinstance(what, dict):
        yield from _tensors(list(what.values()))
    elif isinstance(what, (tuple, list)):
        for each in what:
            yield from _tensors(each)


def _blocks(model: nn.Module) -> list[str]:
    """Names of the modules that are sharded apart: the members of each outermost ModuleList."""
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    return [
        f"{name}.{child}"
        for name in outer
        for child, _ in model.get_submodule(name).named_children()
    ]


def _roles(model: nn.Module) -> tuple[dict[str, str], str | None]:
    """{module: how the model's own plan cuts it}, and why tensor parallel cannot be told of."""
    plan = getattr(model, "tp_plan", None)
    if not plan:
        return {}, f"{type(model).__name__} has no tp_plan that says how its layers are cut"
    roles: dict[str, str] = {}
    for name, _ in model.named_modules():
        role = next((r for pattern, r in plan.items() if _fits(name, pattern)), None)
        if role is not None:
            roles[name] = role
    known = (*CUT_BY_ROWS, *CUT_BY_COLUMNS, *SILENT)
    other = sorted({role for role in plan.values() if role not in known})
    if other:
        return roles, f"its plan has {', '.join(other)}, of which nothing is told"
    return roles, None


def _fits(name: str, pattern: str) -> bool:
    """Whether a plan's pattern, perhaps of the model inside of a head's, names a module."""
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"*.{pattern}")
