"""The one door to torch's private names: each with why, and with what serves without it.

They are asked for here alone, by path (`_find`) or on objects (`_named`). A torch that lacks one
gets the fallback: slower, or with more kept for backward, but the package imports and trains. What
cannot do without its name says so when it is called.

SPARSE_FT_WITHOUT, names separated by commas, hides them, to see whether one is to blame.
`python -m sparse_ft` prints those that are missing.

`Tensor._version` alone is read everywhere: torch's notes on autograd explain it, nothing else tells
of a write in place, and each forward reads it four times.
"""

import functools
import importlib
import operator
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

HIDDEN = frozenset(os.environ.get("SPARSE_FT_WITHOUT", "").split(","))
NAMES: list[str] = []  # all that are asked for
MISSING: list[str] = []  # those of them that this torch lacks, or that are hidden


def _find(path: str, otherwise: Any = None) -> Any:
    """What `path`, a dotted name from torch on, leads to; `otherwise` where it is missing."""
    NAMES.append(path)
    found = None if path in HIDDEN else _look_up(path)
    if found is None:
        MISSING.append(path)
    return otherwise if found is None else found


def _look_up(path: str) -> Any:
    found, so_far = torch, "torch"
    for name in path.split(".")[1:]:
        so_far += f".{name}"
        try:
            found = getattr(found, name)
        except (AttributeError, RuntimeError):  # of torch.ops: RuntimeError
            try:
                found = importlib.import_module(so_far)  # a module that nobody has imported yet
            except ImportError:
                return None
    return found


def _named(name: str) -> str:
    """`name`, which some objects have; "", which none has, where it is hidden."""
    NAMES.append(name)
    if name in HIDDEN:
        MISSING.append(name)
        return ""
    return name


def _never(*_: Any) -> bool:
    return False


def _always(*_: Any) -> bool:
    return True


# Is this eager?

# The flag behind `torch.compiler.is_compiling`, which takes 0.07 µs, 0.1 by its full name; this way
# takes 0.06, and every forward asks. Otherwise: the public question.
if _find("torch.compiler._is_compiling_flag") is None:
    _is_in_graph, _flags = torch.compiler.is_compiling, {"_is_compiling_flag": False}
else:
    _is_in_graph, _flags = torch.compiler.is_dynamo_compiling, vars(torch.compiler)


def is_compiling() -> bool:
    """Whether torch.compile or torch.export reads this code: `torch.compiler.is_compiling`."""
    return _is_in_graph() or _flags["_is_compiling_flag"]


# Whether torch.func (grad, vmap, jvp) runs this code. Otherwise: torch refuses by itself a Function
# without `setup_context`, and the tensors of a transform have no address for a kernel to read.
is_transformed = _find("torch._C._are_functorch_transforms_active", _never)

# How many modes see each operator. Otherwise: as if there was one, so nothing goes round them.
_dispatch_modes = _find("torch._C._len_torch_dispatch_stack", _always)
_function_modes = _find("torch._C._len_torch_function_stack", _always)

# The modes themselves. Otherwise: one of which nothing is known.
_stack_of_modes = _find(
    "torch.utils._python_dispatch._get_current_dispatch_mode_stack", lambda: [None]
)

# One of the modes that see each function of torch; those that give a default device. Otherwise:
# one of which nothing is known.
_function_mode = _find("torch._C._get_function_stack_at", lambda place: None)
_DefaultDevice: Any = _find("torch.utils._device.DeviceContext", ())

# Whether torch.jit.trace runs. The public question takes 0.1 µs more.
_tracing = _find("torch._C._get_tracing_state", torch.jit.is_tracing)


def is_eager() -> bool:
    """Whether Python runs this line on the tensors themselves.

    Not for torch.compile, which reads it, and not under a transform of torch.func.
    """
    is_read = _is_in_graph() or _flags["_is_compiling_flag"]  # `is_compiling`, without its call
    return not (is_read or is_transformed())


def is_undisturbed() -> bool:
    """Whether, besides, no trace and no mode sees operators: the dispatcher may be gone round."""
    is_read = _is_in_graph() or _flags["_is_compiling_flag"]  # `is_compiling`, without its call
    return not (is_read or is_transformed() or _dispatch_modes() or _tracing())


def holds_nothing(hook: Callable) -> Callable:
    """For a hook that keeps none of the outputs that it sees: a lean layer may write over them."""
    marked: Any = hook
    marked.holds_nothing = True
    return hook


def is_watched() -> bool:
    """Whether a trace or a mode (selective checkpointing, say) may keep what operations return.

    A mode that says `holds_nothing` does not, nor does a default device.
    """
    seen = _function_modes()
    modes = [None] if seen is True else map(_function_mode, range(seen))
    if _tracing() or not all(map(_holds_nothing, modes)):
        return True
    return bool(_dispatch_modes()) and not all(map(_holds_nothing, _stack_of_modes()))


def _holds_nothing(mode: Any) -> bool:
    return isinstance(mode, _DefaultDevice) or getattr(mode, "holds_nothing", False)


if _find("torch.autograd.forward_ad._current_level") is None:
    # torch refuses by itself forward mode through a Function without `jvp`.
    is_forward_mode = _never
else:
    _forward_ad = vars(torch.autograd.forward_ad)

    def is_forward_mode() -> bool:
        """Whether a level of forward-mode differentiation (`forward_ad.dual_level`) is open."""
        return _forward_ad["_current_level"] >= 0


# Autograd.

# `Function.apply` readies its arguments for torch.func before it calls its base's: 4 µs of 15.
# Otherwise: through that.
_FunctionBase = _find("torch._C._FunctionBase")


def direct_apply(function: type[torch.autograd.Function]) -> Callable:
    """`function.apply` without torch.func's preparation of its arguments. For eager times only."""
    apply = None if _FunctionBase is None else vars(_FunctionBase).get("apply")
    return function.apply if apply is None else apply.__get__(None, function)


def direct(function: type[torch.autograd.Function]) -> Callable:
    """`direct_apply`, and `function.apply` where torch.compile reads it."""
    apply = direct_apply(function)

    def call(*args: Any) -> Any:
        return function.apply(*args) if is_compiling() else apply(*args)

    return call


_top_hooks = _find("torch._C._autograd._top_saved_tensors_default_hooks")

# The saved-tensor hooks in force, (pack, unpack) or None: a checkpoint enters its own. Otherwise: a
# new object at each call, equal to no other, so that whoever compares them remembers nothing.
hooks_in_force = object if _top_hooks is None else functools.partial(_top_hooks, False)

# A weak reference that was followed must be told that its tensor is held again (what torch's own
# TensorWeakRef does, in a quarter of its time). Otherwise: a torch without it has no need of it.
fix_weakref = _find("torch.Tensor._fix_weakref", _never)

# Whether a tensor is a view of another one. Otherwise: it may be one.
is_view = _find("torch.Tensor._is_view", _always)

# Which backward runs now, -1 for none. Otherwise: none that is known.
current_backward = _find("torch._C._current_graph_task_id", lambda: -1)
_will_run = _find("torch._C._will_engine_execute_node", _never)


def will_run(node: Any) -> bool:
    """Whether the backward that runs now will reach `node`.

    Otherwise: no, so what it could use is computed again.
    """
    return current_backward() != -1 and node is not None and _will_run(node)


# A context in which operators choose their kernels as if a backward followed, and record none.
# Otherwise: they choose as for inference.
below_autograd = _find("torch._C._AutoDispatchBelowAutograd", torch.no_grad)

# How many nodes were made. Otherwise: no order is known.
nodes_made = _find("torch.autograd._get_sequence_nr", lambda: 0)
_NUMBER = _named("_sequence_nr")


def number_of(node: Any) -> int:
    """When `node` was made, as `nodes_made` counts. Otherwise: 0, at the beginning."""
    number = getattr(node, _NUMBER, None)
    return 0 if number is None else number()


def is_newest(node: Any) -> bool:
    """Whether no node was made after this one. Otherwise: it may be so."""
    made = nodes_made()
    return not made or not hasattr(node, _NUMBER) or number_of(node) == made - 1


_RAW_SAVED = _named("_raw_saved_")


def saved_input(node: Any) -> Any:
    """The `SavedTensor` of a node's argument called input; None where it has none."""
    return getattr(node, f"{_RAW_SAVED}input", None) if _RAW_SAVED else None


def saved_by(node: Any) -> Iterator[Any]:
    """The `SavedTensor`s of a node that show what they hold. Otherwise: none."""
    for name in dir(node) if _RAW_SAVED else ():
        if name.startswith(_RAW_SAVED):
            try:
                saved = getattr(node, name)
            except RuntimeError:  # freed by a backward
                continue
            for one in saved if isinstance(saved, (tuple, list)) else (saved,):
                if hasattr(one, "unpack_hook") and hasattr(one, "data"):
                    yield one


# Tensors.


def _computed_as_tensor(
    func: Callable, types: Iterable[type], args: tuple = (), kwargs: dict[str, Any] | None = None
) -> Any:
    return torch.Tensor.__torch_function__(func, (), args, kwargs)


# As a class's `__torch_function__`: what is computed from its tensors is of no class of its own.
# Otherwise: by torch's public one, in Python.
as_plain_tensors = _find(
    "torch._C._disabled_torch_function_impl", staticmethod(_computed_as_tensor)
)

# A tensor of some class, shape and dtype without memory. Otherwise: None; logits are not deferred.
make_wrapper = _find("torch.Tensor._make_wrapper_subclass")

_IS_PARAMETER = _named("_is_param")


def mark_as_parameter(tensor: torch.Tensor) -> None:
    """Make a tensor of another class an instance of nn.Parameter. Otherwise: it is none."""
    setattr(tensor, _IS_PARAMETER, True)


# Which storage this is, while it lives. Otherwise: its Python object, which torch keeps as long.
_has_address = _find("torch.UntypedStorage._cdata") is not None
key_of = operator.attrgetter("_cdata") if _has_address else id


# Of a sparse COO tensor that has double entries, as they lie there. Otherwise: merged first.
sparse_indices = _find("torch.Tensor._indices", lambda tensor: tensor.coalesce().indices())
sparse_values = _find("torch.Tensor._values", lambda tensor: tensor.coalesce().values())


class _Forgetful(dict):
    """Remembers nothing."""

    def __setitem__(self, key: Any, value: Any) -> None: ...


# {tensor: anything} by identity, without keeping the tensor. Otherwise: computed each time.
WeakTensorKeyDictionary = _find("torch.utils.weak.WeakTensorKeyDictionary", _Forgetful)


# Operators.

# oneDNN's product, as inductor calls it. Otherwise: None; torch's own serves.
onednn_linear = _find("torch.ops.mkldnn._linear_pointwise.default")

# The operators behind `Tensor.item` and the experts' product. Otherwise: None; a dry run lets torch
# say what it does with them.
ITEM = _find("torch.ops.aten._local_scalar_dense.default")
GROUPED_MM = _find("torch.ops.aten._grouped_mm.default")

_SCHEMA = _named("_schema")


def writes(operator: Any) -> bool:
    """Whether an operator writes to its arguments. Otherwise: it may."""
    return getattr(getattr(operator, _SCHEMA, None), "is_mutable", True)


# Modules.

_FORWARD, _BEFORE_FORWARD = _named("_forward_hooks"), _named("_forward_pre_hooks")
_BACKWARD, _BEFORE_BACKWARD = _named("_backward_hooks"), _named("_backward_pre_hooks")
_UNKNOWN = {0: None}  # a hook of which nothing is known

_everywhere = _find("torch.nn.modules.module._global_forward_hooks", _UNKNOWN)


def is_hooked(module: nn.Module) -> bool:
    """Whether someone would miss a call of `module`. Otherwise: yes, so it is called."""
    forward = getattr(module, _FORWARD, True) or getattr(module, _BEFORE_FORWARD, True)
    return bool(forward or is_hooked_in_backward(module))


def is_hooked_in_backward(module: nn.Module) -> bool:
    """Whether backward hooks, which see its outputs, are on `module`. Otherwise: yes."""
    return bool(getattr(module, _BACKWARD, True) or getattr(module, _BEFORE_BACKWARD, True))


def forward_hooks(module: nn.Module) -> list[Callable]:
    """What is given the outputs of `module`: its own hooks, and those of all modules."""
    return [*getattr(module, _FORWARD, _UNKNOWN).values(), *_everywhere.values()]


def hook_tables(module: nn.Module) -> list[dict]:
    """Its hooks before and after a forward, to look through and to delete from. Otherwise: none."""
    return [getattr(module, name, {}) for name in (_BEFORE_FORWARD, _FORWARD)]


def remove_hooks_of(owner: object, module: nn.Module) -> None:
    """Take the methods of `owner` out of the hooks of `module`, also where a handle was lost: an
    interrupt came before it was kept.
    """
    for hooks in hook_tables(module):
        own = [key for key, hook in hooks.items() if getattr(hook, "__self__", None) is owner]
        for key in own:
            del hooks[key]


# The list of its own that a recurrent forward reads weights from, and their names.
FLAT_WEIGHTS, _FLAT_NAMES = _named("_flat_weights"), _named("_flat_weights_names")


def flat_names(module: nn.RNNBase) -> list[str] | None:
    """The parameters that a recurrent forward reads from a list of its own. Otherwise: None."""
    return getattr(module, _FLAT_NAMES, None) if hasattr(module, FLAT_WEIGHTS) else None


def set_flat_weight(module: nn.RNNBase, name: str, tensor: torch.Tensor) -> None:
    """Let a recurrent forward read `tensor` as its parameter `name`."""
    getattr(module, FLAT_WEIGHTS)[getattr(module, _FLAT_NAMES).index(name)] = tensor


# (module, input, output_size, stride, padding, kernel_size, dims, dilation): what a transposed
# convolution adds to an output to have that size. Otherwise: None; its own forward serves.
output_padding = _find("torch.nn.ConvTranspose2d._output_padding")


# Dry runs.


def _unavailable(name: str) -> type:
    """In the place of a class without which there is no estimate."""

    class Unavailable:
        def __init__(self, *_: Any, **__: Any) -> None:
            raise RuntimeError(
                f"sft.estimate: torch {torch.__version__} has no {name}; take a release that this "
                f"package was tested with"
            )

    return Unavailable


def _find_class(path: str) -> type:
    return _find(path, _unavailable(path))


# Tensors with a shape and a device and no memory.
FakeTensor = _find_class("torch._subclasses.fake_tensor.FakeTensor")
FakeTensorMode = _find_class("torch._subclasses.fake_tensor.FakeTensorMode")
FakeCopyMode = _find_class("torch._subclasses.fake_tensor.FakeCopyMode")
unset_fake_temporarily = _find_class("torch._subclasses.fake_tensor.unset_fake_temporarily")

# A mode that sees each operator; documented, from a module that is private by its name.
TorchDispatchMode = _find_class("torch.utils._python_dispatch.TorchDispatchMode")
