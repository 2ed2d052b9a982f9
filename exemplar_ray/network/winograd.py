"""Convolutions by windows of 3 x 3 with a quarter of the multiplications: Winograd's minimal filtering F(4 x 4, 3 x 3).

A tile of 6 x 6 units of each input channel and each window become 6 x 6 numbers by small linear maps (`_OF_INPUT`,
`_OF_WINDOW`). There, adding up over the input channels is a product of matrices for each of the 36 numbers, and
another small map (`_OF_OUTPUT`) makes 4 x 4 units of its results: 36 multiplications instead of 144 (Lavin and Gray
2016, https://arxiv.org/abs/1509.09308).

The maps evaluate polynomials at points, and the points decide by how much rounding grows (Barabasz et al. 2020,
https://arxiv.org/abs/1803.10986). With the usual 0, 1, -1, 2, -2 the largest error is three to five times that with
those here, which are exact in binary, too. It is then two to three times that of a plain convolution as machine code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.functional import pad

from exemplar_ray.network.graph_constants import multiply_normalisations

_aten = torch.ops.aten

_WINDOW, _OUTPUTS = 3, 4
_TILE = _WINDOW + _OUTPUTS - 1
_POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)

# What is measured to pay: fewer channels, fewer tiles or more of a tile outside of the map, and the small maps, or
# reading the transformed windows, take longer than is saved.
_FEWEST_CHANNELS = 32
_FEWEST_TILES = 32
_MOST_OVER_THE_EDGE = 1.5
# Larger ones a worker's memory is not kept for, and the kernel zeroes them anew each time, see `executor.malloc`.
_MOST_BYTES = 32 << 20
_MOST_PARTS = 4

# torch's compiler takes 4 or 5 axes, of which one is a single, for channels that are to lie last.
_AXES = 6


def _small_maps() -> tuple[np.ndarray, ...]:
    """Return the small maps of windows [tile, window], inputs [tile, tile] and outputs [outputs, tile], float64.

    Multiplying polynomials is evaluating them, multiplying and interpolating; filtering is its transpose (Winograd
    1980, Arithmetic Complexity of Computations). The last point is infinity, where the highest coefficient stands.
    """

    def evaluate(coefficients: int) -> np.ndarray:
        return np.vstack([np.vander(_POINTS, coefficients, increasing=True), np.eye(coefficients)[-1]])

    return evaluate(_WINDOW), np.linalg.inv(evaluate(_TILE)).T, evaluate(_OUTPUTS).T


_OF_WINDOW, _OF_INPUT, _OF_OUTPUT = _small_maps()


class WinogradConvolution(nn.Module):
    """A convolution by 3 x 3 windows, in steps of 1.

    Args:
        weight: float32 [outputs, inputs, 3, 3].
        bias: float32 [outputs], if there is one.
        padding: with zeros: at the top and the bottom, left and right.
        relu: whether a ReLU follows.
        parts: into how many parts a batch is cut, one computed after another.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, padding: Sequence[int], relu: bool = False, parts: int = 1
    ) -> None:
        super().__init__()
        of_window = torch.from_numpy(_OF_WINDOW)
        windows = torch.einsum("ih,ochw,jw->ijco", of_window, weight.detach().double(), of_window)
        self._windows = nn.Buffer(windows.flatten(0, 1).float())
        self._bias = None if bias is None else nn.Buffer(bias.detach())
        self._padding = padding
        self._relu = relu
        self._parts = parts

    def forward(self, x: Tensor) -> Tensor:
        """Filter maps.

        Args:
            x: float32 [images, inputs, height, width].

        Returns:
            float32 [images, outputs, height, width], with the channels last in memory.
        """
        parts = [self._filtered(part) for part in x.permute(0, 2, 3, 1).chunk(self._parts)]
        return (torch.cat(parts) if len(parts) > 1 else parts[0]).permute(0, 3, 1, 2)

    def _filtered(self, x: Tensor) -> Tensor:
        """Filter maps [images, height, width, channels]."""
        images, *size, inputs = x.shape
        height, width = (length + 2 * by - _WINDOW + 1 for length, by in zip(size, self._padding, strict=True))
        rows, columns = _tiles(height), _tiles(width)
        (top, left), (given_height, given_width) = self._padding, size
        bottom = _OUTPUTS * rows + _WINDOW - 1 - top - given_height
        right = _OUTPUTS * columns + _WINDOW - 1 - left - given_width
        padded = pad(x, (0, 0, left, right, top, bottom))
        # One axis after the other: [6, images, rows, padded width, inputs], [6, 6, images, rows, columns, inputs].
        high = _stacked(_mapped(_OF_INPUT, [padded[:, i::_OUTPUTS][:, :rows] for i in range(_TILE)]), 0)
        both = _stacked(_mapped(_OF_INPUT, [high[:, :, :, i::_OUTPUTS][:, :, :, :columns] for i in range(_TILE)]), 1)
        products = torch.bmm(both.reshape(_TILE**2, -1, inputs), self._windows)
        products = products.reshape(_TILE, _TILE, images, rows, columns, -1)
        # [6, images, rows, columns, 4, outputs]
        wide = _stacked(_mapped(_OF_OUTPUT, products.unbind(1)), 4)
        y = _stacked([self._ended(row) for row in _mapped(_OF_OUTPUT, wide.unbind())], 2)
        # What follows may want to see them as another shape, which it can of maps without gaps.
        return y.reshape(images, _OUTPUTS * rows, _OUTPUTS * columns, -1)[:, :height, :width].contiguous()

    def _ended(self, y: Tensor) -> Tensor:
        if self._bias is not None:
            y = y + self._bias
        return y.relu() if self._relu else y


def use_winograd(graph: fx.GraphModule) -> None:
    """Put such convolutions in place of those of a traced network that are the faster for it.

    Normalisations are multiplied into the convolutions before them, as the compiler would those of its own.

    Args:
        graph: of aten's operations, in float32, traced with its values.
    """
    known = [getattr(graph, str(node.target)) for node in graph.graph.nodes if node.op == "get_attr"]
    constants = multiply_normalisations(graph, {one.data_ptr(): one for one in known})
    for number, node in enumerate(graph.graph.nodes):
        if node.target is not _aten.convolution.default or not all(map(constants.is_known, node.args[1:3])):
            continue
        weight, bias = (constant and constants.of(constant) for constant in node.args[1:3])
        if not (parts := _parts(node, weight)):
            continue
        name, users = f"winograd_{number}", list(node.users)
        # Computed with the convolution: stacked by it, its maps are written before anything else may see them.
        relu = len(users) == 1 and users[0].target is _aten.relu.default
        graph.add_submodule(name, WinogradConvolution(weight, bias, node.args[4], relu, parts))
        with graph.graph.inserting_before(node):
            instead = graph.graph.call_module(name, node.args[:1])
        (users[0] if relu else node).replace_all_uses_with(instead)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _tiles(length: int) -> int:
    """Return how many tiles cover a map's height or width."""
    return -(-length // _OUTPUTS)


def _parts(node: Any, weight: Tensor) -> int:
    """Return into how many parts the batch of a convolution is best cut, 0 where it is to be left as it is."""
    _, _, _, stride, padding, dilation, transposed, _, groups = node.args
    usual = list(stride) == list(dilation) == [1, 1] and not transposed and groups == 1 and len(padding) == 2
    if not usual or weight.dtype != torch.float32 or tuple(weight.shape[2:]) != (_WINDOW, _WINDOW):
        return 0
    maps = node.meta["val"]
    if not maps.is_contiguous(memory_format=torch.channels_last):
        return 0
    images, _, height, width = maps.shape
    count = _tiles(height) * _tiles(width)
    if count * _OUTPUTS**2 > _MOST_OVER_THE_EDGE * height * width or images * count < _FEWEST_TILES:
        return 0
    if min(weight.shape[:2]) < _FEWEST_CHANNELS:
        return 0
    of_image = 4 * _TILE**2 * count * max(weight.shape[:2])
    parts = math.ceil(images / max(1, _MOST_BYTES // of_image))
    return parts if of_image <= _MOST_BYTES and parts <= _MOST_PARTS else 0


def _mapped(coefficients: np.ndarray, terms: Sequence[Tensor]) -> list[Tensor]:
    """Return for each row of coefficients the sum of terms times them."""
    return [_sum(row, terms) for row in coefficients.tolist()]


def _sum(coefficients: Sequence[float], terms: Sequence[Tensor]) -> Tensor:
    # What is left out is 0 but for the inverse's own rounding.
    factors = [(c, term) for c, term in zip(coefficients, terms, strict=True) if abs(c) > 1e-12]
    total = factors[0][0] * factors[0][1]
    for factor, term in factors[1:]:
        total = total + factor * term
    return total


def _stacked(terms: Sequence[Tensor], axis: int) -> Tensor:
    """Put tensors one behind another, along a new axis."""
    single = (1,) * (_AXES - terms[0].dim())
    stacked = torch.stack([term.reshape(single + tuple(term.shape)) for term in terms], axis + len(single))
    return stacked.reshape(stacked.shape[len(single) :])
