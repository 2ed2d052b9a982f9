"""Attempts at items: handed to Ray, waited for, made again where another attempt or another machine may do better."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Generic, TypeVar, cast

import ray

from exemplar_ray.executor.blame import Blame, is_of_machine
from exemplar_ray.executor.failures import LESS_MEMORY, Failure, TaskError, reason_of
from exemplar_ray.executor.machines import Machines
from exemplar_ray.executor.memory import MemoryDemand
from exemplar_ray.executor.ray_address import Watch
from exemplar_ray.executor.remote import Done
from exemplar_ray.storage.transient import is_transient

Key = TypeVar("Key")
Another = TypeVar("Another")
Left = ray.ObjectRef
"""What a task has left in Ray's memory."""

_LONGEST_WAIT_SECONDS = 60.0
# What so many machines cannot do is no machine's fault.
_MOST_MACHINES = 8
# What waits for another machine than those that failed it does not wait for ever: none may join.
_WAIT_FOR_ANOTHER_SECONDS = 600.0
# Ray's own words where a worker has another version of this package, or none.
_NOT_IMPORTED = "failed to import on the worker"


@dataclass(frozen=True)
class Outcome(Generic[Key]):
    """How one task ended: with a value, or with the reason why there is none."""

    key: Key
    value: Any = None
    error: str | None = None
    """In one line."""
    details: str = ""
    """The traceback."""
    log: tuple[str, ...] = ()
    """What a task that raised had logged, line by line."""
    attempts: int = 1
    lost: bool = False
    """The task did not raise: its worker or machine was lost, the last time, too."""
    transient: bool = False
    """What it raised, the last time, too, may pass: a time-out, say."""
    host: str | None = None
    """Where the last attempt was; None if that is not known."""
    left: ray.ObjectRef | None = None
    """What the task left in Ray's memory for another, see `Order.leaves`."""
    again: int | None = None
    """How often it was to be tried again, this time included, if it is, but in another way than before: it is
    `Order.divisible`, and was lost with its worker, or what others had left for it is gone."""

    def under(self, key: Another) -> Outcome[Another]:
        """Return this as the outcome of something else."""
        return replace(cast("Outcome[Any]", self), key=key)


@dataclass(frozen=True)
class Order(Generic[Key]):
    """What a task is to do."""

    key: Key
    function: str
    """`module:function`"""
    item: Any
    name: str = ""
    """What people call it; "" where there is only one."""
    of: Hashable = None
    """Whose failure it is where several orders are of one thing; None for its own."""
    leaves: bool = False
    """The function returns two values, of which the second stays in Ray's memory for another task: `Outcome.left`."""
    left: Sequence[ray.ObjectRef] = ()
    """What others have left: the function gets an iterator over that as its last argument."""
    divisible: bool = False
    """Lost with its worker, it is better done in another way: see `Outcome.again`."""
    retries: int = 0
    """How often it was tried again before."""


@dataclass(eq=False)
class Call(Generic[Key]):
    """One order, and the attempts that were made at it."""

    order: Order[Key]
    submit: Callable[[frozenset[str], int, int | None], tuple[ray.ObjectRef, ray.ObjectRef | None]]
    """Hand it to Ray, away from these machines, as the attempt of this number, asking for so many bytes of memory;
    return what comes back, and what is left."""
    name: str
    attempt: int = 0
    retries: int = 0
    """How many of the attempts were retries of what is transient."""
    left: ray.ObjectRef | None = None
    """What the last attempt leaves."""
    failed_on: set[str] = field(default_factory=set)
    """The machines that made it fail."""
    away_from: frozenset[str] = frozenset()
    """Where this attempt must not be."""
    blames: bool = True
    """Not every machine has made it fail yet."""
    since: float = 0.0

    @property
    def of(self) -> Hashable:
        """Return whose failure it is."""
        return self if self.order.of is None else self.order.of


@dataclass(frozen=True)
class Attempts:
    """Makes attempts at items.

    Args:
        retries: how often what is transient is tried again.
        most_in_flight: returns how many tasks to have handed to Ray, begun or not.
        tell: what to say a line with.
    """

    retries: int
    machines: Machines
    blame: Blame
    watch: Watch
    most_in_flight: Callable[[], int]
    tell: Callable[[str], None]
    memory: MemoryDemand = field(default_factory=MemoryDemand)

    def run(self, following: Callable[[], Call[Key] | None]) -> Iterator[Outcome[Key]]:
        """Submit calls, yield outcomes as they come.

        Args:
            following: returns the next call; None if there is none, or none before another outcome is taken.
        """
        running: dict[ray.ObjectRef, Call[Key]] = {}
        resting: list[tuple[float, int, Call[Key]]] = []
        number = count()
        new = following()
        while running or resting or new is not None:
            while resting and resting[0][0] <= time.monotonic():
                self._submit(heapq.heappop(resting)[2], running)
            while new is not None and len(running) < self.most_in_flight():
                self._submit(new, running)
                new = following()
            rest = max(0.0, resting[0][0] - time.monotonic()) if resting else Watch.EVERY_SECONDS
            if not running:
                time.sleep(rest if resting else 0)
                continue
            # Not longer than until the next look whether there is a Ray at all.
            done, _ = ray.wait(list(running), num_returns=1, timeout=min(rest, Watch.EVERY_SECONDS), fetch_local=False)
            self.watch.look()
            if not done and (waited_for := self.machines.waited_for()) is not None:
                self.tell(waited_for)
            if not done:
                self._free_what_waits_in_vain(running)
            for ref in done:
                call = running.pop(ref)
                try:
                    value: Done = ray.get(ref)
                except ray.exceptions.RayError as error:
                    failure = self._failure(error)
                    _look_at(call.left)
                else:
                    self.blame.fared_well(value.node)
                    self.memory.measured(value.peak_memory)
                    yield Outcome(call.order.key, value.value, attempts=call.attempt, host=value.host, left=call.left)
                    continue
                pause = self._pause_before_another(call, failure)
                if pause is not None and _is_better_done_otherwise(call, failure):
                    yield Outcome(call.order.key, error=failure.reason, lost=failure.lost, again=call.retries)
                elif pause is not None:
                    heapq.heappush(resting, (time.monotonic() + pause, next(number), call))
                else:
                    yield self._given_up(call, failure)
            new = new or following()

    def _submit(self, call: Call, running: dict[ray.ObjectRef, Call], anywhere: bool = False) -> None:
        call.attempt += 1
        away_from = self.blame.left_out | call.failed_on
        # Where no machine is left, those that failed it may do better now.
        call.away_from = away_from if away_from and not anywhere and self.machines.others(away_from) else frozenset()
        call.since = time.monotonic()
        # The machines are looked at only where that matters: there may be very many items.
        memory = self.memory.asked(self.machines.most_memory()) if self.memory.has_run_out else None
        ref, call.left = call.submit(call.away_from, call.attempt, memory)
        running[ref] = call

    def _pause_before_another(self, call: Call, failure: Failure) -> float | None:
        """Return how many seconds to wait before the next attempt; None if there is none.

        Raises:
            UsageError: the machines do not agree on what the run is of.
        """
        node = failure.node
        if failure.unlike_run and node is not None:
            self.blame.unlike_run(node, failure.reason)
        if failure.of_machine and node is not None:
            was_left_out = node in self.blame.left_out
            call.failed_on.add(node)
            if call.blames and self.machines.others(frozenset({node})):
                self.blame.failed(call.of, node, self.machines.name(node, failure.host), failure.reason)
            others = self.machines.others(self.blame.left_out | call.failed_on)
            if call.blames and others and len(call.failed_on) < _MOST_MACHINES:
                if not was_left_out:
                    self._tell_of(call, failure, "tried again on another machine")
                return 0.0
            call.blames = False
            self.blame.withdraw(call.of)
            call.failed_on.clear()
        if not failure.transient or call.retries >= self.retries:
            return None
        if failure.of_memory:
            self.memory.ran_out()
        if failure.of_memory and node is not None:
            # A machine may have more, or less to do.
            call.failed_on = {node}
        call.retries += 1
        self._tell_of(call, failure, "tried again")
        return min(0.5 * 2 ** (call.retries - 1), _LONGEST_WAIT_SECONDS)

    def _tell_of(self, call: Call, failure: Failure, what: str) -> None:
        where = f" on {failure.host}" if failure.host else ""
        self.tell(f"{call.name}: attempt {call.attempt} failed{where} ({failure.reason}); {what}")

    def _given_up(self, call: Call[Key], failure: Failure) -> Outcome[Key]:
        """Return what became of an item that is not tried again.

        Raises:
            UsageError, TornPartError: nothing that follows would fare better.
        """
        tried = {failure.node} if failure.node else set()
        if failure.fatal is not None and not (failure.of_machine and self.blame.another_fared_well(tried)):
            raise failure.fatal
        reason = failure.reason
        if failure.host and failure.host not in reason and self.machines.are_several():
            reason = f"{reason} (on {failure.host})"
        return Outcome(
            call.order.key,
            error=reason,
            details=failure.details,
            log=failure.log,
            attempts=call.attempt,
            lost=failure.lost,
            transient=failure.transient,
            host=failure.host,
        )

    def _free_what_waits_in_vain(self, running: dict[ray.ObjectRef, Call]) -> None:
        """Have what waits for another machine than those that failed it be tried anywhere, if there is none left."""
        for ref, call in list(running.items()):
            if not call.away_from or self.machines.others(call.away_from):
                call.since = time.monotonic()
                continue
            if not self.machines.may_grow() or time.monotonic() - call.since > _WAIT_FOR_ANOTHER_SECONDS:
                # Left to Ray, as a task cannot be cancelled safely; what it may still commit counts.
                running.pop(ref)
                self._submit(call, running, anywhere=True)

    def _failure(self, error: ray.exceptions.RayError) -> Failure:
        """Return why a task failed, as its worker judged it, or as Ray says where that did not come to it."""
        if not isinstance(error, ray.exceptions.RayTaskError):
            lines = str(error).strip().splitlines() or [""]
            reason = f"{type(error).__name__}: {lines[0]}"
            killed = isinstance(error, ray.exceptions.OutOfMemoryError)
            if killed:
                reason = f"killed for memory: {lines[0]}; {LESS_MEMORY}"
            return Failure(reason, str(error), transient=True, lost=True, of_memory=killed)
        if isinstance(error.cause, TaskError):
            return error.cause.failure
        cause = error.cause or error
        node, host = self.machines.at(error.ip)
        of_machine = is_of_machine(cause) or _NOT_IMPORTED in str(error)
        return Failure(reason_of(cause), str(error), is_transient(cause), of_machine=of_machine, node=node, host=host)


def _look_at(left: ray.ObjectRef | None) -> None:
    """Look at what a task that failed has left: the same error, which Ray prints if nobody has looked at it."""
    if left is not None:
        with suppress(ray.exceptions.RayError):
            ray.get(left)


def _is_better_done_otherwise(call: Call, failure: Failure) -> bool:
    """Whether not this call is to be made again, but others in its place."""
    # Less at a time does not take less memory.
    return failure.left_is_gone or (call.order.divisible and failure.lost and not failure.of_memory)
