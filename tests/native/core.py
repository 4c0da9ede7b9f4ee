"""sparse_ft._C with tensors in place of addresses.

A layout is the tuple (kind, index, block_h, block_w) of the ops.
"""

import torch

try:
    from sparse_ft import _C as C
except ImportError:
    C = None

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
KINDS = {"rows": 0, "columns": 1, "blocks": 2, "entries": 3, "all": 4}
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")


def variants():
    return C.build_info()["cpu_variants"] if C else []


def native_layout(layout, shape):
    """The eight integers of the native core; the index tensor must outlive the call."""
    kind, index, block_h, block_w = layout
    return (
        KINDS[kind],
        index.data_ptr(),
        8 * index.element_size(),
        index.size(0),
        block_h,
        block_w,
        *shape,
    )


def gather(matrix, layout, values, threads=2):
    C.gather_selected(
        matrix.data_ptr(),
        DTYPES[matrix.dtype],
        native_layout(layout, matrix.shape),
        values.data_ptr(),
        DTYPES[values.dtype],
        threads,
    )
    return values


def scatter_(matrix, values, layout, mode="copy", threads=2):
    C.scatter_selected_(
        matrix.data_ptr(),
        DTYPES[matrix.dtype],
        native_layout(layout, matrix.shape),
        values.data_ptr(),
        DTYPES[values.dtype],
        ("copy", "add", "swap").index(mode),
        threads,
    )


def wgrad(values, grad_output, input, layout, *, compact=False, accumulate=False, threads=2):
    shape = grad_output.size(1), input.size(1)
    C.selected_wgrad(
        grad_output.data_ptr(),
        grad_output.stride(0),
        input.data_ptr(),
        input.stride(0),
        DTYPES[input.dtype],
        input.size(0),
        native_layout(layout, shape),
        compact,
        values.data_ptr(),
        DTYPES[values.dtype],
        accumulate,
        threads,
    )
    return values


def adamw_tensor(t):
    """A dict as `adamw_` takes it, as the core knows it."""
    addresses = {"values": t["value"]}
    stored = "exp_avg", "exp_avg_sq", "step", "correction", "exp_avg_absmax", "exp_avg_sq_absmax"
    addresses |= {name: t[name] for name in (*stored, "weight") if name in t}
    more = {}
    if "weight" in t:
        more["weight_dtype"] = DTYPES[t["weight"].dtype]
        more["layout"] = native_layout(t["layout"], t["weight"].shape)
    return C.AdamWTensor(
        count=t["value"].numel(),
        dtype=DTYPES[t["value"].dtype],
        seed=t.get("seed", -1),
        **{name: tensor.data_ptr() for name, tensor in addresses.items()},
        **more,
    )


def adamw_settings(t):
    lr_at = t["lr_at"].data_ptr() if "lr_at" in t else 0
    names = "lr", "beta1", "beta2", "eps", "weight_decay"
    return C.AdamWSettings(*(t[name] for name in names), lr_at)


def adamw_(tensors, *, maximize=False, inv_scale=1.0, skip_nonfinite=False, threads=2):
    """tensors: dicts of value, grad, exp_avg, exp_avg_sq, step, and weight and layout or neither,
    and the hyperparameters; correction, seed, exp_avg_absmax, exp_avg_sq_absmax."""
    known = [adamw_tensor(t) for t in tensors]
    grads = [t["grad"].data_ptr() for t in tensors]
    settings = [adamw_settings(t) for t in tensors]
    return C.masked_adamw_(known, grads, settings, maximize, inv_scale, skip_nonfinite, threads)


def rows(matrix):
    """Address and stride of the rows of a matrix [rows, columns]."""
    return matrix.data_ptr(), matrix.stride(0)


def activation(input, activation, threads=2):
    output = torch.empty(input.shape, dtype=input.dtype)
    code = ACTIVATIONS.index(activation)
    C.activation(*rows(input), DTYPES[input.dtype], *input.shape, code, output.data_ptr(), threads)
    return output


def activation_backward(grad_output, input, activation, threads=2):
    grad_input = torch.empty(input.shape, dtype=input.dtype)
    operands = (
        *rows(grad_output),
        *rows(input),
        DTYPES[input.dtype],
        *input.shape,
        ACTIVATIONS.index(activation),
    )
    C.activation_backward(*operands, grad_input.data_ptr(), threads)
    return grad_input


def dense_product(input, weight, transposed, bias=None, threads=2):
    """input [T, K] · weight + bias; weight is [K, N], or [N, K] when transposed.

    Rows may lie apart.
    """
    columns = weight.size(0) if transposed else weight.size(1)
    output = torch.full((input.size(0), columns), float("nan"))
    added = 0 if bias is None else bias.data_ptr()
    sizes = *input.shape, columns
    C.dense_product(
        *rows(input), *rows(weight), transposed, added, *sizes, output.data_ptr(), threads
    )
    return output


def gated_product(gate, up, activation, threads=2):
    output = torch.empty(gate.shape, dtype=gate.dtype)
    code = ACTIVATIONS.index(activation)
    C.gated_product(
        *rows(gate), *rows(up), DTYPES[gate.dtype], *gate.shape, code, output.data_ptr(), threads
    )
    return output


def gated_product_backward(grad_output, gate, up, activation, threads=2):
    grads = [torch.empty(gate.shape, dtype=gate.dtype) for _ in range(2)]
    operands = (
        *rows(grad_output),
        *rows(gate),
        *rows(up),
        DTYPES[gate.dtype],
        *gate.shape,
        ACTIVATIONS.index(activation),
    )
    C.gated_product_backward(*operands, *(g.data_ptr() for g in grads), threads)
    return grads


def _weight(weight):
    return (0, 0) if weight is None else (weight.data_ptr(), DTYPES[weight.dtype])


def rms_norm(input, weight, eps=1e-6, offset=0.0, dtype=None, threads=2):
    """(output, rstd) in `dtype` and in fp32, or fp64 for an fp64 input."""
    output = torch.empty(input.shape, dtype=dtype or input.dtype)
    rstd = torch.empty(input.size(0), dtype=torch.promote_types(torch.float32, input.dtype))
    operands = *rows(input), DTYPES[input.dtype], *_weight(weight), *input.shape, eps, offset
    C.rms_norm(
        *operands,
        output.data_ptr(),
        DTYPES[output.dtype],
        rstd.data_ptr(),
        DTYPES[rstd.dtype],
        threads,
    )
    return output, rstd


def rms_norm_backward(grad_output, input, rstd, weight, offset=0.0, threads=2):
    grad_input = torch.empty(input.shape, dtype=input.dtype)
    operands = *rows(grad_output), DTYPES[grad_output.dtype], *rows(input), DTYPES[input.dtype]
    operands += rstd.data_ptr(), DTYPES[rstd.dtype], *_weight(weight), *input.shape, offset
    C.rms_norm_backward(*operands, grad_input.data_ptr(), threads)
    return grad_input


def positive_bits(input, threads=2, relu=None):
    bits = torch.empty((input.numel() + 7) // 8, dtype=torch.uint8)
    C.positive_bits(
        input.data_ptr(),
        DTYPES[input.dtype],
        input.numel(),
        bits.data_ptr(),
        0 if relu is None else relu.data_ptr(),
        threads,
    )
    return bits


def where_bits(grad, bits, scale=1.0, threads=2):
    output = torch.empty(grad.shape, dtype=grad.dtype)
    C.where_bits(
        grad.data_ptr(),
        DTYPES[grad.dtype],
        grad.numel(),
        bits.data_ptr(),
        scale,
        output.data_ptr(),
        threads,
    )
    return output


def max_pool(input, out_size, *window, threads=2):
    """(output, numbers) of input [planes, H, W]. window: kernel_size, stride, padding, dilation,
    two numbers each.
    """
    output = torch.full((input.size(0), *out_size), float("nan"), dtype=input.dtype)
    numbers = torch.full(output.shape, 255, dtype=torch.uint8)
    operands = (
        input.data_ptr(),
        DTYPES[input.dtype],
        input.size(0),
        input.shape[1:],
        out_size,
        *window,
    )
    C.max_pool(*operands, output.data_ptr(), numbers.data_ptr(), threads)
    return output, numbers


def batch_norm_(input, mean, variance, weight, bias, eps, extents, relu=False, threads=2):
    """Bits, [0] without relu. extents: (outer, channels, inner) of the memory of input."""
    bits = torch.empty((input.numel() + 7) // 8 if relu else 0, dtype=torch.uint8)
    of_channels = [number for t in (mean, variance, weight, bias) for number in _weight(t)]
    C.batch_norm_(
        input.data_ptr(),
        DTYPES[input.dtype],
        *extents,
        *of_channels,
        eps,
        bits.data_ptr() if relu else 0,
        threads,
    )
    return bits


def batch_norm_backward(grad_output, weight, variance, eps, extents, threads=2, positive=None):
    """extents: (outer, channels, inner) of the memory of grad_output."""
    grad_input = torch.full_like(grad_output, float("nan"))
    C.batch_norm_backward(
        grad_output.data_ptr(),
        DTYPES[grad_output.dtype],
        *extents,
        *_weight(variance),
        *_weight(weight),
        eps,
        0 if positive is None else positive.data_ptr(),
        grad_input.data_ptr(),
        threads,
    )
    return grad_input
