"""What channels are made of on their own exemplars, and what is left of them without their strongest inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from exemplar_ray.circuits.contributions import Contributions, Unit, contributions, without
from exemplar_ray.circuits.natural import Between
from exemplar_ray.circuits.weights import seen_by
from exemplar_ray.network.affine import Piece
from exemplar_ray.network.layers import Axis
from exemplar_ray.rank_correlation import rank_correlations

# Contributions that do not add up to the unit, relative to the sum of their absolute values, are a bug of ours.
_MOST_RESIDUAL = 1e-4
_FEWEST = 3


class NotAddingUpError(RuntimeError):
    """A unit is not the sum of what it is said to be made of."""


@dataclass(frozen=True)
class OnExemplars:
    """What one channel is made of on its exemplars."""

    units: list[Unit]
    parts: Tensor
    """float64 [exemplars, inputs]: the contribution of each input channel."""
    kernel: np.ndarray
    """float32 [inputs, height, width]: the mean contribution of each place around the peak."""
    biases: Tensor
    """float64 [exemplars]"""
    values: Tensor
    """float64 [exemplars]: the unit before its ReLU."""
    residual: float
    """By how much contributions and biases fail to add up at most, relative to the sum of absolute contributions."""


class Ablation(NamedTuple):
    """What is left of a channel without some inputs."""

    left: np.ndarray
    """float64 [exemplars]: of the activation, after the ReLU: 1 for all of it."""
    predicted_by: Mapping[str, float | None]
    """{kind of circuit: the rank correlation, over the exemplars, of the change it predicts and the one that there is};
    None where that is not defined."""


def on_exemplars(piece: Piece, field: tuple[Axis, Axis] | None, seen: Between, channel: int) -> OnExemplars:
    """Take a channel apart on images, each at its peak.

    Raises:
        NotAddingUpError: it does not come to what the network itself gives.
    """
    units = [Unit(at, channel, peak(seen.values[at, channel])) for at in range(len(seen.images))]
    found = contributions(piece, seen.inputs, units)
    parts = found.of_inputs.double().flatten(2).sum(2) if found.of_inputs.dim() == 4 else found.of_inputs.double()
    own = torch.stack([seen.values[(unit.image, channel, *unit.place)] for unit in units]).double()
    residual = _residual(found, parts, own)
    if residual > _MOST_RESIDUAL:
        raise NotAddingUpError(f"channel {channel}: contributions miss the activation by {residual:.1e} of their sum")
    kernel = torch.stack([patch(of, field, unit) for of, unit in zip(found.of_inputs, units, strict=True)])
    return OnExemplars(units, parts, kernel.mean(0).numpy(), found.of_biases.double(), own, residual)


def peak(values: Tensor) -> tuple[int, ...]:
    """Return where a map, [height, width], is largest: the first place of several; () of a single number."""
    if values.dim() == 0:
        return ()
    at = int(values.argmax())
    return at // values.shape[1], at % values.shape[1]


def patch(maps: Tensor, field: tuple[Axis, Axis] | None, unit: Unit) -> Tensor:
    """Cut what a unit sees out of [channels, height, width], 0 where that is padding: [channels, rows, columns]."""
    if maps.dim() == 1:
        return maps[:, None, None]
    if field is None or not unit.place:
        return maps
    rows, columns = (seen_by(axis, at) for axis, at in zip(field, unit.place, strict=True))
    height, width = maps.shape[1:]
    cut = maps.new_zeros(len(maps), rows.stop - rows.start, columns.stop - columns.start)
    top, left = max(rows.start, 0), max(columns.start, 0)
    inside = maps[:, top : min(rows.stop, height), left : min(columns.stop, width)]
    y, x = top - rows.start, left - columns.start
    cut[:, y : y + inside.shape[1], x : x + inside.shape[2]] = inside
    return cut


def ablation(
    piece: Piece,
    field: tuple[Axis, Axis] | None,
    seen: Between,
    made_of: OnExemplars,
    removed: Sequence[int],
    kernels: Mapping[str, Tensor],
) -> Ablation:
    """Take a channel's strongest inputs away on its exemplars, and compare what happens with what was to be expected.

    Args:
        removed: input channels.
        kernels: {kind of circuit: float32 [inputs, height, width]}: what else predicts the change.
    """
    which = torch.tensor(removed, dtype=torch.long)
    left = without(piece, seen.inputs, made_of.units, [which] * len(made_of.units)).double()
    change = (left - made_of.values).numpy()
    predicted = {"exemplars": -made_of.parts[:, which].sum(1).numpy()}
    patches = torch.stack([patch(seen.inputs[unit.image], field, unit)[which] for unit in made_of.units]).double()
    for kind, kernel in kernels.items():
        predicted[kind] = -(patches * kernel[which].double()).flatten(1).sum(1).numpy()
    before = made_of.values.clamp(min=0)
    share = torch.where(before > 0, left.clamp(min=0) / before, torch.nan)
    return Ablation(share.numpy(), {kind: _agreement(change, values) for kind, values in predicted.items()})


def _agreement(change: np.ndarray, predicted: np.ndarray) -> float | None:
    if len(change) < _FEWEST or not np.ptp(change) or not np.ptp(predicted):
        return None
    return float(rank_correlations(change[None], predicted[None])[0, 0])


def _residual(found: Contributions, parts: Tensor, own: Tensor) -> float:
    off = (parts.sum(1) + found.of_biases.double() - own).abs()
    size = found.of_inputs.double().abs().flatten(1).sum(1) + found.of_biases.double().abs()
    return float((off / size.clamp(min=torch.finfo(torch.float32).tiny)).max())


def exemplar_rows(
    names: Mapping[str, Any], seen: Between, made_of: OnExemplars, left: np.ndarray, top: int
) -> list[dict[str, Any]]:
    """Return the rows of one channel's exemplars: the inputs that contribute most, and what the others come to."""
    rows = []
    for at, unit in enumerate(made_of.units):
        parts = made_of.parts[at].numpy()
        order = np.argsort(-np.abs(parts), kind="stable")[: top or None]
        others = np.delete(parts, order)
        image = seen.images[at]
        rows.append(
            {
                **names,
                "rank": image.rank,
                "shard": image.place[0],
                "row": image.place[1],
                "peak_y": unit.place[0] if unit.place else None,
                "peak_x": unit.place[1] if unit.place else None,
                "activation_pre_relu": float(made_of.values[at]),
                "bias": float(made_of.biases[at]),
                "inputs": order,
                "contributions": parts[order],
                "others_excite": float(others[others > 0].sum()),
                "others_inhibit": float(others[others < 0].sum()),
                "activation_left": None if np.isnan(left[at]) else float(left[at]),
            }
        )
    return rows
