"""Where the names of a plan lead in a model, and what is put there so that their selections train.

Everything here only looks, and refuses by name what cannot train; `Action`s are carried out by
`conversion.convert`, once all of them are known to fit.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from .lean_modules import is_lean
from .matrices import shape_of_matrix
from .messages import check_module, did_you_mean
from .nn.alias import SelectedParameter
from .nn.apart import as_matrix
from .nn.embedding import SelectiveEmbedding, check_embedding
from .nn.foreign import check_weight, is_sharded_tensor
from .nn.linear import SelectiveConv1D, SelectiveLinear, adopt, is_conv1d
from .nn.reading import stored
from .nn.state import NAME
from .nn.tied import tie
from .parallel.dtensors import address_of
from .plan import ALL, Plan
from .quantised.module import adopt_quantised, check_quantised
from .quantised.quantiser import quantiser_of
from .selection import Selection

CONTAINERS = nn.Sequential, nn.ModuleList, nn.ModuleDict  # they run through their children

Action = Callable[[], Any]  # puts one selection in place
Shared = dict[tuple[int, str], str]  # (id of a module, attribute) -> dotted name


class Place(NamedTuple):
    """Where a parameter is kept: `attribute` of the module `owner`."""

    owner: nn.Module
    attribute: str

    @property
    def parameter(self) -> nn.Parameter:
        return stored(self.owner, self.attribute)


def matrix_shape(module: nn.Module, name: str) -> tuple[int, int]:
    """Shape (rows, columns) of the matrix that a Selection of parameter `name` of `module` speaks
    of.

    The matrix is the stored tensor: (out, in * kernel) for a convolution's weight, (product of the
    leading dimensions, last) for everything else. name may be dotted. Raises KeyError for an
    unknown name.
    """
    check_module("module", module)
    place = find(module, name)
    shape = place.parameter.shape
    if len(shape) == 0:
        raise ValueError(f"name: {name!r} is a scalar; it can train whole ('all') or not at all")
    return shape_of_matrix(place.owner, place.attribute, shape)


def find(model: nn.Module, name: str) -> Place:
    """The place of the parameter `name`. Raises KeyError, which tells what was probably meant."""
    path, _, attribute = name.rpartition(".")
    try:
        place = Place(model.get_submodule(path), attribute)
        found = place.parameter is not None
    except (AttributeError, KeyError):
        found = False
    if found:
        return place
    if attribute in _packed(model, path):
        raise KeyError(
            f"plan: {name!r} is no parameter of its {type(model.get_submodule(path)).__name__},"
            " which keeps it in another form (quantised, or computed); load the model without,"
            " or leave it out of the plan"
        )
    raise KeyError(f"plan: the model has no parameter {name!r}{_meant(model, name)}")


def _packed(model: nn.Module, path: str) -> set[str]:
    """Names of what the module at `path` gives as attributes or methods of its class, as torch's
    quantised layers do.
    """
    try:
        return set(dir(type(model.get_submodule(path)))) - set(dir(nn.Module))
    except AttributeError:
        return set()


def _meant(model: nn.Module, name: str) -> str:
    """The parameters that an unknown name was probably meant to be: of that module, in a wrapper,
    or spelt alike.
    """
    names = [name for name, _ in model.named_parameters()]
    same = [
        known for known in names if known.startswith(f"{name}.") or f".{known}".endswith(f".{name}")
    ]
    # It was named in a wrapper of this model.
    inner = [known for known in names if name.endswith(f".{known}")]
    near = (same or inner)[:3]
    if not near:
        return did_you_mean(name, names)
    return f"; did you mean {' or '.join(map(repr, near))}?"


def check_names(model: nn.Module, plan: Plan) -> None:
    """Raise unless each entry of the plan names a parameter that can train, and no two of them want
    different things of one.
    """
    first: dict[int, str] = {}
    for name, what in plan.items():
        place = find(model, name)
        parameter = place.parameter
        is_quantised = place.attribute == "weight" and quantiser_of(place.owner) is not None
        if what == ALL and is_quantised:
            raise TypeError(
                f"plan: {name!r} is quantised, so it cannot train whole; select rows, columns,"
                " blocks or entries of it, or load it without quantisation"
            )
        other = first.setdefault(id(parameter), name)
        if other != name and not what == plan[other] == ALL:
            raise ValueError(f"plan: {other!r} and {name!r} are one parameter; name it once")
        if what == ALL and not parameter.is_floating_point():
            raise TypeError(f"plan: {name!r} is {parameter.dtype}, which cannot train")


class Settings(NamedTuple):
    """How `sft.convert` was asked to convert, beside the plan."""

    values_dtype: torch.dtype | None = None
    origin: bool = False


def actions(model: nn.Module, plan: Plan, settings: Settings) -> list[Action]:
    """What puts each selection of `plan` in place. Raises for the first that does not fit."""
    readers = _readers(model)
    return [
        _action(model, name, what, readers, settings) for name, what in plan.items() if what != ALL
    ]


def _memory(parameter: torch.Tensor) -> int:
    """What tells whether two parameters are tied: where their entries lie (or, without any, who
    they are).
    """
    return address_of(parameter) or id(parameter)


def _readers(model: nn.Module) -> dict[int, Shared]:
    """{memory: who holds the parameters that lie there}."""
    readers: dict[int, Shared] = {}
    for prefix, module in model.named_modules():
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                places = readers.setdefault(_memory(parameter), {})
                places[id(module), attribute] = f"{prefix}.{attribute}".lstrip(".")
    return readers


def _action(
    model: nn.Module,
    name: str,
    selection: Selection,
    readers: Mapping[int, Shared],
    settings: Settings,
) -> Action:
    """Check one selected parameter and return the call that puts its selection in place."""
    place = find(model, name)
    weight = place.parameter
    if place.attribute == "weight" and quantiser_of(place.owner) is not None:
        return _quantised_action(name, place, selection, readers, settings)
    check_weight(name, weight, settings.values_dtype)
    shared = readers[_memory(weight)]
    shape = matrix_shape(model, name)
    if is_sharded_tensor(weight):
        _check_cut(name, weight, shape)
    try:
        selection.check(shape)
        as_matrix(weight.detach(), shape)
    except (IndexError, ValueError) as error:
        raise type(error)(f"plan: {name!r}: {error}") from None
    if len(shared) > 1:
        return _tied_action(model, name, selection, shared, settings)
    owner, attribute = place
    cls = _selective_class(place, selection)
    other: Any = SelectedParameter
    if is_sharded_tensor(weight):
        cls, other = _parallel_classes(cls)
    if cls is not None:
        return lambda: adopt(cls, owner, selection, name, *settings)
    if isinstance(owner, CONTAINERS) and not isinstance(owner, ParametrizationList):
        raise ValueError(
            f"plan: {name!r} belongs to a {type(owner).__name__}, which runs through its children,"
            " and the selection would be one of them; train it whole ('all') or leave it out"
        )
    reader = _reader(model, name, owner)
    return lambda: other(owner, attribute, selection, shape, reader, name, *settings)


def _quantised_action(
    name: str, place: Place, selection: Selection, readers: Mapping[int, Shared], settings: Settings
) -> Action:
    """Of the weight of a quantised linear layer."""
    layer = place.owner
    check_quantised(name, layer, settings.values_dtype)
    others = [other for other in readers[_memory(place.parameter)].values() if other != name]
    if others:
        raise ValueError(
            f"plan: {name!r} is one parameter with {', '.join(others)} (tied), and it is quantised:"
            " selections of such weights are not supported; leave it out"
        )
    try:
        selection.check(shape_of_matrix(layer, place.attribute, place.parameter.shape))
    except (IndexError, ValueError) as error:
        raise type(error)(f"plan: {name!r}: {error}") from None
    return lambda: adopt_quantised(layer, selection, name, *settings)


def _tied_action(
    model: nn.Module, name: str, selection: Selection, shared: Shared, settings: Settings
) -> Action:
    """Of a parameter that several modules hold: one is its home, the others read it.

    Raises ValueError unless that is possible: rows of an embedding, and heads that are tied to it.
    """
    weight = find(model, name).parameter
    if is_sharded_tensor(weight):
        others = [other for other in shared.values() if other != name]
        raise ValueError(
            f"plan: {name!r} is one parameter with {', '.join(others)} (tied), and tensor parallel"
            " has cut it: selections of such weights are not supported; train it whole ('all') or"
            " leave it out"
        )
    places = {other: find(model, other) for other in shared.values()}
    homes = [place for place in places.values() if type(place.owner) is nn.Embedding]
    are_known = all(
        place.attribute == "weight"
        and isinstance(place.owner, (nn.Linear, nn.Embedding))
        and place.parameter is weight
        for place in places.values()
    )
    if not (are_known and homes and selection.kind == "rows"):
        others = [other for other in places if other != name]
        raise ValueError(
            f"plan: {name!r} is one parameter with {', '.join(others)} (tied), and of a shared"
            " parameter selections are supported that are rows of an embedding which output heads"
            " are tied to; untie them, train it whole ('all') or leave it out"
        )
    for place in places.values():
        if isinstance(place.owner, nn.Embedding):
            check_embedding("embedding", place.owner)
    home: Any = homes[0].owner
    readers = {other: place.owner for other, place in places.items() if place.owner is not home}

    def act() -> None:
        adopt(SelectiveEmbedding, home, selection, name, *settings)
        home.__dict__[NAME].tied = tuple(readers)
        for label, reader in readers.items():
            tie(reader, home, label, keeps_class=_is_wrapped(reader))

    return act


def _selective_class(place: Place, selection: Selection) -> type | None:
    """The class that replaces the owner's, or None where the parameter is aliased."""
    owner = place.owner
    if place.attribute != "weight":
        return None
    if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)):
        check_embedding("embedding", owner)
    if _is_wrapped(owner):
        return None
    kind = type(owner)
    if kind is nn.Linear:
        return SelectiveLinear
    if is_conv1d(kind):
        return SelectiveConv1D
    if kind is nn.Embedding and selection.kind == "rows":
        return SelectiveEmbedding
    return None


def _check_cut(name: str, weight: torch.Tensor, shape: tuple[int, int]) -> None:
    """Raise ValueError where the parts of a DTensor cannot have selected entries."""
    # torch's DTensor takes a second to import, and who meets one has imported it
    from .nn.tensor_parallel import check_cut

    check_cut(f"plan: {name!r}", weight, shape)


def _parallel_classes(cls: type | None) -> tuple[type | None, type]:
    """What stands for `cls`, and for `SelectedParameter`, where the weight is a DTensor."""
    from .nn.tensor_parallel import CLASSES

    return CLASSES.get(cls), CLASSES[SelectedParameter]


def _is_wrapped(owner: nn.Module) -> bool:
    """Whether its forward was replaced on the instance (accelerate's hooks, patches): what that
    calls reads the weight in its own way.
    """
    return "forward" in owner.__dict__ and not is_lean(owner)


def _reader(model: nn.Module, name: str, owner: nn.Module) -> nn.Module:
    """The module whose forward reads a parameter of `owner`: mostly itself."""
    path = name.rpartition(".")[0]
    while path:
        parent_path = path.rpartition(".")[0]
        parent = model.get_submodule(parent_path)
        by_parent = isinstance(parent, nn.MultiheadAttention) and owner is parent.out_proj
        has_forward = type(owner).forward is not nn.Module.forward
        if has_forward and not by_parent:
            return owner
        owner, path = parent, parent_path
    return owner
