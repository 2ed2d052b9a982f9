"""Repair by itself: items whose parts are not, or not any more, what they give are done again.

Before the tasks, those that changed since they were done: by size or footer, or, where only the storage says that they
were touched, by a closer look on a worker. After them, those whose parts the reduce finds to be wrong. Each is done
again once an invocation. What is wrong twice is no accident.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from exemplar_ray.executor.item_task import ItemTask
from exemplar_ray.executor.job import Context, Job, Reduced
from exemplar_ray.executor.progress import ProgressDisplay, say
from exemplar_ray.runs.records import CompletionRecord, FailureRecord, State, now
from exemplar_ray.runs.run_folder import SUMMARY, TornPartError, refuse_other_data

_COMPARE = "exemplar_ray.executor.item_task:compare_item"
_SHOWN = 5

DoAgain = Callable[[Context, list[int]], tuple[dict[int, Any], dict[str, str]]]
"""Does items anew; returns {position: what the job keeps of its record} and {name: reason} of failures."""


def without_changed(job: Job, context: Context, state: State[Any]) -> tuple[State[Any], dict[str, str]]:
    """Take back the parts of items that are not what they were.

    Args:
        state: of the run folder, as it was adopted.

    Returns:
        How far the run is then, and {item's name: reason} of those that could not be looked at.

    Raises:
        UsageError: most items have changed: this is other data.
    """
    differences, failed = _compared(job, context, state.touched) if state.touched else ({}, {})
    changed = {**state.changed, **differences}
    if not changed:
        return state, failed
    refuse_other_data(context.folder.uri, context.manifest, changed, len(state.completed))
    items = context.manifest.items
    for position in sorted(changed)[:_SHOWN]:
        item = items[position]
        say(context.console, f"{item.kind} {item.name} changed after it was scanned: {changed[position]}")
    more = len(changed) - _SHOWN
    say(context.console, f"{f'{more} more changed; ' if more > 0 else ''}what changed is scanned again")
    _take_back(job, context, changed)
    completed = {position: kept for position, kept in state.completed.items() if position not in changed}
    return State(completed, state.failed, sorted([*state.pending, *changed]), {}, []), failed


def _compared(job: Job, context: Context, touched: Sequence[int]) -> tuple[dict[int, str], dict[str, str]]:
    """Look closely at items: {position: how it differs}, and {name: reason} of those that cannot be looked at."""
    manifest = context.manifest
    task = ItemTask(job.task, context.folder.full_uri, manifest.fingerprint, job.compare)
    todo = ((position, (position, manifest.items[position])) for position in touched)
    differences: dict[int, str] = {}
    failed: dict[str, str] = {}
    with ProgressDisplay(context.console, "compare", len(touched), manifest.items_name) as display:
        for outcome in context.cluster.map(_COMPARE, todo, task, job.settings, imports=job.compare):
            name = manifest.items[outcome.key].name
            if outcome.error is not None:
                failed[name] = f"it was touched after it was scanned, and cannot be compared: {outcome.error}"
                display.failed(name, outcome.error)
                continue
            if outcome.value is not None:
                differences[outcome.key] = outcome.value
            display.finished(name, None, "changed" if outcome.value else "the same", outcome.host)
    return differences, failed


def reduced(job: Job, context: Context, do_again: DoAgain) -> tuple[Reduced, Context]:
    """Reduce; do the items anew whose parts are found to be wrong, and reduce again.

    Returns:
        What that comes to, and the context with the records that there are now.
    """
    done_again: dict[int, str] = {}
    while (one := reduced_once(job, context)).again:
        twice = {position: reason for position, reason in one.again.items() if position in done_again}
        if twice:
            return Reduced(_wrong_twice(job, context, twice)), context
        _say(context, one.again, "it is scanned again")
        before = {position: context.folder.record(position, context.manifest.items[position]) for position in one.again}
        _take_back(job, context, one.again)
        completed, failed = do_again(context, sorted(one.again))
        if failed:
            return Reduced(failed), context
        for position, reason in one.again.items():
            done_again[position] = reason
            _say_what_it_was(job, context, position, before[position])
        context = replace(context, completed=dict(sorted({**context.completed, **completed}.items())))
    return one, context


def reduced_without_wrong(job: Job, context: Context, allow_partial: bool) -> tuple[Reduced, Context]:
    """Reduce without doing any item; take back the parts that are found to be wrong.

    Args:
        allow_partial: whether to reduce what is left.
    """
    items = context.manifest.items
    while (one := reduced_once(job, context)).again:
        _say(context, one.again, "a run scans it again")
        _fail(job, context, one.again)
        left = {position: kept for position, kept in context.completed.items() if position not in one.again}
        if not allow_partial or not left:
            reasons = {items[p].name: f"{reason}; run again to scan it again" for p, reason in one.again.items()}
            return Reduced(reasons), context
        context = replace(context, completed=left)
    return one, context


def reduced_once(job: Job, context: Context) -> Reduced:
    """Reduce; a part that is not the one that was committed is one to be done again."""
    try:
        return job.reduce(context)
    except TornPartError as error:
        try:
            list(context.folder.read_parts([error.position], context.manifest.fingerprint))
        except TornPartError:
            return Reduced(again={error.position: str(error)})
        # A whole part must not be lost because a worker is somewhere else.
        reason = (
            f"{error}, says the worker that merges it, but here it is whole; run again, and if that does not "
            "help, put the run folder on a shared file system or an object store"
        )
        return Reduced({context.manifest.items[error.position].name: reason})


def _say(context: Context, reasons: Mapping[int, str], what_follows: str) -> None:
    for reason in reasons.values():
        say(context.console, f"{reason}; {what_follows}")


def _say_what_it_was(job: Job, context: Context, position: int, before: CompletionRecord | None) -> None:
    """Say whether an item that was done again had changed, or had been done wrongly."""
    item = context.manifest.items[position]
    after = context.folder.record(position, item)
    if before is not None and after is not None and (what := job.difference(before, after)):
        say(context.console, f"{item.kind} {item.name}: {what}")


def _wrong_twice(job: Job, context: Context, wrong: Mapping[int, str]) -> dict[str, str]:
    """Record as failed what was wrong again after it had been done anew; return {item's name: reason}."""
    why = "the network is no function of the image, the file changes while it is read, or a machine computes wrongly"
    reasons = {
        position: f"{reason}; scanned twice{_on(context, position)}, neither time with the numbers of its images: {why}"
        for position, reason in wrong.items()
    }
    _fail(job, context, reasons)
    return {context.manifest.items[position].name: reason for position, reason in reasons.items()}


def _on(context: Context, position: int) -> str:
    record = context.folder.record(position, context.manifest.items[position])
    return f", the second on {record.host}" if record else ""


def _fail(job: Job, context: Context, reasons: Mapping[int, str]) -> None:
    """Record items as failed whose parts are wrong, and take the parts back."""
    for position, reason in reasons.items():
        item = context.manifest.items[position]
        failure = FailureRecord(item.kind, item.to_json(), reason, details="", log=[], attempts=1, finished=now())
        context.folder.fail(position, failure)
    _take_back(job, context, reasons)


def _take_back(job: Job, context: Context, positions: Iterable[int]) -> None:
    """Let items count as not done. First the run no longer counts as answered: it may end before it is so again."""
    context.folder.remove(SUMMARY)
    for position in positions:
        job.retract(context.folder, position)
