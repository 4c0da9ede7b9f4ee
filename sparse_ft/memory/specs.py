"""What trains in a dry run: selections without data, of the sizes that real ones would have."""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from .._torch import unset_fake_temporarily
from ..conversion import convert
from ..messages import did_you_mean
from ..ops.layout import Layout
from ..places import find, matrix_shape
from ..plan import Plan
from ..salience.targets import targets_of
from ..salience.units import STRUCTURES, Structure, count_of, fitted
from ..selection import INT32_MAX, Blocks, Columns, Entries, Rows, Selection, as_block_size, rebuilt
from .dry import Dry


class _DryBlocks(Blocks):
    """Blocks whose index has no data to tell which lie at a ragged edge."""

    __slots__ = ()
    nnz = Selection.nnz


class _Beside(NamedTuple):
    """Where a selection's indices lie: with the weight."""

    dry: Dry
    device: torch.device

    @classmethod
    def weight(cls, model: nn.Module, name: str, dry: Dry) -> "_Beside":
        return cls(dry, find(model, name).parameter.device)

    def integers(self, *shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return self.dry.integers(*shape, dtype=dtype, device=self.device)


# {(id of features, device): (their twin, the features, which stay alive)}
Known = dict[tuple[int, torch.device], tuple[torch.Tensor, torch.Tensor]]


def prepare(
    model: nn.Module,
    plan: Any,
    dry: Dry,
    values_dtype: torch.dtype | None = None,
    origin: bool = False,
) -> nn.Module:
    """`model` as `plan` has it train, inside of a dry run: what to call, mostly the model itself.

    plan: None (all of it), a Plan or mapping, {"structure": …, "density": …, "targets": …,
    "block_size": …} for selections drawn at random, {"lora": rank, …}, the rest going to peft's
    LoraConfig, or a callable of the model that gives one of these or another model to train as it
    is.
    """
    if callable(plan):
        plan = plan(model)
        if isinstance(plan, torch.nn.Module):
            return plan
    if plan is None:
        return model.requires_grad_(True)
    if not isinstance(plan, Mapping):
        raise TypeError(f"plan: expected None, a Plan or a mapping, got {plan!r}")
    if "lora" in plan:
        return _lora(model, **plan)
    if "structure" in plan or "density" in plan:
        _check_words(plan)
        plan = _drawn(model, dry, **plan)
    else:
        known: Known = {}
        plan = Plan(
            {
                name: what
                if isinstance(what, str)
                else _twin(what, matrix_shape(model, name), _Beside.weight(model, name, dry), known)
                for name, what in Plan(plan).items()
            }
        )
    convert(model, plan, values_dtype=values_dtype, process_group=False, origin=origin)
    return model


def _check_words(plan: Mapping[str, Any]) -> None:
    """Raise TypeError for a word that a plan by words does not know."""
    known = tuple(inspect.signature(_drawn).parameters)[2:]
    for name in plan:
        if name not in known:
            raise TypeError(f"plan: it knows no {name!r}{did_you_mean(name, known)}")


def _lora(model: nn.Module, lora: int, **settings: Any) -> nn.Module:
    try:
        import peft
    except ImportError:
        raise ImportError("plan: a LoRA estimate needs peft; pip install peft") from None
    config = peft.LoraConfig(
        **{"r": lora, "target_modules": "all-linear", "init_lora_weights": False, **settings}
    )
    return peft.get_peft_model(model, config)


def _drawn(
    model: nn.Module,
    dry: Dry,
    structure: str = "columns",
    density: float = 0.01,
    targets: Any = None,
    block_size: int | tuple[int, int] = 64,
) -> Plan:
    if structure not in STRUCTURES:
        raise ValueError(
            f"structure: expected {' or '.join(map(repr, STRUCTURES))}, got {structure!r}"
        )
    if not (isinstance(density, (int, float)) and 0 < density <= 1):
        raise ValueError(f"density: expected a share in (0, 1], got {density!r}")
    names = targets_of(model, targets).weights
    return Plan(
        {
            name: _random(
                structure,
                density,
                block_size,
                matrix_shape(model, name),
                _Beside.weight(model, name, dry),
            )
            for name in names
        }
    )


def _random(
    structure: str,
    density: float,
    block_size: int | tuple[int, int],
    shape: tuple[int, int],
    beside: _Beside,
) -> Selection:
    """The selection that `sft.select(score="random")` would draw, of which all but the index is
    known.
    """
    rows, columns = shape
    if structure in ("rows", "columns"):
        cls = Rows if structure == "rows" else Columns
        n = Structure(structure).share(shape, density)
        return _sized(cls, n, 1, shape, {cls.dim: beside.integers(n)}, beside)
    if structure.startswith("entries"):
        if structure == "entries_per_row":
            n = rows * count_of(columns, density)
        else:
            n = count_of(rows * columns, density)
        return _sized(Entries, n, 1, shape, {}, beside)
    size = fitted(as_block_size(block_size), shape)
    grid = -(-rows // size[0]), -(-columns // size[1])
    n = count_of(grid[0] * grid[1], density)
    features: dict[int, torch.Tensor | None] = {}
    for dim, lines in enumerate(grid):
        used = round(lines * (1 - (1 - 1 / lines) ** n))  # lines that n random blocks meet
        features[dim] = beside.integers(used * size[dim]) if used * size[dim] < shape[dim] else None
    return _sized(Blocks, n, size, shape, features, beside)


def _twin(selection: Selection, shape: tuple[int, int], beside: _Beside, known: Known) -> Selection:
    """A real selection without its data. known: {(id of features, device): their twin}.

    Layers that share features go on doing so.
    """
    selection.check(shape)
    features: dict[int, torch.Tensor | None] = {}
    for dim in (0, 1):
        with unset_fake_temporarily():
            real, _ = selection.restrict(dim, shape[dim])
        features[dim] = None
        if real is not None:
            key = id(real), beside.device
            features[dim] = known.setdefault(key, (beside.integers(real.numel()), real))[0]
    return _sized(type(selection), len(selection), selection.block_size, shape, features, beside)


def _sized(
    cls: type[Selection],
    n: int,
    block_size: int | tuple[int, int],
    shape: tuple[int, int],
    features: Mapping[int, torch.Tensor | None],
    beside: _Beside,
) -> Selection:
    """A selection of `n` lines, blocks or entries that needs `features` {dimension: indices, or
    None for all of them} of a matrix of `shape`.
    """
    dims = (n, 2) if issubclass(cls, Blocks) else (n,)
    largest = max(shape) if cls is not Entries else shape[0] * shape[1] - 1
    index = beside.integers(*dims, dtype=torch.int32 if largest <= INT32_MAX else torch.int64)
    size = as_block_size(block_size)
    bound = [0, 0] if issubclass(cls, Blocks) else 0
    selection = rebuilt(_DryBlocks if cls is Blocks else cls, index, size, bound)
    for dim, used in features.items():
        if used is None:
            selection._features[dim, shape[dim]] = None, selection.layout
            continue
        compact = beside.integers(*dims, dtype=torch.int32)
        selection._features[dim, shape[dim]] = used, Layout(cls.kind, compact, *size)
    return selection
