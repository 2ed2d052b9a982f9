"""Two networks, or two layers, over the same images: what is the same in how they see them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from exemplar_ray.comparisons.points import check_points
from exemplar_ray.errors import UsageError
from exemplar_ray.rank_correlation import rank_correlations

NONE = -1
"""In place of a channel or an image: there is none."""

_ROWS_AT_ONCE = 1024


def same_rows(ones: pa.Table, others: pa.Table) -> np.ndarray:
    """Find each image of one set in the other, by its id.

    Args:
        ones: the ids of the first set's points, a row a point, such as its columns `shard` and `row`.
        others: those of the second, with the same columns.

    Returns:
        int64 [points]: where in the second set each point of the first is.

    Raises:
        UsageError: an id occurs twice, or the sets are of other images.
    """
    if ones.column_names != others.column_names:
        raise UsageError(
            f"images are named by {', '.join(ones.column_names)} in one set and by {', '.join(others.column_names)} "
            "in the other: choose columns that both have"
        )
    keys = _keys(pa.concat_tables([_plain(ones), _plain(others)], promote_options="permissive"))
    first, second = keys[: len(ones)], keys[len(ones) :]
    for of, table in ((first, ones), (second, others)):
        _, where, counts = np.unique(of, return_index=True, return_counts=True)
        if counts.max(initial=1) > 1:
            raise UsageError(
                f"{_row(table, where[counts.argmax()])} occurs {counts.max()} times: ids must name one image each"
            )
    for missing, table, set_ in ((~np.isin(first, second), ones, "first"), (~np.isin(second, first), others, "second")):
        if missing.any():
            raise UsageError(
                f"{missing.sum()} images are in the {set_} set only, such as {_row(table, int(missing.argmax()))}: "
                "compare networks over the same images"
            )
    order = np.argsort(second)
    return order[np.searchsorted(second[order], first)]


def _plain(table: pa.Table) -> pa.Table:
    """Return a table without dictionaries, which do not concatenate with what they stand for."""
    for place, (name, column) in enumerate(zip(table.column_names, table.columns, strict=True)):
        if pa.types.is_dictionary(column.type):
            table = table.set_column(place, name, column.cast(column.type.value_type))
    return table


def _keys(table: pa.Table) -> np.ndarray:
    """Number the distinct rows: int64 [rows]."""
    keys = np.zeros(len(table), np.int64)
    for column in table.columns:
        codes = pc.dictionary_encode(column, null_encoding="encode").combine_chunks().indices.to_numpy()
        keys = np.unique(keys * (int(codes.max(initial=0)) + 1) + codes, return_inverse=True)[1]
    return keys


def _row(table: pa.Table, row: int) -> str:
    return ", ".join(f"{name} {value}" for name, value in table.slice(row, 1).to_pylist()[0].items())


@dataclass(frozen=True)
class Alike:
    """How alike two sets of activations over the same images are: 1 if they are the same but for a turn and a scale.

    Attributes:
        cka: linear centred kernel alignment. Of fewer images than channels it is close to 1 whatever the networks.
            Kornblith et al., "Similarity of neural network representations revisited" (2019).
        debiased: from estimates that are right on average: about 0 for what has nothing to do with one another. Song
            et al., "Feature selection via dependence maximization" (2012), eq. 5; Nguyen, Raghu and Kornblith, "Do
            wide and deep networks learn the same things?" (2021). NaN where a set's own estimate is not above 0.
    """

    cka: float
    debiased: float


def alike(ones: np.ndarray, others: np.ndarray) -> Alike:
    """Compute linear CKA of two layers' activations.

    Args:
        ones: float [images, channels].
        others: float [images, other channels], the same images in the same order: see `same_rows`.

    Raises:
        UsageError: another number of images, fewer than four, NaN or infinity, or a set the same for all images.
    """
    check_points(ones, "the first activations")
    check_points(others, "the second activations")
    _check_images(ones, others)
    if len(ones) < 4:
        raise UsageError(f"CKA needs four images; there are {len(ones)}")
    first, second = (_centred(points) for points in (ones, others))
    for points, name in ((first, "first"), (second, "second")):
        if not points.any():
            raise UsageError(f"the {name} activations are the same for all images: nothing can be like them")
    pairs = ((first, second), (first, first), (second, second))
    plain = [_cross(one, other) for one, other in pairs]
    debiased = [found - _bias(one, other) for found, (one, other) in zip(plain, pairs, strict=True)]
    return Alike(_ratio(*plain), _ratio(*debiased))


def _centred(points: np.ndarray) -> np.ndarray:
    centred = points - points.mean(axis=0, dtype=np.float64)
    # A layer that is the same for all images is so in spite of rounding.
    centred[:, (points == points[:1]).all(axis=0)] = 0
    return centred


def _cross(ones: np.ndarray, others: np.ndarray) -> float:
    """Return the sum over pairs of images of the products of both sets' inner products, the cheaper way."""
    if ones.shape[1] * others.shape[1] <= len(ones) ** 2:
        return float(((ones.T @ others) ** 2).sum())
    return float(
        sum(
            ((ones[few] @ ones.T) * (others[few] @ others.T)).sum()
            for few in (slice(first, first + _ROWS_AT_ONCE) for first in range(0, len(ones), _ROWS_AT_ONCE))
        )
    )


def _bias(ones: np.ndarray, others: np.ndarray) -> float:
    """Return what of `_cross` comes from each image's product with itself, of centred activations, by Song et al."""
    n = len(ones)
    first, second = ((points**2).sum(axis=1) for points in (ones, others))
    return float(n / (n - 2) * (first @ second) - first.sum() * second.sum() / ((n - 1) * (n - 2)))


def _ratio(both: float, first: float, second: float) -> float:
    return both / float(np.sqrt(first) * np.sqrt(second)) if min(first, second) > 0 else float("nan")


@dataclass(frozen=True, eq=False)
class Matches:
    """Which channel of the other layer each channel is most like.

    Attributes:
        channel: int64 [channels]: of the other layer; `NONE` for a channel that is the same for all images.
        correlation: float64 [channels]: Spearman's, over the images; NaN where there is no match.
        mutual: bool [channels]: whether the match's own match is the channel.
    """

    channel: np.ndarray
    correlation: np.ndarray
    mutual: np.ndarray


def matches(ones: np.ndarray, others: np.ndarray) -> Matches:
    """Match each channel of a layer with the channel of another that ranks the same images most alike.

    Args:
        ones: float [images, channels].
        others: float [images, other channels], the same images in the same order.

    Raises:
        UsageError: another number of images, fewer than two, NaN or infinity.
    """
    check_points(ones, "the first activations")
    check_points(others, "the second activations")
    _check_images(ones, others)
    if len(ones) < 2:
        raise UsageError("one image ranks nothing: two are the least")
    correlations = rank_correlations(ones.T, others.T)
    alive, other_alive = ((points != points[:1]).any(axis=0) for points in (ones, others))
    correlations[~alive], correlations[:, ~other_alive] = -np.inf, -np.inf
    best, best_of_other = correlations.argmax(axis=1), correlations.argmax(axis=0)
    found = alive & other_alive.any()
    return Matches(
        channel=np.where(found, best, NONE),
        correlation=np.where(found, correlations.max(axis=1), np.nan),
        mutual=found & (best_of_other[best] == np.arange(len(best))),
    )


def strongest(points: np.ndarray, k: int) -> np.ndarray:
    """Return the images that excite each channel most, strongest first, equal ones by row: int64 [channels, k].

    Raises:
        UsageError: there are fewer than k images.
    """
    check_points(points, "the activations")
    if not 1 <= k <= len(points):
        raise UsageError(
            f"there are {len(points)} images, and {k} exemplars were asked for: k must be from 1 to {len(points)}"
        )
    return np.argsort(-points.T, axis=1, kind="stable")[:, :k].astype(np.int64)


def exemplars_in_common(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the share of a channel's exemplars that are the other's, too: float64 [channels].

    Args:
        ones: int64 [channels, k]: which images, each once; `NONE` where a channel has fewer.
        others: int64 [channels, k], a row for each row of `ones`.

    Returns:
        The images in common over the larger number of images of the two; NaN where neither channel has any.

    Raises:
        UsageError: there are other numbers of channels.
    """
    if len(ones) != len(others):
        raise UsageError(f"exemplars of {len(ones)} channels cannot be laid beside those of {len(others)}, row by row")
    some, other_some = ones != NONE, others != NONE
    common = ((ones[:, :, None] == others[:, None, :]) & some[:, :, None]).sum(axis=(1, 2))
    most = np.maximum(some.sum(axis=1), other_some.sum(axis=1))
    return np.divide(common, most, out=np.full(len(ones), np.nan), where=most > 0)


def _check_images(ones: np.ndarray, others: np.ndarray) -> None:
    if len(ones) != len(others):
        raise UsageError(
            f"one set has {len(ones)} images, the other {len(others)}: compare networks over the same images"
        )
