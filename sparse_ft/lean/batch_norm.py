"""BatchNorm by its running statistics: a fixed scale and shift a channel.

Kept for backward: weight and running variance, by reference; torch keeps the input too.
"""

import torch


def batch_norm_forward(module, input):
    """`nn.BatchNorm1d`, `nn.BatchNorm2d`, `nn.BatchNorm3d` in eval mode with a frozen weight; torch's own otherwise."""
    fixed = not module.training and module.running_mean is not None and module.running_var is not None
    weight, bias = module.weight, module.bias
    if not fixed or not torch.is_grad_enabled() or (weight is not None and weight.requires_grad):
        return type(module).forward(module, input)
    module._check_input_dim(input)
    return _BatchNorm.apply(input, weight, bias, module.running_mean, module.running_var, module.eps)


class _BatchNorm(torch.autograd.Function):
    """Differentiable in input and bias, once."""

    @staticmethod
    def forward(ctx, input, weight, bias, mean, var, eps):
        ctx.save_for_backward(*((weight, var) if ctx.needs_input_grad[0] else (None, None)))
        ctx.eps, ctx.dtype = eps, input.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        return torch.nn.functional.batch_norm(input, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        weight, var = ctx.saved_tensors
        grad_input = grad_bias = None
        if ctx.needs_input_grad[0]:
            wide = torch.promote_types(torch.float32, ctx.dtype)
            exact = torch.float64 if var.is_cpu else wide  # torch rounds there
            scale = (1 / (var.to(exact) + ctx.eps).sqrt()).to(wide)  # [C]
            shape = -1, *[1] * (grad_output.dim() - 2)
            grad_input = grad_output * scale.view(shape)
            if weight is not None:
                grad_input.mul_(weight.view(shape))
            grad_input = grad_input.to(ctx.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = grad_output.sum([d for d in range(grad_output.dim()) if d != 1]).to(ctx.bias_dtype)
        return grad_input, None, grad_bias, None, None, None
