"""The feature visualisations of a finished run: the pictures of a channel, and what they are worth."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from exemplar_ray.errors import UsageError
from exemplar_ray.network.spec import NetworkSpec
from exemplar_ray.results.notebook_html import visualizations_html
from exemplar_ray.results.worth import explained, warning_of, worth_of
from exemplar_ray.runs.run_folder import SUMMARY, RunFolder
from exemplar_ray.visualize.job_names import FOLDER, RESULT

# So many pictures show themselves in a notebook.
_MOST_SHOWN = 24


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
    """The pictures in a folder, if there are any of the very result that they are to be of. Shows itself in a notebook.

    Args:
        folder: the run folder of the job that made them.
        of_run: the fingerprint of the run that they stand beside; None where they are of a network alone.
    """

    def __init__(self, folder: RunFolder, of_run: str | None = None) -> None:
        self._folder = folder
        summary = folder.read_json(SUMMARY) or {}
        self.exist = "pictures" in summary and summary.get("of_run") == of_run and folder.exists(RESULT)
        """Whether there are any."""
        self.statistic: str | None = summary.get("statistic") if self.exist else None
        """What they are made for."""
        made = self._folder.read_run() if self.exist else {}
        self.trained: bool = made.get("spec", {}).get("trained", True)
        """Whether the network is."""
        self.seed: int = made.get("identity", {}).get("picture_seed", 0)
        """The first one."""

    @classmethod
    def of_run(cls, run: RunFolder) -> Visualizations:
        """Look for the pictures of a run, which are below its folder."""
        return cls(RunFolder(f"{run.uri.rstrip('/')}/{FOLDER}"), run.answered() or "")

    @property
    def uri(self) -> str:
        """Where they are."""
        return self._folder.uri

    @contextmanager
    def open(self) -> Iterator[pq.ParquetFile]:
        """Open the table, for the time of a `with` block."""
        with self._folder.open(RESULT) as file:
            yield pq.ParquetFile(file)

    def table(self) -> pa.Table:
        """Return what is known of each picture, without the pictures: `.to_pandas()`, or `polars.from_arrow(...)`.

        Raises:
            UsageError: there are none.
        """
        if not self.exist:
            raise UsageError(f"'{self.uri}' has no pictures of this result; make them with exemplar-ray visualize")
        with self.open() as parquet:
            return parquet.read([name for name in parquet.schema_arrow.names if name != "image"])

    def of_channel(self, layer: str, channel: int, statistic: str | None = None) -> list[Visualization]:
        """Return a channel's pictures.

        Args:
            statistic: none are returned where they are made for another one; None for whichever.
        """
        return self.of_channels(layer, [channel], statistic).get(channel, [])

    def of_channels(
        self, layer: str, channels: Sequence[int], statistic: str | None = None
    ) -> dict[int, list[Visualization]]:
        """Return {channel: its pictures} of those that have any; see `of_channel`."""
        found: dict[int, list[Visualization]] = {}
        if not self.exist or statistic not in (None, self.statistic):
            return found
        with self._folder.open(RESULT) as file:
            which = [("layer", "=", layer), ("channel", "in", list(channels))]
            rows = [Visualization(row) for row in pq.read_table(file, filters=which).to_pylist()]
        for row in rows:
            row.trained = self.trained
            found.setdefault(row["channel"], []).append(row)
        return found

    def __repr__(self) -> str:
        return f"<{len(self.table())} pictures, {self.uri}>" if self.exist else f"<no pictures, {self.uri}>"

    def _repr_html_(self) -> str:
        if not self.exist:
            return visualizations_html(repr(self), True, [], 0)
        network = NetworkSpec.from_json(self._folder.read_run()["spec"])
        first, more = self._first_of_channels()
        title = f"{network.model_title}, {network.weights_title}; {self.statistic}"
        return visualizations_html(title, network.trained, first, more)

    def _first_of_channels(self) -> tuple[list[Visualization], int]:
        """Return the first picture of each of the first channels, and how many more channels there are."""
        with self.open() as parquet:
            first: dict[tuple[str, int], Visualization] = {}
            for group in range(parquet.num_row_groups):
                columns = ["layer", "channel"] if len(first) >= _MOST_SHOWN else None
                for row in parquet.read_row_group(group, columns=columns).to_pylist():
                    first.setdefault((row["layer"], row["channel"]), Visualization(row))
        shown = list(first.values())[:_MOST_SHOWN]
        return shown, len(first) - len(shown)
