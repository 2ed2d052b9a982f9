"""The report of a run: a folder of static pages that opens from disk and from any web server, without a network.

    index.html                 the overview of the first layer and statistic: a tile a channel
    LAYER/STATISTIC.html       the overviews of the others
    LAYER/CHANNEL.html         a channel's page
    images/ab/HASH.jpg         every image, once
    tiles/LAYER/STATISTIC/     the channels' small pictures
    visualizations/LAYER/      their feature visualisations
    assets/                    style and scripts

A run's tables are read channel by channel, and files are written as they come. Memory therefore follows the size of a
channel. Needs no torch, no Ray.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib import resources
from itertools import repeat, zip_longest
from typing import Any

import pyarrow as pa

from exemplar_ray._version import __version__
from exemplar_ray.errors import UsageError
from exemplar_ray.exemplars.sample_names import TOP
from exemplar_ray.network.layers import Layer
from exemplar_ray.report.channel_page import ChannelPages, ShownStatistic
from exemplar_ray.report.circuits import Neighbour, ShownCircuits
from exemplar_ray.report.overview import Tile, known_classes, tile_of
from exemplar_ray.report.pictures import LONGEST_SIDE, TILE_SIDE, TILES, Pictures
from exemplar_ray.report.provenance import provenance_of
from exemplar_ray.report.templating import environment
from exemplar_ray.report.visualizations import PICTURES, ShownVisualizations
from exemplar_ray.report.writer import ReportWriter
from exemplar_ray.results.run import Run, open_run
from exemplar_ray.storage.folder import Folder
from exemplar_ray.storage.folder_names import folder_names
from exemplar_ray.storage.hub_uri import refuse_writing

INDEX = "index.html"
_ASSETS, _IMAGES = "assets", "images"
_TAKEN = (_ASSETS, _IMAGES, TILES, PICTURES, INDEX)


def write_report(run: str, out: str | None = None, images: bool = True, run_folder: str | None = None) -> str:
    """Write the pages of a run.

    Args:
        run: a run folder with a result.
        out: the report's folder, on any file system; RUN/report if None. Files that it has are written over.
        images: whether to show the images; else the pages have paths, rows and numbers only.
        run_folder: what the command on the pages calls it; `run` if None.

    Returns:
        The URI of `index.html`, which is written last.

    Raises:
        UsageError: the run has no result, the pages would be written to the Hub, or they are to have no images and
            the report's folder has those of an earlier report.
    """
    target = (out or f"{run.rstrip('/')}/report").rstrip("/")
    refuse_writing(target)
    finished = open_run(run)
    folder = Folder(target)
    if not images and any(folder.exists(name) for name in (_IMAGES, TILES, PICTURES)):
        raise UsageError(
            f"'{target}' has the images of an earlier report, which stay there; remove that folder, or choose another "
            "with --out"
        )
    with ReportWriter(folder) as writer:
        _Report(finished, writer, images, run_folder or run).write()
    return f"{target}/{INDEX}"


class _Report:
    """One report being written."""

    def __init__(self, run: Run, writer: ReportWriter, images: bool, run_folder: str) -> None:
        self._run, self._writer = run, writer
        self._spec = run.plan.spec
        self._pictures = Pictures(writer) if images else None
        self._pages = ChannelPages(run.plan, run.summary, self._pictures)
        self._visualizations = ShownVisualizations(run.visualizations, writer if images else None)
        self._folders = folder_names([layer.name for layer in self._spec.layers], _TAKEN)
        self._circuits = ShownCircuits(run.circuits, self._neighbour)
        self._synset_ids: dict[int, str] = {}
        self._environment = environment()
        self._environment.globals |= {
            "spec": self._spec,
            "provenance": provenance_of(run, run_folder),
            "check": run.check,
            "version": __version__,
            "longest_side": LONGEST_SIDE,
            "with_images": images,
        }

    def write(self) -> None:
        """Write everything, the index last."""
        for name in ("report.css", "state.js", "overview.js", "channel.js"):
            self._writer.write(f"{_ASSETS}/{name}", resources.files(__package__).joinpath("static", name).read_bytes())
        if self._pictures:
            for row in self._run.each_image():
                self._pictures.add(row["shard"], row["row"], row["image"]["bytes"])
        overviews = {
            (layer, statistic): tiles
            for layer in self._spec.layers
            for statistic, tiles in self._write_channels(layer).items()
        }
        index, *others = ((*which, tiles) for which, tiles in overviews.items())
        for overview in others:
            self._write_overview(*overview)
        # A report with an index is whole.
        self._writer.finish()
        self._write_overview(*index)

    def _write_channels(self, layer: Layer) -> dict[str, list[Tile]]:
        """Write the pages of a layer's channels; return their tiles."""
        tiles: dict[str, list[Tile]] = {statistic: [] for statistic in self._spec.statistics}
        template = self._environment.get_template("channel.html")
        neighbours = zip_longest([None, *layer.channels], layer.channels, layer.channels[1:])
        circuits = dict(self._circuits.of_layer(layer.name))
        pictures = dict(self._visualizations.of_layer(layer.name, self._folders[layer.name]))
        several = zip(*(self._each_statistic(layer, statistic) for statistic in self._spec.statistics), strict=True)
        for (before, channel, after), statistics in zip(neighbours, several, strict=False):
            of_channel = pictures.get(channel, [])
            for shown, rows in statistics:
                made = of_channel[0].tile if of_channel and shown.name == self._visualizations.statistic else None
                tiles[shown.name].append(self._tile(layer, shown, rows, made))
            page = template.render(
                root="../",
                layer=layer,
                channel=channel,
                before=before,
                after=after,
                statistics=[shown for shown, _ in statistics],
                visualizations=of_channel,
                visualized=self._visualizations.statistic,
                circuit=circuits.get(channel),
                circuits_by=self._run.circuits.statistic,
                overview="../" + self._overview_name(layer, self._spec.statistics[0]),
            )
            self._write_page(f"{self._folders[layer.name]}/{channel}.html", page)
        return tiles

    def _neighbour(self, layer: str, channel: int) -> Neighbour:
        """Return what the pages know of another channel."""
        of_run = next((known for known in self._spec.layers if known.name == layer), None)
        if of_run is None or channel not in of_run.channels:
            return Neighbour(layer, channel, None)
        folder, statistic = self._folders[layer], self._spec.statistics[0]
        made = self._visualizations.tile(layer, channel, folder)
        has_exemplars = self._pictures is not None and (layer, channel) in self._pictured
        strongest = f"{TILES}/{folder}/{statistic}/{channel}.jpg" if has_exemplars else None
        pictures = tuple(name for name in (made, strongest) if name)
        return Neighbour(layer, channel, f"{folder}/{channel}.html", pictures)

    @cached_property
    def _pictured(self) -> set[tuple[str, int]]:
        """The channels whose strongest exemplars have a tile."""
        rows = self._run.table(["layer", "channel"], statistic=self._spec.statistics[0], sample=TOP, rank=1)
        return set(zip(rows["layer"].to_pylist(), rows["channel"].to_pylist(), strict=True))

    def _each_statistic(self, layer: Layer, statistic: str) -> Iterator[tuple[ShownStatistic, list[dict[str, Any]]]]:
        """Go through what a statistic says of each of a layer's channels, with the strongest exemplars' rows."""

        def of_channels(table: str, besides: Sequence[str] = ()) -> Iterator[pa.Table | None]:
            by_channel = self._run.each_channel(table, layer.name, statistic, besides)
            following = next(by_channel, None)
            for channel in layer.channels:
                if following is not None and following[0] == channel:
                    yield following[1]
                    following = next(by_channel, None)
                else:
                    yield None

        channel_rows = self._run.channels(layer=layer.name, statistic=statistic).to_pylist()
        exemplars = of_channels("exemplars", besides=() if self._pictures else ("image",))
        classes = of_channels("classes", besides=("class_name", "synset_name"))
        histograms = of_channels("histograms") if self._run.has_histograms else repeat(None, len(channel_rows))
        for channel_row, table, of_classes, histogram in zip(channel_rows, exemplars, classes, histograms, strict=True):
            rows = table.to_pylist() if table is not None else []
            self._take_in(rows)
            shown = self._pages.statistic(layer, statistic, channel_row, rows, of_classes, histogram)
            yield shown, [row for row in rows if row["sample"] == TOP]

    def _take_in(self, rows: Sequence[dict[str, Any]]) -> None:
        """Note what exemplars bring along: their images, and how paths name the classes."""
        for row in rows:
            if row["label"] is not None and row["synset_id"]:
                self._synset_ids.setdefault(row["label"], row["synset_id"])
            if self._pictures and row.get("image"):
                self._pictures.add(row["shard"], row["row"], row["image"]["bytes"])

    def _tile(self, layer: Layer, shown: ShownStatistic, rows: list[dict[str, Any]], visualization: str | None) -> Tile:
        pictured = [row for row in rows[: TILE_SIDE**2] if row.get("image")]
        name = None
        if self._pictures and pictured:
            name = f"{TILES}/{self._folders[layer.name]}/{shown.name}/{shown.channel_row['channel']}.jpg"
            self._pictures.write_tile(name, pictured)
        return tile_of(shown, name, len(pictured), visualization)

    def _write_overview(self, layer: Layer, statistic: str, tiles: Sequence[Tile]) -> None:
        name = self._overview_name(layer, statistic)
        root = "../" * name.count("/")
        used = {label for tile in tiles for label in [*tile.labels, tile.top_label] if label is not None}
        page = self._environment.get_template("overview.html").render(
            root=root,
            layer=layer,
            statistic=statistic,
            folder=root + self._folders[layer.name],
            tiles=tiles,
            visualized=sum(tile.visualization is not None for tile in tiles),
            classes=known_classes(self._run.plan.class_labels, used, self._synset_ids),
            layer_tabs=[(other.name, root + self._overview_name(other, statistic)) for other in self._spec.layers],
            statistic_tabs=[(other, root + self._overview_name(layer, other)) for other in self._spec.statistics],
        )
        self._write_page(name, page)

    def _overview_name(self, layer: Layer, statistic: str) -> str:
        first = layer == self._spec.layers[0] and statistic == self._spec.statistics[0]
        return INDEX if first else f"{self._folders[layer.name]}/{statistic}.html"

    def _write_page(self, name: str, page: str) -> None:
        # What came from a command line may hold what is no text.
        self._writer.write(name, page.encode(errors="replace"))
