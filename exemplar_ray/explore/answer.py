"""From parts to the result: maps with the ids of their rows, fitted maps, scores, pages."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from exemplar_ray.executor.job import Context
from exemplar_ray.explore.job_names import BESIDE, FITTED, FITTED_PART, MAP, PAGE, PLACES_PART, SCORES, SCORES_PART
from exemplar_ray.explore.page import Shown, map_points, pictures, score_lines
from exemplar_ray.explore.spec import ExploreSpec, Piece, PointsOf
from exemplar_ray.maps.scores import Score, over_seeds
from exemplar_ray.report.map_page import write_map_page
from exemplar_ray.report.provenance import flags_of, without_secrets
from exemplar_ray.results.store import Store

_IN_SHORT = ("knn_points", "knn_map", "adjusted_rand", "trustworthiness")


class Answer:
    """Writes the result of an exploration.

    Args:
        context: whose parts these are.
        spec: what was asked for.
        items: what the parts are of.
        stores: of every set of points.
    """

    def __init__(
        self, context: Context, spec: ExploreSpec, items: Sequence[Piece], stores: Mapping[PointsOf, Store]
    ) -> None:
        self._context, self._spec, self._items, self._stores = context, spec, items, stores
        self._parts = [
            (items[position], files) for position, files in context.parts(only={SCORES_PART, PLACES_PART, FITTED_PART})
        ]

    def write(self) -> list[str]:
        """Write it; return what to say of it, in lines."""
        maps = self._spec.maps
        scores = [self._scores(number) for number in range(len(maps))]
        self._context.folder.write_json(SCORES, dict(zip(("map", BESIDE), scores, strict=False)))
        columns = {self._column(of): one for of, one in zip(maps, scores, strict=True)}
        lines = score_lines(columns, bool(self._spec.options.groups))
        # What was asked for comes last: with it the run is answered.
        for number in reversed(range(len(maps))):
            self._write_map(number, lines)
        said = [f"{column}: {_in_short(one)}" for column, one in columns.items()]
        return [*said, f"page: {self._context.folder.uri.rstrip('/')}/{PAGE}/index.html"]

    def _scores(self, number: int) -> dict[str, Any]:
        """Return the scores of the map that is shown, each with its spread over the seeds."""
        by_seed = {
            piece.seed: {name: Score(**score) for name, score in json.loads(files[SCORES_PART])["scores"].items()}
            for piece, files in self._parts
            if SCORES_PART in files and piece.of == number
        }
        first = by_seed[self._spec.options.seed]
        others = [name for name in first if all(name in scores for scores in by_seed.values())]
        spread = over_seeds(lambda seed: {name: by_seed[seed][name] for name in others}, self._spec.seeds)
        shown = {name for name in others if len(by_seed) > 1 and spread[name].median is not None}
        return {
            name: {**asdict(score), "over_seeds": asdict(spread[name]) if name in shown else None}
            for name, score in first.items()
        }

    def _column(self, of: PointsOf) -> str:
        """Return what the scores of a set are called."""
        network = self._stores[of].network
        return f"{network.weights_title}{'' if network.trained else ' — UNTRAINED'}"

    def _write_map(self, number: int, scores: Any) -> None:
        spec, folder = self._spec, self._context.folder
        sets = spec.shown if number == 0 else spec.maps[number:]
        files = next(files for piece, files in self._parts if piece.of == number and FITTED_PART in files)
        stores = [self._stores[of] for of in sets]
        places = pq.read_table(pa.BufferReader(files[PLACES_PART]))
        table = _with_ids(places, [of.name for of in sets], stores)
        said = json.loads(files[SCORES_PART])
        shown = Shown(stores, sets[0].layer, sets[0].pool, table, (said["map"], said["clusters"]))
        drawn = pictures(self._context, self._of_pictures(sets), table)
        points = map_points(shown, spec.options, scores, drawn, self._command(), self._link(number))
        below = f"{BESIDE}/" if number else ""
        write_map_page(f"{folder.uri.rstrip('/')}/{below}{PAGE}", points)
        folder.write(f"{below}{FITTED}", files[FITTED_PART])
        with folder.writing(f"{below}{MAP}") as path:
            pq.write_table(table.drop_columns(["position"]), path, compression="zstd")

    def _link(self, number: int) -> tuple[str, str] | None:
        """Return the other map's title and page, from this one's."""
        if self._spec.beside is None:
            return None
        if number:
            return self._stores[self._spec.fitted].network.title, f"../../{PAGE}/index.html"
        return self._stores[self._spec.beside].network.title, f"../{BESIDE}/{PAGE}/index.html"

    def _of_pictures(self, sets: Sequence[PointsOf]) -> dict[int, tuple[str, str]]:
        """Return {position of a part with pictures: (set, shard)}. Another network's images are the same ones."""
        return {
            position: (sets[piece.of].name, piece.shard)
            for position, piece in enumerate(self._items)
            if piece.shard is not None and piece.of < len(sets)
        }

    def _command(self) -> str:
        return shlex.join(["exemplar-ray", *arguments_of(self._spec)])


def _with_ids(places: pa.Table, names: Sequence[str], stores: Sequence[Store]) -> pa.Table:
    """Put the ids of their rows beside where points lie; `set` is by name then."""
    numbers, tables = places["set"].to_numpy(), []
    for number, (name, store) in enumerate(zip(names, stores, strict=True)):
        mine = places.filter(pa.array(numbers == number))
        ids = store.rows.take(mine["position"])
        columns = {column: ids[column] for column in ids.column_names}
        rest = {column: mine[column] for column in ("x", "y", "cluster", "position")}
        tables.append(pa.table({**columns, "set": pa.array([name] * len(mine), pa.string()), **rest}))
    return pa.concat_tables(tables)


def _in_short(scores: Mapping[str, Mapping[str, Any]]) -> str:
    known = {name: scores[name]["value"] for name in _IN_SHORT if name in scores}
    return ", ".join(f"{name} {value:.3f}" for name, value in known.items() if value is not None) or "no scores"


def arguments_of(spec: ExploreSpec) -> list[str]:
    """Return the arguments of `exemplar-ray` that make such a map, without what is as by default."""
    words = ["explore", without_secrets(spec.fitted.uri), *flags_of(spec.options)]
    if spec.projected:
        words += ["--project", *(without_secrets(of.uri) for of in spec.projected)]
    if spec.beside is not None:
        words += ["--beside", without_secrets(spec.beside.uri)]
    return words
