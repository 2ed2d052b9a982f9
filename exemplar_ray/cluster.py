"""Ray: connect, run tasks, take their results as they come, retry what is worth it.

The only module that imports ray. Torch is imported in the tasks, not on the driver.
"""

from __future__ import annotations

import heapq
import importlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import pyarrow as pa
import ray

from exemplar_ray.errors import UsageError
from exemplar_ray.merge import Folded, fold_group
from exemplar_ray.run_folder import TornPartError
from exemplar_ray.shards import Shard
from exemplar_ray.spec import GPU_DECODER, ResolvedSpec, RunSpec
from exemplar_ray.topk import Scores

Key = TypeVar("Key")

# Tasks handed to Ray at once: enough for its autoscaler to see the demand, few enough that
# the driver's memory does not grow with the number of shards.
_MOST_IN_FLIGHT = 1000
_LONGEST_WAIT_SECONDS = 60.0
_MOST_PREPARED = 64
_MOST_CPUS_A_GPU_TASK = 8

_COMPILE = ("auto", "always", "never")
# Compiling takes half a minute, once a machine. By the data set's size alone, so that a rerun computes as
# the first run did.
_IMAGES_WORTH_COMPILING = 5000

# Images a forward pass: what a core works on should stay in its cache; a GPU wants many at a time.
_BATCH_OF_A_CORE = 8
_BATCH_OF_A_GPU = 128

_LESS_MEMORY = (
    "run again with fewer tasks at once (a larger --cpus-per-task), a smaller --batch-size, or more memory a machine"
)

# OSErrors that trying again does not mend.
_PERMANENT = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)


@dataclass(frozen=True)
class Resources:
    """Where and how fast to compute. None of it changes the result.

    None stands for what the cluster has: a GPU a task where there are GPUs; one CPU a task
    without a GPU, the GPU's share of the CPUs with one; and batches that suit either.
    """

    address: str | None = None
    batch_size: int | None = None
    compile: str = "auto"
    cpus_per_task: int | None = None
    gpus_per_task: float | None = None
    retries: int = 3

    def __post_init__(self) -> None:
        for name in ("batch_size", "cpus_per_task"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise UsageError(f"{name} is a whole number from 1, not {value!r}")
        if self.compile not in _COMPILE:
            raise UsageError(f"compile is one of {', '.join(_COMPILE)}, not {self.compile!r}")
        if not isinstance(self.retries, int) or self.retries < 0:
            raise UsageError(f"retries is a whole number from 0, not {self.retries!r}")
        gpus = self.gpus_per_task
        if gpus is not None and (not isinstance(gpus, (int, float)) or gpus < 0):
            raise UsageError(f"gpus_per_task is a number from 0, not {gpus!r}")


@dataclass(frozen=True)
class Outcome(Generic[Key]):
    """How one task ended: with a value, or with the reason why there is none."""

    key: Key
    value: Any = None
    error: str | None = None
    details: str = ""
    attempts: int = 1
    lost: bool = False
    """The task did not raise: its worker or machine was lost, the last time, too."""


class Cluster:
    """A connection to Ray, started here or joined, for the time of a `with` block."""

    def __init__(self, resources: Resources) -> None:
        self._wanted = resources
        self._address = resources.address or os.environ.get("RAY_ADDRESS")

    def __enter__(self) -> Cluster:
        self._joined = ray.is_initialized()
        if not self._joined:
            on_sigterm = signal.getsignal(signal.SIGTERM)
            try:
                ray.init(
                    # "local" starts a Ray of our own; without it ray.init would join whatever
                    # cluster it finds on this machine.
                    address=self._address or "local",
                    num_cpus=None if self._address else len(os.sched_getaffinity(0)),
                    include_dashboard=None if self._address else False,
                    log_to_driver=False,
                    logging_level="ERROR",
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
        try:
            self._size_tasks(ray.cluster_resources())
        except UsageError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if not self._joined:
            ray.shutdown()

    def _size_tasks(self, totals: dict[str, float]) -> None:
        """Settle what a task asks for, from what was wanted and what there is in all."""
        wanted = self._wanted
        self.gpus_per_task = float(totals.get("GPU", 0) >= 1) if wanted.gpus_per_task is None else wanted.gpus_per_task
        self.cpus_per_task = wanted.cpus_per_task or self._cpus_a_task(totals)
        usual = _BATCH_OF_A_GPU if self.gpus_per_task else _BATCH_OF_A_CORE * self.cpus_per_task
        self.batch_size = wanted.batch_size or usual
        if not self._address:
            self._refuse_impossible(totals)
        self.slots = self._slots(totals)

    def _cpus_a_task(self, totals: dict[str, float]) -> int:
        if not self.gpus_per_task:
            return 1
        share = totals.get("CPU", 1) / max(totals.get("GPU", 0), 1) * self.gpus_per_task
        return int(min(max(share, 1), _MOST_CPUS_A_GPU_TASK))

    def _refuse_impossible(self, totals: dict[str, float]) -> None:
        """A Ray of our own does not grow: what it lacks, a task would wait for forever."""
        wanted = {"CPU": self.cpus_per_task, "GPU": self.gpus_per_task}
        for kind, count in wanted.items():
            if count > totals.get(kind, 0):
                raise UsageError(
                    f"{count:g} {kind}s a task are more than the {totals.get(kind, 0):g} that this machine has; "
                    f"lower --{kind.lower()}s-per-task, or give --address of a larger cluster"
                )

    def _slots(self, totals: dict[str, float]) -> int:
        slots = totals.get("CPU", 0) / self.cpus_per_task
        if self.gpus_per_task:
            slots = min(slots, totals.get("GPU", 0) / self.gpus_per_task)
        return int(slots)

    def resolve(self, spec: RunSpec) -> ResolvedSpec:
        """Build and look at the model in a task, where torch and the weights are.

        Files of a model and of weights are looked for from the driver's working folder, or, in a job that brings its
        working folder along, from each worker's copy of it.

        Raises:
            UsageError: see `resolve.resolve`; or the GPU is to decode, and there is none; or the workers that
                built the model were lost, all of them.
        """
        if spec.decode == GPU_DECODER and not self.gpus_per_task:
            raise UsageError(
                "decode gpu needs a GPU a task, and this run has none; give --gpus-per-task, or --decode fast"
            )
        # A submitted job's working folder is there for its workers, too; any other is the driver's only.
        if "working_dir" not in ray.get_runtime_context().runtime_env:
            spec = spec.with_whole_paths()
        # The other workers get ready meanwhile; if one cannot, the scan will say so.
        for _ in range(min(self.slots - 1, _MOST_PREPARED)):
            _prepare.options(num_cpus=self.cpus_per_task).remote()
        [outcome] = self._run([("model", lambda: _resolve.options(num_cpus=1).remote(spec))])
        if outcome.lost:
            raise UsageError(f"the model cannot be built: {outcome.error}")
        if outcome.error:
            raise RuntimeError(f"the model cannot be built: {outcome.error}\n{outcome.details}")
        return outcome.value

    def scan(
        self,
        spec: ResolvedSpec,
        shards: Iterable[tuple[int, Shard]],
        run_folder: str,
        fingerprint: str,
        max_skipped: int,
        sample_rate: float,
        images: int,
    ) -> Iterator[Outcome[int]]:
        """Scan shards, a task each; yield completion records, keyed by position, as they come.

        Args:
            images: of the whole data set.
        """
        settings = self._settings(images)
        settings |= {"run_folder": run_folder, "fingerprint": fingerprint}
        settings |= {"max_skipped": max_skipped, "sample_rate": sample_rate}
        task = _scan.options(num_cpus=self.cpus_per_task, num_gpus=self.gpus_per_task)
        stored = ray.put(spec)
        return self._run((p, lambda p=p, s=s: task.remote(stored, s, p, settings)) for p, s in shards)

    def probe(
        self, spec: ResolvedSpec, shards: Iterable[Shard], sample_rate: float, images: int, rows: int
    ) -> Iterator[Outcome[int]]:
        """Scan the first rows of some shards, all at the same time if that can be; see `worker.probe`.

        Args:
            images: of the whole data set.
        """
        settings = self._settings(images)
        settings |= {"run_folder": "", "fingerprint": "", "max_skipped": rows, "sample_rate": sample_rate}
        task = _probe.options(num_cpus=self.cpus_per_task, num_gpus=self.gpus_per_task)
        stored = ray.put(spec)
        return self._run((p, lambda s=s: task.remote(stored, s, settings, rows)) for p, s in enumerate(shards))

    def _settings(self, images: int) -> dict[str, Any]:
        """Return how scan tasks of a data set of so many images work."""
        few = self._wanted.compile == "auto" and images < _IMAGES_WORTH_COMPILING
        return {
            "batch_size": self.batch_size,
            "threads": self.cpus_per_task,
            "use_gpu": self.gpus_per_task > 0,
            "compile": "never" if few else self._wanted.compile,
        }

    def fold(
        self, spec: ResolvedSpec, groups: Iterable[Sequence[int]], run_folder: str, fingerprint: str
    ) -> Iterator[Outcome[int]]:
        """Fold committed parts, a task a group of shards; yield `merge.Folded`s, keyed by the group's number, as they
        come.

        Raises:
            TornPartError: a shard's part is not what its completion record says.
        """
        task = _fold.options(num_cpus=1)
        stored = ray.put(spec)
        return self._run(
            (number, lambda positions=positions: task.remote(run_folder, positions, fingerprint, stored))
            for number, positions in enumerate(groups)
        )

    def gather(self, spec: ResolvedSpec, candidates: Iterable[tuple[int, Shard, Scores]]) -> Iterator[Outcome[int]]:
        """Gather, a task a shard; yield (images, exact scores, places), keyed by position, as they come."""
        task = _gather.options(num_cpus=1)
        stored = ray.put(spec)
        return self._run((p, lambda s=s, c=c: task.remote(stored, s, c)) for p, s, c in candidates)

    def _run(self, calls: Iterable[tuple[Key, Callable[[], ray.ObjectRef]]]) -> Iterator[Outcome[Key]]:
        """Submit calls, yield outcomes as they come; retry transient failures with back-off.

        Raises:
            UsageError, TornPartError: a task raised one; nothing that follows would fare better.
        """
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
                _raise_if_for_all(failure)
                if _is_transient(failure) and attempt <= self._wanted.retries:
                    count += 1
                    pause = min(0.5 * 2 ** (attempt - 1), _LONGEST_WAIT_SECONDS)
                    heapq.heappush(resting, (time.monotonic() + pause, count, key, call, attempt + 1))
                    continue
                lost = not isinstance(failure, ray.exceptions.RayTaskError)
                yield Outcome(key, None, _reason(failure), str(failure), attempt, lost)

    def _most_in_flight(self) -> int:
        """How many tasks to have handed to Ray, begun or not."""
        if not self._joined:
            return _MOST_IN_FLIGHT
        # When a run ends early, this Ray goes on with them: they cannot be cancelled, as Ray 2.60 aborts the process
        # that cancels a task at the moment when its result arrives (ray-project/ray#54527). So enough that no slot
        # waits, and that an autoscaler doubles what there is.
        return min(2 * max(self._slots(ray.cluster_resources()), 1), _MOST_IN_FLIGHT)


def _is_transient(error: ray.exceptions.RayError) -> bool:
    """Whether another attempt may fare better: lost workers and nodes, I/O that timed out."""
    if isinstance(error, ray.exceptions.RayTaskError):
        return isinstance(error.cause, OSError) and not isinstance(error.cause, _PERMANENT)
    return True


def _raise_if_for_all(error: ray.exceptions.RayError) -> None:
    """Raise again what a task raised, if it is not only of that task."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, (UsageError, TornPartError)):
        raise type(cause)(*cause.args) from error


def _reason(error: ray.exceptions.RayError) -> str:
    """Say in one line why a task failed."""
    cause = getattr(error, "cause", None) or error
    lines = str(cause).strip().splitlines()
    text = lines[0] if lines else ""
    if isinstance(cause, ray.exceptions.OutOfMemoryError):
        return f"killed for memory: {text}; {_LESS_MEMORY}"
    return text if type(cause).__name__ == "ShardError" else f"{type(cause).__name__}: {text}"


# Retries are the driver's (max_retries=0): it shows them and gives up after so many. A GPU
# task gets a new process each time unless max_calls says otherwise; ours keep the network.
@ray.remote(max_retries=0, max_calls=0)
def _resolve(spec: RunSpec) -> ResolvedSpec:
    from exemplar_ray.resolve import resolve

    return resolve(spec)


@ray.remote(max_retries=0, max_calls=0)
def _prepare() -> None:
    importlib.import_module("exemplar_ray.worker")


@ray.remote(max_retries=0, max_calls=0)
def _scan(spec: ResolvedSpec, shard: Shard, position: int, settings: dict[str, Any]) -> dict[str, Any]:
    from exemplar_ray.worker import ScanSettings, scan_and_commit

    return scan_and_commit(spec, shard, position, ScanSettings(**settings))


@ray.remote(max_retries=0, max_calls=0)
def _probe(spec: ResolvedSpec, shard: Shard, settings: dict[str, Any], rows: int) -> dict[str, Any]:
    from exemplar_ray.worker import ScanSettings, probe

    return probe(spec, shard, ScanSettings(**settings), rows)


@ray.remote(max_retries=0, max_calls=0)
def _fold(run_folder: str, positions: Sequence[int], fingerprint: str, spec: ResolvedSpec) -> Folded:
    return fold_group(run_folder, positions, fingerprint, spec)


@ray.remote(max_retries=0, max_calls=0)
def _gather(spec: ResolvedSpec, shard: Shard, candidates: Scores) -> tuple[pa.Table, Scores, pa.Table]:
    from exemplar_ray.worker import gather

    return gather(spec, shard, candidates)
