"""What a network is given: an image, and its label where the network wants that, too."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import Parameter, signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from exemplar_ray.data.shards import ImageRow
from exemplar_ray.errors import ShardError
from exemplar_ray.network.spec import LABELS_GIVEN, LABELS_LEFT_OUT, NetworkSpec

_LABELS = "labels"


class Input(NamedTuple):
    """What a network is given for a batch of images."""

    x: Tensor
    """float [images, channels, height, width]"""
    labels: Tensor | None = None
    """int64 [images], on the same device; None for a network that is given none."""

    def given_to(self, module: nn.Module) -> Any:
        """Run a forward pass, and return what it returns.

        Raises:
            IndexError: a label is none that the network knows, as torch says it of a table of classes; it may raise
                whatever else.
        """
        if self.labels is None:
            return module(self.x)
        try:
            return module(self.x, labels=self.labels)
        except IndexError as error:
            lowest, highest = int(self.labels.min()), int(self.labels.max())
            raise IndexError(f"{error}; the network was given labels from {lowest} to {highest}") from error


def labels_for(network: NetworkSpec, shard: str, images: Sequence[ImageRow], count: int) -> Tensor | None:
    """Return what labels a network is given with some images of a shard: int64 [count]; None if it is given none.

    Behind the last image stands the first one's label: a network may fail on a number that is the label of none.

    Raises:
        ShardError: an image has no label.
    """
    if not network.takes_labels:
        return None
    labels: list[int] = []
    for image in images:
        if image.label is None:
            raise ShardError(
                f"{shard}: row {image.row} has no label, and the network is given the images' labels (its forward "
                "takes `labels`); give the row one, or leave it out"
            )
        labels.append(image.label)
    return torch.tensor(labels + labels[:1] * (count - len(labels)), dtype=torch.int64)


def use_of_labels(module: nn.Module) -> str | None:
    """Say what is done with a parameter `labels` of a network's forward: see `spec.NetworkSpec.labels`.

    One with a default is left at it: libraries have such parameters for what is no part of their answer. Of
    transformers' own models it is known that they only compute a loss with them, so that nothing need be said.
    """
    while isinstance(module, nn.DataParallel):
        # It hands on what it is given.
        module = module.module
    try:
        parameter = signature(module.forward).parameters.get(_LABELS)
    except (TypeError, ValueError):
        # Some callables do not say.
        return None
    if parameter is None or parameter.kind not in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY):
        return None
    if parameter.default is Parameter.empty:
        return LABELS_GIVEN
    return None if type(module).__module__.partition(".")[0] == "transformers" else LABELS_LEFT_OUT


def takes_labels(module: nn.Module) -> bool:
    """Whether a network is given the images' labels."""
    return use_of_labels(module) == LABELS_GIVEN
