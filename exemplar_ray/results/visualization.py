"""The feature visualisations of a finished run: the pictures of a channel, and what they are worth."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pyarrow.parquet as pq
from PIL import Image

from exemplar_ray.errors import UsageError
from exemplar_ray.results.worth import explained, warning_of, worth_of
from exemplar_ray.runs.run_folder import SUMMARY, RunFolder
from exemplar_ray.visualize.job_names import FOLDER, RESULT


class Visualization(dict):
    """One row of `visualizations.parquet`, with its picture.

    Attributes:
        trained: whether the network is.
    """

    trained = True

    @property
    def picture(self) -> Image.Image:
        """The picture, RGB.

        Raises:
            UsageError: the run was published without images.
        """
        if self["image"] is None:
            raise UsageError("this result was published without its images")
        return Image.open(io.BytesIO(self["image"]["bytes"])).convert("RGB")

    @property
    def how_made(self) -> str:
        """How it was made, in words."""
        how = f"{self['objective']}, {self['parameterization']}"
        return f"{how}, {self['size']} pixels, {self['steps']} steps, seed {self['seed']}"

    @property
    def worth(self) -> str:
        """What it is worth beside real images, in a line; "" without a run."""
        return worth_of(self)

    @property
    def explained(self) -> list[str]:
        """What else is known of it, in sentences."""
        return explained(self)

    @property
    def warning(self) -> str | None:
        """Why it is not to be trusted; None if nothing speaks against it."""
        return warning_of(self, self.trained)


class Visualizations:
    """The pictures of a run, if there are any of this very result.

    Args:
        run: the run's folder.
    """

    def __init__(self, run: RunFolder) -> None:
        self._folder = RunFolder(f"{run.uri.rstrip('/')}/{FOLDER}")
        of_run = (run.read_json(SUMMARY) or {}).get("fingerprint")
        summary = self._folder.read_json(SUMMARY) or {}
        self.exist = summary.get("of_run") == of_run is not None and self._folder.exists(RESULT)
        """Whether there are any."""
        self.statistic: str | None = summary.get("statistic") if self.exist else None
        """What they are made for."""
        made = self._folder.read_run() if self.exist else {}
        self.trained: bool = made.get("spec", {}).get("trained", True)
        """Whether the network is."""
        self.seed: int = made.get("identity", {}).get("picture_seed", 0)
        """The first one."""

    def open(self) -> pq.ParquetFile:
        """Open the table."""
        return pq.ParquetFile(self._folder.open(RESULT))

    def of_channel(self, layer: str, channel: int, statistic: str) -> list[Visualization]:
        """Return a channel's pictures; none where they are made for another statistic."""
        return self.of_channels(layer, [channel], statistic).get(channel, [])

    def of_channels(self, layer: str, channels: Sequence[int], statistic: str) -> dict[int, list[Visualization]]:
        """Return {channel: its pictures} of those that have any; see `of_channel`."""
        found: dict[int, list[Visualization]] = {}
        if statistic != self.statistic:
            return found
        with self._folder.open(RESULT) as file:
            which = [("layer", "=", layer), ("channel", "in", list(channels))]
            rows = [Visualization(row) for row in pq.read_table(file, filters=which).to_pylist()]
        for row in rows:
            row.trained = self.trained
            found.setdefault(row["channel"], []).append(row)
        return found
