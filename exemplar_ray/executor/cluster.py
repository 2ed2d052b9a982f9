"""Ray: connect, run tasks, take their results as they come, retry what is worth it.

The only module that imports ray. What a task computes is named `module:function`, and imported where the task runs:
the driver needs neither torch nor the job's code.
"""

from __future__ import annotations

import heapq
import importlib.util
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import ray

from exemplar_ray.errors import UsageError
from exemplar_ray.executor.named_function import named_function
from exemplar_ray.executor.resources import Demand, Resources, batch_size_of, demand_of
from exemplar_ray.executor.task_log import log_of, logged
from exemplar_ray.runs.run_folder import TornPartError

Key = TypeVar("Key")

# Tasks handed to Ray at once: enough for its autoscaler to see the demand, few enough that
# the driver's memory does not grow with the number of items.
_MOST_IN_FLIGHT = 1000
_LONGEST_WAIT_SECONDS = 60.0
_MOST_PREPARED = 64

_LESS_MEMORY = (
    "run again with fewer tasks at once (a larger --cpus-per-task), a smaller --batch-size, or more memory a machine"
)

# OSErrors that trying again does not mend.
_PERMANENT = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)

# What a task raises of this is not only of that task: nothing that follows would fare better.
_FATAL = (UsageError, TornPartError)

_ONE_CPU = Demand()

_LOGGER = "exemplar_ray"


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


class Cluster:
    """A connection to Ray, started here or joined, for the time of a `with` block.

    `demand` is what a task that runs a network asks for, `batch_size` the images of its forward pass, `slots` how many
    such tasks run at once.

    Args:
        resources: what the user asks for.
        log_level: what tasks log from, by name, see `logging`.
    """

    def __init__(self, resources: Resources, log_level: str = "warning") -> None:
        self.resources = resources
        self._log_level = log_level.upper()
        self._address = resources.address or os.environ.get("RAY_ADDRESS")

    def __enter__(self) -> Cluster:
        """Connect.

        Raises:
            UsageError: there is no Ray at the address, or it has less than a task asks for.
            KeyboardInterrupt: SIGTERM came meanwhile.
        """
        self._joined = ray.is_initialized()
        if not self._joined:
            self._connect()
        try:
            self._size_tasks(ray.cluster_resources())
        except UsageError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if not self._joined:
            ray.shutdown()

    def _connect(self) -> None:
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(
                # "local" starts a Ray of our own; without it ray.init would join whatever
                # cluster it finds on this machine.
                address=self._address or "local",
                num_cpus=None if self._address else len(os.sched_getaffinity(0)),
                include_dashboard=None if self._address else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UsageError(f"cannot connect to Ray at '{self._address or 'local'}': {error}") from error
        except SystemExit as error:
            # Ray's own handlers of SIGTERM, there meanwhile, and nothing else in it, raise that.
            raise KeyboardInterrupt from error
        finally:
            # They would end the process on the spot.
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_sigterm)

    def _size_tasks(self, totals: dict[str, float]) -> None:
        self.demand = demand_of(self.resources, totals)
        self.batch_size = batch_size_of(self.resources, self.demand)
        if not self._address:
            self.demand.refuse_impossible(totals)
        self.slots = self.demand.slots(totals)

    @property
    def brings_working_folder(self) -> bool:
        """Whether workers have a copy of the driver's working folder: a submitted job brings it along."""
        return "working_dir" in ray.get_runtime_context().runtime_env

    def prepare(self, module: str) -> None:
        """Have workers import a module while other things go on; if one cannot, the tasks that follow will say so."""
        for _ in range(min(self.slots - 1, _MOST_PREPARED)):
            _prepare.options(num_cpus=self.demand.cpus).remote(module)

    def map(
        self,
        function: str,
        items: Iterable[tuple[Key, Any]],
        *shared: Any,
        demand: Demand = _ONE_CPU,
        imports: str | None = None,
    ) -> Iterator[Outcome[Key]]:
        """Call `function(*shared, item)` in a task for each item; yield outcomes as they come.

        What is transient (lost workers, time-outs) is tried again, with back-off.

        Args:
            function: `module:function`, imported where the task runs.
            items: (key, item) pairs; taken one by one, so there may be any number of them.
            shared: what every task gets; stored once.
            demand: what each task asks Ray for.
            imports: another `module:function` that tasks import, and that items may be of.

        Raises:
            UsageError, TornPartError: a task raised one; nothing that follows would fare better. Or there is no such
                module.
        """
        # The name is for people: Ray's dashboard and the process list show it.
        name = (imports or function).rpartition(":")[2]
        task = _call.options(num_cpus=demand.cpus, num_gpus=demand.gpus, name=name)
        called = _Called(function, _folder_of(imports or function), self._log_level)
        # In a list, and the item as bytes: they may be of classes that a worker has to find first.
        stored = [ray.put(value) for value in shared]

        def call_of(item: Any) -> Callable[[], ray.ObjectRef]:
            return lambda: task.remote(called, ray.cloudpickle.dumps(item), stored)

        return self._run((key, call_of(item)) for key, item in items)

    def _run(self, calls: Iterable[tuple[Key, Callable[[], ray.ObjectRef]]]) -> Iterator[Outcome[Key]]:
        """Submit calls, yield outcomes as they come."""
        new = iter(calls)
        running: dict[ray.ObjectRef, tuple[Key, Callable[[], ray.ObjectRef], int]] = {}
        resting: list[tuple[float, int, Key, Callable[[], ray.ObjectRef], int]] = []
        exhausted, count = False, 0
        while running or resting or not exhausted:
            while resting and resting[0][0] <= time.monotonic():
                _, _, key, call, attempt = heapq.heappop(resting)
                running[call()] = (key, call, attempt)
            while not exhausted and len(running) < self._most_in_flight():
                following = next(new, None)
                exhausted = following is None
                if following is not None:
                    running[following[1]()] = (*following, 1)
            if not running:
                time.sleep(max(0.0, resting[0][0] - time.monotonic()) if resting else 0)
                continue
            wait = max(0.0, resting[0][0] - time.monotonic()) if resting else None
            done, _ = ray.wait(list(running), num_returns=1, timeout=wait, fetch_local=False)
            for ref in done:
                key, call, attempt = running.pop(ref)
                try:
                    yield Outcome(key, ray.get(ref), attempts=attempt)
                    continue
                except ray.exceptions.RayError as error:
                    failure = error
                _raise_if_fatal(failure)
                if _is_transient(failure) and attempt <= self.resources.retries:
                    count += 1
                    pause = min(0.5 * 2 ** (attempt - 1), _LONGEST_WAIT_SECONDS)
                    heapq.heappush(resting, (time.monotonic() + pause, count, key, call, attempt + 1))
                    continue
                yield _failed(key, failure, attempt)

    def _most_in_flight(self) -> int:
        """How many tasks to have handed to Ray, begun or not."""
        if not self._joined:
            return _MOST_IN_FLIGHT
        # When a run ends early, this Ray goes on with them: they cannot be cancelled, as Ray 2.60 aborts the process
        # that cancels a task at the moment when its result arrives (ray-project/ray#54527). So enough that no slot
        # waits, and that an autoscaler doubles what there is.
        return min(2 * max(self.demand.slots(ray.cluster_resources()), 1), _MOST_IN_FLIGHT)


def _failed(key: Key, error: ray.exceptions.RayError, attempts: int) -> Outcome[Key]:
    cause = getattr(error, "cause", None)
    return Outcome(
        key,
        error=_reason(error),
        details=str(error),
        log=log_of(cause),
        attempts=attempts,
        lost=not isinstance(error, ray.exceptions.RayTaskError),
    )


def _is_transient(error: ray.exceptions.RayError) -> bool:
    """Whether another attempt may fare better: lost workers and nodes, I/O that timed out."""
    if isinstance(error, ray.exceptions.RayTaskError):
        return isinstance(error.cause, OSError) and not isinstance(error.cause, _PERMANENT)
    return True


def _raise_if_fatal(error: ray.exceptions.RayError) -> None:
    """Raise again what a task raised, if it is not only of that task."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, _FATAL):
        raise type(cause)(*cause.args) from error


def _reason(error: ray.exceptions.RayError) -> str:
    """Say in one line why a task failed."""
    cause = getattr(error, "cause", None) or error
    lines = str(cause).strip().splitlines()
    text = lines[0] if lines else ""
    if isinstance(cause, ray.exceptions.OutOfMemoryError):
        return f"killed for memory: {text}; {_LESS_MEMORY}"
    return text if type(cause).__name__ == "ShardError" else f"{type(cause).__name__}: {text}"


@dataclass(frozen=True)
class _Called:
    """Which function a task calls, and how."""

    function: str
    """`module:function`"""
    folder: str | None
    """Where the driver has the code, if that is not this package's."""
    log_level: str


def _folder_of(function: str) -> str | None:
    """Return the folder that the driver imports a `module:function` from; None for those of this package, which
    workers have, too.

    Raises:
        UsageError: there is no such module; a program's or notebook's own (`__main__`) is none that can be imported.
    """
    package = function.split(":")[0].split(".")[0]
    if package == __package__.split(".")[0]:
        return None
    spec = None if package == "__main__" else importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UsageError(f"there is no module '{package}' for a worker to import; put the task into a file of its own")
    file = Path(spec.origin)
    return str(file.parent.parent if spec.submodule_search_locations else file.parent)


# Retries are the driver's (max_retries=0): it shows them and gives up after so many. A GPU
# task gets a new process each time unless max_calls says otherwise; ours keep the network.
@ray.remote(max_retries=0, max_calls=0)
def _call(called: _Called, item: bytes, shared: list[ray.ObjectRef]) -> Any:
    if called.folder is not None and called.folder not in sys.path:
        # Last: what a job brings along, or a machine has installed, goes first.
        sys.path.append(called.folder)
    with logged(logging.getLogger(_LOGGER), called.log_level):
        return named_function(called.function)(*ray.get(shared), ray.cloudpickle.loads(item))


@ray.remote(max_retries=0, max_calls=0)
def _prepare(module: str) -> None:
    importlib.import_module(module)
