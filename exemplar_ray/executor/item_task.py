"""What a worker does for one item of any job: call the job's task, store the part, then its completion record; or look
whether a completed item is still what it was."""

from __future__ import annotations

import logging
import socket
import time
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


def do_item(task: ItemTask, settings: Any, given: tuple[int, Item]) -> CompletionRecord:
    """Do one item and return its completion record, as stored.

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
        return record
    _log.info("%s %s begins", item.kind, item.name)
    keep_freed_memory()
    made = named_function(task.function)(settings, given)
    record = CompletionRecord(
        fingerprint=task.fingerprint,
        item_kind=item.kind,
        item=item.to_json(),
        facts=dict(made.facts),
        seconds=round(time.perf_counter() - started, 3),
        host=socket.gethostname(),
        finished=now(),
        versions=versions(),
        peak_memory=peak(),
    )
    _log.info("%s %s done in %.1f s", item.kind, item.name, record.seconds)
    return folder.commit(position, made.files, record)


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
