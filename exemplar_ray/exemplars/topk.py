"""The total order of exemplars, and merging partial top-Ks under it. Numpy only.

Order within a channel: activation descending (ascending for `BOTTOM`), then shard position
ascending, then row ascending. No two images compare equal, so the best K of any set of images
is one list, and merging is associative, commutative and idempotent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

# What a score competes for: to be among its channel's strongest or weakest, among the strongest of its class, or
# among those that come nearest to exciting the channel though a screened scan saw them leave it at 0.
TOP, BOTTOM, OF_CLASS, NEAR_ZERO = range(4)

NO_LABEL = -1


def has_label(labels: np.ndarray) -> np.ndarray:
    """Return where int labels name a class: negative ones do not, whichever they are."""
    return labels >= 0


class Scores(NamedTuple):
    """Activations of channels on images: parallel arrays of length n, in any order."""

    readout: np.ndarray
    """int32: which (layer, statistic), by its place in `ExemplarsSpec.readouts`."""
    ranking: np.ndarray
    """int8: `TOP`, `BOTTOM`, `OF_CLASS` or `NEAR_ZERO`."""
    label: np.ndarray
    """int64: the image's class in `OF_CLASS`; `NO_LABEL` in the other rankings, which do not care."""
    channel: np.ndarray
    """int32: channel of the layer."""
    activation: np.ndarray
    """float32: finite. In `NEAR_ZERO`, what it was before the layer's ReLU."""
    shard: np.ndarray
    """int32: position in the sorted shard list."""
    row: np.ndarray
    """int64: row in the shard, from 0."""

    @classmethod
    def empty(cls) -> Scores:
        """Return no scores at all, the neutral element of `merge`."""
        types = (np.int32, np.int8, np.int64, np.int32, np.float32, np.int32, np.int64)
        return cls(*(np.empty(0, dtype=t) for t in types))

    def take(self, which: np.ndarray) -> Scores:
        """Return the scores at some indices, or where a mask is true."""
        return Scores(*(column[which] for column in self))


def concatenate(scores: Iterable[Scores]) -> Scores:
    """Put several sets of scores one after another."""
    several = [Scores.empty(), *scores]
    return Scores(*(np.concatenate(columns) for columns in zip(*several, strict=True)))


def rank(scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    """Sort by (readout, ranking, channel, label, total order) and leave out repetitions of an image.

    Returns:
        Where the sorted scores stand in `scores` (int64 indices), and their int32 ranks,
        counted from 1 within each (readout, ranking, channel, label).

    Raises:
        ValueError: an activation is NaN or infinite; those are counted, never ranked.
    """
    if not np.isfinite(scores.activation).all():
        raise ValueError("only finite activations can be ranked")
    order = _sorted(*groups(scores), -_as_integers(strength(scores)), scores.shard, scores.row)
    ordered = scores.take(order)
    first_of_image = _differs_from_previous(*groups(ordered), ordered.shard, ordered.row)
    order, ordered = order[first_of_image], ordered.take(first_of_image)
    starts = np.flatnonzero(_differs_from_previous(*groups(ordered)))
    lengths = np.diff(np.append(starts, len(order)))
    ranks = np.arange(len(order)) - np.repeat(starts, lengths) + 1
    return order, ranks.astype(np.int32)


def strength(scores: Scores) -> np.ndarray:
    """Return what is ranked, float32, more is better: the activation, negated for `BOTTOM`."""
    return np.where(scores.ranking == BOTTOM, -scores.activation, scores.activation)


def _as_integers(numbers: np.ndarray) -> np.ndarray:
    """Return int64 in the order of finite float32 numbers: their bits grow with them, those of negative ones fall."""
    bits = (numbers + np.float32(0)).view(np.int32).astype(np.int64)  # + 0 turns -0 into +0, so the two are equal
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def _sorted(*columns: np.ndarray) -> np.ndarray:
    """Return the indices that sort integer columns, by the first, then the second and so on.

    Sorting takes as long as there are keys: columns are packed into as few of 63 bits as hold them.
    """
    keys = [np.zeros(len(columns[0]), np.int64)]
    room = 63
    for column in columns:
        low, high = (int(column.min()), int(column.max())) if len(column) else (0, 0)
        bits = (high - low).bit_length()
        if bits > 63:
            keys.append(column)
            room = 0
            continue
        if bits > room:
            keys.append(np.zeros(len(column), np.int64))
            room = 63
        keys[-1] = (keys[-1] << bits) | (column.astype(np.int64) - low)
        room -= bits
    return np.lexsort(keys[::-1])


def groups(scores: Scores) -> tuple[np.ndarray, ...]:
    """Return the columns that name what is ranked together."""
    return scores.readout, scores.ranking, scores.channel, scores.label


def merge(several: Iterable[Scores], keep: Mapping[int, int]) -> Scores:
    """Merge partial top-Ks: the best images of each group, sorted.

    Args:
        keep: how many to keep of each group, by ranking.
    """
    scores = concatenate(several)
    order, ranks = rank(scores)
    most = np.zeros(NEAR_ZERO + 1, np.int32)
    for ranking, count in keep.items():
        most[ranking] = count
    return scores.take(order[ranks <= most[scores.ranking[order]]])


def find(among: Scores, wanted: Scores) -> np.ndarray:
    """Return where the wanted (readout, channel, shard, row) stand among others, -1 where they do not.

    What an image gave before its ReLU is another number than what it gave after it.

    Returns:
        int64, as long as `wanted`.
    """
    keys = [np.concatenate(pair) for pair in zip(_which(among), _which(wanted), strict=True)]
    order = _sorted(*keys)
    number = np.empty(len(order), np.int64)
    number[order] = np.cumsum(_differs_from_previous(*(key[order] for key in keys)))
    position = np.full(len(order) + 1, -1, np.int64)
    position[number[: len(among.row)]] = np.arange(len(among.row))
    return position[number[len(among.row) :]]


def _which(scores: Scores) -> tuple[np.ndarray, ...]:
    """Return the columns that name a channel on an image, whatever it competes for."""
    return scores.readout, scores.ranking == NEAR_ZERO, scores.channel, scores.shard, scores.row


def number_groups(scores: Scores) -> np.ndarray:
    """Return for sorted scores the number, from 0, of the group that each is ranked in."""
    return np.cumsum(_differs_from_previous(*groups(scores))) - 1


def image_numbers(scores: Scores) -> np.ndarray:
    """Return int64 [n]: a number for each score's image, ascending with shard and row; 32 bits for the row."""
    return scores.shard.astype(np.int64) << 32 | scores.row


def spans(*columns: np.ndarray) -> list[slice]:
    """Return where sorted columns stay the same, one slice after another."""
    starts = np.flatnonzero(_differs_from_previous(*columns)).tolist()
    return [slice(start, end) for start, end in zip(starts, [*starts[1:], len(columns[0])], strict=False)]


def _differs_from_previous(*columns: np.ndarray) -> np.ndarray:
    """True where any of the columns differs from the entry before; true at the start."""
    differs = np.ones(len(columns[0]), dtype=bool)
    if len(differs) > 1:
        differs[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return differs
