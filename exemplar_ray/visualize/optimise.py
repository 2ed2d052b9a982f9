"""The optimisation of a group of pictures.

Each picture is a function of its own key and of the network alone, to the last bit, if one thread of a CPU computes: no
number of it depends on the others of its group. Convolutions and products of matrices do round otherwise in a batch of
another size, so all batches have the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from exemplar_ray.network.gradients import DifferentiableLayer, greyed
from exemplar_ray.network.reference_precision import reference_precision
from exemplar_ray.visualize.facets import Facet, Held
from exemplar_ray.visualize.objectives import OBJECTIVES, worth
from exemplar_ray.visualize.parameterizations import PARAMETERIZATIONS, Canvas
from exemplar_ray.visualize.spec import AT_ONCE
from exemplar_ray.visualize.starts import started
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
    facet: Facet | None = field(default=None, compare=False)
    """What it begins as and is held near; of a group all have one, or none."""

    def anew(self, start: int) -> Wanted:
        """Return the same for another start, which is from noise."""
        facet = None if self.facet is None else replace(self.facet, start=None)
        return Wanted(self.channel, f"{self.key} start {start}", facet)


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
    batch: int = AT_ONCE
    """How many are computed at once, unless they are to differ from one another."""
    bfloat16: bool = False
    """Whether the network may compute in it where torch's autocast does. What a picture is worth is not judged so."""


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
        anew = [wanted.anew(start) for wanted in beside]
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
    if recipe.diverse:
        # Together, as each depends on the others: there are as many of every channel.
        return _together(layer, group, recipe, device)
    made = []
    for first in range(0, len(group), recipe.batch):
        few = group[first : first + recipe.batch]
        filled_up = [*few, *[few[-1]] * (recipe.batch - len(few))]
        made += _together(layer, filled_up, recipe, device)[: len(few)]
    return made


def _together(
    layer: DifferentiableLayer, group: Sequence[Wanted], recipe: Recipe, device: torch.device
) -> list[np.ndarray]:
    keys, channels = [wanted.key for wanted in group], torch.tensor([wanted.channel for wanted in group], device=device)
    canvas = Canvas(keys, recipe.size, device, recipe.spectrum)
    parameterized = PARAMETERIZATIONS[recipe.parameterization](canvas)
    facets = [wanted.facet for wanted in group if wanted.facet is not None]
    if facets:
        starts = [facet.start for facet in facets]
        parameterized.parameters = started(parameterized.parameters, starts, recipe.parameterization)
    held = Held(facets, device) if facets else None
    optimizer = parameterized.optimizer([parameterized.parameters])
    value_of = OBJECTIVES[recipe.statistic]
    own = torch.arange(len(group), device=device)
    watching: AbstractContextManager[list[torch.Tensor]] = layer.watching(held.layer) if held else nullcontext([])
    with reference_precision(), watching as answers:
        for step in range(recipe.steps):
            view = transformed(parameterized.pictures(parameterized.parameters), matrices(keys, f"step {step}"))
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.bfloat16):
                reading = layer(view).copied()
            values = recipe.sign * value_of(reading)[own, channels]
            if held:
                values = held.worth(values, answers[-1])
            optimizer.zero_grad()
            (-worth(values, reading, recipe.diverse)).sum().backward()
            optimizer.step()
        with torch.no_grad():
            pictures = parameterized.pictures(parameterized.parameters)
            if recipe.colourless:
                pictures = greyed(pictures).expand(-1, 3, -1, -1)
    levels = (pictures * 255).round().clamp(0, 255).to(torch.uint8)
    return list(levels.permute(0, 2, 3, 1).contiguous().cpu().numpy())
