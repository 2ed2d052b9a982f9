"""Local response normalisation, the slowest layer of Inception v1 as torch computes it, made fast.

torch sums the squares over neighbouring channels with `avg_pool3d`, which takes longer than the
network's convolutions together. Here the neighbours are added up in memory, in the order of the channels, whether or
not the network is compiled or has gradients. On a GPU, and where numbers have too few digits to be added up one by one,
the same sum is a 1 x 1 convolution whose weights are a band of ones.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.overrides import TorchFunctionMode


class FastResponseNorm(TorchFunctionMode):
    """While inside, every `torch.nn.functional.local_response_norm` is the one below.

    Equal to torch's but for rounding, a few units in the last place.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace the one function, leave the others as they are."""
        if func is nn.functional.local_response_norm:
            return local_response_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def local_response_norm(input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    """Do what `torch.nn.functional.local_response_norm` does, with its argument names.

    Args:
        input: float [images, channels, height, width]; whatever else is left to torch.

    Returns:
        input / (k + alpha / size * sum of input^2 over `size` neighbouring channels) ** beta
        (Krizhevsky, Sutskever and Hinton, 2012, section 3.3, with torch's division of alpha by size).
    """
    if input.dim() != 4 or input.numel() == 0:
        return nn.functional.local_response_norm(input, size, alpha, beta, k)
    if torch.is_grad_enabled() and input.requires_grad:
        return _WithGradient.apply(input, size, alpha, beta, k)
    return (input / divisor(input, size, alpha, beta, k)).to(input.dtype)


def divisor(input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    """Return what `local_response_norm` divides by, of the input's shape."""
    # Scaled before it is squared: float16 has no room for the square of a large activation.
    squares = input * (alpha / size) * input
    if get_proxy_mode() is not None:
        scale = _sum_of_neighbours(squares, size)
    elif squares.device.type == "cpu" and squares.dtype in (torch.float32, torch.float64):
        scale = _over_neighbours(squares, size // 2, (size - 1) // 2)
    else:
        scale = torch.conv2d(squares, _band(input.shape[1], size, input.dtype, input.device))
    scale = scale.add_(k)
    # Roots are much cheaper than powers, and these two are what networks use.
    if beta == 0.5:
        return scale.sqrt_()
    if beta == 0.75:
        root = scale.sqrt_()
        return root * root.sqrt()
    return scale.pow_(beta)


class _WithGradient(torch.autograd.Function):
    """The same with its gradient as a formula, which goes through memory a third as often as torch's record of it.

    With s = k + alpha / size * sum of x^2, y = x * s^-beta, and g the gradient of y, that of x is
    g * s^-beta - 2 * alpha * beta / size * x * (sum of g * y / s over those whose neighbour x is).
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        before, after = size // 2, (size - 1) // 2
        scale = _over_neighbours(x * x, before, after).mul_(alpha / size).add_(k)
        if beta == 0.75:
            root = scale.rsqrt()
            factor = root.sqrt().mul_(root)
        else:
            factor = scale.rsqrt() if beta == 0.5 else scale.pow(-beta)
        output = x * factor
        ctx.save_for_backward(x, scale, factor, output)
        ctx.reach, ctx.weight = (after, before), 2 * alpha * beta / size
        return output.to(input.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, factor, output = ctx.saved_tensors
        gradient_here = gradient.to(x.dtype)
        of_neighbours = _over_neighbours((gradient_here * output).div_(scale), *ctx.reach).mul_(x)
        result = (gradient_here * factor).sub_(of_neighbours, alpha=ctx.weight)
        return result.to(gradient.dtype), None, None, None, None


def _over_neighbours(values: Tensor, before: int, after: int) -> Tensor:
    """Return each channel's sum over itself and so many channels before and after it, in the order of the channels."""
    channels = values.shape[1]
    total = torch.zeros_like(values)
    # Not by slices: Python would write back what has been added up in place.
    for offset in range(min(before, channels - 1), 0, -1):
        total.narrow(1, offset, channels - offset).add_(values.narrow(1, 0, channels - offset))
    total.add_(values)
    for offset in range(1, min(after, channels - 1) + 1):
        total.narrow(1, 0, channels - offset).add_(values.narrow(1, offset, channels - offset))
    return total


def _sum_of_neighbours(squares: Tensor, size: int) -> Tensor:
    """Return float32 sums over `size` neighbouring channels, in a form that torch's compiler makes one loop of.

    Zeros beyond the edges are concatenated: padding would be a comparison for each number that is read.
    """
    channels = squares.shape[1]
    zeros = torch.zeros_like(squares[:, :1])
    before, after = zeros.expand(-1, size // 2, -1, -1), zeros.expand(-1, (size - 1) // 2, -1, -1)
    padded = torch.cat([before, squares, after], dim=1).float()
    total = padded[:, :channels]
    for offset in range(1, size):
        total = total + padded[:, offset : offset + channels]
    return total


@lru_cache(maxsize=8)
def _band(channels: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return [channels, channels, 1, 1]: one where the second channel counts for the first.

    As torch pads it: `size // 2` channels before and `(size - 1) // 2` after.
    """
    channel = torch.arange(channels, device=device)
    offset = channel[None, :] - channel[:, None]
    return ((offset >= -(size // 2)) & (offset <= (size - 1) // 2)).to(dtype)[:, :, None, None]
