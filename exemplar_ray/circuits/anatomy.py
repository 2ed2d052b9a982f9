"""What of a network its circuits are in: from which layer to which they go, and what lies between."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import nn

from exemplar_ray.circuits.spec import EXEMPLARS, EXPANDED, GATED, LITERAL, Stretch
from exemplar_ray.errors import UsageError
from exemplar_ray.network.before import Before, after, before, directly_before
from exemplar_ray.network.gradients import with_true_gradients
from exemplar_ray.network.layers import NCHW, VECTOR, Layer
from exemplar_ray.network.loading import network_of
from exemplar_ray.network.pre_relu import split_name
from exemplar_ray.network.spec import NetworkSpec
from exemplar_ray.network.tape import Tape, record


class Anatomy:
    """A network, and what it does to an image.

    Args:
        spec: which network.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        self.module: nn.Module = with_true_gradients(network_of(spec).module)
        self.module.requires_grad_(False)
        preprocess = spec.preprocess
        self.tape: Tape = record(self.module, torch.zeros(1, preprocess.channels, preprocess.crop, preprocess.crop))
        self._known = [self.module_of(layer.name) for layer in spec.layers]

    def module_of(self, layer: str) -> str:
        """Return the module that a layer is the output of, before its ReLU or after it."""
        return split_name(layer, [name for name, _ in self.module.named_modules()])[0]

    def before(self, layer: str, named: str | None = None) -> Before:
        """Find a layer's inputs, see `network.before.before`."""
        return before(self.tape, self.module_of(layer), named, self._known)

    def directly_before(self, layer: str) -> list:
        """Find the weights that its channels come out of, see `network.before.directly_before`."""
        return directly_before(self.tape, self.module_of(layer), self._known)

    def after(self, layer: str) -> tuple[str, Before] | None:
        """Find the layer that is made of this one."""
        return after(self.tape, self.module_of(layer))

    def stretches(self, layer: Layer, named: str | None, has_run: bool) -> list[Stretch]:
        """Return where the circuits of a layer's channels are: from the layer before, and between the two.

        Raises:
            UsageError: its output is not read as channels first, or see `network.before.before`.
        """
        if layer.layout not in (NCHW, VECTOR):
            raise UsageError(
                f"'{layer.name}' gives {layer.layout}; circuits are made of layers whose output is "
                "[images, channels, height, width]"
            )
        found, direct = self.before(layer.name, named), self.directly_before(layer.name)
        next_ = self.after(layer.name)
        kinds = (*((LITERAL,) if direct else ()), EXPANDED, *((GATED, EXEMPLARS) if has_run else ()))
        whole = Stretch(
            layer.name,
            layer.channels,
            found.layer,
            found.piece.shape[0],
            found.through,
            kinds,
            next_layer=next_[0] if next_ else None,
        )
        return [whole, *self._between(found, [weights.before.layer for weights in direct])]

    def _between(self, whole: Before, layers: list[str]) -> list[Stretch]:
        """Return what the layers between are made of, all channels of each."""
        found: dict[str, Stretch] = {}
        waiting = [layer for layer in layers if layer != whole.layer]
        while waiting:
            layer = waiting.pop()
            if layer in found or layer not in self.tape.outputs:
                continue
            for weights in self.directly_before(layer):
                source = weights.before
                channels = tuple(range(weights.first, weights.first + weights.channels))
                found[layer] = Stretch(layer, channels, source.layer, source.piece.shape[0], source.through, (LITERAL,))
                if source.layer != whole.layer and source.value.number > whole.value.number:
                    waiting.append(source.layer)
        return sorted(found.values(), key=lambda stretch: stretch.layer)


@lru_cache(maxsize=2)
def anatomy_of(spec: NetworkSpec) -> Anatomy:
    """Build a network, once a process."""
    return Anatomy(spec)
