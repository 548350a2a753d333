"""A frozen linear layer whose weight stays in few bits."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .low_bits import LowBits, dequantise


class LowBitsLinear(nn.Linear):
    """A linear layer like `linear`, with a weight in few bits, turned back to numbers whenever it is used.

    Its answers and the gradients of its inputs are exactly those of the layer with these numbers. `weight` (frozen)
    and the buffer `scale` hold what is stored: their shapes and types are not those of the numbers, and casting the
    module to another type spoils them. `bias` stays the one of `linear`.
    """

    def __init__(self, linear: nn.Linear, low: LowBits):
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.form = linear.in_features, linear.out_features, low.form
        self.weight = nn.Parameter(low.data, requires_grad=False)
        self.register_buffer("scale", low.scale)
        self.register_parameter("bias", linear.bias)

    def numbers(self, dtype: torch.dtype) -> Tensor:
        """The weight as numbers (O, I)."""
        return dequantise(self.form, self.weight.detach(), self.scale, (self.out_features, self.in_features), dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        device = inputs.device.type
        autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else inputs.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        shape = (self.out_features, self.in_features)
        return _Product.apply(inputs.to(dtype), bias, self.weight, self.scale, self.form, shape)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, form={self.form}"


class _Product(torch.autograd.Function):
    """inputs W^T + bias. Only what is stored of W is kept for the way back, where it is turned into numbers again."""

    @staticmethod
    def forward(ctx, inputs, bias, data, scale, form, shape):
        ctx.save_for_backward(data, scale)
        ctx.form, ctx.shape, ctx.dtype = form, shape, inputs.dtype
        return nn.functional.linear(inputs, dequantise(form, data, scale, shape, inputs.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        data, scale = ctx.saved_tensors
        numbers = dequantise(ctx.form, data, scale, ctx.shape, ctx.dtype)
        return gradient @ numbers, None, None, None, None, None
