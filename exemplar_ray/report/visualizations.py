"""Feature visualisations on a run's pages: each channel's pictures, beside its exemplars, and what they are worth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby
from typing import Any

from exemplar_ray.report.pictures import TILES, reduced_to_tile
from exemplar_ray.report.writer import ReportWriter
from exemplar_ray.results.choice import may_hold
from exemplar_ray.results.stored_table import statistics_of
from exemplar_ray.results.visualization import Visualizations
from exemplar_ray.results.worth import explained, warning_of, worth_of

PICTURES = "visualizations"
"""The folder of the pages that they are in."""

_TITLES = {
    "channel": "What it looks for",
    "neuron": "What its middle unit looks for",
    "channel-": "What it says no to",
    "neuron-": "What its middle unit says no to",
}
_NUMBERED = {"diverse": "Another way, {}", "facet": "One thing it is about, {}"}


@dataclass(frozen=True)
class ShownPicture:
    """A picture as a channel's page shows it."""

    row: dict[str, Any]
    """Its row of `visualizations.parquet`, without the image."""
    title: str
    name: str | None
    """Below the report's folder; None on pages without images."""
    tile: str | None
    """The name of a small copy for the overview, which a channel's first picture has."""
    worth: str
    """What it is worth, in words."""
    warning: str | None
    """Why it is not to be trusted."""
    explained: list[str]
    """What else is known of it, in sentences."""


class ShownVisualizations:
    """The pictures of a run, as its pages show them.

    Args:
        visualizations: what there is.
        writer: of the pages; None to write no pictures.
    """

    def __init__(self, visualizations: Visualizations, writer: ReportWriter | None) -> None:
        self._writer, self._visualizations = writer, visualizations
        self.statistic = visualizations.statistic
        """What they are made for; None where there are none."""

    def of_layer(self, layer: str, folder: str) -> Iterator[tuple[int, list[ShownPicture]]]:
        """Yield each channel that has pictures, ascending, and these; each is written once.

        Args:
            folder: of the layer's pictures, below those of all.
        """
        if not self._visualizations.exist:
            return
        with self._visualizations.open() as parquet:
            names = parquet.schema_arrow.names
            columns = names if self._writer else [name for name in names if name != "image"]
            known = statistics_of(parquet, "layer")
            rows = (
                row
                for group in range(parquet.num_row_groups)
                if may_hold(known[group], [layer])
                for row in parquet.read_row_group(group, columns=columns).to_pylist()
                if row["layer"] == layer
            )
            for channel, of_channel in groupby(rows, key=lambda row: int(row["channel"])):
                yield channel, [self._shown(row, folder, number == 0) for number, row in enumerate(of_channel)]

    def tile(self, layer: str, channel: int, folder: str) -> str | None:
        """Return the name of a channel's small picture, written or yet to be; None where it has none.

        Args:
            folder: as in `of_layer`.
        """
        return _tile_name(folder, channel) if self._writer and (layer, channel) in self._pictured else None

    @cached_property
    def _pictured(self) -> set[tuple[str, int]]:
        if not self._visualizations.exist:
            return set()
        with self._visualizations.open() as parquet:
            rows = parquet.read(["layer", "channel"])
        return set(zip(rows["layer"].to_pylist(), rows["channel"].to_pylist(), strict=True))

    def _shown(self, row: dict[str, Any], folder: str, first: bool) -> ShownPicture:
        name, tile, image = None, None, row.pop("image", None)
        if self._writer and image:
            name = f"{PICTURES}/{folder}/{row['channel']}{row['objective']}{self._seed(row)}.png"
            self._writer.write(name, image["bytes"])
            if first:
                tile = _tile_name(folder, row["channel"])
                self._writer.write(tile, partial(reduced_to_tile, image["bytes"]))
        warning = warning_of(row, self._visualizations.trained)
        return ShownPicture(row, title_of(row), name, tile, worth_of(row), warning, explained(row))

    def _seed(self, row: dict[str, Any]) -> str:
        """Return what tells a picture's file from that of another seed."""
        return "" if row["seed"] == self._visualizations.seed else f"-seed{row['seed']}"


def _tile_name(folder: str, channel: int) -> str:
    return f"{TILES}/{folder}/{PICTURES}/{channel}.jpg"


def title_of(row: dict[str, Any]) -> str:
    """Say what a picture is."""
    kind, _, number = row["objective"].rpartition("-")
    return _TITLES.get(row["objective"]) or _NUMBERED[kind].format(number)
