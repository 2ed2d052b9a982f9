"""Ray: connect, run tasks, take their results as they come, retry what is worth it.

The only module that imports ray. What a task computes is named `module:function`, and imported where the task runs:
the driver needs neither torch nor the job's code.
"""

from __future__ import annotations

import heapq
import importlib.util
import json
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
from exemplar_ray.executor.failures import LESS_MEMORY, Failure, TaskError, failure_of, reason_of
from exemplar_ray.executor.machine import cpus
from exemplar_ray.executor.named_function import named_function
from exemplar_ray.executor.ray_address import CLIENT, Watch, is_same, refuse_unusable, why_not
from exemplar_ray.executor.ray_token import RayToken
from exemplar_ray.executor.resources import Demand, Resources, batch_size_of, demand_of
from exemplar_ray.executor.search_path import SearchPath
from exemplar_ray.executor.task_log import logged
from exemplar_ray.storage.transient import is_transient

Key = TypeVar("Key")

# Tasks handed to Ray at once: enough for its autoscaler to see the demand, few enough that
# the driver's memory does not grow with the number of items.
_MOST_IN_FLIGHT = 1000
_LONGEST_WAIT_SECONDS = 60.0
_MOST_PREPARED = 64

_ONE_CPU = Demand()

_LOGGER = "exemplar_ray"

# Where Ray's monitor says what it sees, every 5 s.
_AUTOSCALER = "__autoscaling_status"
_LOOKS_FOR_AUTOSCALER = 10


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


class Cluster:
    """A connection to Ray, started here or joined, for the time of a `with` block.

    `demand` is what a task that runs a network asks for, `batch_size` the images of its forward pass, `slots` how many
    such tasks run at once; `waits_for` says so where no machine is large enough for one, but another may join.

    Args:
        resources: what the user asks for.
        log_level: what tasks log from, by name, see `logging`.
    """

    def __init__(self, resources: Resources, log_level: str = "warning") -> None:
        self.resources = resources
        self._log_level = log_level.upper()
        address = resources.address or os.environ.get("RAY_ADDRESS")
        self._address = None if address == "local" else address
        self._token = RayToken(ray._raylet)
        self._folders: tuple[str, ...] = ()
        self.waits_for: str | None = None

    def __enter__(self) -> Cluster:
        """Connect.

        Raises:
            UsageError: there is no Ray at the address, or it has less than a task asks for.
            KeyboardInterrupt: SIGTERM came meanwhile.
        """
        self._joined = ray.is_initialized()
        if self._joined:
            self._refuse_another()
        else:
            self._connect()
        try:
            self._watch = Watch(ray.get_runtime_context().gcs_address, _raylet())
            self._size_tasks(ray.cluster_resources())
        except UsageError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if not self._joined:
            ray.shutdown()
            self._token.restore()

    def _refuse_another(self) -> None:
        """Refuse an address of another Ray than the one that this process is connected to."""
        asked, here = self.resources.address, ray.get_runtime_context().gcs_address
        if asked not in (None, "auto", "local") and not is_same(asked, here):
            raise UsageError(
                f"this process is connected to the Ray at '{here}' already, so that it cannot join '{asked}'; leave "
                "--address (address) out, or call ray.shutdown() first"
            )

    def _connect(self) -> None:
        on_sigterm = signal.getsignal(signal.SIGTERM)
        address = self._address or "local"
        if self._address:
            refuse_unusable(_found(address), self._token.shown(address))
        else:
            self._token.make()
        config, path = ray.job_config.JobConfig(), SearchPath()
        config._py_driver_sys_path = path
        options: dict[str, Any] = {} if address.startswith(CLIENT) else {"job_config": config}
        try:
            ray.init(
                # "local" starts a Ray of our own; without it ray.init would join whatever
                # cluster it finds on this machine.
                address=address,
                num_cpus=None if self._address else cpus(),
                include_dashboard=None if self._address else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **options,
            )
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise UsageError(why_not(address, error)) from error
        except SystemExit as error:
            # Ray's own handlers of SIGTERM, there meanwhile, and nothing else in it, raise that.
            raise KeyboardInterrupt from error
        finally:
            if not ray.is_initialized():
                self._token.restore()
            # They would end the process on the spot.
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_sigterm)
        self._folders = tuple(path.left_out)

    def _size_tasks(self, totals: dict[str, float]) -> None:
        self.demand = demand_of(self.resources, totals)
        self.batch_size = batch_size_of(self.resources, self.demand)
        self.slots = self.demand.slots(totals)
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not self.demand.fits(machines):
            if not (self._joined or self._address):
                self.demand.refuse_impossible(machines)
            if not _may_grow():
                self.demand.refuse_impossible(machines, "any machine of this cluster")
            self.waits_for = (
                f"no machine of this cluster has what a task asks for ({self.demand.words}): tasks wait until one joins"
            )

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
        folder = _folder_of(imports or function)
        folders = self._folders if folder is None else (folder, *self._folders)
        called = _Called(function, folders, self._log_level)
        # In a list, and the item as bytes: they may be of classes that a worker has to find first.
        stored = [ray.put(value) for value in shared]

        def call_of(item: Any) -> Callable[[], ray.ObjectRef]:
            return lambda: task.remote(called, ray.cloudpickle.dumps(item), stored)

        return self._run((key, call_of(item)) for key, item in items)

    def call(self, function: str, item: Any, failing: str) -> Any:
        """Call `function(item)` in one task; return its value.

        Args:
            failing: what to say that it means if there is none: "the model cannot be built".

        Raises:
            UsageError: it raised one, or its workers were lost, or what else it raised may pass.
            RuntimeError: it raised something else.
        """
        [outcome] = self.map(function, [(failing, item)])
        if outcome.lost or outcome.transient:
            raise UsageError(f"{failing}: {outcome.error}")
        if outcome.error:
            raise RuntimeError(f"{failing}: {outcome.error}\n{outcome.details}")
        return outcome.value

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
            # Not longer than until the next look whether there is a Ray at all.
            wait = min(
                max(0.0, resting[0][0] - time.monotonic()) if resting else Watch.EVERY_SECONDS, Watch.EVERY_SECONDS
            )
            done, _ = ray.wait(list(running), num_returns=1, timeout=wait, fetch_local=False)
            self._watch.look()
            for ref in done:
                key, call, attempt = running.pop(ref)
                try:
                    yield Outcome(key, ray.get(ref), attempts=attempt)
                    continue
                except ray.exceptions.RayError as error:
                    failure = _failure(error)
                if failure.transient and attempt <= self.resources.retries:
                    count += 1
                    pause = min(0.5 * 2 ** (attempt - 1), _LONGEST_WAIT_SECONDS)
                    heapq.heappush(resting, (time.monotonic() + pause, count, key, call, attempt + 1))
                    continue
                if failure.fatal is not None:
                    raise failure.fatal
                yield Outcome(
                    key,
                    error=failure.reason,
                    details=failure.details,
                    log=failure.log,
                    attempts=attempt,
                    lost=failure.lost,
                    transient=failure.transient,
                )

    def _most_in_flight(self) -> int:
        """How many tasks to have handed to Ray, begun or not."""
        if not self._joined:
            return _MOST_IN_FLIGHT
        # When a run ends early, this Ray goes on with them: they cannot be cancelled, as Ray 2.60 aborts the process
        # that cancels a task at the moment when its result arrives (ray-project/ray#54527). So enough that no slot
        # waits, and that an autoscaler doubles what there is.
        return min(2 * max(self.demand.slots(ray.cluster_resources()), 1), _MOST_IN_FLIGHT)


def _failure(error: ray.exceptions.RayError) -> Failure:
    """Return why a task failed, as its worker judged it, or as Ray says where that did not come to it."""
    if not isinstance(error, ray.exceptions.RayTaskError):
        lines = str(error).strip().splitlines() or [""]
        reason = f"{type(error).__name__}: {lines[0]}"
        if isinstance(error, ray.exceptions.OutOfMemoryError):
            reason = f"killed for memory: {lines[0]}; {LESS_MEMORY}"
        return Failure(reason, str(error), transient=True, lost=True)
    if isinstance(error.cause, TaskError):
        return error.cause.failure
    cause = error.cause or error
    return Failure(reason_of(cause), str(error), is_transient(cause))


def _found(address: str) -> str:
    """Return where the Ray is that `auto` stands for; other addresses as they are."""
    if address != "auto":
        return address
    try:
        return ray._private.services.canonicalize_bootstrap_address(address) or address
    except (ConnectionError, ValueError):
        # Ray will say so.
        return address


def _raylet() -> str | None:
    """Return the address of Ray's process on this machine; None for a client, which has none."""
    if ray.util.client.ray.is_connected():
        return None
    here = ray.get_runtime_context().get_node_id()
    addresses = [(n["NodeManagerAddress"], n["NodeManagerPort"]) for n in ray.nodes() if n["NodeID"] == here]
    return "{}:{}".format(*addresses[0]) if addresses else None


def _may_grow() -> bool:
    """Whether machines may join while tasks wait for them: there is an autoscaler, or Ray does not tell."""
    for _ in range(_LOOKS_FOR_AUTOSCALER):
        status = json.loads(ray.experimental.internal_kv._internal_kv_get(_AUTOSCALER) or "{}")
        kinds = (status.get("autoscaler_report") or {}).get("active_nodes")
        if kinds:
            # Without an autoscaler Ray's monitor calls every machine after itself.
            return not all(kind.startswith("node_") for kind in kinds)
        time.sleep(1)
    return True


@dataclass(frozen=True)
class _Called:
    """Which function a task calls, and how."""

    function: str
    """`module:function`"""
    folders: tuple[str, ...]
    """Where the driver has code that is not this package's."""
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
    # Last: what a job brings along, or a machine has installed, goes first.
    sys.path.extend(folder for folder in called.folders if folder not in sys.path)
    try:
        with logged(logging.getLogger(_LOGGER), called.log_level):
            return named_function(called.function)(*ray.get(shared), ray.cloudpickle.loads(item))
    except (Exception, SystemExit) as error:
        # What a model's file raises to end its program would end the worker, as if that were lost; Ray's own may.
        if hasattr(error, "ray_terminate_msg"):
            raise
        # Ray's errors are of what is shared: it was lost, or came too late.
        raise TaskError(failure_of(error, isinstance(error, ray.exceptions.RayError))) from None


@ray.remote(max_retries=0, max_calls=0)
def _prepare(module: str) -> None:
    importlib.import_module(module)
