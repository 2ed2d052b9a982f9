"""The job from end to end: plan, scan what is unfinished, merge, gather, write the answer."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

import exemplar_ray
from exemplar_ray.channels import channels_table, class_exemplars_table, classes_table, histograms_table, percentiles
from exemplar_ray.cluster import Cluster, Resources
from exemplar_ray.errors import UsageError
from exemplar_ray.exemplars import ImageSpool, write_exemplars, write_images
from exemplar_ray.hub import refuse_writing, resolve_revisions
from exemplar_ray.labels import ClassLabels, read_class_labels
from exemplar_ray.merge import Folded, groups, together
from exemplar_ray.parts import Part, layers_and_statistics, series_of
from exemplar_ray.progress import ProgressDisplay, say
from exemplar_ray.run_folder import (
    CHANNELS,
    CLASS_EXEMPLARS,
    CLASSES,
    EXEMPLARS,
    HISTOGRAMS,
    IMAGES,
    SETTLING,
    SUMMARY,
    Finished,
    Plan,
    RunFolder,
    State,
    TornPartError,
)
from exemplar_ray.samples import sample_rate
from exemplar_ray.selection import Selected, Selection
from exemplar_ray.shards import discover, inspect
from exemplar_ray.spec import RunSpec, format_channels
from exemplar_ray.topk import Scores, concatenate

_VERSIONED_PACKAGES = ("ray", "torch", "torchvision", "torch-lucent", "pyarrow", "numpy", "pillow")


@dataclass(frozen=True)
class JobOutcome:
    """How a job ended. `failed` maps the shards that have no part, or no images, to the reason."""

    plan: Plan
    complete: bool
    failed: dict[str, str]


def run(
    spec: RunSpec,
    data: Sequence[str],
    out: str,
    resources: Resources,
    console: Console,
    class_labels: str | None = None,
    max_skipped: int = 0,
    settle: bool = True,
) -> JobOutcome:
    """Run or rerun a job: scan the shards that have no part, then merge and gather.

    Where shards fail there is no answer yet: the parts stay, and running again goes on.

    Args:
        settle: scan once more, exactly, for the channels whose top K screening leaves in doubt.

    Raises:
        UsageError: something that was asked for cannot be done; nothing was computed.
    """
    started = time.monotonic()
    table = read_class_labels(class_labels) if class_labels else {}
    refuse_writing(out)
    folder = RunFolder(out)
    # A branch may have moved since the run began; the run has not.
    revisions = resolve_revisions(data, folder.revisions())
    shards, names = inspect(discover(data, revisions))
    with Cluster(resources) as cluster:
        plan = Plan(cluster.resolve(spec), shards, ClassLabels(names, table), _versions(), revisions)
        state = folder.adopt(plan)
        if not state.unfinished and _is_answered(folder, plan, settle):
            say(console, "nothing to do: every shard is scanned and the exemplars are written")
            return JobOutcome(plan, True, {})
        _announce(plan, state, cluster, console)
        scan_started = time.monotonic()
        scanned, failed = _scan(cluster, folder, plan, state.unfinished, max_skipped, console)
        if failed:
            return JobOutcome(plan, False, failed)
        seconds = time.monotonic() - scan_started
        images = sum(finished.scored for finished in scanned.values())
        cost = {"images_scanned": images, "scan_seconds": seconds, "images_per_second": images / seconds}
        completed = dict(sorted({**state.completed, **scanned}.items()))
        return _answer(cluster, folder, plan, completed, console, started, cost, settle)


def merge(
    out: str, resources: Resources, console: Console, allow_partial: bool = False, settle: bool = True
) -> JobOutcome:
    """Merge and gather what a run folder has, without scanning.

    Raises:
        UsageError: there is no run, or nothing of it is scanned.
    """
    started = time.monotonic()
    refuse_writing(out)
    folder = RunFolder(out)
    plan = folder.read_plan()
    state = folder.state(plan)
    unfinished = {
        plan.shards[p].name: state.failed[p].reason if p in state.failed else "not scanned yet"
        for p in state.unfinished
    }
    if unfinished and not allow_partial:
        return JobOutcome(plan, False, unfinished)
    if not state.completed:
        raise UsageError(f"no shard of '{out}' is scanned yet, so there is nothing to merge; run it first")
    with Cluster(resources) as cluster:
        return _answer(cluster, folder, plan, state.completed, console, started, {}, settle)


def _versions() -> dict[str, str]:
    """Return the driver's versions; the lock file keeps the workers' equal."""
    versions = {"exemplar_ray": exemplar_ray.__version__, "python": platform.python_version()}
    for package in _VERSIONED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _announce(plan: Plan, state: State, cluster: Cluster, console: Console) -> None:
    spec = plan.spec
    say(console, f"{spec.model_title}, {spec.weights_title}{'' if spec.trained else ' — UNTRAINED'}")
    if spec.screened:
        say(console, f"screening: {spec.precision}, decoding {spec.decode}; exemplars are recomputed exactly")
    for layer in spec.layers:
        size = f", maps {layer.map_size[0]}x{layer.map_size[1]}" if layer.map_size else ""
        chosen = f"{len(layer.channels)} of " if len(layer.channels) < layer.channel_count else ""
        say(console, f"layer {layer.name}: {chosen}{layer.channel_count} channels{size}")
    for repository, commit in plan.revisions.items():
        say(console, f"{repository} is read at commit {commit}")
    done = f", {len(state.completed)} already scanned" if state.completed else ""
    device = "a GPU" if cluster.gpus_per_task else f"{cluster.cpus_per_task} CPU"
    say(console, f"{len(plan.shards)} shards{done}; {cluster.slots} tasks at once, {device} each")


def _scan(
    cluster: Cluster,
    folder: RunFolder,
    plan: Plan,
    positions: Sequence[int],
    max_skipped: int,
    console: Console,
    title: str = "scan",
) -> tuple[dict[int, Finished], dict[str, str]]:
    """Scan some shards; return what is finished by position, and {shard: reason} of failures."""
    scanned: dict[int, Finished] = {}
    not_compiled: set[str] = set()
    failed: dict[str, str] = {}
    todo = ((position, plan.shards[position]) for position in positions)
    rows = sum(shard.rows or 0 for shard in plan.shards)
    rate = sample_rate(rows, plan.spec.top_k)
    with ProgressDisplay(console, title, len(positions)) as display:
        for outcome in cluster.scan(plan.spec, todo, folder.full_uri, plan.fingerprint, max_skipped, rate, rows):
            shard = plan.shards[outcome.key]
            reason = outcome.error
            if reason is None and not folder.has_part(outcome.key):
                reason = (
                    f"its worker on {outcome.value['host']} wrote to a run folder that this machine does not see; "
                    "--out must be a shared file system or an object store"
                )
            if reason is None:
                record = outcome.value
                notes = f"{record['skipped']} skipped" if record["skipped"] else ""
                display.finished(shard.name, record["scored"], notes)
                scanned[outcome.key] = Finished.of(record)
                if "not_compiled" in record:
                    not_compiled.add(record["not_compiled"])
                continue
            failed[shard.name] = reason
            when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            record = {"shard": shard.to_json(), "reason": reason, "details": outcome.details}
            folder.fail(outcome.key, {**record, "attempts": outcome.attempts, "finished": when})
            display.failed(shard.name, reason)
    for reason in sorted(not_compiled):
        say(console, f"the network was not compiled, which takes longer: {reason}")
    return scanned, failed


def _answer(
    cluster: Cluster,
    folder: RunFolder,
    plan: Plan,
    completed: dict[int, Finished],
    console: Console,
    started: float,
    cost: dict[str, float],
    settle: bool,
) -> JobOutcome:
    """Merge the parts, gather the candidates, write exemplars and summary.

    Args:
        completed: what is finished by position, ascending.
        started: `time.monotonic()` when this invocation began.
        cost: the images that this invocation scanned, and the seconds that took; {} for none.
    """
    merged, failed = merge_parts(cluster, folder, plan, completed, console)
    if merged is None:
        return JobOutcome(plan, False, failed)
    selection = Selection(plan.spec, merged, sum(finished.scored for finished in completed.values()))
    with ImageSpool() as images:
        failed = _gather(cluster, plan, selection, images, console)
        settled_anew = selection.unsettled() if settle and plan.spec.screened and not failed else []
        if settled_anew:
            failed = _settle(cluster, folder, plan, completed, selection, settled_anew, console)
            failed = failed or _gather(cluster, plan, selection, images, console)
        if failed:
            return JobOutcome(plan, False, failed)
        selected = selection.result()
        gathered = len(images)
        done, total = len(completed), len(plan.shards)
        partial = None if done == total else f"{done} of {total} shards"
        below = percentiles(plan.spec, merged, selected.tails, selected.scores)
        with folder.writing(EXEMPLARS) as path:
            write_exemplars(path, plan, selected, below, images, partial)
        if len(plan.spec.shown_samples) > 1:
            with folder.writing(IMAGES) as path:
                write_images(path, plan, selected, images)
    tables = {CHANNELS: channels_table(plan, merged, selected.certainty), CLASSES: classes_table(plan, merged)}
    tables[HISTOGRAMS] = histograms_table(plan, merged)
    if plan.spec.class_top_k:
        tables[CLASS_EXEMPLARS] = class_exemplars_table(plan, merged)
    for name, table in tables.items():
        with folder.writing(name) as path:
            pq.write_table(table, path, compression="zstd")
    summary = _summary(plan, completed, selected, gathered, partial)
    summary["settled_anew"] = len(settled_anew) if settle else None
    summary["this_invocation"] = {**cost, "seconds": time.monotonic() - started}
    folder.write_json(SUMMARY, summary)
    _report_cost(folder, summary, console)
    return JobOutcome(plan, partial is None, {})


def merge_parts(
    cluster: Cluster, folder: RunFolder, plan: Plan, completed: dict[int, Finished], console: Console
) -> tuple[Part | None, dict[str, str]]:
    """Fold the parts, groups of them by tasks and here what the groups come to; or return {shard: reason} of failures.

    Args:
        completed: what is finished by position, ascending.
    """
    by_group = groups(completed)
    failed: dict[str, str] = {}

    def in_order() -> Iterator[Folded]:
        """Yield what the groups come to as it comes, but in their order: what is early waits in Ray's object store."""
        waiting: dict[int, Folded] = {}
        following = 0
        for outcome in cluster.fold(plan.spec, by_group, folder.full_uri, plan.fingerprint):
            names = [plan.shards[p].name for p in by_group[outcome.key]]
            title = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
            if outcome.error is not None:
                failed.update(dict.fromkeys(names, f"its part cannot be merged: {outcome.error}"))
                display.failed(title, outcome.error)
                return
            display.finished(title, sum(completed[p].scored for p in by_group[outcome.key]))
            waiting[outcome.key] = outcome.value
            while following in waiting:
                yield waiting.pop(following)
                following += 1

    with ProgressDisplay(console, "merge", len(by_group), "groups of shards") as display:
        try:
            merged = together(in_order(), plan.spec)
        except TornPartError as error:
            return None, _retracted(folder, plan, error)
    return (None, failed) if failed else (merged, {})


def _retracted(folder: RunFolder, plan: Plan, error: TornPartError) -> dict[str, str]:
    """Let a shard be scanned again whose part is not the one that was committed; return {shard: reason}."""
    shard = plan.shards[error.position].name
    try:
        list(folder.read_parts([error.position], plan.fingerprint, plan.spec))
    except TornPartError:
        folder.retract(error.position)
        return {shard: f"{error}; run again to scan this shard again"}
    # A whole part must not be lost because a worker is somewhere else.
    return {
        shard: f"{error}, says the worker that merges it, but here it is whole; run again, and if that does not help, "
        "put the run folder on a shared file system or an object store"
    }


def _settle(
    cluster: Cluster,
    folder: RunFolder,
    plan: Plan,
    completed: dict[int, Finished],
    selection: Selection,
    channels: list[tuple[int, int]],
    console: Console,
) -> dict[str, str]:
    """Scan once more, exactly, for the channels that screening left in doubt; return failures.

    That scan is a run of its own inside the run folder, so it too goes on where it was interrupted.
    """
    pairs = layers_and_statistics(plan.spec)
    # All channels of the layers: the others cost nothing, and an exact run's compiled trunk serves here, too.
    doubtful_layers = {pairs[series][0].name for series, _ in channels}
    layers = [layer for layer in plan.spec.layers if layer.name in doubtful_layers]
    exact = replace(plan, spec=plan.spec.unscreened(layers))
    inner = RunFolder(f"{folder.uri.rstrip('/')}/{SETTLING}-{exact.fingerprint[:12]}")
    state = inner.adopt(exact)
    say(console, f"{len(channels)} channels are in doubt: scanning once more, for them, in full precision")
    done = {p: finished for p, finished in state.completed.items() if p in completed}
    todo = [p for p in completed if p not in done]
    most_skipped = max(finished.skipped for finished in completed.values())
    scanned, failed = _scan(cluster, inner, exact, todo, most_skipped, console, SETTLING)
    if failed:
        return failed
    merged, failed = merge_parts(cluster, inner, exact, dict(sorted({**done, **scanned}.items())), console)
    if merged is None:
        return failed
    series_of_plan = {(layer.name, statistic): series for series, (layer, statistic) in enumerate(pairs)}
    which = np.array([series_of_plan[key] for key in series_of(exact.spec)], np.int32)
    found = merged.scores._replace(series=which[merged.scores.series])
    doubtful = set(channels)
    here = [pair in doubtful for pair in zip(found.series.tolist(), found.channel.tolist(), strict=True)]
    finite = [
        merged.tallies["moments"][of_exact].images[np.searchsorted(layer.channels, channel)]
        for series, channel in channels
        for of_exact, (layer, _) in enumerate(layers_and_statistics(exact.spec))
        if which[of_exact] == series
    ]
    selection.replace(channels, found.take(np.array(here, bool)), finite)
    return {}


def _gather(cluster: Cluster, plan: Plan, selection: Selection, images: ImageSpool, console: Console) -> dict[str, str]:
    """Gather what the selection wants, shard by shard, until it wants no more; return failures."""
    failed: dict[str, str] = {}
    while len((wanted := selection.wanted()).row):
        by_shard = {int(p): wanted.take(wanted.shard == p) for p in np.unique(wanted.shard)}
        gathered: dict[int, tuple[Scores, pa.Table, pa.Table]] = {}
        with ProgressDisplay(console, "gather", len(by_shard)) as display:
            tasks = ((p, plan.shards[p], candidates) for p, candidates in by_shard.items())
            for outcome in cluster.gather(plan.spec, tasks):
                name = plan.shards[outcome.key].name
                if outcome.error is not None:
                    failed[name] = outcome.error
                    display.failed(name, outcome.error)
                    continue
                table, exact, places = outcome.value
                images.add(outcome.key, table)
                gathered[outcome.key] = exact, places, table.drop_columns(["bytes"])
                display.finished(name, len(table))
        if failed:
            break
        # In the order of shards: what comes first must not depend on who was quicker.
        order = sorted(gathered)
        selection.add(
            scanned=concatenate(by_shard[p] for p in order),
            exact=concatenate(gathered[p][0] for p in order),
            places=pa.concat_tables(gathered[p][1] for p in order),
            images={p: gathered[p][2] for p in order},
        )
    return failed


def _summary(
    plan: Plan, completed: dict[int, Finished], selected: Selected, gathered: int, partial: str | None
) -> dict[str, Any]:
    """Put together `summary.json`: rows read = scored + skipped, per shard and in all."""
    series = series_of(plan.spec)
    keep = ("rows", "scored", "skipped", "seconds", "host", "device")
    shards = [
        {"name": plan.shards[p].name, **{key: getattr(finished, key) for key in keep}}
        for p, finished in completed.items()
    ]
    totals = {key: sum(shard[key] for shard in shards) for key in ("rows", "scored", "skipped")}
    return {
        "fingerprint": plan.fingerprint,
        "class_labels_sha256": _digest(plan.class_labels.to_json()),
        "complete": partial is None,
        "partial": partial,
        "model": plan.spec.model_title,
        "weights": plan.spec.weights_title,
        "weights_sha256": plan.spec.weights_sha256,
        "trained": plan.spec.trained,
        **totals,
        "skipped_images": [
            {"shard": plan.shards[p].name, **image}
            for p, finished in completed.items()
            for image in finished.skipped_images
        ],
        "not_finite": [
            {"shard": plan.shards[p].name, **entry}
            for p, finished in completed.items()
            for entry in finished.not_finite
        ],
        "channels": {layer.name: len(layer.channels) for layer in plan.spec.layers},
        "exemplars": len(selected.ranks),
        "images_gathered": gathered,
        "precision": plan.spec.precision,
        "decode": plan.spec.decode,
        "largest_error": selected.largest_error,
        # For each layer and statistic, by channel; nothing where the scan itself is exact.
        "certainty": [
            {"layer": layer.name, "statistic": statistic, "channels": format_channels(layer.channels)}
            | {name: [None if np.isinf(v) else v for v in values.tolist()] for name, values in known.items()}
            for (layer, statistic), known in zip(
                layers_and_statistics(plan.spec) if plan.spec.screened else (), selected.certainty, strict=False
            )
        ],
        "unsettled": [
            {"layer": series[s][0], "statistic": series[s][1], "channel": channel, "sample": sample}
            for s, channel, sample in selected.unsettled
        ],
        "short_of_distinct": [
            {"layer": series[s][0], "statistic": series[s][1], "channel": channel, "exemplars": count}
            for s, channel, count in selected.short
        ],
        "task_seconds": round(sum(shard["seconds"] for shard in shards), 3),
        "shards": shards,
    }


def _report_cost(folder: RunFolder, summary: dict[str, Any], console: Console) -> None:
    skipped = f", {summary['skipped']} skipped" if summary["skipped"] else ""
    say(console, f"{summary['scored']} images searched{skipped}, {summary['exemplars']} exemplars")
    if summary["not_finite"]:
        say(console, f"NaN or infinite activations on {len(summary['not_finite'])} channels: see {SUMMARY}")
    if summary["unsettled"]:
        say(console, f"NOT SETTLED: {len(summary['unsettled'])} channels, where the scan's error may hide an exemplar")
    if summary["short_of_distinct"]:
        channels = len(summary["short_of_distinct"])
        say(console, f"{channels} channels have fewer distinct exemplars than asked for: see {SUMMARY}")
    if summary["partial"]:
        say(console, f"PARTIAL: {summary['partial']}")
    cost = summary["this_invocation"]
    rate = ""
    if cost.get("images_scanned"):
        rate = f", of which scanning {cost['scan_seconds']:.1f} s: {cost['images_per_second']:.1f} images/s"
    say(console, f"{cost['seconds']:.1f} s{rate}")
    say(console, f"result: {folder.uri.rstrip('/')}/{EXEMPLARS}")


def _is_answered(folder: RunFolder, plan: Plan, settle: bool) -> bool:
    summary = folder.read_json(SUMMARY) or {}
    in_doubt = plan.spec.screened and summary.get("unsettled") and summary.get("settled_anew") is None
    return not (settle and in_doubt) and (
        summary.get("complete") is True
        and summary.get("fingerprint") == plan.fingerprint
        and summary.get("class_labels_sha256") == _digest(plan.class_labels.to_json())
        and folder.exists(EXEMPLARS)
    )


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
