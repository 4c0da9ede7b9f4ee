"""The ops of sparse_ft._C as functions that make their outputs.

A layout is the tuple (kind, index, block_h, block_w) of the ops.
"""

import torch

try:
    from sparse_ft import _C as C
except ImportError:
    C = None

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")


def variants():
    return C.build_info()["cpu_variants"] if C else []


def gather(matrix, layout, values, threads=2):
    C.gather_selected(matrix, layout, values, 0, threads)
    return values


def scatter_(matrix, values, layout, mode="copy", threads=2):
    C.scatter_selected_(matrix, layout, values, mode, threads)


def wgrad(values, grad_output, input, layout, *, accumulate=False, threads=2):
    C.selected_wgrad(grad_output, input, layout, values, accumulate, threads)
    return values


def adamw_tensor(t):
    """A dict as `adamw_` takes it, as the core knows it."""
    stored = "exp_avg", "exp_avg_sq", "step", "correction", "exp_avg_absmax", "exp_avg_sq_absmax"
    varied = "generation", "births", "factor", "origin"
    names = *stored, *varied, "seed", "weight", "layout"
    given = {name: t[name] for name in names if name in t}
    return C.AdamWTensor(values=t["value"], **given)


def adamw_settings(t):
    lr_at = t["lr_at"].data_ptr() if "lr_at" in t else 0
    names = "lr", "beta1", "beta2", "eps", "weight_decay"
    return C.AdamWSettings(*(t[name] for name in names), lr_at)


def adamw_(tensors, *, maximize=False, inv_scale=1.0, skip_nonfinite=False, threads=2):
    """tensors: dicts of value, grad, exp_avg, exp_avg_sq, step, and weight and layout or neither,
    and the hyperparameters; correction, seed, exp_avg_absmax, exp_avg_sq_absmax; generation and
    births, factor, origin."""
    known = [adamw_tensor(t) for t in tensors]
    grads = [t["grad"].data_ptr() for t in tensors]
    settings = [adamw_settings(t) for t in tensors]
    return C.masked_adamw_(known, grads, settings, maximize, inv_scale, skip_nonfinite, threads)


def empty_like(tensor):
    return torch.empty(tensor.shape, dtype=tensor.dtype)


def activation(input, activation, threads=2):
    output = empty_like(input)
    C.activation(input, activation, output, threads)
    return output


def activation_backward(grad_output, input, activation, threads=2):
    grad_input = empty_like(input)
    C.activation_backward(grad_output, input, activation, grad_input, threads)
    return grad_input


def dense_product(input, weight, bias=None, threads=2):
    """input [T, K] · weight.T + bias; weight is [N, K]. Rows may lie apart."""
    output = torch.full((input.size(0), weight.size(0)), float("nan"))
    C.dense_product(input, weight, bias, output, threads)
    return output


def gated_product(gate, up, activation, threads=2):
    output = empty_like(gate)
    C.gated_product(gate, up, activation, output, threads)
    return output


def gated_product_backward(grad_output, gate, up, activation, threads=2):
    grads = [empty_like(gate) for _ in range(2)]
    C.gated_product_backward(grad_output, gate, up, activation, *grads, threads)
    return grads


def rms_norm(input, weight, eps=1e-6, offset=0.0, dtype=None, threads=2):
    """(output, rstd) in `dtype` and in fp32, or fp64 for an fp64 input."""
    output = torch.empty(input.shape, dtype=dtype or input.dtype)
    rstd = torch.empty(input.size(0), dtype=torch.promote_types(torch.float32, input.dtype))
    C.rms_norm(input, weight, eps, offset, output, rstd, threads)
    return output, rstd


def rms_norm_backward(grad_output, input, rstd, weight, offset=0.0, threads=2):
    grad_input = empty_like(input)
    C.rms_norm_backward(grad_output, input, rstd, weight, offset, grad_input, threads)
    return grad_input


def positive_bits(input, threads=2, relu=None):
    bits = torch.empty((input.numel() + 7) // 8, dtype=torch.uint8)
    C.positive_bits(input, bits, relu, threads)
    return bits


def where_bits(grad, bits, scale=1.0, threads=2):
    output = empty_like(grad)
    C.where_bits(grad, bits, scale, output, threads)
    return output


def max_pool(input, out_size, *window, threads=2):
    """(output, numbers) of input [planes, H, W]. window: kernel_size, stride, padding, dilation,
    two numbers each.
    """
    output = torch.full((input.size(0), *out_size), float("nan"), dtype=input.dtype)
    numbers = torch.full(output.shape, 255, dtype=torch.uint8)
    C.max_pool(input, *window, output, numbers, threads)
    return output, numbers


def batch_norm_(input, mean, variance, weight, bias, eps, relu=False, threads=2):
    """Bits, [0] without relu."""
    bits = torch.empty((input.numel() + 7) // 8 if relu else 0, dtype=torch.uint8)
    C.batch_norm_(input, mean, variance, weight, bias, eps, bits if relu else None, threads)
    return bits


def batch_norm_backward(grad_output, weight, variance, eps, threads=2, positive=None):
    grad_input = torch.full_like(grad_output, float("nan"))
    C.batch_norm_backward(grad_output, variance, weight, eps, positive, grad_input, threads)
    return grad_input
