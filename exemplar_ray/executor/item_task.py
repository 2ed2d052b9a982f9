"""What a worker does for one item of any job: call the job's task, store the part, then its completion record; or do a
piece of it, or put its pieces together; or look whether a completed item is still what it was."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from exemplar_ray.executor.malloc import keep_freed_memory
from exemplar_ray.executor.memory import peak
from exemplar_ray.executor.named_function import named_function
from exemplar_ray.runs.manifest import Item
from exemplar_ray.runs.records import CompletionRecord, now
from exemplar_ray.runs.run_folder import RunFolder
from exemplar_ray.runs.versions import versions

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ItemTask:
    """Where the parts of a run go, and what makes them."""

    function: str
    """The job's task, see `job.Job`."""
    run_folder: str
    """A URI that means the same in every process."""
    fingerprint: str
    compare: str | None = None
    """The job's comparison, see `job.Job`."""
    piece: str | None = None
    join: str | None = None
    leaves: bool = False
    """See `job.Job`."""


@dataclass(frozen=True)
class PieceDone:
    """What became of a piece of an item, beside what it gave."""

    seconds: float
    host: str
    peak_memory: int | None


def do_item(task: ItemTask, settings: Any, given: tuple[int, Item]) -> CompletionRecord | tuple[CompletionRecord, Any]:
    """Do one item and return its completion record, as stored; and what the job's task has left, if it does so.

    Args:
        settings: the job's, see `job.Job.settings`.
        given: the item's position, and the item.
    """
    started = time.perf_counter()
    position, item = given
    folder = RunFolder(task.run_folder)
    # The attempt before this one may have been lost after it had stored everything; so may another driver's.
    if (record := folder.committed(position, item, task.fingerprint)) is not None:
        _log.info("%s %s is done already", item.kind, item.name)
        return (record, None) if task.leaves else record
    _log.info("%s %s begins", item.kind, item.name)
    keep_freed_memory()
    made = named_function(task.function)(settings, given)
    record = _record(task, item, made.facts, time.perf_counter() - started)
    _log.info("%s %s done in %.1f s", item.kind, item.name, record.seconds)
    committed = folder.commit(position, made.files, record)
    return (committed, made.left) if task.leaves else committed


def do_piece(
    task: ItemTask, settings: Any, given: tuple[int, Item, int]
) -> tuple[PieceDone, Any] | tuple[CompletionRecord, None]:
    """Do one piece of an item, of which nothing is stored; return how that went, and what it gave; or the item's
    completion record, if somebody has done it all meanwhile.

    Args:
        given: the item's position, the item, and the piece's number.
    """
    started = time.perf_counter()
    position, item, piece = given
    if (record := RunFolder(task.run_folder).committed(position, item, task.fingerprint)) is not None:
        return record, None
    _log.info("piece %d of %s %s begins", piece, item.kind, item.name)
    keep_freed_memory()
    gave = _function(task.piece)(settings, (position, item), piece)
    done = PieceDone(round(time.perf_counter() - started, 3), socket.gethostname(), peak())
    _log.info("piece %d of %s %s done in %.1f s", piece, item.kind, item.name, done.seconds)
    return done, gave


def join_item(
    task: ItemTask, settings: Any, given: tuple[int, Item, Sequence[PieceDone]], pieces: Iterator[Any]
) -> CompletionRecord | tuple[CompletionRecord, Any]:
    """Put the pieces of an item together; return its completion record, as stored; and what the job's join has left,
    if it does so.

    Args:
        given: the item's position, the item, and how its pieces went.
        pieces: what they gave, in order.
    """
    started = time.perf_counter()
    position, item, done = given
    folder = RunFolder(task.run_folder)
    if (record := folder.committed(position, item, task.fingerprint)) is not None:
        return (record, None) if task.leaves else record
    made = _function(task.join)(settings, (position, item), pieces)
    facts = {**made.facts, "pieces": [{"seconds": one.seconds, "host": one.host} for one in done]}
    record = _record(task, item, facts, sum(one.seconds for one in done) + time.perf_counter() - started)
    peaks = [one for one in (record.peak_memory, *(piece.peak_memory for piece in done)) if one is not None]
    committed = folder.commit(position, made.files, replace(record, peak_memory=max(peaks, default=None)))
    return (committed, made.left) if task.leaves else committed


def _function(name: str | None) -> Callable[..., Any]:
    """Return what a job does pieces with, or puts them together; it says so where its items have several."""
    assert name is not None
    return named_function(name)


def _record(task: ItemTask, item: Item, facts: Mapping[str, Any], seconds: float) -> CompletionRecord:
    return CompletionRecord(
        fingerprint=task.fingerprint,
        item_kind=item.kind,
        item=item.to_json(),
        facts=dict(facts),
        seconds=round(seconds, 3),
        host=socket.gethostname(),
        finished=now(),
        versions=versions(),
        peak_memory=peak(),
    )


def compare_item(task: ItemTask, settings: Any, given: tuple[int, Item]) -> str | None:
    """Look closely whether a completed item is what its record says; return how it differs, or None if it does not.

    Of one that does not, the record then says what its storage says of it now, so that it is not looked at again.
    """
    position, item = given
    folder = RunFolder(task.run_folder)
    record = folder.record(position, item)
    if record is None or task.compare is None:
        return "nothing is known of its content then"
    difference: str | None = named_function(task.compare)(settings, given, record.facts)
    if difference is None:
        folder.renew(position, replace(record, item=item.to_json()))
    return difference
