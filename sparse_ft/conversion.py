"""convert, revert, sync, summary: put selective modules into a model that exists, and take them out
again.
"""

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from .carried import attach, detach
from .lean_modules import is_lean, lean_state, restore_lean_state, selected_channels, unlean
from .lean_modules import lean as make_lean
from .messages import did_you_mean
from .nn.alias import SelectedParameter
from .nn.apart import as_matrix
from .nn.embedding import SelectiveEmbedding, check_embedding
from .nn.foreign import check_whole
from .nn.held_apart import warn_of_held_apart
from .nn.linear import (
    Adopted,
    SelectiveConv1D,
    SelectiveLinear,
    adopt,
    is_adopted,
    is_conv1d,
    restore,
)
from .nn.lost import LOST, lost_from, unwatch, warn_of_adapters, watch
from .nn.reading import stored
from .nn.selected import Selected, check_weight
from .plan import ALL, Plan
from .ranks import Ranks, told
from .report import Report, Row

_RECORD = (  # on the converted model: its plan, the requires_grad flags it had, values_dtype
    "_sparse_ft"
)

CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


def matrix_shape(module, name):
    """Shape (rows, columns) of the matrix that a Selection of parameter `name` of `module` speaks
    of.

    The matrix is the stored tensor: (out, in * kernel) for a convolution's weight, (product of the
    leading dimensions, last) for everything else. name may be dotted. Raises KeyError for an
    unknown name.
    """
    owner, attribute = _owner(module, name)
    shape = stored(owner, attribute).shape
    if len(shape) == 0:
        raise ValueError(f"name: {name!r} is a scalar; it can train whole ('all') or not at all")
    if isinstance(owner, CONVOLUTIONS) and attribute == "weight":
        return shape[0], shape[1:].numel()
    return shape[:-1].numel(), shape[-1]


def convert(model, plan, lean=False, values_dtype=None, process_group=None):
    """Make exactly what `plan` names trainable, in place, on this model only. Returns a `Report`,
    which prints what trains.

    model: nn.Module. plan: Plan or mapping {parameter name: Selection | "all"}; everything else is
    frozen. Selected `nn.Linear`, transformers' `Conv1D` and row-selected `nn.Embedding` become
    selective modules; other selected parameters keep their module and get a transient dense
    gradient.
    lean: also `sft.lean(model)`; the report says what it left. values_dtype: of `values`,
    kept when the model is cast: that of the weights or a wider one; None: fp32 (fp64 over fp64),
    which casts to fp64 widen. 16-bit values want an optimiser that rounds well: see
    `SelectiveAdamW`. Converting again with an equal plan changes nothing. All or nothing: KeyError
    (unknown name), IndexError, TypeError or ValueError leave the model as it was.

    process_group: in several processes (DDP), whose plans must be equal. None: those of all
    processes, where torch.distributed is initialised by now, which all must call this then; a
    ProcessGroup: those of its ranks; False: this process converts by itself (rank 0 alone, a stage
    of a pipeline). Plans that differ, and an error on any rank, raise on all.
    """
    with Ranks("sft.convert", process_group) as ranks:
        return _convert(model, plan, lean, values_dtype, ranks)


def _convert(model, plan, lean, values_dtype, ranks):
    plan = plan if isinstance(plan, Plan) else Plan(plan)
    record = record_of(model)
    if record is not None:
        if record[0] != plan:
            raise ValueError(
                "model: already converted with another plan; call sft.revert(model) first"
            )
        if record[2] != values_dtype:
            raise ValueError(
                f"values_dtype: the model was converted with {record[2]}, got {values_dtype}; call"
                " sft.revert(model) first"
            )
        lost = lost_from(model, _selected_in(plan))
        if lost:
            raise ValueError(f"model: {', '.join(lost[:3])}: {LOST}")
        _agree(ranks, plan, values_dtype)
        return _report(model, plan, make_lean(model) if lean else None)
    if not plan:
        raise ValueError("plan: it is empty, so nothing would train; see sft.select")
    if values_dtype not in (None, torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise TypeError(
            "values_dtype: expected None, float16, bfloat16, float32 or float64 of torch, got"
            f" {values_dtype!r}"
        )
    check_whole(model)
    for name, module in model.named_modules():
        if isinstance(module, Selected):
            raise ValueError(
                f"model: {name!r} is selective already; call sft.revert on the model that was"
                " converted"
            )
        if isinstance(module, nn.parallel.DistributedDataParallel):
            raise ValueError(
                "model: DistributedDataParallel wraps it already and would not share the gradients"
                " of new parameters; convert first, then wrap"
            )
    _check_names(model, plan)
    readers = _readers(model)
    actions = [
        _action(model, name, what, readers, values_dtype)
        for name, what in plan.items()
        if what != ALL
    ]
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    was_lean = lean_state(model) if lean else None
    try:
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for act in actions:
            act()
        for name, what in plan.items():
            if what == ALL:
                _find(model, name).requires_grad_(True)
        report = _report(model, plan, make_lean(model) if lean else None)
        watch(model, _selected_in(plan))
        attach(model, _on_its_matrices(model, plan), values_dtype)
        model.__dict__[_RECORD] = plan, flags, values_dtype
        _agree(ranks, plan, values_dtype)
    except BaseException:
        model.__dict__.pop(_RECORD, None)
        detach(model)
        unwatch(model)
        if lean:
            restore_lean_state(model, was_lean)
        _undo(model, flags)
        raise
    warn_of_adapters(model)
    warn_of_held_apart(model)
    return report


def _agree(ranks, plan, values_dtype):
    """Raise on every rank unless all convert alike."""
    if ranks.size > 1:
        ranks.agree(
            {
                "values_dtype": f"{values_dtype} #",
                **{name: told(what) for name, what in plan.items()},
            }
        )


def revert(model):
    """Take the selective modules out: the original classes come back, holding the trained weights
    bit for bit.

    Always works, whatever was done to the model since (weights resized, deleted, pruned, modules
    replaced): what was trained and has no place any more is named by a warning, and the weight
    stays as it is. Undoes `sft.lean`, too. Returns the model. Raises ValueError when `model` was
    neither converted nor made lean. After an exception (out of memory, Ctrl-C) the model is still
    converted, and another `revert` does the rest.
    """
    is_converted = record_of(model) is not None
    if is_converted:
        _write_back(model)
    was_lean = unlean(model)
    if is_converted:
        unconvert(model)
    elif not was_lean:
        raise ValueError(
            "model: it was not converted (call revert on the module that sft.convert was called on)"
        )
    return model


def record_of(model):
    """(plan, requires_grad flags before, values_dtype) of a converted model; None of any other."""
    return model.__dict__.get(_RECORD)


def unconvert(model):
    """Undo what `convert` did alone: the weights stay as they are, and a lean model stays lean."""
    unwatch(model)
    _undo(model, record_of(model)[1])
    detach(model)
    del model.__dict__[_RECORD]


def _write_back(model):
    """All weights show their values, before anything else is undone: this may run out of memory."""
    for module in model.modules():
        if isinstance(module, Selected):
            module.write_back()


def sync(model):
    """Make every weight of `model` show its values. Needed only after writes that leave no trace:
    bare `.data` edits, `vector_to_parameters`, swapping an EMA in. Returns the model."""
    for module in model.modules():
        if isinstance(module, Selected):
            module.sync(force=True)
    return model


def _undo(model, flags):
    """Take out what `convert` put in, also half done; the weights stay as they are. Called again,
    it does the rest.
    """
    for module in list(model.modules()):
        if is_adopted(module):
            restore(module)
        elif isinstance(module, SelectedParameter):
            module.remove()
        for parameter in SelectedParameter.of_reader(module):
            parameter.remove()  # its owner was replaced
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(flags.get(name, parameter.requires_grad))


def _owner(model, name):
    path, _, attribute = name.rpartition(".")
    try:
        owner = model.get_submodule(path)
        found = stored(owner, attribute) is not None
    except (AttributeError, KeyError):
        found = False
    if not found:
        if attribute in _packed(model, path):
            raise KeyError(
                f"plan: {name!r} is no parameter of its {type(model.get_submodule(path)).__name__},"
                " which keeps it in another form (quantised, or computed); load the model without,"
                " or leave it out of the plan"
            )
        raise KeyError(f"plan: the model has no parameter {name!r}{_meant(model, name)}")
    return owner, attribute


def _packed(model, path):
    """Names of what the module at `path` gives as attributes or methods of its class, as torch's
    quantised layers do.
    """
    try:
        return set(dir(type(model.get_submodule(path)))) - set(dir(nn.Module))
    except AttributeError:
        return set()


def _find(model, name):
    owner, attribute = _owner(model, name)
    return stored(owner, attribute)


def _meant(model: nn.Module, name: str) -> str:
    """The parameters that an unknown name was probably meant to be: of that module, in a wrapper,
    or spelt alike.
    """
    names = [name for name, _ in model.named_parameters()]
    same = [
        known for known in names if known.startswith(f"{name}.") or f".{known}".endswith(f".{name}")
    ]
    inner = [
        known for known in names if name.endswith(f".{known}")
    ]  # it was named in a wrapper of this model
    near = (same or inner)[:3]
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else did_you_mean(name, names)


def _check_names(model, plan):
    """Raise unless each entry of the plan names a parameter that can train, and no two of them want
    different things of one.
    """
    first = {}
    for name, what in plan.items():
        parameter = _find(model, name)
        other = first.setdefault(id(parameter), name)
        if other != name and not what == plan[other] == ALL:
            raise ValueError(f"plan: {other!r} and {name!r} are one parameter; name it once")
        if what == ALL and not parameter.is_floating_point():
            raise TypeError(f"plan: {name!r} is {parameter.dtype}, which cannot train")


def _on_its_matrices(model, plan):
    """`plan` with selections that serve the matrices of this model only."""
    on = {
        name: what if what == ALL else what.on(matrix_shape(model, name))
        for name, what in plan.items()
    }
    return Plan(on)


def _memory(parameter):
    """What tells whether two parameters are tied: where their entries lie (or, without any, who
    they are).
    """
    return parameter.data_ptr() or id(parameter)


def _readers(model):
    """{memory: {(id(module), attribute): dotted name}}: who holds each parameter."""
    readers = {}
    for prefix, module in model.named_modules():
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                places = readers.setdefault(_memory(parameter), {})
                places[id(module), attribute] = f"{prefix}.{attribute}".lstrip(".")
    return readers


def _action(model, name, selection, readers, values_dtype):
    """Check one selected parameter and return the call that puts its selection in place."""
    owner, attribute = _owner(model, name)
    weight = stored(owner, attribute)
    check_weight(name, weight, values_dtype)
    shared = readers[_memory(weight)]
    if len(shared) > 1:
        raise ValueError(
            f"plan: {name!r} is one parameter with"
            f" {', '.join(n for n in shared.values() if n != name)} (tied), and a selection of a"
            " shared parameter is not supported; untie them, train it whole ('all') or leave"
            " it out"
        )
    shape = matrix_shape(model, name)
    try:
        selection.check(shape)
        as_matrix(weight.detach(), shape)
    except (IndexError, ValueError) as error:
        raise type(error)(f"plan: {name!r}: {error}") from None
    cls = _selective_class(owner, attribute, selection)
    if cls is not None:
        return lambda: adopt(cls, owner, selection, name, values_dtype)
    if isinstance(owner, (nn.Sequential, nn.ModuleList, nn.ModuleDict)) and not isinstance(
        owner, ParametrizationList
    ):
        raise ValueError(
            f"plan: {name!r} belongs to a {type(owner).__name__}, which runs through its children,"
            " and the selection would be one of them; train it whole ('all') or leave it out"
        )
    reader = _reader(model, name, owner)
    return lambda: SelectedParameter(owner, attribute, selection, shape, reader, name, values_dtype)


def _selective_class(owner, attribute, selection):
    """The class that replaces `owner`, or None where the parameter is aliased."""
    if attribute != "weight":
        return None
    if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)):
        check_embedding("embedding", owner)
    kind = type(owner)
    if "forward" in owner.__dict__ and not is_lean(owner):
        # wrapped on the instance (accelerate's hooks, patches): what it calls reads the weight in
        # its own way
        return None
    if kind is nn.Linear:
        return SelectiveLinear
    if is_conv1d(kind):
        return SelectiveConv1D
    if kind is nn.Embedding and selection.kind == "rows":
        return SelectiveEmbedding
    return None


def _reader(model, name, owner):
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


def summary(model):
    """What trains in `model`: a `Report`, which prints as a table (trainable / total, layer by
    layer).
    """
    record = record_of(model)
    return _report(model, record[0] if record else None)


def _report(model, plan, lean=None):
    rows = []
    for prefix, module in model.named_modules(remove_duplicate=True):
        for attribute, parameter in module._parameters.items():
            name = f"{prefix}.{attribute}".lstrip(".")
            if (
                parameter is None
                or isinstance(module, SelectedParameter)
                or (isinstance(module, Selected) and attribute == "values")
            ):
                continue
            rows.append(_row(name, module, attribute, parameter, plan))
    seen = set()
    once = [
        row for row, parameter in rows if not (id(parameter) in seen or seen.add(id(parameter)))
    ]
    lost = [] if plan is None else lost_from(model, _selected_in(plan))
    once = [row._replace(how=f"LOST: {LOST}") if row.name in lost else row for row in once]
    return Report(once, lean, lost)


def _selected_in(plan):
    return [name for name, what in plan.items() if what != ALL]


def _row(name, module, attribute, parameter, plan):
    if isinstance(module, Adopted) and attribute == "weight":
        holder, how = module, type(module).__name__
    elif f"{attribute}_selected" in module._modules:
        holder, how = module._modules[f"{attribute}_selected"], "alias: dense gradient, transient"
        if attribute == "weight" and is_lean(module) and selected_channels(module) is not None:
            how = "lean convolution"
    elif parameter.requires_grad:
        return (
            Row(
                name,
                tuple(parameter.shape),
                parameter.numel(),
                parameter.numel(),
                "all",
                "trains whole",
            ),
            parameter,
        )
    else:
        why = "frozen: not in the plan" if plan is not None else "frozen"
        return Row(name, tuple(parameter.shape), parameter.numel(), 0, "", why), parameter
    state = holder._sparse_ft_state
    trainable = state.selection.nnz(state.matrix_shape)
    return (
        Row(name, tuple(parameter.shape), parameter.numel(), trainable, state.selection.kind, how),
        parameter,
    )
