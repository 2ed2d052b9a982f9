"""A map's page: what is shown of the points, and where they come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from exemplar_ray.executor.job import Context
from exemplar_ray.explore.colours import coloured_by
from exemplar_ray.explore.groups import NONE, grouped
from exemplar_ray.explore.job_names import PICTURES_PART
from exemplar_ray.explore.measured import SCORES
from exemplar_ray.explore.spec import ExploreOptions
from exemplar_ray.report.map_points import (
    Categories,
    MapPoints,
    Score,
    StrongestChannels,
    Values,
    categories_of_labels,
)
from exemplar_ray.report.provenance import describe_preprocess, without_secrets, words_of
from exemplar_ray.results.store import Store

MOST_NUMBERS = 100_000_000
"""Where channels have more activations than these, the page is coloured by none of them, unless asked for."""


@dataclass(frozen=True, eq=False)
class Shown:
    """A map, as far as its page needs it.

    Attributes:
        stores: whose points these are: the one that the map was fitted to, then those that were placed in it.
        layer, pool: whose activations.
        table: a row a point, in the order of the stores and of their rows: as `map.parquet`, with `position`.
        words: how the map came about; and the clusters, if there are any.
    """

    stores: Sequence[Store]
    layer: str
    pool: str
    table: pa.Table
    words: tuple[str, str | None]

    @property
    def title(self) -> str:
        """Return what the map is of."""
        return f"{self.layer} ({words_of(self.pool)}): {len(self.table):,} images"

    def activations(self) -> np.ndarray:
        """Return the points: float [points, channels]."""
        names = self.table["set"].to_numpy()
        positions = self.table["position"].to_numpy()
        by_set = np.split(positions, np.flatnonzero(names[1:] != names[:-1]) + 1)
        parts = [store.array(self.layer, self.pool)[rows] for store, rows in zip(self.stores, by_set, strict=True)]
        return np.concatenate(parts)

    def channels(self) -> tuple[int, ...]:
        """Return the numbers of the channels."""
        return next(one.channels for one in self.stores[0].network.layers if one.name == self.layer)


def map_points(
    shown: Shown,
    options: ExploreOptions,
    scores: tuple[Sequence[str], Sequence[Score]],
    thumbnails: Iterator[tuple[int, bytes]],
    command: str,
    beside: tuple[str, str] | None,
) -> MapPoints:
    """Put together what the page shows.

    Args:
        scores: their columns and lines, see `score_lines`.
        thumbnails: (place among the points, JPEG), ascending.
        command: that makes the map anew.
        beside: the other map, see `MapPoints.beside`.
    """
    table, store = shown.table, shown.stores[0]
    values, channels = shown.activations(), shown.channels()
    names = [f"{shown.layer}:{channel}" for channel in channels]
    colourings: dict[str, Categories | Values] = {}
    if table["label"].null_count < len(table):
        colourings["class"] = categories_of_labels(table)
    if options.groups:
        in_groups = grouped(table["label"].fill_null(NONE).to_numpy(), options.groups)
        colourings["group"] = Categories(in_groups, list(map(str, options.groups)), none="in no group")
    if table["cluster"].null_count < len(table):
        colourings["cluster"] = _clusters(table)
    if len(shown.stores) > 1:
        colourings["set"] = _sets(table)
    wanted = coloured_by(options.colours, channels)
    coloured = [] if options.colours is None and values.size > MOST_NUMBERS else wanted
    for place in coloured:
        colourings[names[place]] = Values(values[:, place], group=shown.layer)
    facts = [
        *_facts(store, shown),
        *([] if coloured or options.colours else [("colours", _too_many(values.size))]),
    ]
    return MapPoints(
        x=table["x"].to_numpy().astype(np.float32),
        y=table["y"].to_numpy().astype(np.float32),
        ids=table,
        title=shown.title,
        colourings=colourings,
        thumbnails=thumbnails,
        warnings=_warnings(shown),
        essentials=[store.network.title, shown.words[0].partition(",")[0]],
        facts=facts,
        command=command,
        scores=scores[1],
        score_columns=scores[0],
        channels=StrongestChannels.of(values, names),
        beside=beside,
    )


def _clusters(table: pa.Table) -> Categories:
    of_points = table["cluster"].fill_null(-1).to_numpy()
    count = int(of_points.max()) + 1
    return Categories(of_points, [f"cluster {number}" for number in range(count)], none="in no cluster")


def _sets(table: pa.Table) -> Categories:
    encoded = table["set"].combine_chunks().dictionary_encode()
    return Categories(encoded.indices.to_numpy(), encoded.dictionary.to_pylist())


def _too_many(numbers: int) -> str:
    return f"of no channel: {numbers:,} activations are more than {MOST_NUMBERS:,}, ask for some with --colours"


def _warnings(shown: Shown) -> list[str]:
    warnings = []
    if not all(store.network.trained for store in shown.stores):
        warnings.append("UNTRAINED NETWORK: random weights, what lies together here was not learnt")
    if left_out := sum(map(len, shown.stores)) - len(shown.table):
        warnings.append(f"{left_out:,} IMAGES LEFT OUT: their activations are no finite numbers")
    return warnings


def _facts(store: Store, shown: Shown) -> list[tuple[str, str]]:
    network = store.network
    skipped = sum(one.summary.get("skipped", 0) for one in shown.stores)
    parts = [f"{without_secrets(one.uri)}: {one.subset.words}" for one in shown.stores if one.subset]
    return [
        ("model", network.model_words),
        ("weights", f"{network.weights_title}{'' if network.trained else ' — UNTRAINED'}"),
        ("weights' SHA-256", network.weights_sha256),
        ("preprocessing", describe_preprocess(network.preprocess)),
        ("layer", f"{shown.layer}, {words_of(shown.pool)}: {len(shown.channels()):,} channels"),
        ("stores", ", ".join(without_secrets(one.uri) for one in shown.stores)),
        ("images", f"{len(shown.table):,}, {skipped:,} skipped" if skipped else f"{len(shown.table):,}"),
        *([("part of the data", "; ".join(parts))] if parts else []),
        ("map", shown.words[0]),
        *([("clusters", shown.words[1])] if shown.words[1] else []),
    ]


def pictures(context: Context, pieces: Mapping[int, tuple[str, str]], table: pa.Table) -> Iterator[tuple[int, bytes]]:
    """Yield the small pictures of a map's points: (place among them, JPEG), ascending.

    Args:
        pieces: {position of a part: (set, shard)}, in the order of the points.
        table: a row a point.
    """
    places: dict[tuple[str, str], dict[int, int]] = {}
    rows = zip(*(table[name].to_pylist() for name in ("set", "shard", "row")), strict=True)
    for place, (of, shard, row) in enumerate(rows):
        places.setdefault((of, shard), {})[row] = place
    for position, files in context.parts(only={PICTURES_PART}):
        if position not in pieces:
            continue
        by_row = places.get(pieces[position], {})
        part = pq.read_table(pa.BufferReader(files[PICTURES_PART]))
        for row, picture in zip(part["row"].to_pylist(), part["picture"].to_pylist(), strict=True):
            if row in by_row:
                yield by_row[row], picture


def score_lines(columns: Mapping[str, Mapping[str, Any]], of_groups: bool) -> tuple[list[str], list[Score]]:
    """Return the table of scores: its columns, and its lines.

    Args:
        columns: {what a column is called: scores as `scores.json` has them}.
        of_groups: whether they are of classes taken together.
    """

    def said(words: str) -> str:
        return words.replace("classes", "groups").replace("class", "group") if of_groups else words

    lines = [
        Score(said(name), [_text(of.get(score)) for of in columns.values()], _said(said(words), score, columns))
        for score, (name, words) in SCORES.items()
        if any(score in scores for scores in columns.values())
    ]
    return list(columns), lines


def _text(score: Mapping[str, Any] | None) -> str:
    if score is None or score["value"] is None:
        return "–"
    spread = score["over_seeds"]
    between = f" ({spread['least']:.3f} to {spread['most']:.3f})" if spread else ""
    return f"{score['value']:.3f}{between}".replace("-", "−")


def _said(words: str, name: str, columns: Mapping[str, Mapping[str, Any]]) -> str:
    of = next(scores[name] for scores in columns.values() if name in scores)
    spread = of["over_seeds"]
    return f"{words}; {of['words']}" + (f"; in brackets: {spread['words']}" if spread else "")
