"""Two sets of images in one layer of a network: all numbers of them, as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from exemplar_ray.activations.moments_table import has_moments
from exemplar_ray.compare.options import CompareOptions
from exemplar_ray.compare.points import Pointed
from exemplar_ray.compare.sides import Readout
from exemplar_ray.compare.spec import SETS, A, B, Names
from exemplar_ray.compare.strongest import exemplars_of
from exemplar_ray.compare.tables import CHANNELS, CLASSES, EXEMPLARS, IMAGES, LAYERS, SCHEMAS, of_columns
from exemplar_ray.comparisons import frechet
from exemplar_ray.comparisons.channels import Shifts, shifts_with_intervals
from exemplar_ray.comparisons.classes import Fidelity, class_distances, fidelity, mode_coverage
from exemplar_ray.comparisons.neighbours import Nearness, Neighbours, nearness
from exemplar_ray.comparisons.resampling import Resampling, few_shards, sorted_by_class
from exemplar_ray.maps.drawing import drawn
from exemplar_ray.maps.projections import fit
from exemplar_ray.moments import Moments

_SCHEMAS = SCHEMAS[SETS]


def compared_sets(
    a: Pointed, b: Pointed, readout: Readout, channels: Sequence[int], options: CompareOptions
) -> dict[str, pa.Table]:
    """Compare two sets of images, of which A is the reference.

    Args:
        channels: their numbers.

    Raises:
        UsageError: there are too few images for what is asked for.
    """
    how = Resampling(options.seed, options.draws)
    found = shifts_with_intervals(a.points, b.points, (a.shards, b.shards), how)
    near = _Near(a, b, options)
    classes, disagree = _Classes(a, b, near), other_names(a, b)
    of_frechet, warnings = _frechet(a, b, how)
    if few := few_shards(a.shard_count, b.shard_count):
        warnings.append(few)
    warnings += [
        f"shards of {letter} hold few classes each, so that intervals are too wide: mix images before making shards"
        for letter, side in ((A, a), (B, b))
        if side.shard_count > 1 and sorted_by_class(side.shards, side.labels)
    ]
    warnings += [
        f"{side.left_out} images of {letter} gave NaN or infinity, and are left out"
        for letter, side in ((A, a), (B, b))
        if side.left_out
    ]
    warnings += near.warnings + ([disagree] if disagree else [])
    places, map_words = _placed(a, b, options)
    constant = a.constant() & b.constant() & (a.points[0] == b.points[0])
    named, names = readout._asdict(), Names(readout.layer, readout.layer, readout.pool)
    layer = {
        **named,
        "channels": len(channels),
        "images_a": len(a),
        "images_b": len(b),
        "left_out_a": a.left_out,
        "left_out_b": b.left_out,
        "shards_a": a.shard_count,
        "shards_b": b.shard_count,
        **of_frechet,
        **near.numbers(),
        **(classes.numbers() if not disagree else {}),
        **of_all_channels(found, constant),
        "map": map_words,
        "warnings": warnings,
    }
    return {
        LAYERS: pa.Table.from_pylist([layer], schema=_SCHEMAS[LAYERS]),
        CHANNELS: channels_table(found, channels, named, constant, (a.points, b.points)),
        CLASSES: classes.table(named) if not disagree else _SCHEMAS[CLASSES].empty_table(),
        IMAGES: _images(near, None if disagree else classes, places, named),
        EXEMPLARS: pa.concat_tables(
            exemplars_of(of, letter, channels, names, options.exemplars) for letter, of in ((A, a), (B, b))
        ),
    }


def of_all_channels(found: Shifts, constant: np.ndarray) -> dict[str, float | None]:
    """Return what a layer's channels come to, those left out that are one and the same for all images."""
    ks = found.ks[~constant & np.isfinite(found.ks)]
    return {"ks_median": float(np.median(ks)), "ks_most": float(ks.max())} if len(ks) else {}


def channels_table(
    found: Shifts,
    channels: Sequence[int],
    named: dict[str, str],
    constant: np.ndarray,
    points: tuple[np.ndarray, np.ndarray] | None = None,
) -> pa.Table:
    """Return a row a channel."""
    columns: dict[str, Any] = {"channel": np.asarray(channels, np.int32), "constant": constant}
    for name in ("ks", "wasserstein"):
        columns |= {name: getattr(found, name), f"{name}_error": getattr(found, f"{name}_error")}
        columns[f"{name}_low"], columns[f"{name}_high"] = getattr(found, f"{name}_interval")
    if points is not None:
        columns["mean_a"], columns["mean_b"] = (of.mean(axis=0, dtype=np.float64) for of in points)
    return of_columns(columns, _SCHEMAS[CHANNELS], named)


def _frechet(a: Pointed, b: Pointed, how: Resampling) -> tuple[dict[str, float], list[str]]:
    """Return the Fréchet distance with all that belongs to it, and what is to be said of it."""
    channels = a.points.shape[1]
    if not has_moments((channels,)):
        return {}, [f"no Fréchet distance: {channels} channels are too many"]
    if min(len(a), len(b)) < 2:
        return {}, ["no Fréchet distance: it takes two images in each set"]
    of_shards = a.by_shard(), b.by_shard()
    whole = [_merged(of) for of in of_shards]
    found = {"frechet": frechet.distance(*whole)}
    if (interval := frechet.interval(*of_shards, how)) is not None:
        found["frechet_low"], found["frechet_high"] = interval
    warnings = [said] if (said := frechet.too_few(len(a), len(b), channels)) else []
    if len(b) >= 4 * channels:
        infinite = frechet.at_infinity(whole[0], b.points, how.seed)
        found |= {"frechet_at_infinity": infinite.distance, "residual": infinite.residual}
    else:
        warnings.append(
            f"no extrapolation to infinitely many images: {len(b)} of B are fewer than four a channel ({4 * channels})"
        )
    return found, warnings


def _merged(shards: Sequence[Moments]) -> Moments:
    whole = shards[0]
    for one in shards[1:]:
        whole = whole.merged(one)
    return whole


def _placed(a: Pointed, b: Pointed, options: CompareOptions) -> tuple[list[np.ndarray | None], str | None]:
    """Return where both sets lie in a map that was fitted to A: float64 [points, 2] each."""
    if a.points.shape[1] < 2 or len(a) < 3 or a.constant().all():
        return [None, None], None
    fitted = fit(a.points, options.method, options.seed)
    return [fitted.place(of.points) for of in (a, b)], f"Fitted to A alone. {fitted.words}"


def other_names(a: Pointed, b: Pointed) -> str | None:
    """Say that labels mean something else in B than in A; None if they do not.

    Synsets say it where both have them, names otherwise: image folders have no synsets, and number the classes that
    they have.
    """
    in_a = _first_of_class(a)
    for label, row in _first_of_class(b).items():
        before = in_a.get(label, {})
        name = next((one for one in ("synset_id", "class_name") if before.get(one) and row[one]), None)
        if name is not None and before[name] != row[name]:
            return f"no classes: label {label} is {_named(before)} in A and {_named(row)} in B"
    return None


def _named(row: Mapping[str, Any]) -> str:
    return " ".join(row[name] for name in ("synset_id", "class_name") if row[name])


def _first_of_class(of: Pointed) -> dict[int, dict[str, Any]]:
    labels, first = np.unique(of.labels, return_index=True)
    rows = of.rows.take(first).to_pylist()
    return {int(label): row for label, row in zip(labels, rows, strict=True) if label >= 0}


class _Near:
    """How both sets lie to each other, of some of their points if they are very many."""

    def __init__(self, a: Pointed, b: Pointed, options: CompareOptions) -> None:
        self.sides = (a, b)
        self.rows = [drawn(len(of), options.points, options.seed) for of in (a, b)]
        self.a, self.b = (of.chosen(rows) for of, rows in zip((a, b), self.rows, strict=True))
        self.found: Nearness = nearness(self.a.points, self.b.points, options.neighbours)

    @property
    def warnings(self) -> list[str]:
        """Return what is to be said of them."""
        if not (copies := self.found.without_room):
            return []
        return [f"{copies} images of A have {self.found.k} exact copies or more, which nothing can come nearer than"]

    def numbers(self) -> dict[str, float]:
        """Return those of the layer."""
        names = ("precision", "recall", "density", "coverage", "clipped_density", "clipped_coverage")
        of_points = {"neighbours": self.found.k, "points_a": len(self.a), "points_b": len(self.b)}
        return {**of_points, **{name: getattr(self.found, name) for name in names}}


class _Classes:
    """The classes of both sets, as far as images have any."""

    def __init__(self, a: Pointed, b: Pointed, near: _Near) -> None:
        self._sides, self._near = (a, b), near
        self.fidelity: Fidelity | None = None
        self._labelled = near.b.labels >= 0
        if (near.a.labels >= 0).all() and self._labelled.any():
            index = near.found.generated_to_real.index
            self.fidelity = fidelity(near.b.labels[self._labelled], index[self._labelled], near.a.labels)
        labelled = near.a.labels >= 0
        self._coverage = (
            mode_coverage(near.found.covered[labelled], near.a.labels[labelled]) if labelled.any() else None
        )

    def numbers(self) -> dict[str, float]:
        """Return those of the layer."""
        found = {}
        if self._coverage is not None:
            found["classes_covered"] = self._coverage.of_classes
        if self.fidelity is not None:
            found["fidelity"] = self.fidelity.whole
        return found

    def of_points(self) -> dict[str, np.ndarray]:
        """Return columns of the points of B that were asked about their neighbours."""
        share, voted = np.full(len(self._labelled), np.nan), np.full(len(self._labelled), np.nan)
        if self.fidelity is not None:
            share[self._labelled], voted[self._labelled] = self.fidelity.share, self.fidelity.voted
        return {"share_of_class": share, "voted": voted}

    def table(self, named: dict[str, str]) -> pa.Table:
        """Return a row a class that either set has."""
        first = [_first_of_class(of) for of in self._sides]
        rows = {label: {**named, "label": label} for label in sorted({**first[0], **first[1]})}
        for label, row in rows.items():
            of = first[0].get(label) or first[1][label]
            row |= {"synset_id": of["synset_id"], "class_name": of["class_name"]}
            row |= {
                f"images_{name}": int((of.labels == label).sum()) for name, of in zip("ab", self._sides, strict=True)
            }
        if set(first[0]) & set(first[1]) and has_moments((self._sides[0].points.shape[1],)):
            for one in class_distances(*(of.by_class() for of in self._sides)):
                rows[one.label] |= {"centroid": one.centroid, "frechet": _or_none(one.frechet), "too_few": one.too_few}
        if self._coverage is not None:
            for label, points, covered in zip(
                self._coverage.labels, self._coverage.points, self._coverage.covered, strict=True
            ):
                rows[int(label)]["coverage"] = covered / points
        if self.fidelity is not None:
            found = self.fidelity
            for label, share, right in zip(found.labels, found.share_of_class, found.right_of_class, strict=True):
                rows[int(label)] |= {"fidelity": share, "right": right}
        return pa.Table.from_pylist(list(rows.values()), schema=_SCHEMAS[CLASSES])


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value


def _images(near: _Near, classes: _Classes | None, places: list[np.ndarray | None], named: dict[str, str]) -> pa.Table:
    """Return a row an image of both sets."""
    found = near.found
    of_a = {
        **_of_neighbours(found.among_real, found.real_to_generated, near.b.rows),
        "among_other": found.in_generated,
        "covered": found.covered,
    }
    of_b = {
        **_of_neighbours(found.among_generated, found.generated_to_real, near.a.rows),
        "among_other": found.in_real,
        "balls": found.real_balls,
        **(classes.of_points() if classes is not None else {}),
    }
    tables = []
    for letter, side, asked, columns, placed in zip((A, B), near.sides, near.rows, (of_a, of_b), places, strict=True):
        whole: dict[str, Any] = {name: side.rows[name] for name in side.rows.column_names}
        if placed is not None:
            whole |= {"x": placed[:, 0], "y": placed[:, 1]}
        for name, values in columns.items():
            spread = np.full(len(side), None, object)
            spread[asked] = values
            whole[name] = spread
        tables.append(of_columns(whole, _SCHEMAS[IMAGES], {**named, "set": letter}))
    return pa.concat_tables(tables)


def _of_neighbours(own: Neighbours, other: Neighbours, rows: pa.Table) -> dict[str, Any]:
    nearest = rows.take(other.index[:, 0])
    return {
        "radius": own.distance[:, -1],
        "nearest": other.distance[:, 0],
        "nearest_shard": np.array(nearest["shard"].to_pylist(), object),
        "nearest_row": nearest["row"].to_numpy(),
    }
