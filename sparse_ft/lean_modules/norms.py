"""Norms that keep their input as it came (no fp32 copy, no normalised copy) and one number a token.

Kept for backward, per token of F features: the input, F elements in its own dtype, shared with
whoever holds it (the residual stream); 4 bytes. transformers' RMSNorm as it is written keeps about
5 F elements.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parameter import is_lazy

from .. import ops
from .._torch import direct, is_compiling
from ..annotations import AnyModule
from ..double_backward import first_order
from ..nn import Selected
from ..parallel.dtensors import lasting
from ..rebuild import cast, remember, select
from .probe import Case, Undecided, pattern, stand_in
from .register import lean_for, lean_if


def rms_norm(
    input: torch.Tensor,
    weight: torch.Tensor | None,
    eps: float,
    offset: float,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """input * rsqrt(mean(input², -1) + eps) * (offset + weight), in fp32 and rounded once (Zhang &
    Sennrich, 2019).

    input: [..., F]. weight: [F] or None. dtype: of the result (None: what input and weight promote
    to). Returns [..., F]. Differentiable in input and weight, once. offset has no default:
    torch.compile, asked for dynamic shapes, takes a default float for an input of the graph that
    the first norm has to itself, and fails at the second.
    """
    if not torch.is_grad_enabled():
        return ops.rms_norm(input, weight, eps, offset, dtype=dtype)[0]
    output, rstd = _rms_norm(input, weight, eps, offset, dtype)
    remember(output, _remake(offset, output.dtype), (input,), (rstd, lasting(weight)))
    return output


def _remake(offset: float, dtype: torch.dtype) -> Callable[..., torch.Tensor]:
    def make(
        input: torch.Tensor,
        rstd: torch.Tensor,
        weight: torch.Tensor | None,
        features: torch.Tensor | None = None,
    ) -> torch.Tensor:
        normed = select(input, features).to(rstd.dtype) * rstd.unsqueeze(-1)
        if weight is not None:
            normed = normed * _scale(weight, offset, features, rstd.dtype)
        return normed.to(dtype)

    return make


def _scale(
    weight: torch.Tensor, offset: float, features: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    weight = select(weight, features).to(dtype)
    return weight + offset if offset else weight


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: torch.Tensor,
        weight: torch.Tensor | None,
        eps: float,
        offset: float,
        dtype: torch.dtype | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        output, rstd = ops.rms_norm(input, weight, eps, offset, dtype=dtype)
        ctx.save_for_backward(input, rstd, weight)
        ctx.mark_non_differentiable(rstd)
        ctx.offset = offset
        return output, rstd

    @staticmethod
    @first_order
    def backward(
        ctx: Any, grad_output: torch.Tensor, _: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        input, rstd, weight = ctx.saved_tensors
        grad_input = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_input = ops.rms_norm_backward(grad_output, input, rstd, weight, ctx.offset)
        if ctx.needs_input_grad[1]:
            product = grad_output.to(rstd.dtype) * (input.to(rstd.dtype) * rstd.unsqueeze(-1))
            grad_weight = product.reshape(-1, input.size(-1)).sum(0).to(weight.dtype)
        return grad_input, grad_weight, None, None, None


_rms_norm = direct(_RMSNorm)


def layer_norm(
    input: torch.Tensor,
    shape: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    """`F.layer_norm(input, shape, weight, bias, eps)`, bit for bit, that can make its output again
    for whoever reads it.

    Kept for backward: as in torch, the input and two numbers a token.
    """
    if not input.requires_grad or torch.is_autocast_enabled(input.device.type) or is_compiling():
        return F.layer_norm(input, shape, weight, bias, eps)
    output, mean, rstd = torch.native_layer_norm(input, shape, weight, bias, eps)
    if len(shape) == 1:
        make = _remake_layer_norm(shape, eps, output.dtype)
        # Torch gives mean and rstd without a gradient: they do not hold the node that holds them.
        remember(output, make, (input,), (mean, rstd, lasting(weight), lasting(bias)))
    return output


def _remake_layer_norm(
    shape: Sequence[int], eps: float, dtype: torch.dtype
) -> Callable[..., torch.Tensor]:
    def make(
        input: torch.Tensor,
        mean: torch.Tensor,
        rstd: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        features: torch.Tensor | None = None,
    ) -> torch.Tensor:
        wide = torch.float64 if input.dtype == torch.float64 else torch.float32
        # Torch rounds mean and rstd of 16-bit tensors after their use.
        if features is None or mean.dtype != wide:
            return cast(select(F.layer_norm(input, shape, weight, bias, eps), features), dtype)
        output = cast(select(input, features), wide).sub_(mean).mul_(rstd)
        if weight is not None:
            output.mul_(cast(weight.index_select(0, features), wide))
        if bias is not None:
            output.add_(cast(bias.index_select(0, features), wide))
        return cast(output, dtype)

    return make


# Names that a norm may give its epsilon.
EPS = ("variance_epsilon", "eps", "epsilon", "norm_eps", "layer_norm_epsilon")
PAIRS = (  # dtypes of input and weight
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float16, torch.float16),
)
ROWS = 0.0, 0.1, 0.25, 1.0, 8.0  # sizes of tokens, beside the square root of
LARGE_EPS = 2.0**-4  # so large that bf16 shows how it is added


def _eps_name(module: nn.Module) -> str | None:
    own = module.__dict__
    return next((name for name in EPS if name in own), None)


def _eps(module: nn.Module) -> float:
    own = module.__dict__
    for name in EPS:
        if name in own:
            return own[name]
    raise AttributeError(f"{type(module).__name__} has none of {', '.join(EPS)}")


def _stored(module: nn.Module, name: str) -> Any:
    """A parameter as it lies in the module, whatever its table does when it is read."""
    return dict.get(module._parameters, name)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is built as a norm of the last dimension.

    No parts, a weight of that size, and an eps.
    """
    weight = _stored(module, "weight")
    if weight is None or is_lazy(weight):
        return False
    return weight.dim() == 1 and _is_leaf_with_eps(module)


def _is_leaf_with_eps(module: nn.Module) -> bool:
    children = [child for child in module._modules.values() if not isinstance(child, Selected)]
    return not children and _eps_name(module) is not None


def rms_norm_cases(module: nn.Module) -> list[Case] | None:
    """Tokens of many sizes, in every pair of dtypes, in training and not, with the module's own eps
    and a large one.
    """
    if not is_norm(module):
        return None
    others = [name for name in dict.keys(module._parameters) if name != "weight"]
    if others or module._buffers:
        raise Undecided(f"it has {', '.join([*others, *module._buffers])} besides its weight")
    features = _features(_stored(module, "weight"))
    return _cases(module, features, pattern(features).mul(0.4).add(0.7))


def bare_norm_cases(module: nn.Module) -> list[Case] | None:
    """The same for a norm without a weight."""
    if module._parameters or module._buffers or not _is_leaf_with_eps(module):
        return None
    return _cases(module, 16, None)


def layer_norm_cases(module: nn.Module) -> list[Case] | None:
    """The same for a module with the attributes of `nn.LayerNorm`: for classes made from it."""
    weight, bias = _stored(module, "weight"), _stored(module, "bias")
    if weight is None or is_lazy(weight) or not _is_leaf_with_eps(module):
        return None
    if "normalized_shape" not in module.__dict__:
        return None
    if module._buffers or dict.keys(module._parameters) - {"weight", "bias"} or weight.dim() != 1:
        raise Undecided("it has more than weight and bias of one dimension")
    features = _features(weight)
    moved = None if bias is None else pattern(features).mul(0.2)
    return _cases(module, features, pattern(features).mul(0.4).add(0.7), moved)


def _features(weight: torch.Tensor) -> int:
    """Of a stand-in: as many as the weight has; DeepSpeed's ZeRO-3 leaves none between forwards."""
    return weight.numel() or 16


def _cases(
    module: nn.Module, features: int, weight: torch.Tensor | None, bias: torch.Tensor | None = None
) -> list[Case]:
    tokens = -(-64 // features)
    small = pattern(len(ROWS), tokens, features) * torch.tensor(ROWS, device="cpu").view(-1, 1, 1)
    own = {name: value for name, value in (("weight", weight), ("bias", bias)) if value is not None}

    def case(
        input: torch.Tensor,
        training: bool = True,
        gradients: bool = False,
        weight_dtype: torch.dtype = torch.float32,
        **eps: Any,
    ) -> Case:
        parameters = {name: value.to(weight_dtype) for name, value in own.items()}
        twin = stand_in(module, parameters, training=training, **eps)
        return Case(twin, input, gradients, elementwise=bias is None)

    large: dict[Any, Any] = {_eps_name(module): LARGE_EPS}
    cases = [case(small * 1e-3), case(small * 1e-3, False), case(small, gradients=True, **large)]
    for input_dtype, weight_dtype in PAIRS:
        for training in (True, False):
            cases.append(case(small.to(input_dtype), training, weight_dtype=weight_dtype, **large))
    four_dimensions = small.view(1, len(ROWS), tokens, features)
    return [*cases, case(small[3, 0], **large), case(four_dimensions, **large)]


@lean_if(rms_norm_cases)
def llama_forward(module: AnyModule, hidden_states: torch.Tensor) -> torch.Tensor:
    """RMSNorm of Llama, Mistral, Qwen and most others.

    The weight multiplies in the input's dtype.
    """
    return rms_norm(hidden_states, module.weight, _eps(module), 0.0)


@lean_if(rms_norm_cases)
def olmo_forward(module: AnyModule, hidden_states: torch.Tensor) -> torch.Tensor:
    """Olmo's: the weight multiplies in fp32."""
    return rms_norm(hidden_states, module.weight, _eps(module), 0.0, dtype=hidden_states.dtype)


@lean_if(rms_norm_cases)
def t5_forward(module: AnyModule, hidden_states: torch.Tensor) -> torch.Tensor:
    """T5's: a 16-bit weight sets the dtype of the result."""
    half = module.weight.dtype in (torch.float16, torch.bfloat16)
    dtype = module.weight.dtype if half else None
    return rms_norm(hidden_states, module.weight, _eps(module), 0.0, dtype=dtype)


@lean_if(rms_norm_cases)
def gemma_forward(module: AnyModule, x: torch.Tensor) -> torch.Tensor:
    """Gemma's: the weight is stored as its distance from one."""
    return rms_norm(x, module.weight, _eps(module), 1.0, dtype=x.dtype)


@lean_if(bare_norm_cases)
def bare_forward(module: AnyModule, x: torch.Tensor) -> torch.Tensor:
    """RMSNorm without a weight: the norms of queries, keys and values of some."""
    return rms_norm(x, None, _eps(module), 0.0, dtype=x.dtype)


@lean_for(nn.RMSNorm)
def torch_rms_norm_forward(module: AnyModule, x: torch.Tensor) -> torch.Tensor:
    """`nn.RMSNorm` over the last dimension."""
    widest = torch.promote_types(torch.float32, x.dtype)
    eps = torch.finfo(widest).eps if module.eps is None else module.eps
    return rms_norm(x, module.weight, eps, 0.0, dtype=x.dtype)


@lean_for(nn.LayerNorm)
@lean_if(layer_norm_cases)
def layer_norm_forward(module: AnyModule, input: torch.Tensor) -> torch.Tensor:
    """`nn.LayerNorm`."""
    return layer_norm(input, module.normalized_shape, module.weight, module.bias, module.eps)
