"""Where gather's number is not the scan's: is it rounding, the network, or another image?

Nearly all networks compute an image's activation to within rounding however it is batched, so a small tolerance tells
whether a row still names the image that was scanned. What is outside it is asked again, of the image that is there:

- alone once more: a network that is no function of the image gives something else;
- beside another image: so does one whose numbers hang on the batch;
- in float64, and as the scan computes it: how far these are off is what rounding, and the scan's precision, do to
  this network here. A number of another image is further off, as it has nothing to do with this one's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from exemplar_ray.data.decode_fast import decoder_of
from exemplar_ray.data.shard import ImageRow, Shard
from exemplar_ray.errors import ShardError, UsageError
from exemplar_ray.exemplars.spec import ExemplarsSpec
from exemplar_ray.exemplars.topk import NEAR_ZERO, Scores
from exemplar_ray.network.inputs import labels_for
from exemplar_ray.network.loading import trunk_of
from exemplar_ray.network.questions import RANDOM_OR_CHANGING
from exemplar_ray.network.trunk import Trunk

# How far scan and gather may disagree: rounding, as a share of the activation itself and of
# the largest one in the shard (a small activation is what is left of large ones that cancel).
# A row that named another image would be far beyond both.
_TOLERANCE = 1e-3
_TOLERANCE_OF_LARGEST = 1e-5
# Half precision is off by up to a 256th at every step on the way.
_TOLERANCE_OF_SCREENING = 0.25
_TOLERANCE_OF_LARGEST_OF_SCREENING = 0.1

# Other machines and kernels round in another order. So an error may be so many times as large as those that were seen,
# of this channel and of the layer's others on the same image.
_SAFETY = 10.0

# How often the network is asked the same again, and how far the same computation may be apart from itself.
_TIMES_ASKED, _ROUNDING_OF_ONE = 3, 1e-6

# So many images of a shard are asked. Others are only if they are further off than these.
_IMAGES_ASKED = 16

# Where a network does not compute in float64, rounding cannot be told from other images' influence but by its size.
_ROUNDING_IN_DOUBT = 100.0

_NumbersOfReadout = np.ndarray
"""float64 [2, channels]: activations, and what they were before the ReLU; NaN where that is not known."""


def outside_tolerance(spec: ExemplarsSpec, scanned: Scores, exact: Scores, largest: np.ndarray) -> np.ndarray:
    """Return the indices of activations that are further apart than rounding, or screening, explains as a rule.

    What screening saw at 0, or below it before a ReLU, tells no image from another.

    Args:
        largest: float32 [2, readouts]: the largest activation of each readout in any channel on these images, and the
            largest before its ReLU.
    """
    near_zero = exact.ranking == NEAR_ZERO
    share, share_of_largest = _TOLERANCE, _TOLERANCE_OF_LARGEST
    if spec.screened:
        share, share_of_largest = _TOLERANCE_OF_SCREENING, _TOLERANCE_OF_LARGEST_OF_SCREENING
    of_largest = share_of_largest * largest[near_zero.astype(np.int64), exact.readout]
    allowed = share * np.abs(exact.activation) + of_largest
    with np.errstate(invalid="ignore"):
        # not (a <= b) rather than a > b: NaN must count as a mix-up.
        wrong = ~(np.abs(scanned.activation - exact.activation) <= allowed)
    if spec.screened:
        wrong &= (scanned.activation != 0) & ~near_zero
    return np.flatnonzero(wrong)


class NotAsScannedError(ShardError):
    """A shard's part is not what the shard gives: it has to be scanned again."""


@dataclass(frozen=True)
class Gathered:
    """What gather has at hand to ask again."""

    trunk: Trunk
    spec: ExemplarsSpec
    shard: Shard
    images: Mapping[int, ImageRow]
    """{row: an image}"""


class _Asked(NamedTuple):
    """An image that the network is asked about."""

    pixels: np.ndarray
    """uint8 [crop, crop, channels]"""
    row: ImageRow


def refuse_mix_up(gathered: Gathered, scanned: Scores, exact: Scores, outside: np.ndarray) -> None:
    """Ask again where scan and gather disagree.

    Args:
        outside: indices of what is outside the tolerance.

    Raises:
        UsageError: the network is no function of the image, so that no run with it can be finished.
        NotAsScannedError: neither rounding nor the scan's precision explains the difference: the shard changed, or was
            scanned wrongly.
    """
    asked = _Network(gathered)
    changed: list[int] = []
    for row in np.unique(exact.row[outside]).tolist():
        here = outside[exact.row[outside] == row]
        if asked.is_usual(scanned.take(here), exact.take(here)):
            continue
        changed += here[~asked.explains(row, scanned.take(here), exact.take(here))].tolist()
    if changed:
        i = changed[0]
        layer, statistic = gathered.spec.readouts[exact.readout[i]].key
        raise NotAsScannedError(
            f"{gathered.shard.name} changed: row {exact.row[i]} gives {exact.activation[i]:.6g} for the {statistic} of "
            f"{layer} channel {exact.channel[i]}, the scan recorded {scanned.activation[i]:.6g} ({len(changed)} such "
            "rows), and the network gives the same again, within rounding"
        )


class _Network:
    """Asks the network again, in several ways."""

    def __init__(self, gathered: Gathered) -> None:
        self._trunk = gathered.trunk
        self._spec = gathered.spec
        self._shard = gathered.shard
        self._images = gathered.images
        self._as_scanned = trunk_of(self._spec.scan_trunk, "cpu") if self._spec.screened else None
        # Of images that were asked, what errors are usual in each readout.
        self._usual: list[np.ndarray] = []

    def is_usual(self, scanned: Scores, exact: Scores) -> bool:
        """Whether an image need not be asked, as other images of the shard showed errors of this size."""
        if len(self._usual) < _IMAGES_ASKED:
            return False
        usual = np.median(self._usual, axis=0)[exact.readout]
        apart = np.abs(scanned.activation.astype(np.float64) - exact.activation)
        return bool((exact.ranking != NEAR_ZERO).all() and (apart <= _SAFETY * usual).all())

    def explains(self, row: int, scanned: Scores, exact: Scores) -> np.ndarray:
        """Return whether the network explains what the scan said of one image, bool as long as `exact`.

        Where gather got no number, another way to compute must have given the scan's.

        Args:
            scanned: candidates of the image, as the scan saw them.
            exact: the same, as gather recomputed them.

        Raises:
            UsageError: the network is no function of the image.
        """
        image = self._image(row, "reference")
        beside = self._another(image)
        again = self._ask(self._trunk, image)
        mine = _Candidates(self._spec, exact)
        self._refuse_changing(mine, again)
        for _ in range(_TIMES_ASKED):
            self._refuse_any_change(again, self._ask(self._trunk, image))
        together = self._ask(self._trunk, image, beside)
        precise = self._precise(mine, image, beside)
        if not precise:
            self._refuse_dependence_on_batch(mine, again, together, _ROUNDING_IN_DOUBT)
        answers = [together, *precise]
        if self._as_scanned is not None:
            seen = self._image(row, "reference" if self._spec.decode == "reference" else "fast")
            answers += [self._ask(self._as_scanned, seen), self._ask(self._as_scanned, seen, beside)]
        self._usual.append(
            np.max([[_usual(a[0], b[0]) for a, b in zip(one, again, strict=True)] for one in answers], 0)
        )
        error = _SAFETY * np.max([mine.error(answer, again) for answer in answers], axis=0)
        seen_by_scan = scanned.activation.astype(np.float64)
        apart = np.abs(seen_by_scan - exact.activation)
        of_answers = np.abs(seen_by_scan - [mine.of(answer) for answer in answers])
        nearest = np.nan_to_num(of_answers, nan=np.inf).min(axis=0)
        share = _TOLERANCE_OF_SCREENING if self._spec.screened else _TOLERANCE
        near = nearest <= error + share * np.abs(seen_by_scan)
        return np.where(np.isfinite(exact.activation), apart <= error, np.isfinite(seen_by_scan) & near)

    def _precise(self, mine: _Candidates, image: _Asked, beside: _Asked) -> list[list[_NumbersOfReadout]]:
        """Return what the network gives in float64, where rounding is nothing; nothing if it does not compute in it."""
        try:
            with _InFloat64():
                alone, together = (self._ask(self._trunk, image, *more) for more in ((), (beside,)))
        except RuntimeError:
            # It has operations of its own.
            return []
        self._refuse_dependence_on_batch(mine, alone, together)
        return [alone]

    def _image(self, row: int, decoder: str) -> _Asked:
        image = self._images[row]
        return _Asked(decoder_of(decoder)(image.data, self._spec.network.preprocess), image)

    def _another(self, image: _Asked) -> _Asked:
        """Return another image; the image's negative if there is no other."""
        other = next((other for other in self._images if other != image.row.row), None)
        return image._replace(pixels=255 - image.pixels) if other is None else self._image(other, "reference")

    def _ask(self, trunk: Trunk, image: _Asked, *beside: _Asked) -> list[_NumbersOfReadout]:
        """Return the numbers of an image for each readout, with others before it in the batch."""
        together = [*beside, image]
        crops = torch.from_numpy(np.stack([one.pixels for one in together]))
        rows = [one.row for one in together]
        labels = labels_for(self._spec.network, self._shard.name, rows, len(rows))
        pooled, _ = trunk.with_maps(crops, labels, pre_relu=self._spec.screened)
        unknown = torch.full((1,), torch.nan)
        return [
            np.stack(
                np.broadcast_arrays(
                    *(
                        part[readout.key][-1].double().numpy() if part else unknown.double().numpy()
                        for part in (pooled.activations, pooled.pre_relu)
                    )
                )
            )
            for readout in self._spec.readouts
        ]

    def _refuse_changing(self, mine: _Candidates, again: list[_NumbersOfReadout]) -> None:
        i = mine.first_apart(mine.exact.activation.astype(np.float64), mine.of(again), again)
        if i is not None:
            raise UsageError(_changing(mine.name(i), mine.exact.activation[i], mine.of(again)[i]))

    def _refuse_any_change(self, one: list[_NumbersOfReadout], again: list[_NumbersOfReadout]) -> None:
        """Refuse a network of which any channel gives something else: what is random may leave some as they are."""
        for readout, (before, _), (after, _) in zip(self._spec.readouts, one, again, strict=True):
            same = (np.abs(before - after) <= _ROUNDING_OF_ONE * np.abs(before)) | (np.isnan(before) & np.isnan(after))
            for i in np.flatnonzero(~same)[:1].tolist():
                name = f"the {readout.statistic} of {readout.layer.name} channel {readout.layer.channels[i]}"
                raise UsageError(_changing(name, before[i], after[i]))

    def _refuse_dependence_on_batch(
        self, mine: _Candidates, alone: list[_NumbersOfReadout], together: list[_NumbersOfReadout], times: float = 1.0
    ) -> None:
        i = mine.first_apart(mine.of(alone), mine.of(together), alone, times)
        if i is not None:
            raise UsageError(
                f"an image's numbers depend on the other images of its batch: {mine.name(i)} is "
                f"{mine.of(alone)[i]:.6g} alone, and {mine.of(together)[i]:.6g} beside another image; something in the "
                "network computes over the batch, such as batch statistics that stay on in eval mode "
                "(track_running_stats=False); make it stop, and run into another --out"
            )


def _changing(name: str, one: float, again: float) -> str:
    return (
        f"the network gives another answer each time: {name} is {one:.6g}, then {again:.6g} for the same image; "
        f"{RANDOM_OR_CHANGING}, and run into another --out"
    )


class _InFloat64(TorchFunctionMode):
    """While inside, every operation of torch computes in float64, whatever its tensors are of."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def wide(value: Any) -> Any:
            return value.double() if isinstance(value, torch.Tensor) and value.dtype == torch.float32 else value

        return func(*tree_map(wide, args), **tree_map(wide, kwargs or {}))


class _Candidates:
    """Some candidates of one image, and where their numbers stand among all of a network's."""

    def __init__(self, spec: ExemplarsSpec, exact: Scores) -> None:
        self.exact = exact
        self._spec = spec
        self._kind = (exact.ranking == NEAR_ZERO).astype(np.int64)
        channels = (spec.readouts[number].layer.channels for number in exact.readout.tolist())
        self._at = [int(np.searchsorted(of, one)) for of, one in zip(channels, exact.channel.tolist(), strict=True)]

    def of(self, numbers: list[_NumbersOfReadout]) -> np.ndarray:
        """Return the candidates' among a network's numbers, float64."""
        each = zip(self.exact.readout.tolist(), self._kind.tolist(), self._at, strict=True)
        return np.array([numbers[readout][kind, at] for readout, kind, at in each])

    def error(self, numbers: list[_NumbersOfReadout], again: list[_NumbersOfReadout]) -> np.ndarray:
        """Return how far other numbers are off, float64: each candidate's own, or what is usual in its layer here."""
        each = zip(self.exact.readout.tolist(), self._kind.tolist(), strict=True)
        usual = [_usual(numbers[readout][kind], again[readout][kind]) for readout, kind in each]
        with np.errstate(invalid="ignore"):
            own = np.abs(self.of(numbers) - self.of(again))
        return np.maximum(np.nan_to_num(own, nan=0.0, posinf=0.0), usual)

    def first_apart(
        self, one: np.ndarray, other: np.ndarray, numbers: list[_NumbersOfReadout], times: float = 1.0
    ) -> int | None:
        """Return the first candidate of which two answers are not the same; None if there is none.

        Args:
            times: how many times the usual tolerance they may be apart.
        """
        each = zip(self.exact.readout.tolist(), self._kind.tolist(), strict=True)
        largest = [float(np.abs(np.nan_to_num(numbers[r][kind], posinf=0, neginf=0)).max()) for r, kind in each]
        allowed = times * (_TOLERANCE * np.abs(one) + _TOLERANCE_OF_LARGEST * np.array(largest))
        with np.errstate(invalid="ignore"):
            same = (np.abs(one - other) <= allowed) | (one == other) | (np.isnan(one) & np.isnan(other))
        apart = np.flatnonzero(~same)
        return int(apart[0]) if len(apart) else None

    def name(self, i: int) -> str:
        """Say which number a candidate is."""
        layer, statistic = self._spec.readouts[self.exact.readout[i]].key
        return f"the {statistic} of {layer} channel {self.exact.channel[i]}"


def _usual(numbers: np.ndarray, again: np.ndarray) -> float:
    """Return how far two answers are apart over all channels: the root of the mean square."""
    with np.errstate(invalid="ignore"):
        apart = numbers - again
    apart = apart[np.isfinite(apart)]
    return float(np.sqrt(np.mean(apart**2))) if len(apart) else 0.0
