"""The trunk: a network up to its deepest wanted layer, and the pooled activations of the wanted channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from exemplar_ray.data.preprocess import BGR, Preprocess
from exemplar_ray.network.hooks import forward, hooked
from exemplar_ray.network.inputs import Input
from exemplar_ray.network.layers import Layer
from exemplar_ray.network.layouts import Reading, read
from exemplar_ray.network.reference_precision import reference_precision
from exemplar_ray.network.response_norm import FastResponseNorm
from exemplar_ray.network.statistics import STATISTICS, pooled, pooled_pre_relu

OfReadouts = dict[tuple[str, str], Tensor]
"""{(layer, statistic): float32 [images, wanted channels]}"""


class Pooled(NamedTuple):
    """What a trunk gives for a batch, on its device. All of it are copies: the network may go on in place."""

    activations: OfReadouts
    pre_relu: OfReadouts
    """As many numbers again: how near an image comes to exciting a channel that it leaves at 0. NaN for layers that do
    not end in a ReLU. Empty where it was not asked for."""


class Trunk:
    """The part of a network that the wanted layers need, and its pooled activations.

    The forward pass is the network's own and ends as soon as every wanted layer has run.

    Args:
        module: the network; it is moved to the device, and to the precision.
        layers: which layers and channels are wanted.
        statistics: names from `STATISTICS`, by which their maps are pooled.
        preprocess: from crops to the network's input.
        precision: what it computes in, see `layers.PRECISIONS`; activations are pooled in float32 in any case.
        pre_relu: a call also says how near an image comes to exciting a channel that it leaves at 0.
    """

    _memory_format = torch.channels_last
    _normalise: Callable[[], AbstractContextManager] = FastResponseNorm

    def __init__(
        self,
        module: nn.Module,
        layers: Sequence[Layer],
        statistics: Sequence[str],
        preprocess: Preprocess,
        device: torch.device,
        precision: str = "float32",
        pre_relu: bool = False,
    ) -> None:
        self.device = device
        self._type = getattr(torch, precision)
        # Not one after the other: a foreign network's `train` may return nothing.
        self._module = module
        module.to(device, self._type)
        module.to(memory_format=self._memory_format)
        module.eval()
        self._layers = {layer.name: layer for layer in layers}
        self._statistics = statistics
        self._preprocess = preprocess
        self._pre_relu = pre_relu

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Return the network's parameters and buffers by name, as it computes with them."""
        return {name: one.detach() for name, one in [*self._module.named_parameters(), *self._module.named_buffers()]}

    def __call__(self, crops: Tensor, labels: Tensor | None = None) -> Pooled:
        """Score one batch.

        Args:
            crops: uint8 [images, crop, crop, channels], as `decode.crop` makes them.
            labels: int64 [images], of a network that is given them.
        """
        return self._forward(crops, labels, self._pre_relu)

    def with_maps(
        self, crops: Tensor, labels: Tensor | None = None, pre_relu: bool = False
    ) -> tuple[Pooled, dict[str, Tensor]]:
        """Score one batch and keep the layers' outputs.

        Returns:
            What a call returns, by this `pre_relu`, and {layer: the maps of its wanted channels}, float32
            [images, wanted channels, height, width] or, for logits, [images, wanted channels].
        """
        outputs: dict[str, Tensor] = {}
        return self._forward(crops, labels, pre_relu, outputs), outputs

    def _forward(
        self, crops: Tensor, labels: Tensor | None, pre_relu: bool, outputs: dict[str, Tensor] | None = None
    ) -> Pooled:
        """Run the network until each layer's wanted channels have been pooled, and put into `outputs` if that is given.

        What is put there are copies, too.
        """
        result = Pooled({}, {})
        waiting = set(self._layers)

        def seen(name: str, output: Tensor, before: Tensor | None) -> bool:
            wanted = self._layers[name]
            reading, reading_before = self._read(output, wanted), None if before is None else self._read(before, wanted)
            for statistic in self._statistics:
                values = pooled(STATISTICS[statistic], reading)
                result.activations[name, statistic] = values
                if pre_relu:
                    values_before = reading_before and pooled_pre_relu(STATISTICS[statistic], reading_before)
                    result.pre_relu[name, statistic] = (
                        torch.full_like(values, torch.nan) if values_before is None else values_before
                    )
            if outputs is not None:
                outputs[name] = reading.maps.clone()
            waiting.remove(name)
            return not waiting

        hooks = hooked(self._module, list(self._layers), seen, pre_relu)
        with hooks, torch.inference_mode(), reference_precision(), self._normalise():
            pixels = to_input(crops.to(self.device), self._preprocess).to(self._type)
            labels = None if labels is None else labels.to(self.device)
            forward(self._module, Input(pixels.contiguous(memory_format=self._memory_format), labels))
        return result

    @staticmethod
    def _read(output: Tensor, layer: Layer) -> Reading:
        """Read the wanted channels of a layer's output."""
        reading = read(output, layer)
        if len(layer.channels) < layer.channel_count:
            reading = reading.of_channels(torch.tensor(layer.channels, device=output.device))
        return reading.copied()


class ContiguousTrunk(Trunk):
    """The same, for networks that do not run with the channels last in memory, see `spec.NetworkSpec`."""

    _memory_format = torch.contiguous_format


class PlainTrunk(ContiguousTrunk):
    """The same, run just as torch does by default: what the faster form is compared with."""

    _normalise = nullcontext


def to_input(crops: Tensor, preprocess: Preprocess) -> Tensor:
    """Turn uint8 [images, height, width, channels] crops into float32 [images, channels, height, width] input.

    With scale 1 this is torchvision's `ToTensor` and `Normalize`, bit for bit.
    """
    x = crops.permute(0, 3, 1, 2).contiguous().float()
    if preprocess.scale != 255.0:
        x = x.div(255.0).mul(preprocess.scale)
    mean, std = (torch.tensor(v, device=x.device).view(-1, 1, 1) for v in (preprocess.mean, preprocess.std))
    x = x.sub(mean).div(std)
    return x.flip(1) if preprocess.order == BGR else x
