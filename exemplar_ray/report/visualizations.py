"""Feature visualisations on a run's pages: each channel's pictures, beside its exemplars, and what they are worth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

from exemplar_ray.report.pictures import TILES, reduced_to_tile
from exemplar_ray.report.writer import ReportWriter
from exemplar_ray.results.choice import may_hold
from exemplar_ray.results.stored_table import statistics_of
from exemplar_ray.results.visualization import Visualizations

PICTURES = "visualizations"
"""The folder of the pages that they are in."""

_TITLES = {
    "channel": "What it looks for",
    "neuron": "What its middle unit looks for",
    "channel-": "What it says no to",
    "neuron-": "What its middle unit says no to",
}
# Below that, a picture does not hold what it promises.
_LEAST_ROBUST = 0.5
_FIRST = 1


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

    def _shown(self, row: dict[str, Any], folder: str, first: bool) -> ShownPicture:
        name, tile, image = None, None, row.pop("image", None)
        if self._writer and image:
            name = f"{PICTURES}/{folder}/{row['channel']}{row['objective']}.png"
            self._writer.write(name, image["bytes"])
            if first:
                tile = f"{TILES}/{folder}/{PICTURES}/{row['channel']}.jpg"
                self._writer.write(tile, partial(reduced_to_tile, image["bytes"]))
        return ShownPicture(row, title_of(row), name, tile, worth_of(row), warning_of(row))


def title_of(row: dict[str, Any]) -> str:
    """Say what a picture is."""
    return _TITLES.get(row["objective"]) or f"Another way, {row['objective'].rpartition('-')[2]}"


def worth_of(row: dict[str, Any]) -> str:
    """Say what a picture is worth beside real images."""
    if row["ratio_to_top"] is None:
        return ""
    if row["objective"].endswith("-"):
        return f"of {row['percentile']:.0f} % of the images the channel makes less"
    best = row["ratio_to_top"]
    said = f"{best:.1f} times the strongest image" if best >= 1 else f"{100 * best:.0f} % of the strongest image"
    rank = row["target_rank"]
    return f"{said}; {'no channel answers more' if rank == _FIRST else f'{rank - 1} channels answer more'}"


def warning_of(row: dict[str, Any]) -> str | None:
    """Say why a picture is not to be trusted; None if nothing speaks against it."""
    if row["grey"]:
        return "it stayed grey, from whatever start: nothing is known of what excites this channel"
    if row["objective"].endswith("-"):
        return None
    if row["ratio_to_top"] is not None and row["ratio_to_top"] < 1:
        return "real images excite the channel more"
    if row["activation_pre_relu"] > 0 and row["robust_activation"] < _LEAST_ROBUST * row["activation_pre_relu"]:
        return "little of it is left once it is moved or turned a little"
    if row["target_rank"] is not None and row["target_rank"] > _FIRST:
        return "other channels answer more to it than this one does"
    return None
