"""What a traced graph knows by itself, weights and buffers, and normalisations multiplied into it."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

_aten = torch.ops.aten


class GraphConstants:
    """What a graph knows by itself: weights and buffers.

    `exact` is {where each lies in memory: the same in float32}, of those of which that is known.
    """

    def __init__(self, graph: fx.GraphModule, exact: Mapping[int, Tensor]) -> None:
        self._graph = graph
        self.exact = dict(exact)

    def of(self, node: fx.Node) -> Tensor:
        """Return what a node stands for that is a constant."""
        value: Tensor = getattr(self._graph, str(node.target))
        return value

    def is_known(self, node: fx.Node | None) -> bool:
        """Whether a node is nothing, or a constant that is known exactly."""
        return node is None or (node.op == "get_attr" and self.of(node).data_ptr() in self.exact)

    def exact_of(self, node: fx.Node | None, instead_of_none: float) -> Tensor:
        """Return what a node stands for that is known exactly, in float64."""
        if node is None:
            return torch.tensor(instead_of_none, dtype=torch.float64)
        return self.exact[self.of(node).data_ptr()].double()

    def add(self, before: fx.Node, narrow: Tensor, exact: Tensor) -> fx.Node:
        """Add one; return the node for it, which stands before another one.

        Args:
            narrow: of the type and layout that it is to have; what it holds does not matter.
        """
        narrow = torch.empty_like(narrow).copy_(exact)
        self.exact[narrow.data_ptr()] = torch.empty_like(narrow, dtype=torch.float32).copy_(exact)
        name = f"_multiplied_{len(self.exact)}"
        setattr(self._graph, name, torch.nn.Parameter(narrow, requires_grad=False))
        with self._graph.graph.inserting_before(before):
            return self._graph.graph.get_attr(name)

    def replace(self, before: Tensor, after: Tensor) -> None:
        """Put other numbers in the place of one, wherever the graph has it."""
        value = torch.empty_like(before).copy_(after.reshape(before.shape))
        for node in self._graph.graph.nodes:
            if node.op == "get_attr" and self.of(node).data_ptr() == before.data_ptr():
                setattr(self._graph, str(node.target), torch.nn.Parameter(value, requires_grad=False))


def multiply_normalisations(graph: fx.GraphModule, exact: Mapping[int, Tensor]) -> GraphConstants:
    """Have convolutions do what the normalisations behind them do, in place.

    What the graph is of keeps its own weights.

    Args:
        graph: a traced network, of aten's operations.
        exact: {where a weight or a buffer of the graph lies in memory, see `Tensor.data_ptr`: the same in float32}

    Returns:
        What the graph then knows.
    """
    constants = GraphConstants(graph, exact)
    # What nobody asks for is no reason to leave a normalisation.
    graph.graph.eliminate_dead_code()
    for node in graph.graph.nodes:
        if node.target is _aten.native_batch_norm.default:
            _multiply_into_convolution(node, constants)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return constants


def _multiply_into_convolution(node: Any, constants: GraphConstants) -> None:
    """Have a convolution do what the normalisation behind it does, if nobody else asks for what is between them."""
    convolution, scale, shift, mean, variance, is_training, _, epsilon = node.args
    taken = {user.args[1] for user in node.users if user.target is operator.getitem}
    if convolution.target is not _aten.convolution.default or len(convolution.users) > 1 or is_training or taken != {0}:
        return
    x, weight, bias, stride, padding, dilation, is_transposed, *others = convolution.args
    if is_transposed or not all(map(constants.is_known, (weight, bias, scale, shift, mean, variance))):
        return
    times = constants.exact_of(scale, 1.0) / (constants.exact_of(variance, 1.0) + epsilon).sqrt()
    new_bias = (constants.exact_of(bias, 0.0) - constants.exact_of(mean, 0.0)) * times + constants.exact_of(shift, 0.0)
    narrow, exact = constants.of(weight), constants.exact_of(weight, 0.0)
    new_weight = exact * times.reshape(-1, *[1] * (exact.dim() - 1))
    added = (
        constants.add(convolution, narrow, new_weight),
        constants.add(convolution, narrow.new_empty(len(new_bias)), new_bias),
    )
    convolution.args = (x, *added, stride, padding, dilation, is_transposed, *others)
    for user in list(node.users):
        user.replace_all_uses_with(convolution)
