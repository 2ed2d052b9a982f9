"""The driver of every job: do the items that have no part, then reduce. Running it again is the rerun."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

from rich.console import Console

from exemplar_ray.errors import UsageError
from exemplar_ray.executor import repair
from exemplar_ray.executor.cluster import Cluster, Outcome
from exemplar_ray.executor.item_task import ItemTask
from exemplar_ray.executor.job import Context, Job, Reduced
from exemplar_ray.executor.progress import IMAGES, ProgressDisplay, rate_of, say
from exemplar_ray.executor.sharing import Sharing
from exemplar_ray.runs.manifest import Manifest
from exemplar_ray.runs.records import CompletionRecord, FailureRecord, State, now
from exemplar_ray.runs.run_folder import SUMMARY, RunFolder
from exemplar_ray.storage.hub_uri import refuse_writing


@dataclass(frozen=True)
class JobOutcome:
    """How a job ended."""

    complete: bool
    items: int
    items_name: str
    failed: dict[str, str] = field(default_factory=dict)
    """{item's name: the reason why it has no part, or could not be reduced}"""


def run_job(job: Job, out: str, cluster: Cluster, console: Console, started: float | None = None) -> JobOutcome:
    """Run or rerun a job: do the items that have no part, then reduce.

    Where items fail there is no result yet: the parts stay, and running again goes on.

    Args:
        out: the run folder, local or remote.
        started: `time.monotonic()` when this invocation began, if that was earlier: the summary says how long it took.

    Raises:
        UsageError: the folder is of another run, or a task says that nothing can be done; nothing was computed.
    """
    started = time.monotonic() if started is None else started
    folder, manifest = _open(job, out)
    is_answered = cache(partial(_is_answered, job, folder, manifest))
    state = folder.adopt(manifest, job.keep, is_answered)
    context = Context(cluster, folder, manifest, state.completed, console)
    state, not_seen = repair.without_changed(job, context, state)
    if not_seen and not state.unfinished:
        return _outcome(manifest, False, not_seen)
    if not state.unfinished and is_answered():
        say(console, f"nothing to do: every {manifest.items[0].kind} is done and the result is written")
        return _outcome(manifest, True)
    for line in job.announce(cluster):
        say(console, line)
    done = f", {len(state.completed)} already done" if state.completed else ""
    say(console, f"{len(manifest.items)} {manifest.items_name}{done}; {cluster.at_once}")
    if cluster.waits_for is not None:
        say(console, cluster.waits_for)
    if cluster.on_line is None:
        cluster.on_line = partial(say, console)
    context = replace(context, completed=state.completed)
    mapping_started = time.monotonic()
    mapped = map_items(job, context, state.unfinished)
    if failed := {**not_seen, **mapped.failed}:
        return _outcome(manifest, False, failed)
    cost = _cost(mapped.images, time.monotonic() - mapping_started)
    completed = dict(sorted({**state.completed, **mapped.completed}.items()))

    def do_again(context: Context, positions: list[int]) -> tuple[dict[int, Any], dict[str, str]]:
        again = map_items(job, context, positions, f"{job.verb} again")
        return again.completed, again.failed

    reduced, context = repair.reduced(job, replace(context, completed=completed, left=mapped.left), do_again)
    return _finish(job, context, reduced, started, cost)


def reduce_job(
    job: Job,
    out: str,
    cluster: Cluster,
    console: Console,
    allow_partial: bool = False,
    started: float | None = None,
) -> JobOutcome:
    """Reduce what a run folder has, without doing any item.

    Args:
        allow_partial: even if items are missing; the result says so.
        started: see `run_job`.

    Raises:
        UsageError: nothing of it is done.
    """
    started = time.monotonic() if started is None else started
    folder, manifest = _open(job, out)
    state = folder.state(manifest, job.keep)
    if (unfinished := _unfinished(manifest, state)) and not allow_partial:
        return _outcome(manifest, False, unfinished)
    if not state.completed:
        kind = manifest.items[0].kind
        raise UsageError(f"no {kind} of '{out}' is scanned yet, so there is nothing to merge; run it first")
    context = Context(cluster, folder, manifest, state.completed, console)
    reduced, context = repair.reduced_without_wrong(job, context, allow_partial)
    return _finish(job, context, reduced, started, {})


def _open(job: Job, out: str) -> tuple[RunFolder, Manifest]:
    """Return the run folder and what it is for.

    Raises:
        UsageError: it cannot be written to, or the job has no items.
    """
    refuse_writing(out)
    if not job.items:
        raise UsageError(f"{job.name}: there are no items, so there is nothing to do")
    return RunFolder(out), job.manifest()


def _unfinished(manifest: Manifest, state: State) -> dict[str, str]:
    """Return {item's name: why it has no part}."""
    return {
        manifest.items[p].name: state.failed[p].reason if p in state.failed else "not scanned yet"
        for p in state.unfinished
    }


@dataclass(frozen=True)
class Mapped:
    """What came of some items' tasks."""

    completed: dict[int, Any]
    """{position: what the job keeps of its record}"""
    failed: dict[str, str]
    """{item's name: reason}"""
    images: int
    left: dict[int, Any]
    """See `job.Context`."""


def map_items(job: Job, context: Context, positions: Sequence[int], title: str | None = None) -> Mapped:
    """Do some items of a run whose folder has been adopted; failures are recorded there, and shown.

    Args:
        positions: which items, by position.
        title: what to call that on the progress line; the job's verb if None.
    """
    manifest, folder = context.manifest, context.folder
    completed: dict[int, Any] = {}
    failed: dict[str, str] = {}
    images = 0
    notes: set[str] = set()
    left: dict[int, Any] = {}
    task = ItemTask(job.task, folder.full_uri, manifest.fingerprint, None, job.piece, job.join, job.leaves)
    sharing = Sharing(context.cluster, manifest.items, positions, job.pieces)
    with _display_of(job, context, positions, title or job.verb) as display:
        for outcome in sharing.outcomes(task, job.settings, job.task):
            item = manifest.items[outcome.key]
            reason = outcome.error or _not_seen(folder, outcome)
            if reason is not None:
                failed[item.name] = reason
                folder.fail(outcome.key, _failure_record(item, reason, outcome))
                display.failed(item.name, reason, job.steps(item) or 1)
                continue
            record: CompletionRecord = outcome.value
            completed[outcome.key] = job.keep(record)
            if outcome.left is not None:
                left[outcome.key] = outcome.left
            scored, skipped = record.facts.get("scored"), record.facts.get("skipped", 0)
            images += scored or 0
            notes.update(job.notes(record))
            notes_here = f"{skipped} skipped" if skipped else ""
            display.finished(item.name, scored, notes_here, record.host, job.steps(item) or 1)
            display.glimpse(partial(_glimpse, job, context, outcome.key))
    for note in sorted(notes):
        say(context.console, note)
    return Mapped(completed, failed, images, left)


def _display_of(job: Job, context: Context, positions: Sequence[int], title: str) -> ProgressDisplay:
    steps = [job.steps(context.manifest.items[position]) for position in positions]
    known = [one for one in steps if one is not None]
    if len(known) < len(steps) or not steps:
        return ProgressDisplay(context.console, title, len(positions), context.manifest.items_name, job.counted)
    return ProgressDisplay(context.console, title, sum(known), job.counted, job.counted)


def _glimpse(job: Job, context: Context, position: int) -> list[tuple[str, bytes]]:
    """Return what can be seen of a finished item."""
    [(_, files)] = context.folder.read_parts([position], context.manifest.fingerprint)
    return list(job.glimpse(files))


def _not_seen(folder: RunFolder, outcome: Outcome[int]) -> str | None:
    """Return why a part that was stored does not count: it cannot be seen from here."""
    if folder.has_part(outcome.key):
        return None
    return (
        f"its worker on {outcome.value.host} wrote to a run folder that this machine does not see; "
        "--out must be a shared file system or an object store"
    )


def _failure_record(item: Any, reason: str, outcome: Outcome[int]) -> FailureRecord:
    return FailureRecord(
        item_kind=item.kind,
        item=item.to_json(),
        reason=reason,
        details=outcome.details,
        log=list(outcome.log),
        attempts=outcome.attempts,
        host=outcome.host,
        finished=now(),
    )


def _finish(job: Job, context: Context, reduced: Reduced, started: float, cost: Mapping[str, float]) -> JobOutcome:
    """Write the summary, last: with it the run is answered.

    Args:
        started: `time.monotonic()` when this invocation began.
        cost: the images that this invocation scanned, and the seconds that took; {} for none.
    """
    if reduced.failed:
        return _outcome(context.manifest, False, dict(reduced.failed))
    summary = {
        "fingerprint": context.manifest.fingerprint,
        "complete": context.partial is None,
        "partial": context.partial,
        "result": job.result,
        **reduced.summary,
        "this_invocation": {**cost, "seconds": time.monotonic() - started},
    }
    context.folder.write_json(SUMMARY, summary)
    for line in reduced.lines:
        say(context.console, line)
    _report_cost(context, summary, job.counted)
    return _outcome(context.manifest, context.partial is None)


def _cost(images: int, seconds: float) -> dict[str, float]:
    return {"images_scanned": images, "scan_seconds": seconds, "images_per_second": images / seconds}


def _report_cost(context: Context, summary: Mapping[str, Any], counted: str) -> None:
    if summary["partial"]:
        say(context.console, f"PARTIAL: {summary['partial']}")
    cost = summary["this_invocation"]
    rate = ""
    if cost.get("images_scanned"):
        what = "scanning" if counted == IMAGES else f"the {counted}"
        rate = f", of which {what} {cost['scan_seconds']:.1f} s: {rate_of(cost['images_per_second'], counted)}"
    say(context.console, f"{cost['seconds']:.1f} s{rate}")
    say(context.console, f"result: {context.folder.uri.rstrip('/')}/{summary['result']}")


def _is_answered(job: Job, folder: RunFolder, manifest: Manifest) -> bool:
    summary = folder.read_json(SUMMARY) or {}
    return (
        summary.get("complete") is True
        and summary.get("fingerprint") == manifest.fingerprint
        and job.is_answered(summary)
        and folder.exists(job.result)
    )


def _outcome(manifest: Manifest, complete: bool, failed: dict[str, str] | None = None) -> JobOutcome:
    return JobOutcome(complete, len(manifest.items), manifest.items_name, failed or {})
