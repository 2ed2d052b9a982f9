"""What a traced network computes, put as torch's compiler makes the faster code of: each value stays what it was.

Networks ported from TensorFlow pad before they convolve or pool, as TensorFlow's "SAME" is at times one more on the
right than on the left. Compiled as it stands, that is a copy of every map, and what comes before it is computed under
the mask of what is padding.

torch traces a linear layer over tokens that do not lie one behind the other, as in attention, to a product of many
matrices with one, repeated. Compiled as it stands, that one is copied for each: a ViT-B/16 in bfloat16 took 20 times as
long as uncompiled.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch.nn.functional import max_pool2d

_aten = torch.ops.aten

# An `fx.Node`: its arguments are whatever its operation takes.
_Node = Any


def simplify(graph: fx.Graph) -> None:
    """Put a graph of aten's operations, traced with its values, in a simpler form, in place."""
    # Indices of a pooling that nobody asks for are no reason to leave it.
    graph.eliminate_dead_code()
    node: _Node
    for node in graph.nodes:
        if node.target is _aten.convolution.default:
            _pad_in_convolution(node)
        elif node.target is _aten.max_pool2d_with_indices.default:
            _leave_out_padding(node)
        elif node.target is _aten.bmm.default and node.args[1].meta["val"].stride(0) == 0:
            _multiply_once(graph, node)
        elif node.target is _aten.clamp.default and node.args[1:] == (0,) and not node.kwargs:
            # The compiler knows it by this name as the end of a convolution.
            node.target, node.args = _aten.relu.default, node.args[:1]
    graph.eliminate_dead_code()


def _pad_in_convolution(node: _Node) -> None:
    """Have a convolution pad with zeros itself, where that is as much on both sides."""
    padded, padding, is_transposed = node.args[0], node.args[4], node.args[6]
    if list(padding) != [0, 0] or is_transposed or not _is_padded(padded, 0.0):
        return
    left, right, top, bottom = _sides(padded)
    if left == right >= 0 and top == bottom >= 0:
        node.args = (padded.args[0], *node.args[1:4], [top, left], *node.args[5:])


def _leave_out_padding(node: _Node) -> None:
    """Have a pooling's last windows reach over the edge instead of over minus infinity."""
    padded, used = node.args[0], {user.args[1] for user in node.users if user.target is operator.getitem}
    # Indices would be others.
    if len(node.args) != 3 or node.kwargs or used != {0} or not _is_padded(padded, -torch.inf):
        return
    left, _, top, _ = _sides(padded)
    if left or top:
        return
    _, kernel, stride = node.args
    shape = padded.args[0].meta["val"].shape
    if max_pool2d(torch.empty(shape, device="meta"), kernel, stride, ceil_mode=True).shape == node.meta["val"][0].shape:
        node.args = (padded.args[0], kernel, stride, [0, 0], [1, 1], True)


def _multiply_once(graph: fx.Graph, node: _Node) -> None:
    """Have one matrix multiply all rows at once, where it is to multiply matrix by matrix."""
    several, repeated = node.args
    matrices, rows, inner = several.meta["val"].shape
    with graph.inserting_before(node):
        all_rows = graph.call_function(_aten.reshape.default, (several, [matrices * rows, inner]))
        matrix = graph.call_function(_aten.select.int, (repeated, 0, 0))
        product = graph.call_function(_aten.mm.default, (all_rows, matrix))
        result = graph.call_function(_aten.reshape.default, (product, list(node.meta["val"].shape)))
    node.replace_all_uses_with(result)


def _is_padded(node: _Node, value: float) -> bool:
    """Whether a node pads maps in height and width, or in width only, with a value."""
    if node.target is not _aten.constant_pad_nd.default:
        return False
    _, sides, *given = node.args
    return len(sides) in (2, 4) and (given or [0.0])[0] == value


def _sides(padded: _Node) -> tuple[int, int, int, int]:
    """Return how much is padded left, right, at the top, at the bottom."""
    left, right, top, bottom = (*padded.args[1], 0, 0)[:4]
    return left, right, top, bottom
