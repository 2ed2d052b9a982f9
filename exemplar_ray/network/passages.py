"""Passages: modules of a network that all of a layer comes through, found in its own forward pass.

A branch of a block is none: what a layer gives goes past it. The stem, blocks and what stands between them are, in
whatever way a network is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from exemplar_ray.data.first_images import noise
from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.errors import UsageError
from exemplar_ray.network.describe import described_layer
from exemplar_ray.network.hooks import forward, hooked
from exemplar_ray.network.inputs import Input
from exemplar_ray.network.inquiry import Inquiry
from exemplar_ray.network.layers import Layer
from exemplar_ray.network.layouts import AUTO
from exemplar_ray.network.pre_relu import split_name
from exemplar_ray.network.questions import NOISE
from exemplar_ray.network.tell_layout import tell_layout
from exemplar_ray.network.trunk import to_input

MOST = 5


def passages(module: nn.Module, layer: str, preprocess: Preprocess, most: int = MOST) -> tuple[Layer, ...]:
    """Return some layers that all of a layer comes through, in the order in which they run.

    They lie as evenly as can be between the input and the layer, by the number of operations before each. A module
    that is called more than once, or whose output is no map of channels that can be told, is left out.

    Args:
        module: the network, in eval mode on the CPU, which takes no labels.
    """
    between = _between(module, layer, preprocess)
    chosen: set[str] = set()
    for place in range(1, most + 1):
        left = [(abs(far - place / (most + 1)), name) for name, far in between if name not in chosen]
        if left:
            chosen.add(min(left, key=lambda at: at[0])[1])
    return _described(module, [name for name, _ in between if name in chosen], preprocess)


def _between(module: nn.Module, layer: str, preprocess: Preprocess) -> list[tuple[str, float]]:
    """Return (module, how far it is, 0..1) of all passages, in order."""
    modules = [name for name, _ in module.named_modules()]
    target = split_name(layer, modules)[0]
    calls: dict[str, list[Any]] = {}

    def seen(name: str, output: Any, _before: object) -> bool:
        is_map = isinstance(output, Tensor) and output.is_floating_point() and output.dim() in (3, 4)
        calls.setdefault(name, []).append(output.grad_fn if is_map or name == target else None)
        # To its end: an activation may be called again behind the layer.
        return False

    x = to_input(noise(preprocess, NOISE).crops[:1], preprocess).requires_grad_(True)
    wanted = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad(), hooked(module, [name for name in modules if name], seen):
            forward(module, Input(x))
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
    end = calls[target][-1]
    if end is None:
        return []
    graph = _Graph(end)
    found: dict[Any, str] = {}
    for name, nodes in calls.items():
        # Of a container and the last of what is in it, the container: it has run later.
        if name != target and len(nodes) == 1 and nodes[0] is not end and graph.is_passed_by_all(nodes[0]):
            found[nodes[0]] = name
    # Of a block that is one, not what is inside it.
    outer = [name for name in found.values() if not any(name.startswith(f"{other}.") for other in found.values())]
    return [(name, graph.depth[node] / graph.depth[end]) for node, name in found.items() if name in outer]


class _Graph:
    """Autograd's graph from a node down to the input, as a graph of paths."""

    def __init__(self, end: Any) -> None:
        self._end = end
        order = _inputs_first(end)
        self.depth: dict[Any, int] = {}
        """The most operations on a way from the input to a node."""
        self._from_input: dict[Any, int] = {}
        for node in order:
            below = _below(node)
            self.depth[node] = 1 + max((self.depth[one] for one in below), default=-1)
            self._from_input[node] = sum(self._from_input[one] for one in below) or 1
        self._to_end: dict[Any, int] = dict.fromkeys(order, 0)
        self._to_end[end] = 1
        for node in reversed(order):
            for one in _below(node):
                self._to_end[one] += self._to_end[node]

    def is_passed_by_all(self, node: Any) -> bool:
        """Whether every way from the input to the end goes through a node. Whole numbers, so exact."""
        if node not in self._from_input:
            return False
        return self._from_input[node] * self._to_end[node] == self._from_input[self._end]


def _below(node: Any) -> list[Any]:
    return [one for one, _ in node.next_functions if one is not None]


def _inputs_first(end: Any) -> list[Any]:
    """Return all nodes below one, each after those that it is made of."""
    order: dict[Any, None] = {}
    waiting: list[tuple[Any, bool]] = [(end, False)]
    while waiting:
        node, is_done = waiting.pop()
        if node in order:
            continue
        if is_done:
            order[node] = None
            continue
        waiting.append((node, True))
        waiting += [(one, False) for one in _below(node)]
    return list(order)


def _described(module: nn.Module, names: Sequence[str], preprocess: Preprocess) -> tuple[Layer, ...]:
    if not names:
        return ()
    inquiry = Inquiry(module, names, preprocess, noise(preprocess, NOISE))
    inquiry.look_alone()
    inquiry.look_watching()
    inquiry.look_at_a_smaller_one()
    described = []
    for name in names:
        with suppress(UsageError):
            layout, _ = tell_layout(inquiry, name, AUTO)
            described.append(described_layer(inquiry.found[name], name, layout, "all"))
    return tuple(described)
