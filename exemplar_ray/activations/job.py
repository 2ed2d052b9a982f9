"""The activations from end to end: of a finished run's network and images, or of those that the user names."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from exemplar_ray.activations import moments_table
from exemplar_ray.activations.asked import StoreSettings, ToResolve
from exemplar_ray.activations.job_names import FOLDER, INDEX, MOMENTS, WHOLE, folder_of
from exemplar_ray.activations.spec import ActivationOptions, ActivationsSpec
from exemplar_ray.data.chosen import Chosen
from exemplar_ray.data.contents import why_done_anew
from exemplar_ray.data.data_set import refuse_unlabelled
from exemplar_ray.data.formats.registry import describe
from exemplar_ray.data.planned_images import PlannedImages, planned_images
from exemplar_ray.data.preprocess import DECODERS, GPU_DECODER
from exemplar_ray.data.shard import Shard, to_question_with
from exemplar_ray.data.subset import Wanted
from exemplar_ray.errors import UsageError
from exemplar_ray.executor.cluster import Cluster
from exemplar_ray.executor.driver import JobOutcome, run_job
from exemplar_ray.executor.job import Context, Job, Reduced
from exemplar_ray.network.questions import Answers, KnownNetwork
from exemplar_ray.network.spec import NetworkRequest, NetworkSpec
from exemplar_ray.network.statistics import refuse_missing_class_token
from exemplar_ray.runs.manifest import RUN
from exemplar_ray.runs.records import CompletionRecord
from exemplar_ray.runs.run_folder import RunFolder, part_file
from exemplar_ray.runs.versions import versions
from exemplar_ray.storage.hub_uri import refuse_writing

JOB = "activations"
TASKS = "exemplar_ray.activations.tasks"

INDEX_SCHEMA = pa.schema(
    [
        ("layer", pa.string()),
        ("pool", pa.string()),
        ("shard", pa.string()),
        ("file", pa.string()),
        ("first_row", pa.int64()),
        ("rows", pa.int64()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
    ]
)
"""A row a file, in the order of a layer's rows: `first_row` counts from the store's first."""


@dataclass(frozen=True)
class Subject:
    """What activations are stored of: a network, and images."""

    network: NetworkRequest | KnownNetwork
    images: PlannedImages
    statistics: tuple[str, ...] = ()
    """Of the run that it is of."""
    notes: tuple[str, ...] = ()
    """What was noticed when the data were listed."""


def of_run(uri: str) -> Subject:
    """Take network, layers and images from a run folder.

    Raises:
        UsageError: there is no run, or it is of a job without a network or without images.
    """
    folder = RunFolder(uri)
    values = folder.read_run()
    spec, shards, questions = values.get("spec"), values.get("shards"), values.get("questions")
    if not isinstance(spec, Mapping) or "weights_sha256" not in spec or not shards or not questions:
        raise UsageError(f"'{uri}' names no network and images; give --model, --layer, --data and --out instead of it")
    network = KnownNetwork(NetworkSpec.from_json(spec).kept_in(folder.full_uri), Answers.from_json(questions))
    return Subject(network, PlannedImages.from_json(values), tuple(spec.get("statistics", ())))


def of_data(
    network: NetworkRequest,
    data: Sequence[str],
    out: str,
    columns: Chosen,
    wanted: Wanted,
    class_labels: str | None = None,
) -> Subject:
    """Take what the user names, in the words of the keys of a run.

    Args:
        data: see `data.shards.discover`.
        out: the store; one that is there says at which commits repositories on the Hub are read.

    Raises:
        UsageError: the data or the file of class names cannot be had.
    """
    images, notes = planned_images(data, columns, wanted, class_labels, RunFolder(out).read_json(RUN) or {})
    return Subject(network, images, notes=tuple(notes))


class ActivationsJob(Job):
    """Stores the activations of every image of every shard."""

    name = JOB
    task = f"{TASKS}:store"
    result = INDEX
    compare = "exemplar_ray.data.contents:difference"
    verb = "store"

    def __init__(self, spec: ActivationsSpec, images: PlannedImages, answers: Answers, settings: StoreSettings) -> None:
        self.spec, self.settings = spec, settings
        self.items: Sequence[Shard] = images.shards
        self._images, self._answers = images, answers

    def identity(self) -> dict[str, Any]:
        """Return what decides what is stored."""
        return {**self.spec.identity(), **self._images.identity()}

    def details(self) -> dict[str, Any]:
        """Return what else `run.json` keeps."""
        return {
            "spec": self.spec.to_json(),
            "versions": versions(),
            **self._images.to_json(),
            "questions": self._answers.to_json(),
        }

    def reduce(self, context: Context) -> Reduced:
        """Merge the moments, in the order of the shards, and say which rows are in which file."""
        merged: dict[tuple[str, str], Any] = {}
        for _, files in context.parts(only={MOMENTS}):
            merged = moments_table.merged(merged, moments_table.from_parquet(files[MOMENTS]))
        context.folder.write(MOMENTS, moments_table.to_parquet(merged))
        with context.folder.writing(INDEX) as path:
            pq.write_table(self._index(context), path, compression="zstd")
        records: list[CompletionRecord] = list(context.completed.values())
        scored = sum(record.facts["scored"] for record in records)
        skipped = sum(record.facts["skipped"] for record in records)
        unusual = [{"shard": record.item["name"], **one} for record in records for one in record.facts["unusual"]]
        stored = sum(of.bytes for record in records for of in record.files.values())
        lines = [f"{scored:,} images, {stored / 1e6:,.1f} MB" + (f"; {skipped:,} skipped" if skipped else "")]
        lines += [_said_of(one) for one in unusual]
        return Reduced(summary={"images": scored, "skipped": skipped, "unusual": unusual}, lines=lines)

    def _index(self, context: Context) -> pa.Table:
        rows = []
        for stored in self.spec.stored:
            first, ending = 0, f"{folder_of(stored.folder, stored.pool)}/parquet"
            for position, record in context.completed.items():
                rows.append(
                    {
                        "layer": stored.layer.name,
                        "pool": stored.pool,
                        "shard": self.items[position].name,
                        "file": part_file(position, ending),
                        "first_row": first,
                        "rows": record.facts["scored"],
                        **record.files[ending]._asdict(),
                    }
                )
                first += record.facts["scored"]
        return pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)

    def difference(self, before: CompletionRecord, after: CompletionRecord) -> str | None:
        """Say whether a shard that was stored anew had changed, or had been stored wrongly."""
        contents = (before.facts.get("contents"), after.facts.get("contents"))
        return why_done_anew(after.item.get("format"), *contents, f"{before.host} stored it wrongly")

    def announce(self, cluster: Cluster) -> Sequence[str]:
        """Say what is stored."""
        lines = [self.spec.network.title]
        for stored in self.spec.stored:
            what = "whole maps" if stored.pool == WHOLE else stored.pool
            size = " x ".join(map(str, stored.shape))
            lines.append(f"{stored.layer.name}, {what}: {size} {self.spec.dtype} an image")
        return [*lines, *self.spec.network.said_of_labels(), *self._answers.news(), *describe(self.items)]


def _said_of(unusual: Mapping[str, Any]) -> str:
    where = f"{unusual['shard']}: '{unusual['layer']}' ({unusual['pool']})"
    parts = [f"{unusual['not_finite']} images gave NaN or infinity"] if unusual["not_finite"] else []
    parts += [f"{unusual['overflowed']} activations became infinity"] if unusual["overflowed"] else []
    return f"{where}: {', '.join(parts)}"


def activations(
    subject: Subject,
    out: str,
    options: ActivationOptions,
    cluster: Cluster,
    console: Console,
    decode: str = DECODERS[0],
    max_skipped: int = 0,
) -> JobOutcome:
    """Store the activations of every image, or of those shards that are lacking.

    Args:
        out: where: a run folder of its own, the store.
        decode: see `preprocess.DECODERS`.
        max_skipped: undecodable images that a shard may have before it fails.

    Raises:
        UsageError: something that was asked for cannot be done; nothing was computed.
    """
    started = time.monotonic()
    refuse_writing(out)
    if decode == GPU_DECODER and not cluster.demand.gpus:
        raise UsageError("decode gpu needs a GPU a task, and there is none; give --gpus-per-task, or --decode fast")
    known = _known(subject, options, RunFolder(out), cluster)
    if known.spec.takes_labels:
        refuse_unlabelled(subject.images.shards)
    spec = ActivationsSpec(known.spec, options.pool, options.dtype, decode)
    settings = StoreSettings(
        spec,
        subject.images.class_labels,
        threads=cluster.demand.cpus,
        use_gpu=cluster.demand.gpus > 0,
        max_skipped=max_skipped,
        allow_overflow=options.allow_overflow,
    )
    return run_job(ActivationsJob(spec, subject.images, known.answers, settings), out, cluster, console, started)


def _known(subject: Subject, options: ActivationOptions, store: RunFolder, cluster: Cluster) -> KnownNetwork:
    """Return the network as it was questioned: by the run, by an earlier invocation, or now."""
    statistics = tuple(pool for pool in options.pool if pool != WHOLE)
    if isinstance(subject.network, KnownNetwork):
        refuse_missing_class_token(statistics, subject.network.spec.layers)
        return subject.network
    before = store.read_json(RUN) or {}
    known = None
    if before.get("job") == JOB and before.get("questions"):
        known = KnownNetwork(NetworkSpec.from_json(before["spec"]), Answers.from_json(before["questions"]))
    request = subject.network if cluster.brings_working_folder else subject.network.with_whole_paths()
    shards = subject.images.shards
    cluster.prepare(f"{TASKS}:import_library", (request.model, request.weights), len(shards))
    given = ToResolve(request, statistics, to_question_with(shards), known)
    return cluster.call(f"{TASKS}:resolve", given, "the model cannot be built")


def below(run: str) -> str:
    """Return where the activations of a run are."""
    return f"{run.rstrip('/')}/{FOLDER}"
