"""The visualisations from end to end: of a finished run, or of a network and a layer by their names."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from exemplar_ray.errors import UsageError, near_matches
from exemplar_ray.executor.cluster import Cluster
from exemplar_ray.executor.driver import JobOutcome, run_job
from exemplar_ray.executor.job import Context, Job, Reduced
from exemplar_ray.executor.subject import Subject
from exemplar_ray.network.layers import Layer
from exemplar_ray.runs.ranked import digests
from exemplar_ray.runs.run_folder import RunFolder
from exemplar_ray.runs.versions import versions
from exemplar_ray.visualize.asked import MakeSettings
from exemplar_ray.visualize.job_names import FOLDER, RESULT
from exemplar_ray.visualize.pictures_table import SCHEMA, RealImages, real_images, rows_of, small_pictures
from exemplar_ray.visualize.spec import DEFAULT_SIZE, MACO, OBJECTIVES, Group, PictureOptions, PicturesSpec
from exemplar_ray.visualize.spectrum import sha256_of, spectrum_of

JOB = "visualizations"
TASKS = "exemplar_ray.visualize.tasks"
RESOLVE = f"{TASKS}:resolve"


class VisualizationsJob(Job):
    """Makes pictures, and puts them beside what real images do."""

    name = JOB
    task = f"{TASKS}:make"
    result = RESULT
    verb = "visualize"
    counted = "pictures"

    def __init__(
        self, spec: PicturesSpec, run: RunFolder | None, use_gpu: bool, spectrum: np.ndarray | None = None
    ) -> None:
        self.spec, self._run = spec, run
        exemplars = {}
        if run is not None and spec.options.facets:
            exemplars = {layer.name: _exemplars(run, layer, spec) for layer in spec.network.layers}
        self.items: Sequence[Group] = spec.groups(use_gpu, exemplars)
        self.settings = MakeSettings(spec, use_gpu, None if run is None else run.full_uri, spectrum)

    def identity(self) -> dict[str, Any]:
        """Return what decides the pictures."""
        # Not half of them by one arithmetic, half by another: nor are they made in the same groups.
        return {**self.spec.identity(), "device": "gpu" if self.settings.use_gpu else "cpu"}

    def details(self) -> dict[str, Any]:
        """Return what else `run.json` keeps."""
        spec = {**self.spec.network.kept_in("").to_json(), "statistic": self.spec.statistic, "size": self.spec.size}
        return {"spec": spec, "options": asdict(self.spec.options), "versions": versions()}

    def is_answered(self, summary: Mapping[str, Any]) -> bool:
        """Whether the pictures stand beside the real images that the run has now."""
        return summary.get("of_run") == self._of_run()

    def _of_run(self) -> str | None:
        return None if self._run is None else self._run.answered()

    def reduce(self, context: Context) -> Reduced:
        """Put the pictures together, with what they are worth beside real images."""
        spec = self.spec
        real: dict[str, RealImages] = {}
        if self._run is not None:
            real = {layer.name: real_images(self._run, layer.name, spec.statistic) for layer in spec.network.layers}
        pictures, best, grey = 0, 0, []
        with context.folder.writing(RESULT) as path, pq.ParquetWriter(path, SCHEMA, compression="none") as writer:
            for rows in self._by_channel(context, real):
                writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
                pictures += len(rows)
                best += sum((row["ratio_to_top"] or 0) > 1 for row in rows if not row["objective"].endswith("-"))
                grey += [f"{row['layer']}:{row['channel']} {row['objective']}" for row in rows if row["grey"]]
        lines = [f"{pictures:,} pictures of {spec.size} x {spec.size} pixels"]
        if real:
            lines.append(f"{best:,} of them excite their channel more than every real image")
        if grey:
            lines.append(f"{len(grey)} stayed grey, from whatever start: {', '.join(grey[:5])}")
        return Reduced(
            summary={"pictures": pictures, "grey": grey, "of_run": self._of_run(), "statistic": spec.statistic},
            lines=lines,
        )

    def _by_channel(self, context: Context, real: Mapping[str, RealImages]) -> Iterator[list[dict[str, Any]]]:
        """Yield the result's rows, a few channels at a time, each channel's together."""
        of_few: list[dict[str, Any]] = []
        for position, files in context.parts():
            if self.items[position].objective == self.spec.objective and of_few:
                yield sorted(of_few, key=_place)
                of_few = []
            of_few += rows_of(files["parquet"], self.spec, real)
        if of_few:
            yield sorted(of_few, key=_place)

    def steps(self, item: Any) -> int:
        """Return how many pictures a group is."""
        return len(item.channels) * self.spec.pictures_a_channel(item)

    def glimpse(self, part: Mapping[str, bytes]) -> Sequence[tuple[str, bytes]]:
        """Return the pictures of a part, small."""
        return small_pictures(part["parquet"])

    def announce(self, cluster: Cluster) -> Sequence[str]:
        """Say what is made."""
        spec = self.spec
        kinds = sorted({group.objective for group in spec.groups()})
        return [
            spec.network.title,
            *(f"layer {layer.name}: {len(layer.channels)} channels" for layer in spec.network.layers),
            f"{', '.join(kinds)}; {spec.options.parameterization}, {spec.size} x {spec.size} pixels, "
            f"{spec.options.steps} steps, seed {spec.options.picture_seed}; by {spec.statistic}",
        ]


def _exemplars(run: RunFolder, layer: Layer, spec: PicturesSpec) -> dict[int, str]:
    """Return {channel: what tells its exemplars from others}.

    Raises:
        UsageError: a channel has fewer exemplars than facets.
    """
    known = digests(run, layer.name, spec.statistic)
    for channel in layer.channels:
        count, _ = known.get(channel, (0, ""))
        if count < spec.options.facets:
            raise UsageError(
                f"channel {channel} of '{layer.name}' has {count} exemplars, which make no {spec.options.facets} "
                "facets; give fewer facets, or leave it out of --channels"
            )
    return {channel: digest for channel, (_, digest) in known.items()}


def _place(row: Mapping[str, Any]) -> tuple[str, int]:
    # Within a channel the order is that of the groups: sorting keeps it.
    return row["layer"], row["channel"]


def visualize(
    subject: Subject,
    out: str,
    options: PictureOptions,
    cluster: Cluster,
    console: Console,
    statistic: str | None = None,
) -> JobOutcome:
    """Make the pictures, or those that are lacking.

    Args:
        subject: see `executor.subject`.
        out: where: a run folder of its own.
        statistic: of the subject's, what pictures are made for; the first if None.

    Raises:
        UsageError: something that was asked for cannot be done; nothing was computed.
    """
    started = time.monotonic()
    spec, spectrum = _settled(subject, options, statistic), None
    if options.parameterization == MACO:
        spectrum = spectrum_of(subject.run)
        spec = replace(spec, spectrum_sha256=sha256_of(spectrum))
    job = VisualizationsJob(spec, subject.run, cluster.demand.gpus > 0, spectrum)
    return run_job(job, out, cluster, console, started)


def _settled(subject: Subject, options: PictureOptions, statistic: str | None) -> PicturesSpec:
    statistic = statistic or subject.statistics[0]
    if statistic not in subject.statistics:
        raise UsageError(f"the run has no statistic '{statistic}'; {near_matches(statistic, subject.statistics)}")
    if statistic not in OBJECTIVES:
        raise UsageError(
            f"no picture can be made for the statistic '{statistic}'; {near_matches(statistic, OBJECTIVES)}"
        )
    network, crop = subject.network, subject.network.preprocess.crop
    if network.takes_labels:
        raise UsageError("there are no pictures for a network that is given labels: which, would have to be chosen")
    size = options.size or (crop if subject.other_size else min(DEFAULT_SIZE, crop))
    if subject.other_size and size != crop:
        raise UsageError(
            f"the network takes images of {crop} x {crop} pixels only ({subject.other_size}); leave out --size"
        )
    if options.facets and subject.run is None:
        raise UsageError("facets are found among the exemplars of a finished run; give RUN in place of --model")
    of_run = None if subject.run is None else subject.run.read_run()["fingerprint"]
    return PicturesSpec(network, statistic, options, size, of_run if options.facets else None)


def below(run: str) -> str:
    """Return where the pictures of a run are."""
    return f"{run.rstrip('/')}/{FOLDER}"
