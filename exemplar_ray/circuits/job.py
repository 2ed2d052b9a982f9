"""Circuits from end to end: of a finished run, or of a network and layers by their names."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from exemplar_ray.circuits.asked import AskedStretches, MakeSettings
from exemplar_ray.circuits.job_names import FOLDER, RESULT
from exemplar_ray.circuits.spec import CircuitOptions, CircuitsSpec, Group
from exemplar_ray.circuits.tables import FILES, SCHEMAS
from exemplar_ray.errors import UsageError, near_matches
from exemplar_ray.executor.cluster import Cluster
from exemplar_ray.executor.driver import JobOutcome, run_job
from exemplar_ray.executor.job import Context, Job, Reduced
from exemplar_ray.executor.subject import Subject
from exemplar_ray.runs.ranked import digests
from exemplar_ray.runs.run_folder import RunFolder
from exemplar_ray.runs.versions import versions

JOB = "circuits"
TASKS = "exemplar_ray.circuits.tasks"
RESOLVE = f"{TASKS}:resolve"


class CircuitsJob(Job):
    """Takes channels apart into those of the layer before."""

    name = JOB
    task = f"{TASKS}:make"
    result = RESULT
    verb = "take apart"
    counted = "channels"

    def __init__(self, spec: CircuitsSpec, run: RunFolder | None) -> None:
        self.spec, self._run = spec, run
        self.items: Sequence[Group] = spec.groups()
        self.settings = MakeSettings(spec)

    def identity(self) -> dict[str, Any]:
        """Return what decides the circuits."""
        return self.spec.identity()

    def details(self) -> dict[str, Any]:
        """Return what else `run.json` keeps."""
        spec = {**self.spec.network.kept_in("").to_json(), "statistic": self.spec.statistic}
        return {"spec": spec, "options": asdict(self.spec.options), "versions": versions()}

    def is_answered(self, summary: Mapping[str, Any]) -> bool:
        """Whether the circuits are of the result that the run has now."""
        return summary.get("of_run") == self._of_run()

    def _of_run(self) -> str | None:
        return None if self._run is None else self._run.answered()

    def reduce(self, context: Context) -> Reduced:
        """Put the tables together, in the order of the groups."""
        rows = dict.fromkeys(SCHEMAS, 0)
        with ExitStack() as stack:
            writers = {
                table: stack.enter_context(
                    pq.ParquetWriter(
                        stack.enter_context(context.folder.writing(file)), SCHEMAS[table], compression="zstd"
                    )
                )
                # What is opened last is there first: the result, with which the run is answered, last.
                for table, file in reversed(FILES.items())
            }
            for _, files in context.parts():
                for table, writer in writers.items():
                    part = pq.read_table(pa.BufferReader(files[f"{table}.parquet"]))
                    rows[table] += len(part)
                    if len(part):
                        writer.write_table(part)
        return Reduced(
            summary={"edges": rows["edges"], "of_run": self._of_run(), "statistic": self.spec.statistic},
            lines=[f"{rows['edges']:,} edges of {rows['channels']:,} channels"],
        )

    def steps(self, item: Group) -> int:
        """Return how many channels a group has."""
        return len(item.channels)

    def announce(self, cluster: Cluster) -> Sequence[str]:
        """Say what is taken apart into what."""
        lines = [self.spec.network.title]
        for stretch in self.spec.stretches:
            through = f", after {', '.join(stretch.through)}" if stretch.through else ""
            lines.append(
                f"{stretch.layer}: {len(stretch.channels)} channels, made of the {stretch.inputs} of "
                f"{stretch.from_layer}{through}; {', '.join(stretch.kinds)}"
            )
        return lines


def circuits(
    subject: Subject,
    out: str,
    options: CircuitOptions,
    cluster: Cluster,
    console: Console,
    statistic: str | None = None,
) -> JobOutcome:
    """Make the circuits, or those that are lacking.

    Args:
        subject: see `executor.subject`.
        out: where: a run folder of its own.
        statistic: of the subject's, by which the exemplars are meant; the first if None.

    Raises:
        UsageError: something that was asked for cannot be done; nothing was computed.
    """
    started = time.monotonic()
    if subject.network.takes_labels:
        raise UsageError("there are no circuits of a network that is given labels")
    run = subject.run
    if run is not None:
        statistic = statistic or subject.statistics[0]
        if statistic not in subject.statistics:
            raise UsageError(f"the run has no statistic '{statistic}'; {near_matches(statistic, subject.statistics)}")
    asked = AskedStretches(subject.network, options, run is not None)
    stretches = cluster.call(f"{TASKS}:find", asked, "the network cannot be taken apart")
    spec = CircuitsSpec(
        subject.network,
        stretches,
        options,
        statistic if run is not None else None,
        None if run is None else run.full_uri,
        None if run is None or statistic is None else _digest(run, subject, statistic),
    )
    return run_job(CircuitsJob(spec, run), out, cluster, console, started)


def _digest(run: RunFolder, subject: Subject, statistic: str) -> str:
    """Return a SHA-256 (hex) of which images the exemplars of the wanted channels are."""
    of_layers = {layer.name: digests(run, layer.name, statistic) for layer in subject.network.layers}
    return hashlib.sha256(repr(of_layers).encode()).hexdigest()


def below(run: str) -> str:
    """Return where the circuits of a run are."""
    return f"{run.rstrip('/')}/{FOLDER}"
