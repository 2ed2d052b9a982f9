"""The pages of a comparison: an overview, a page for each two layers, and maps of both sets; without a network.

index.html           all layers, written last
LAYER-POOL.html      a page a layer; of two networks LAYER-with-LAYER-POOL.html
maps/LAYER-POOL/     both sets in one map, see `report.map_page`
pictures/            what the pages show
assets/
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from exemplar_ray import report
from exemplar_ray._version import __version__
from exemplar_ray.activations.rows_table import IDS
from exemplar_ray.compare.chosen import CLASSES_SHOWN, Row, channels_shown, exemplars_by_channel, furthest, uncovered
from exemplar_ray.compare.sides import Side
from exemplar_ray.compare.spec import SETS, A, B, CompareSpec, Piece
from exemplar_ray.compare.tables import (
    CHANNELS,
    CLASSES,
    EXEMPLARS,
    IMAGES,
    LAYERS,
    PICTURES,
    SCHEMAS,
    THUMBNAILS,
    from_files,
)
from exemplar_ray.compare.words import NUMBERS, OF_NETWORKS
from exemplar_ray.data.imagenet_names import spelled_out
from exemplar_ray.report.map_page import write_map_page
from exemplar_ray.report.map_points import Categories, MapPoints, categories_of_labels
from exemplar_ray.report.pages import INDEX
from exemplar_ray.report.provenance import Provenance, describe_preprocess, flags_of, without_secrets
from exemplar_ray.report.templating import environment, number
from exemplar_ray.report.writer import ReportWriter
from exemplar_ray.storage.folder import Folder
from exemplar_ray.storage.folder_names import folder_names

_BY_FIDELITY = [("fidelity", "ascending"), ("label", "ascending")]
_ASSETS = ("report.css", "state.js", "compare.css")


@dataclass(frozen=True)
class Shown:
    """An image on a page."""

    picture: str | None
    """Its file, below the pages; None where there is none."""
    name: str
    """Its class, or where it is."""
    where: str
    value: float | None = None


@dataclass(frozen=True)
class ShownChannel:
    """A channel with its strongest images in A and in B."""

    row: Row
    a: list[Shown]
    b: list[Shown]
    match: list[Shown] = field(default_factory=list)
    """Of two networks, those of the channel of B that it is most like."""


@dataclass(frozen=True)
class ShownPair:
    """An image, and the nearest one of the other set."""

    image: Shown
    nearest: Shown
    away: float


class Pages:
    """Writes the pages, piece by piece; those of pictures come before those of layers.

    Args:
        folder: the pages'.
        sides: A and B.
    """

    def __init__(self, folder: str, spec: CompareSpec, sides: tuple[Side, Side]) -> None:
        self._folder, self._spec, self._sides = folder, spec, sides
        self._environment = environment()
        self._environment.filters["number"] = _written
        self._thumbnails: dict[tuple[str, str, int], bytes] = {}
        self._layers: list[tuple[Row, str]] = []
        self._names: set[str] = set()
        self._pictures = 0
        self._words = NUMBERS if spec.kind == SETS else OF_NETWORKS
        self.provenance = self._provenance()

    def add(self, piece: Piece, files: Mapping[str, bytes]) -> None:
        """Take in a part: small pictures, or what came of two layers, whose page is written."""
        if piece.shard is not None:
            for row in _rows(from_files(files, THUMBNAILS)):
                self._thumbnails[row["set"], row["shard"], row["row"]] = row["jpeg"]
            return
        there = {name: from_files(files, name) for name in SCHEMAS[self._spec.kind]}
        tables = {name: table for name, table in there.items() if table is not None}
        [layer] = _rows(tables[LAYERS])
        pair = piece.layer if piece.layer == piece.other_layer else f"{piece.layer}-with-{piece.other_layer}"
        [name] = folder_names([f"{pair}-{piece.pool}"], [*self._names, "index", "maps"]).values()
        self._names.add(name)
        self._layers.append((layer, f"{name}.html" if len(tables[CHANNELS]) else ""))
        if not len(tables[CHANNELS]):
            return
        with ReportWriter(Folder(self._folder)) as writer:
            pictures = self._write_pictures(writer, _rows(from_files(files, PICTURES)))
            shown = _ShownLayer(layer, tables, pictures)
            map_page = self._write_map(name, layer, tables[IMAGES]) if IMAGES in tables else None
            template = "compare_sets.html" if self._spec.kind == SETS else "compare_networks.html"
            writer.write(f"{name}.html", self._page(template, shown=shown, layer=layer, map_page=map_page))

    def write(self) -> None:
        """Write what is left, the overview last."""
        with ReportWriter(Folder(self._folder)) as writer:
            for name in _ASSETS:
                writer.write(f"assets/{name}", resources.files(report).joinpath("static", name).read_bytes())
            writer.finish()
            ones = list(dict.fromkeys((row["layer"], row["pool"]) for row, _ in self._layers))
            others = list(dict.fromkeys(row.get("other_layer") for row, _ in self._layers))
            rows = [row for row, _ in self._layers]
            page = self._page(
                "compare.html",
                layers=self._layers,
                ones=ones,
                others=others,
                by_pair={(row["layer"], row["pool"], row.get("other_layer")): row for row in rows},
                seen_words=[
                    one for one in self._words if one.in_overview and any(row[one.column] is not None for row in rows)
                ],
            )
            writer.write(INDEX, page)

    def _page(self, template: str, **values: Any) -> bytes:
        page = self._environment.get_template(template).render(
            root="",
            version=__version__,
            provenance=self.provenance,
            sides=self._sides,
            kind=self._spec.kind,
            options=self._spec.options,
            words=self._words,
            **values,
        )
        return page.encode(errors="replace")

    def _provenance(self) -> Provenance:
        warnings = [warning for side in self._sides for warning in side.warnings]
        a, b = self._sides
        if self._spec.kind != SETS and a.network.preprocess != b.network.preprocess:
            warnings.append("A and B see the images through different preprocessing: part of what differs may be that")
        facts = []
        for side in self._sides:
            facts += [
                (f"{side.letter}", without_secrets(side.folder.uri)),
                (f"{side.letter}: model", side.network.model_words),
                (f"{side.letter}: weights", f"{side.network.weights_title} (sha256 {side.network.weights_sha256})"),
                (f"{side.letter}: preprocessing", describe_preprocess(side.network.preprocess)),
                (f"{side.letter}: computed", ", ".join(f"{key} {value}" for key, value in side.computed.items())),
                *((f"{side.letter}: labels", said) for said in side.network.said_of_labels()),
            ]
        essentials = [f"{side.letter}: {side.to_json()['said']}" for side in self._sides]
        return Provenance(warnings, essentials, facts, self._command())

    def _command(self) -> str:
        words = ["exemplar-ray", "compare", *(without_secrets(side.folder.uri) for side in self._sides)]
        words += ["--out", without_secrets(self._folder.rpartition("/")[0])]
        return shlex.join([*words, *flags_of(self._spec.options)])

    def _write_pictures(self, writer: ReportWriter, rows: Iterable[Row]) -> dict[tuple[str, str, int], str]:
        """Write pictures; return {(set, shard, row): its file}."""
        found = {}
        for row in rows:
            name = f"pictures/{self._pictures}.jpg"
            writer.write(name, row["jpeg"])
            found[row["set"], row["shard"], row["row"]] = name
            self._pictures += 1
        return found

    def _write_map(self, name: str, layer: Row, images: pa.Table) -> str | None:
        """Write both sets in one map; return the page, below the pages."""
        if not len(images) or images["x"].null_count:
            return None
        points = MapPoints(
            x=images["x"].to_numpy().astype(np.float32),
            y=images["y"].to_numpy().astype(np.float32),
            ids=images.select(IDS.names),
            title=f"{layer['layer']} ({layer['pool']}): A and B in one map",
            colourings=_colourings(images, self._sides),
            thumbnails=self._thumbnails_of(images),
            warnings=[*self.provenance.warnings, *layer["warnings"]],
            essentials=[*self.provenance.essentials, layer["map"]],
            facts=self.provenance.facts,
            command=self.provenance.command,
        )
        write_map_page(f"{self._folder}/maps/{name}", points)
        return f"maps/{name}/{INDEX}"

    def _thumbnails_of(self, images: pa.Table) -> Iterable[tuple[int, bytes]]:
        keys = zip(*(images[name].to_pylist() for name in ("set", "shard", "row")), strict=True)
        for place, key in enumerate(keys):
            if (jpeg := self._thumbnails.get(key)) is not None:
                yield place, jpeg


def _colourings(images: pa.Table, sides: tuple[Side, Side]) -> dict[str, Categories]:
    found = {}
    codes = pc.equal(images["set"], B).to_numpy().astype(np.int64)
    found["set"] = Categories(codes, [f"{side.letter}: {without_secrets(side.folder.uri)}" for side in sides])
    if images["label"].null_count < len(images):
        found["class"] = categories_of_labels(images)
    if images["among_other"].null_count < len(images):
        among = pc.fill_null(images["among_other"].cast(pa.int64()), -1).to_numpy()
        found["neighbours"] = Categories(
            among, ["among none of the other set", "among the other set"], none="not asked"
        )
    return found


class _ShownLayer:
    """What the page of two layers shows."""

    def __init__(
        self, layer: Row, tables: Mapping[str, pa.Table], pictures: Mapping[tuple[str, str, int], str]
    ) -> None:
        self._pictures = pictures
        self._strongest = exemplars_by_channel(tables[EXEMPLARS])
        self.layer = layer
        self.most, self.least = ([self._channel(row) for row in rows] for rows in channels_shown(tables[CHANNELS]))
        self.constant = (
            int(pc.sum(tables[CHANNELS]["constant"]).as_py() or 0) if "constant" in tables[CHANNELS].column_names else 0
        )
        self.uncovered: list[ShownPair] = []
        self.furthest: list[ShownPair] = []
        self.uncovered_count = self.furthest_count = 0
        self.classes: list[Row] = []
        self.class_count = len(tables[CLASSES]) if CLASSES in tables else 0
        if IMAGES not in tables:
            return
        images = tables[IMAGES]
        named = {(row["set"], row["shard"], row["row"]): row for row in _rows(images.select(["set", *IDS.names]))}
        self.uncovered = [self._pair(row, B, row["away"], named) for row in uncovered(images)]
        self.furthest = [self._pair(row, A, row["nearest"], named) for row in furthest(images)]
        self.uncovered_count = _count(images, A, "covered")
        self.furthest_count = _count(images, B, "among_other")
        self.classes = [
            {**row, "name": _name_of(row)} for row in _rows(tables[CLASSES].sort_by(_BY_FIDELITY)[:CLASSES_SHOWN])
        ]

    def _channel(self, row: Row) -> ShownChannel:
        of = {letter: self._exemplars(letter, row["channel"]) for letter in (A, B)}
        match = row.get("match")
        return ShownChannel(row, of[A], of[B], [] if match is None else self._exemplars(B, match))

    def _exemplars(self, letter: str, channel: int) -> list[Shown]:
        return [self._shown(letter, row, row["activation"]) for row in self._strongest.get((letter, channel), ())]

    def _pair(self, row: Row, other: str, away: float, named: Mapping[tuple[str, str, int], Row]) -> ShownPair:
        nearest = named[other, row["nearest_shard"], row["nearest_row"]]
        return ShownPair(self._shown(row["set"], row), self._shown(other, nearest), away)

    def _shown(self, letter: str, row: Row, value: float | None = None) -> Shown:
        where = f"{row['shard']}, row {row['row']}"
        picture = self._pictures.get((letter, row["shard"], row["row"]))
        return Shown(picture, _name_of(row) or row["image_path"] or where, where, value)


def _written(value: float | None, digits: int = 4) -> str:
    """Write a number with so many digits, large ones without an exponent."""
    if value is not None and 10**digits <= abs(value) < math.inf:
        return f"{float(f'{value:.{digits}g}'):,.0f}"
    return number(value, digits)


def _name_of(row: Row) -> str:
    name = row["class_name"] or row["synset_id"]
    return spelled_out(name) if name else "" if row["label"] is None else f"class {row['label']}"


def _count(images: pa.Table, letter: str, column: str) -> int:
    return int(pc.sum(pc.and_(pc.equal(images["set"], letter), pc.equal(images[column], False))).as_py() or 0)


def _rows(table: pa.Table | None) -> list[Row]:
    return [] if table is None else table.to_pylist()
