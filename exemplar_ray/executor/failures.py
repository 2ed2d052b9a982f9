"""How a task failed, judged in the worker, where the error is whole: not every library's errors can be pickled."""

from __future__ import annotations

import os
import socket
import traceback
from dataclasses import dataclass

from exemplar_ray.errors import ShardError, UsageError
from exemplar_ray.executor.blame import is_of_machine, is_unlike_run
from exemplar_ray.executor.task_log import log_of
from exemplar_ray.runs.run_folder import TornPartError
from exemplar_ray.storage.transient import is_out_of_memory, is_transient

LESS_MEMORY = (
    "run again with fewer tasks at once (a larger --cpus-per-task), a smaller --batch-size, or more memory a machine"
)


@dataclass(frozen=True)
class Failure:
    """Why a task has no value. Plain data, so that it pickles whatever the task raised."""

    reason: str
    """In one line."""
    details: str
    """The traceback."""
    transient: bool
    """Another attempt may fare better."""
    log: tuple[str, ...] = ()
    """What the task had logged, line by line."""
    fatal: UsageError | TornPartError | None = None
    """What to raise in the driver: nothing that follows would fare better."""
    lost: bool = False
    """The task did not raise: its worker or machine was lost."""
    of_machine: bool = False
    """The machine made the error: another machine may fare better."""
    unlike_run: bool = False
    """The machine has something else than what the run is of."""
    of_memory: bool = False
    """Memory ran out."""
    left_is_gone: bool = False
    """What other tasks had left for it was lost, with the machine that they were on."""
    node: str | None = None
    """What Ray calls the machine; None if it is not known."""
    host: str | None = None


class TaskError(Exception):
    """What comes out of a task in place of whatever it raised."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure

    def __str__(self) -> str:
        return self.failure.reason


def failure_of(error: BaseException, transient: bool = False, node: str | None = None) -> Failure:
    """Judge what a task raised, in the process that it was raised in.

    Args:
        transient: whatever the error itself says.
        node: what Ray calls this machine.
    """
    where = f"in process {os.getpid()} on {socket.gethostname()}:\n"
    return Failure(
        reason=reason_of(error),
        details=where + "".join(traceback.format_exception(error)),
        transient=transient or is_transient(error),
        log=log_of(error),
        fatal=_fatal(error),
        of_machine=is_of_machine(error) and not is_out_of_memory(error),
        unlike_run=is_unlike_run(error),
        of_memory=is_out_of_memory(error),
        node=node,
        host=socket.gethostname(),
    )


def reason_of(error: BaseException) -> str:
    """Say in one line why a task failed."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else ""
    named = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if is_out_of_memory(error):
        return f"out of memory: {named}; {LESS_MEMORY}"
    return text if isinstance(error, ShardError) else named


def _fatal(error: BaseException) -> UsageError | TornPartError | None:
    """Return what is not only of one task, as what it is for the driver."""
    if isinstance(error, TornPartError):
        return TornPartError(error.position, str(error))
    if isinstance(error, UsageError):
        return UsageError(f"{error}; {LESS_MEMORY}" if is_out_of_memory(error) else str(error))
    return None
