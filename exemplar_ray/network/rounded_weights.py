"""A network's weights in a narrow type, rounded so that their errors cancel out over what the network sees.

A bfloat16 has 8 bits, and of what screening is off, most comes from weights: each layer adds up thousands of products,
and what rounding does to its weights is the same for every image. Rounded one after another, each weight that follows
can make up for what rounding those before it did to the layer's output: that is "optimal brain quantization", as
GPTQ does it for large layers (Frantar et al. 2022, https://arxiv.org/abs/2210.17323). All that it needs to know is how
a layer's inputs go together (their Gram matrix), and pictures of noise show that well enough, if it falls off with
frequency as photographs do (Field 1987, https://doi.org/10.1364/JOSAA.4.002379): so a network's rounded weights depend
on nothing but the network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx
from torch.nn.functional import pad, unfold

from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.network.graph_constants import multiply_normalisations

_aten = torch.ops.aten

# As GPTQ has it: added to each input's mean square, as a share of all inputs' average.
_DAMPING = 0.01
_BLOCK = 128
# The matrix of how a layer's inputs go together is as large as their square. Beyond so many inputs to an output, or so
# many bytes of all layers, weights stay as they are.
_MOST_INPUTS = 5000
_MOST_BYTES = 2 << 30
# Of each image, no more places of a map are looked at.
_MOST_PLACES = 4096

# Of noise: photographs have about such a mean and spread, of 255, and channels that are much alike.
_MEAN, _SPREAD, _OF_ITS_OWN = 115.0, 55.0, 0.3


class _Layer(NamedTuple):
    """A weight in the graph, and where its bias is, if it has one."""

    weight: Tensor
    """[outputs, inputs of a group, ...], in the narrow type."""
    bias: Tensor | None
    gram: Tensor
    """float32 [groups, inputs + 1, inputs + 1]: the sum of products of inputs, of which the last is always 1."""


def noise(preprocess: Preprocess, images: int) -> Tensor:
    """Return pictures of noise with a photograph's spectrum, the same ones each time.

    Returns:
        uint8 [images, crop, crop, channels]
    """
    height, width, channels = preprocess.crop_shape
    random = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    amplitude = 1 / np.maximum(frequency, 1 / max(height, width))

    def pictures(channels: int) -> np.ndarray:
        white = random.normal(size=(images, channels, height, width))
        return np.fft.ifft2(np.fft.fft2(white) * amplitude).real

    mixed = (pictures(1) + _OF_ITS_OWN * pictures(channels)).transpose(0, 2, 3, 1)
    spread = mixed.std(axis=(1, 2, 3), keepdims=True) + np.finfo(float).tiny
    standard = (mixed - mixed.mean(axis=(1, 2, 3), keepdims=True)) / spread
    return torch.from_numpy((_MEAN + _SPREAD * standard).clip(0, 255).astype(np.uint8))


def round_weights(graph: fx.GraphModule, exact: Mapping[int, Tensor], examples: Sequence[Sequence[Tensor]]) -> None:
    """Round the weights of convolutions and linear layers anew, in place of those that a graph has.

    Normalisations are multiplied into the convolutions before them, as the compiler would, which would round again.
    What the graph is of keeps its own weights.

    Args:
        graph: a traced network, of aten's operations, whose weights are of a narrow type.
        exact: {where a weight or a buffer of the graph lies in memory, see `Tensor.data_ptr`: the same in float32}
        examples: inputs, to see how the inputs of layers go together.
    """
    constants = multiply_normalisations(graph, exact)
    calibration = _Calibration(graph, constants.exact)
    with torch.no_grad():
        for example in examples:
            calibration.run(*example)
        for layer in calibration.layers.values():
            # Where what a layer sees is no number, or tells nothing, its weights stay as they are.
            with suppress(torch.linalg.LinAlgError):
                for before, after in _rounded(layer, constants.exact):
                    constants.replace(before, after)


class _Calibration(fx.Interpreter):
    """Runs a graph, and notes how the inputs of its layers go together."""

    def __init__(self, graph: fx.GraphModule, exact: Mapping[int, Tensor]) -> None:
        super().__init__(graph)
        self._exact = exact
        self.layers: dict[int, _Layer] = {}

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Compute one node."""
        if target is _aten.convolution.default:
            self._convolves(*args)
        elif target is _aten.addmm.default and not kwargs:
            self._multiplies(args[1], args[2], args[0])
        elif target is _aten.mm.default:
            self._multiplies(args[0], args[1], None)
        return super().call_function(target, args, kwargs)

    def _convolves(self, x: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> None:
        stride, padding, dilation, is_transposed, _, groups = how
        inputs = math.prod(weight.shape[1:])
        if is_transposed or weight.dim() != 4 or not self._may_round(weight):
            return
        for image in x.float().split(1):
            patches = unfold(image, weight.shape[2:], dilation=dilation, padding=padding, stride=stride)
            self._add(weight, bias, patches.reshape(groups, inputs, -1).transpose(1, 2))

    def _multiplies(self, rows: Tensor, matrix: Tensor, bias: Tensor | None) -> None:
        weight = matrix.t()
        if self._may_round(weight):
            self._add(weight, bias, rows.float()[None])

    def _may_round(self, weight: Tensor) -> bool:
        """Whether it is known exactly, neither a part of what is nor turned over, and no layer's that is too large."""
        return self._is_known(weight) and math.prod(weight.shape[1:]) <= _MOST_INPUTS

    def _is_known(self, tensor: Tensor) -> bool:
        exact = self._exact.get(tensor.data_ptr())
        return exact is not None and (exact.shape, exact.stride()) == (tensor.shape, tensor.stride())

    def _add(self, weight: Tensor, bias: Tensor | None, inputs: Tensor) -> None:
        """Note inputs, float32 [groups, places, inputs]."""
        if bias is not None and not self._is_known(bias):
            bias = None
        step = -(-inputs.shape[1] // _MOST_PLACES)
        with_one = pad(inputs[:, ::step], (0, 1), value=1.0)
        gram = with_one.transpose(1, 2) @ with_one
        known = self.layers.get(weight.data_ptr())
        if known is not None:
            gram += known.gram
            # One that stands alone at another place.
            bias = known.bias if known.bias is bias else None
        elif gram.nbytes + sum(layer.gram.nbytes for layer in self.layers.values()) > _MOST_BYTES:
            return
        self.layers[weight.data_ptr()] = _Layer(weight, bias, gram)


def _rounded(layer: _Layer, exact: Mapping[int, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return a layer's weight, and bias if it has one, each with what it is rounded to, in float64.

    Raises:
        LinAlgError: how its inputs go together is not known.
    """
    gram = layer.gram.double()
    groups, inputs = len(gram), gram.shape[1] - 1
    weight = exact[layer.weight.data_ptr()].double().reshape(groups, -1, inputs)
    narrow = layer.weight.dtype
    if layer.bias is None:
        return [(layer.weight, _one_after_another(weight, gram[:, :-1, :-1], narrow))]
    bias = exact[layer.bias.data_ptr()].double().reshape(groups, -1, 1)
    both = _one_after_another(torch.cat([weight, bias], dim=2), gram, narrow)
    return [(layer.weight, both[..., :-1]), (layer.bias, both[..., -1])]


def _one_after_another(weight: Tensor, gram: Tensor, narrow: torch.dtype) -> Tensor:
    """Round weights, those with the strongest inputs first, each time making up for it by those that follow.

    Args:
        weight: float64 [groups, outputs, inputs]
        gram: float64 [groups, inputs, inputs]
        narrow: the type whose numbers they become.
    """
    power = gram.diagonal(dim1=1, dim2=2)
    damping = _DAMPING * power.mean(dim=1, keepdim=True) + torch.finfo(torch.float64).tiny
    order = power.argsort(dim=1, descending=True)
    damped = gram + torch.diag_embed(damping.expand_as(power))
    damped = torch.stack([one[which][:, which] for one, which in zip(damped, order, strict=True)])
    # Row i tells by how much the inputs after the i-th can stand in for it, and its diagonal how much is left then.
    stands_in = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    places = order[:, None].expand_as(weight)
    left, rounded = weight.gather(2, places), torch.empty_like(weight)
    count = weight.shape[2]
    for start in range(0, count, _BLOCK):
        end = min(start + _BLOCK, count)
        errors = torch.empty_like(left[..., start:end])
        for i in range(start, end):
            rounded[..., i] = left[..., i].to(narrow)
            errors[..., i - start] = (left[..., i] - rounded[..., i]) / stands_in[:, i, i, None]
            left[..., i + 1 : end] -= errors[..., i - start, None] * stands_in[:, None, i, i + 1 : end]
        left[..., end:] -= errors @ stands_in[:, start:end, end:]
    return torch.empty_like(weight).scatter_(2, places, rounded)
