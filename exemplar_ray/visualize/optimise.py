"""The optimisation of a group of pictures.

Each picture is a function of its own key and of the network alone, to the last bit: no number of it depends on the
others of its group, nor on how many there are, if one thread computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from exemplar_ray.network.gradients import DifferentiableLayer, greyed
from exemplar_ray.network.reference_precision import reference_precision
from exemplar_ray.visualize.objectives import OBJECTIVES, worth
from exemplar_ray.visualize.parameterizations import PARAMETERIZATIONS, Canvas
from exemplar_ray.visualize.transformations import matrices, transformed

# The deviation, in levels of 255, below which a picture is grey: nothing came of it.
_GREY = 3.0
_STARTS = 3


@dataclass(frozen=True)
class Wanted:
    """One picture to be made."""

    channel: int
    key: str
    """What its random numbers go by: unlike that of every other picture."""


@dataclass(frozen=True)
class Recipe:
    """How pictures are made."""

    statistic: str
    sign: int
    """1 for what excites a channel, -1 for what it says no to."""
    diverse: bool
    """Whether the pictures of a group, all of one channel, are to differ."""
    parameterization: str
    size: int
    steps: int
    spectrum: np.ndarray | None = None
    """Of natural images, see `parameterizations.Canvas`."""
    colourless: bool = False
    """Whether the network sees pictures without their colours, so that they have none."""


@dataclass(frozen=True)
class Picture:
    """A picture that was made."""

    pixels: np.ndarray
    """uint8 [size, size, 3]"""
    starts: int
    """How many it took: one that stays grey is begun anew."""
    grey: bool
    """Whether it stayed grey all the same."""


def optimise(
    layer: DifferentiableLayer, group: Sequence[Wanted], recipe: Recipe, device: torch.device
) -> list[Picture]:
    """Make a group of pictures."""
    made = dict(zip(group, _once(layer, group, recipe, device), strict=True))
    starts = dict.fromkeys(group, 1)
    for start in range(2, _STARTS + 1):
        again = [wanted for wanted in group if is_grey(made[wanted])]
        if not again:
            break
        # The others of a diverse group are needed beside it.
        beside = list(group) if recipe.diverse else again
        anew = [Wanted(wanted.channel, f"{wanted.key} start {start}") for wanted in beside]
        for wanted, pixels in zip(beside, _once(layer, anew, recipe, device), strict=True):
            if wanted in again:
                made[wanted], starts[wanted] = pixels, start
    return [Picture(made[wanted], starts[wanted], is_grey(made[wanted])) for wanted in group]


def is_grey(pixels: np.ndarray) -> bool:
    """Whether nothing is to be seen on a picture, uint8 [height, width, 3]."""
    return float(pixels.astype(np.float64).std(axis=(0, 1)).max()) < _GREY


def _once(
    layer: DifferentiableLayer, group: Sequence[Wanted], recipe: Recipe, device: torch.device
) -> list[np.ndarray]:
    keys, channels = [wanted.key for wanted in group], torch.tensor([wanted.channel for wanted in group], device=device)
    canvas = Canvas(keys, recipe.size, device, recipe.spectrum)
    parameterized = PARAMETERIZATIONS[recipe.parameterization](canvas)
    optimizer = parameterized.optimizer([parameterized.parameters])
    value_of = OBJECTIVES[recipe.statistic]
    own = torch.arange(len(group), device=device)
    with reference_precision():
        for step in range(recipe.steps):
            view = transformed(parameterized.pictures(parameterized.parameters), matrices(keys, f"step {step}"))
            reading = layer(view)
            values = recipe.sign * value_of(reading)[own, channels]
            optimizer.zero_grad()
            (-worth(values, reading, recipe.diverse)).sum().backward()
            optimizer.step()
        with torch.no_grad():
            pictures = parameterized.pictures(parameterized.parameters)
            if recipe.colourless:
                pictures = greyed(pictures).expand(-1, 3, -1, -1)
    levels = (pictures * 255).round().clamp(0, 255).to(torch.uint8)
    return list(levels.permute(0, 2, 3, 1).contiguous().cpu().numpy())
