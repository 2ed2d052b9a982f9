"""What a picture is worth: what the network really answers to the stored 8 bits, by the path that ranks images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from exemplar_ray.network.gradients import DifferentiableLayer
from exemplar_ray.network.layouts import Reading
from exemplar_ray.network.reference_precision import reference_precision
from exemplar_ray.network.trunk import Trunk
from exemplar_ray.visualize.objectives import OBJECTIVES
from exemplar_ray.visualize.optimise import Picture, Wanted
from exemplar_ray.visualize.transformations import matrices, transformed

ROBUST_VIEWS = 32


class Judged(NamedTuple):
    """What came of a picture."""

    activations: np.ndarray
    """float32 [channels]: of all of the layer's, by the run's statistic."""
    activation_pre_relu: float
    """Of its own channel, before the ReLU."""
    robust_activation: float
    """The median of its own channel over `ROBUST_VIEWS` random transformations, before the ReLU."""


def judge(
    trunk: Trunk,
    layer: DifferentiableLayer,
    readout: tuple[str, str],
    group: Sequence[Wanted],
    made: Sequence[Picture],
    colours: int = 3,
    moved_about: DifferentiableLayer | None = None,
) -> list[Judged]:
    """Judge some pictures.

    Args:
        trunk: the reference, of all of the layer's channels.
        readout: the layer's name and the statistic.
        made: the pictures, in the order of the group.
        colours: how many channels the network takes: of 1, a picture's colours are the same.
        moved_about: what sees the many transformed ones, if not the same layer: it may be on a GPU.
    """
    pixels = torch.tensor(np.stack([picture.pixels for picture in made]))
    # One at a time, as exemplars are: in batches of other sizes, sums round otherwise.
    alone = [trunk(one[None, ..., :colours].contiguous()).activations[readout] for one in pixels]
    activations = torch.cat(alone).numpy()
    value_of = OBJECTIVES[readout[1]]
    judged = []
    with torch.no_grad(), reference_precision():
        for number, wanted in enumerate(group):
            picture = pixels[number : number + 1].permute(0, 3, 1, 2) / 255
            before = float(value_of(layer(picture))[0, wanted.channel])
            robust = _of_views(moved_about or layer, value_of, _views(picture, wanted.key))[:, wanted.channel]
            judged.append(Judged(activations[number].copy(), before, float(robust.median())))
    return judged


def _of_views(layer: DifferentiableLayer, value_of: Callable[[Reading], Tensor], views: Tensor) -> Tensor:
    """Return [views, channels]. They always are as many; one core has less to move about if it takes one at a time."""
    at_once = 1 if layer.device.type == "cpu" else len(views)
    return torch.cat([value_of(layer(some.to(layer.device))).cpu() for some in views.split(at_once)])


def agreements(channels: Sequence[int], judged: Sequence[Judged]) -> dict[int, float]:
    """Return {channel: how much its pictures agree}: the mean cosine, over pairs of them, of what all of the layer's
    channels answer to each. Only of channels with several pictures.

    Args:
        channels: of each picture.
    """
    found = {}
    for channel in set(channels):
        answers = np.stack([of.activations for one, of in zip(channels, judged, strict=True) if one == channel])
        lengths = np.linalg.norm(answers.astype(np.float64), axis=1, keepdims=True)
        if len(answers) > 1 and (lengths > 0).all():
            cosines = (answers / lengths) @ (answers / lengths).T
            found[channel] = float(cosines[np.triu_indices(len(answers), 1)].mean())
    return found


def _views(picture: Tensor, key: str) -> Tensor:
    """Return a picture under random transformations, other ones than those that it was made under."""
    by = np.concatenate([matrices([key], f"robust {view}") for view in range(ROBUST_VIEWS)])
    return transformed(picture.expand(ROBUST_VIEWS, -1, -1, -1), by)
