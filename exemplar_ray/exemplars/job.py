"""The job from end to end: list the shards, resolve the spec, and let the driver do the rest."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from rich.console import Console

from exemplar_ray.data.data_set import refuse_unlabelled
from exemplar_ray.data.planned_images import planned_images
from exemplar_ray.data.preprocess import GPU_DECODER
from exemplar_ray.data.shard import Shard, to_question_with
from exemplar_ray.errors import UsageError
from exemplar_ray.executor.cluster import Cluster
from exemplar_ray.executor.driver import JobOutcome, reduce_job, run_job
from exemplar_ray.executor.progress import say
from exemplar_ray.executor.resources import Resources
from exemplar_ray.exemplars.plan import EXEMPLARS, JOB, Plan, images_wanted
from exemplar_ray.exemplars.scan_job import TASKS
from exemplar_ray.exemplars.spec import RunOptions, RunSpec, columns_chosen
from exemplar_ray.exemplars.to_resolve import Resolved, ToResolve
from exemplar_ray.network.questions import KnownNetwork
from exemplar_ray.runs.manifest import RUN
from exemplar_ray.runs.run_folder import RunFolder
from exemplar_ray.runs.versions import versions
from exemplar_ray.storage.hub_uri import refuse_writing

# What answers from the parts takes a tenth of a second to import, which a Ray of our own takes longer to start.
_WITH_ANSWER = "exemplar_ray.exemplars.exemplars_job"


def run(
    spec: RunSpec,
    data: Sequence[str],
    out: str,
    resources: Resources,
    console: Console,
    options: RunOptions | None = None,
) -> JobOutcome:
    """Run or rerun the job: scan the shards that have no part, then merge and gather.

    Where shards fail there is no answer yet: the parts stay, and running again goes on.

    Args:
        spec: what to compute.
        data: shards: files, folders or globs, or data sets on the Hub, see `shards.discover`.
        out: the run folder, local or remote.
        resources: where and how fast to compute.
        console: where progress is shown.
        options: what else the run is told.

    Raises:
        UsageError: something that was asked for cannot be done; nothing was computed.
    """
    started = time.monotonic()
    options = options or RunOptions()
    refuse_writing(out)
    before = RunFolder(out).read_json(RUN) or {}
    images, notes = planned_images(data, columns_chosen(spec), images_wanted(spec), options.class_labels, before)
    for line in notes:
        say(console, line)
    with Cluster(resources, options.log_level, partial(say, console), _WITH_ANSWER) as cluster:
        resolved = resolve_spec(cluster, spec, images.shards, _known_network(before))
        from exemplar_ray.exemplars.exemplars_job import ExemplarsJob
        from exemplar_ray.exemplars.room_for_maps import refuse_more_maps_than_room

        plan = Plan(
            resolved.spec,
            images.shards,
            images.class_labels,
            versions(),
            dict(images.revisions),
            resolved.answers,
            images.subset,
        )
        refuse_more_maps_than_room(plan, lambda: RunFolder(out).exists(EXEMPLARS))
        job = ExemplarsJob(plan, cluster, options.max_skipped, options.settle)
        return run_job(job, out, cluster, console, started)


def merge(
    out: str,
    resources: Resources,
    console: Console,
    allow_partial: bool = False,
    options: RunOptions | None = None,
) -> JobOutcome:
    """Merge and gather what a run folder has, without scanning.

    Args:
        out: the run folder, local or remote.
        resources: where and how fast to compute.
        console: where progress is shown.
        allow_partial: even if shards are missing; the result says so.
        options: what else the run is told; of these, `settle` and `log_level` matter.

    Raises:
        UsageError: there is no run, or nothing of it is scanned.
    """
    started = time.monotonic()
    options = options or RunOptions()
    refuse_writing(out)
    plan = Plan.read(RunFolder(out))
    with Cluster(resources, options.log_level, partial(say, console), _WITH_ANSWER) as cluster:
        from exemplar_ray.exemplars.exemplars_job import ExemplarsJob

        job = ExemplarsJob(plan, cluster, settle=options.settle)
        return reduce_job(job, out, cluster, console, allow_partial, started)


def _known_network(run: Mapping[str, Any]) -> KnownNetwork | None:
    """Return the network that an earlier invocation questioned, if what `run.json` holds tells of one."""
    if run.get("job", JOB) != JOB or not run.get("questions"):
        return None
    return Plan.from_json(run).known_network()


def resolve_spec(
    cluster: Cluster, spec: RunSpec, shards: Sequence[Shard], known: KnownNetwork | None = None
) -> Resolved:
    """Build and question the model in a task, where torch and the weights are.

    Args:
        shards: whose first images the model is questioned with.
        known: what an earlier invocation of the run found out; the same model is not questioned again.

    Files of a model and of weights are looked for from the driver's working folder, or, in a job that brings its
    working folder along, from each worker's copy of it.

    Raises:
        UsageError: see `resolve.resolve`; or the GPU is to decode, and there is none; or the workers that
            built the model were lost, all of them, or had no memory, or no answer from where its weights are; or it
            is given labels, and a shard has none.
    """
    if spec.decode == GPU_DECODER and not cluster.demand.gpus:
        raise UsageError("decode gpu needs a GPU a task, and this run has none; give --gpus-per-task, or --decode fast")
    if not cluster.brings_working_folder:
        spec = spec.with_whole_paths()
    # The other workers get ready meanwhile.
    cluster.prepare(f"{TASKS}:get_ready", (spec.model, spec.weights), len(shards))
    given = ToResolve(spec, to_question_with(shards), known)
    resolved = cluster.call(f"{TASKS}:resolve", given, "the model cannot be built")
    if resolved.spec.network.takes_labels:
        refuse_unlabelled(shards)
    return resolved
