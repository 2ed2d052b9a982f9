"""Two networks over the same images: what of their layers and channels is the same, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from exemplar_ray.compare.options import CompareOptions
from exemplar_ray.compare.points import Pointed
from exemplar_ray.compare.spec import NETWORKS, A, B, Piece
from exemplar_ray.compare.strongest import exemplars_of, ranked
from exemplar_ray.compare.tables import CHANNELS, EXEMPLARS, LAYERS, SCHEMAS, of_columns
from exemplar_ray.comparisons.same_images import NONE, alike, exemplars_in_common, matches

_SCHEMAS = SCHEMAS[NETWORKS]

Channels = tuple[Sequence[int], Sequence[int]]


def compared_networks(
    a: Pointed, b: Pointed, piece: Piece, channels: Channels, options: CompareOptions
) -> dict[str, pa.Table]:
    """Compare two layers over the same images.

    Args:
        a: of one layer.
        b: of the other, the same images in the same order.
        channels: their numbers.

    Raises:
        UsageError: there are too few images, or a layer is the same for all.
    """
    found = alike(a.points, b.points)
    named = piece.names._asdict()
    layer: dict[str, Any] = {
        **named,
        "images": len(a),
        "left_out": a.left_out,
        "channels": len(channels[0]),
        "other_channels": len(channels[1]),
        "cka": found.cka,
        "debiased": None if np.isnan(found.debiased) else found.debiased,
        "warnings": _warnings(len(a), a.left_out, channels),
    }
    tables = {CHANNELS: _SCHEMAS[CHANNELS].empty_table(), EXEMPLARS: _SCHEMAS[EXEMPLARS].empty_table()}
    if piece.of_channels:
        tables[CHANNELS], of_channels = _matched(a, b, piece, channels, options.exemplars)
        layer |= of_channels
        tables[EXEMPLARS] = pa.concat_tables(
            exemplars_of(of, letter, numbers, piece.names, options.exemplars)
            for letter, of, numbers in ((A, a, channels[0]), (B, b, channels[1]))
        )
    return {LAYERS: pa.Table.from_pylist([layer], schema=_SCHEMAS[LAYERS]), **tables}


def _warnings(images: int, left_out: int, channels: Channels) -> list[str]:
    found = []
    if images <= (most := max(map(len, channels))):
        found.append(
            f"{images} images are no more than the {most} channels: plain CKA is close to 1 whatever the "
            "networks; read the debiased one"
        )
    if left_out:
        found.append(f"{left_out} images gave NaN or infinity in one of the networks, and are left out")
    return found


def _matched(
    a: Pointed, b: Pointed, piece: Piece, channels: Channels, k: int
) -> tuple[pa.Table, dict[str, float | None]]:
    """Return which channel of B each of A is most like, and what they come to."""
    found = matches(a.points, b.points)
    first, second = ranked(a, k), ranked(b, k)
    there = found.channel != NONE
    numbers = np.asarray(channels[1], np.int32)
    matched = np.where(there[:, None], second[np.where(there, found.channel, 0)], NONE)
    columns: dict[str, Any] = {
        "channel": np.asarray(channels[0], np.int32),
        "match": pa.array(numbers[np.where(there, found.channel, 0)], mask=~there),
        "correlation": found.correlation,
        "mutual": found.mutual,
        "in_common_match": exemplars_in_common(first, matched),
    }
    numbered_alike = piece.layer == piece.other_layer and tuple(channels[0]) == tuple(channels[1])
    if numbered_alike:
        columns["in_common"] = exemplars_in_common(first, second)
    return of_columns(columns, _SCHEMAS[CHANNELS], piece.names._asdict()), {
        "correlation_median": float(np.median(found.correlation[there])) if there.any() else None,
        "mutual": float(found.mutual[there].mean()) if there.any() else None,
        "in_common_mean": _mean(columns["in_common"]) if numbered_alike else None,
    }


def _mean(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def compared_runs(
    exemplars: Sequence[pa.Table], which: Sequence[np.ndarray], piece: Piece, channels: Sequence[int], images: int
) -> dict[str, pa.Table]:
    """Compare the exemplars of one layer in two networks, channel by channel, where that is all there is.

    Args:
        exemplars: of A and of B.
        which: of both: int64 [channels, k], images by numbers.
    """
    common = exemplars_in_common(*which)
    columns = {"channel": np.asarray(channels, np.int32), "in_common": common}
    layer = {
        **piece.names._asdict(),
        "images": images,
        "channels": len(channels),
        "other_channels": len(channels),
        "in_common_mean": _mean(common),
        "warnings": ["no CKA and no matches: these take a store of activations of both networks"],
    }
    return {
        LAYERS: pa.Table.from_pylist([layer], schema=_SCHEMAS[LAYERS]),
        CHANNELS: of_columns(columns, _SCHEMAS[CHANNELS], piece.names._asdict()),
        EXEMPLARS: pa.concat_tables(exemplars),
    }
