"""A comparison from end to end: of two folders, which say themselves what can be compared."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console

from exemplar_ray.compare.options import CompareOptions
from exemplar_ray.compare.pages import Pages
from exemplar_ray.compare.sides import Side
from exemplar_ray.compare.spec import SETS, A, B, CompareSpec, Piece, decided, of_pictures
from exemplar_ray.compare.tables import LAYERS, SCHEMAS, from_files
from exemplar_ray.compare.tasks import CompareSettings
from exemplar_ray.executor.cluster import Cluster
from exemplar_ray.executor.driver import JobOutcome, run_job
from exemplar_ray.executor.job import Context, Job, Reduced
from exemplar_ray.report.pages import INDEX
from exemplar_ray.runs.versions import versions

JOB = "compare"
TASK = "exemplar_ray.compare.tasks:make"
REPORT = "report"
# Of more images a map shows the pictures of some.
_MOST_THUMBNAILS = 20_000


class CompareJob(Job):
    """Compares layers, and makes pages of what comes of it."""

    name = JOB
    task = TASK
    result = f"{REPORT}/{INDEX}"
    verb = "compare"
    counted = "pieces"

    def __init__(self, given: Asked, threads: int) -> None:
        self.spec, self._sides = given.spec, given.sides
        self.items: Sequence[Piece] = given.pieces
        self.settings = CompareSettings(given.spec, threads)

    def identity(self) -> dict[str, Any]:
        """Return what decides the comparison."""
        return self.spec.identity(self.items)

    def details(self) -> dict[str, Any]:
        """Return what else `run.json` keeps."""
        a, b = (side.to_json() for side in self._sides)
        return {"a": a, "b": b, "options": asdict(self.spec.options), "versions": versions()}

    def steps(self, item: Piece) -> int:
        """Return that a piece is one."""
        return 1

    def reduce(self, context: Context) -> Reduced:
        """Put the tables together, then make the pages, whose first is written last."""
        pages = Pages(f"{context.folder.uri.rstrip('/')}/{REPORT}", self.spec, self._sides)
        layers: list[dict[str, Any]] = []
        with ExitStack() as stack:
            writers = {
                name: stack.enter_context(
                    pq.ParquetWriter(
                        stack.enter_context(context.folder.writing(f"{name}.parquet")), schema, compression="zstd"
                    )
                )
                for name, schema in SCHEMAS[self.spec.kind].items()
            }
            for position, files in context.parts():
                tables = {name: table for name in writers if (table := from_files(files, name)) is not None}
                for name, table in tables.items():
                    writers[name].write_table(table)
                layers += tables[LAYERS].to_pylist() if tables else []
                pages.add(self.items[position], files)
        pages.write()
        return Reduced(
            summary={"kind": self.spec.kind, "layers": layers}, lines=[_said(self.spec, one) for one in layers]
        )

    def announce(self, cluster: Cluster) -> Sequence[str]:
        """Say what is compared with what."""
        what = "two sets of images in one network" if self.spec.kind == SETS else "two networks over the same images"
        lines = [f"{what}; A is the reference"]
        lines += [f"{side.letter}: {side.network.title}; {side.to_json()['said']}" for side in self._sides]
        lines += [warning for side in self._sides for warning in side.warnings]
        return [*lines, *_left_out(self._sides, self.items)]


def _left_out(sides: tuple[Side, Side], pieces: Sequence[Piece]) -> list[str]:
    """Name what only one of both has."""
    lines = []
    for number, side in enumerate(sides):
        compared = {piece.readouts[number] for piece in pieces if piece.shard is None}
        left_out = [f"{one.layer} ({one.pool})" for one in side.readouts if one not in compared]
        lines += [f"not compared of {side.letter}: {', '.join(left_out)}"] if left_out else []
    return lines


def _said(spec: CompareSpec, layer: dict[str, Any]) -> str:
    """Say in a line what came of a layer."""
    names = f"{layer['layer']} ({layer['pool']})"
    if spec.kind == SETS:
        numbers = {"Fréchet": "frechet", "precision": "precision", "recall": "recall", "coverage": "coverage"}
        numbers |= {"fidelity": "fidelity", "median KS": "ks_median"}
    else:
        names = f"{layer['layer']} with {layer['other_layer']} ({layer['pool']})"
        numbers = {"CKA": "cka", "debiased": "debiased", "exemplars in common": "in_common_mean"}
    known = [f"{words} {layer[key]:.4g}" for words, key in numbers.items() if layer[key] is not None]
    return f"{names}: {', '.join(known)}"


@dataclass(frozen=True)
class Asked:
    """What is to be compared, found to be comparable."""

    spec: CompareSpec
    sides: tuple[Side, Side]
    pieces: Sequence[Piece]


def asked(a: str, b: str, options: CompareOptions) -> Asked:
    """Find out what two folders are for.

    Args:
        a: a store or a run: the reference.
        b: another, or the same.

    Raises:
        UsageError: a comparison would mean nothing.
    """
    sides = Side(A, a), Side(B, b)
    kind, pieces = decided(*sides, options)
    of_both = (sides[0].network.preprocess, sides[1].network.preprocess)
    if kind == SETS and options.pictures and all(side.store is not None for side in sides):
        # Their pictures are there when the pages of layers are made.
        pieces = [*of_pictures(sides, _MOST_THUMBNAILS), *pieces]
    return Asked(CompareSpec(kind, sides[0].uri, sides[1].uri, of_both, options), sides, pieces)


def compare(given: Asked, out: str, cluster: Cluster, console: Console) -> JobOutcome:
    """Compare, or do what is lacking.

    Args:
        out: where: a run folder of its own.

    Raises:
        UsageError: something that was asked for cannot be done.
    """
    started = time.monotonic()
    return run_job(CompareJob(given, cluster.demand.cpus), out, cluster, console, started)
