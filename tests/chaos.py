"""Chaos: seeded schedules of faults against a job, until it has its answer; then every byte is compared.

    python tests/chaos.py --schedules 30 --data ../shared/data/imagenet-sample
    python tests/chaos.py --job activations --schedules 6 --data ../shared/data/imagenet-sample
    python tests/chaos.py --job visualize --schedules 6

Each schedule runs the job, the main one, that of activations or that of visualisations, on a real Ray cluster of
several nodes, with data and run folder on the local disk or behind a fault-injecting proxy on a real S3 server. It
kills drivers, workers and nodes at random times or at the worst ones (between a part and its completion record, between
merge and gather, just before the answer), starts a second driver, lets storage fail, has a machine whose disk is full,
and a shard silently wrong until it is restored. Then the same command is given again until it ends with 0, and the
answer is held against an undisturbed one.
"""

import argparse
import logging
import os
import queue
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import fsspec
import psutil
from conftest import TINY_FLAGS
from fault_proxy import FAULTS, FaultProxy, fault_proxy
from object_store import BUCKET, environment, file_system, object_store, upload
from test_bad_machine import BAD, NETWORK

from exemplar_ray.storage.transient import patiently

NODES = 3
# A command that needs more goes is one that does not get on.
MOST_ATTEMPTS = 8
# Later attempts are left in peace, as a run that is disturbed for ever need not end.
DISTURBED_ATTEMPTS = 3
_LONGEST_ATTEMPT_SECONDS = 300
# What Ray calls the processes of workers that are at a task.
AT_WORK = ("ray::resolve", "ray::scan", "ray::gather", "ray::fold_group", "ray::make", "ray::store")
# The tests' network, which cannot store anything on a machine that is made bad.
NETWORK_FILE = Path(tempfile.gettempdir()) / f"xr-chaos-network-{os.getpid()}" / "network.py"
_MODEL = ["--model", f"{NETWORK_FILE}:trained"]

KILL_DRIVER, KILL_WORKER, KILL_NODE, INTERRUPT, STORAGE, SECOND_DRIVER = (
    "driver killed",
    "worker killed",
    "node killed",
    "driver interrupted",
    "storage fails",
    "second driver",
)
WRONG_DATA = "a shard silently wrong until the second attempt"
BAD_MACHINE = "one bad machine, whose disk is full"
# They are there from the start, or until the second attempt.
_STANDING = (STORAGE, WRONG_DATA, BAD_MACHINE)
# When: (what is seen in the run folder, how often) or seconds after the start.
PART, RECORD, MERGE, EXEMPLARS, SUMMARY = MOMENTS = (
    "a part is about to be recorded",
    "a part has been recorded",
    "parts are being merged",
    "the answer is about to be written",
    "the summary is about to be written",
)


@dataclass(frozen=True)
class Work:
    """A job that is disturbed."""

    command: str
    flags: tuple[str, ...]
    answer: tuple[str, ...]
    """The files of its answer, and folders of them: the first that is written, and the last, stand where they do."""
    folded: str
    """How the file of a part ends that a merge reads first."""
    items: int | None = None
    """How many items it has; None for the shards of the data."""

    @property
    def of_data(self):
        return self.items is None

    def part_of_answer(self, name):
        """The part of the answer that a file is, or is in; None if it is none."""
        return next((part for part in self.answer if name == part or (part[-1] == "/" and name.startswith(part))), None)


RUN = Work(
    "run",
    (*TINY_FLAGS, *_MODEL, "--sample", "bottom", "q50", "--max-skipped", "0"),
    ("exemplars.parquet", "classes.parquet", "histograms.parquet", "images.parquet", "channels.parquet"),
    ".histogram.parquet",
)
# Twelve channels, four at a time: three groups up, three down. A second each, so that there is something to disturb.
PICTURES = Work(
    "visualize",
    (*TINY_FLAGS[2:4], *TINY_FLAGS[6:], *_MODEL, "--negative", "--size", "32", "--steps", "250"),
    ("visualizations.parquet",),
    ".parquet",
    items=6,
)
STORE = Work(
    "activations",
    (*TINY_FLAGS[6:], *_MODEL, "--layer", "conv1", "mixed", "--pool", "mean", "none"),
    ("moments.parquet", "layers/", "index.parquet"),
    ".parquet",
)
WORKS = {work.command: work for work in (RUN, PICTURES, STORE)}


@dataclass
class Disturbance:
    """One fault, and when it strikes an attempt."""

    attempt: int
    fault: str
    moment: str | None
    """None: after so many seconds."""
    delay: float

    def __str__(self):
        when = self.moment or f"after {self.delay:.1f} s"
        return f"{self.fault}, {when}" if self.fault not in _STANDING else self.fault


@dataclass
class Survived:
    """How a schedule went."""

    seed: int
    storage: str
    disturbances: list
    attempts: list = field(default_factory=list)
    """Exit statuses."""
    struck: Counter = field(default_factory=Counter)
    storage_faults: Counter = field(default_factory=Counter)
    wrong: list = field(default_factory=list)
    """What does not hold; empty if all is well."""
    seconds: float = 0.0


def schedule(seed, work=RUN):
    """Draw where a run lives and what happens to it: (storage, disturbances)."""
    draw = random.Random(seed)
    storage = draw.choice(("disk", "s3"))
    disturbances = []
    for attempt in range(draw.randint(1, DISTURBED_ATTEMPTS)):
        for _ in range(draw.randint(1, 3)):
            faults = [KILL_DRIVER, KILL_WORKER, KILL_NODE, INTERRUPT, SECOND_DRIVER]
            faults += [STORAGE, STORAGE] if storage == "s3" else []
            moment = draw.choice([None, *MOMENTS])
            disturbances.append(Disturbance(attempt, draw.choice(faults), moment, draw.uniform(0.5, 9)))
    if draw.random() < 0.25:
        disturbances += [Disturbance(0, WRONG_DATA, None, 0)] if work.of_data else []
    if draw.random() < 0.25:
        disturbances.append(Disturbance(0, BAD_MACHINE, None, 0))
    return storage, disturbances


class Place:
    """Where data and run folder are: how to reach them, and how to look past what fails."""

    def __init__(self, data, out, environment, look, proxy=None):
        self.data, self.out, self.environment, self.proxy = data, out, environment, proxy
        self._fs, self._root = look
        self._whole = {}

    def damage(self, draw):
        """Put another shard's images into a shard of this place's own copy of the data; return which one's."""
        folder = str(Path(self._root).parent / "data")
        self._fs.mkdirs(folder, exist_ok=True)
        paths = sorted(self._fs.find(self.data.removeprefix("s3://")))
        for path in paths:
            self._fs.copy(path, f"{folder}/{Path(path).name}")
        self.data = folder if self.proxy is None else f"s3://{folder}"
        position, other = draw.sample(range(len(paths)), 2)
        name = f"{folder}/{Path(paths[position]).name}"
        self._whole = {name: self._fs.cat_file(name)}
        self._fs.pipe_file(name, self._fs.cat_file(paths[other]))
        return position

    def restore(self):
        """Make the data what it was."""
        for name, content in self._whole.items():
            self._fs.pipe_file(name, content)

    def files(self):
        """Return {name: content} of the run folder's files."""
        self._fs.invalidate_cache()
        if not self._fs.exists(self._root):
            return {}
        # What a driver that was killed has left behind may still be writing.
        read = {path: partial(self._fs.cat_file, path) for path in self._fs.find(self._root)}
        return {path[len(self._root) + 1 :]: patiently(one) for path, one in read.items()}

    def names(self):
        """Return the names of the files of a run folder on the disk; quickly, as it is asked for all the time."""
        names = set()
        for folder, _, files in os.walk(self._root):
            below = folder[len(self._root) + 1 :]
            names |= {f"{below}/{name}" if below else name for name in files}
        return names


class Machines:
    """A Ray cluster of a head without CPUs and nodes that can be lost."""

    def __init__(self):
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.nodes = [self._add() for _ in range(NODES)]

    @property
    def address(self):
        return self.cluster.address

    def _add(self, fault=None):
        more = {"env_vars": {BAD: fault}} if fault else {}
        return self.cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20, **more)

    @contextmanager
    def one_bad(self, there):
        """Have a machine, if wanted, that cannot store anything, in place of another."""
        if not there:
            yield
            return
        self.cluster.remove_node(self.nodes.pop(), allow_graceful=False)
        self.nodes.append(bad := self._add("disk"))
        try:
            yield
        finally:
            # It may have been lost meanwhile.
            if bad in self.nodes:
                self.nodes.remove(bad)
                self.cluster.remove_node(bad, allow_graceful=False)
                self.nodes.append(self._add())

    def kill_node(self, draw):
        """Lose a machine, all its processes at once; another one comes."""
        node = self.nodes.pop(draw.randrange(len(self.nodes)))
        self.cluster.remove_node(node, allow_graceful=False)
        self.nodes.append(self._add())

    def kill_worker(self, draw):
        """SIGKILL a worker that is at work, if there is one."""
        workers = []
        for node in self.nodes:
            for process in node.all_processes.get("raylet", []):
                workers += _children(process.process.pid)
        busy = [process for process, title in workers if title.startswith(AT_WORK)]
        if not busy:
            return False
        try:
            draw.choice(busy).kill()
        except psutil.NoSuchProcess:
            return False
        return True

    def close(self):
        self.cluster.shutdown()


def _children(pid):
    found = []
    try:
        for process in psutil.Process(pid).children(recursive=True):
            found.append((process, " ".join(process.cmdline())))
    except psutil.NoSuchProcess:
        pass
    return found


class Attempt:
    """One run of the command, and what strikes it."""

    def __init__(self, work, machines, place, disturbances, seed):
        self._work, self._machines, self._place, self._draw = work, machines, place, random.Random(seed)
        self._disturbances = disturbances
        self.struck, self.storage_faults = Counter(), Counter()
        self._second = None
        self._due = queue.Queue()
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._waiting = [d for d in disturbances if d.moment]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115

    def run(self):
        """Return the exit status; what the command printed is in `printed`."""
        if self._place.proxy:
            storms = sum(d.fault == STORAGE for d in self._disturbances)
            self._place.proxy.reseed(self._draw.random(), 0.15 if storms else 0.0, FAULTS, 25 * storms)
            self._place.proxy.on_request = self._on_request
        self._driver = self._start()
        timers = [threading.Timer(d.delay, self._ask_for, [d]) for d in self._disturbances if not d.moment]
        ended = threading.Event()
        # Behind the proxy the requests say how far a run is.
        watchers = [] if self._place.proxy else [threading.Thread(target=self._watch, args=[ended])]
        for thread in (*timers, *watchers):
            thread.start()
        try:
            deadline = time.monotonic() + _LONGEST_ATTEMPT_SECONDS
            while any(driver.poll() is None for driver in self._drivers()) and time.monotonic() < deadline:
                self._strike_what_is_due()
            status = self._driver.poll()
        finally:
            ended.set()
            for timer in timers:
                timer.cancel()
            for driver in self._drivers():
                driver.kill()
                driver.wait()
            self._over.set()
            for thread in (*timers, *watchers):
                thread.join()
            if self._place.proxy:
                self.storage_faults = Counter(self._place.proxy.done)
                self._place.proxy.reseed(0)
        self._log.seek(0)
        self.printed = self._log.read()
        return status

    def _drivers(self):
        return [driver for driver in (self._driver, self._second) if driver]

    def _start(self):
        command = [sys.executable, "-m", "exemplar_ray", self._work.command, "--out", self._place.out]
        command += ["--data", self._place.data] if self._work.of_data else []
        environment = {**self._place.environment, "RAY_ADDRESS": self._machines.address}
        return subprocess.Popen([*command, *self._work.flags], env=environment, stdout=self._log, stderr=self._log)

    def _on_request(self, method, path):
        """Called for every request to the object store, before it gets there."""
        if "/run/" not in path and "run%2F" not in path:
            return
        name = path.split("?")[0]
        if method == "PUT" and "/parts/" in name:
            self._reached(PART if name.endswith(".json") else RECORD)
        elif method == "GET" and "/parts/" in name and name.endswith(self._work.folded):
            self._reached(MERGE)
        elif method == "PUT" and name.endswith(f"/{self._work.answer[0]}"):
            self._reached(EXEMPLARS)
        elif method == "PUT" and name.endswith("/summary.json"):
            self._reached(SUMMARY)

    def _watch(self, ended):
        """Look at the local run folder all the time."""
        before = self._place.names()
        while not ended.is_set() and self._waiting:
            names = self._place.names()
            new = names - before
            parts = {name.split(".")[0] for name in names if name.startswith("parts/") and name.endswith(".parquet")}
            records = {name.split(".")[0] for name in names if name.startswith("parts/") and name.endswith(".json")}
            if parts - records:
                self._reached(PART)
            if any(name in {f"{record}.json" for record in records} for name in new):
                self._reached(RECORD)
            if records and records == parts and len(records) == self._items():
                self._reached(MERGE)
            if any(self._work.answer[0] in name for name in names):
                self._reached(EXEMPLARS)
            if any(self._work.answer[-1] in name for name in names):
                self._reached(SUMMARY)
            time.sleep(0.003)

    def _items(self):
        return self._work.items or len(list(Path(self._place.data).iterdir()))

    def _reached(self, moment):
        with self._lock:
            now = [d for d in self._waiting if d.moment == moment]
            self._waiting = [d for d in self._waiting if d.moment != moment]
        for disturbance in now:
            self._ask_for(disturbance)

    def _ask_for(self, disturbance):
        """Have the main thread strike, as Ray adds nodes only there; wait until it has."""
        struck = threading.Event()
        self._due.put((disturbance, struck))
        while not struck.wait(0.05) and not self._over.is_set():
            pass

    def _strike_what_is_due(self):
        try:
            disturbance, struck = self._due.get(timeout=0.05)
        except queue.Empty:
            return
        self._strike(disturbance)
        struck.set()

    def _strike(self, disturbance):
        if self._driver.poll() is not None:
            return
        if disturbance.fault == KILL_DRIVER:
            self._driver.kill()
        elif disturbance.fault == INTERRUPT:
            self._driver.terminate()
        elif disturbance.fault == KILL_NODE:
            self._machines.kill_node(self._draw)
        elif disturbance.fault == SECOND_DRIVER and self._second is None:
            self._second = self._start()
        elif disturbance.fault == KILL_WORKER and not self._machines.kill_worker(self._draw):
            return
        self.struck[disturbance.fault] += 1


def survive(seed, work, machines, place, undisturbed):
    """Run one schedule to its end and check what came of it.

    Args:
        work: the job.
        undisturbed: {name: content} of the answer of a run that nothing happened to.
    """
    storage, disturbances = schedule(seed, work)
    survived = Survived(seed, storage, disturbances)
    started = time.monotonic()
    records = {}
    wrong = [place.damage(random.Random(seed)) for d in disturbances if d.fault == WRONG_DATA]
    for number in range(MOST_ATTEMPTS):
        if number == 1:
            place.restore()
        now = [d for d in disturbances if d.attempt == number and d.fault not in (WRONG_DATA, BAD_MACHINE)]
        attempt = Attempt(work, machines, place, now, f"{seed} {number}")
        status = attempt.run()
        survived.attempts.append(status)
        survived.struck += attempt.struck
        survived.storage_faults += attempt.storage_faults
        files = place.files()
        if "Traceback" in attempt.printed:
            survived.wrong.append(f"attempt {number + 1} ended with a traceback:\n{attempt.printed[-3000:]}")
        # The only record that may be another one: of what was wrong, or touched since.
        repaired = {f"parts/{position:06d}.json" for position in wrong}
        changed = [name for name, content in records.items() if files.get(name) != content and name not in repaired]
        if changed:
            survived.wrong.append(f"scanned again after its completion record: {', '.join(changed)}")
        records = {n: c for n, c in files.items() if n.startswith("parts/") and n.endswith(".json") and _whole(c)}
        # A run that was to be disturbed later may be done before. What it says of wrong data is wrong.
        if status == 0 and not (wrong and number == 0):
            break
    else:
        survived.wrong.append(f"not done after {MOST_ATTEMPTS} attempts; the last one said:\n{attempt.printed[-3000:]}")
    different = [name for name in undisturbed if files.get(name) != undisturbed[name]]
    if different:
        survived.wrong.append(f"not the undisturbed bytes: {', '.join(different)}")
    survived.struck += Counter(d.fault for d in disturbances if d.fault in (WRONG_DATA, BAD_MACHINE))
    survived.seconds = time.monotonic() - started
    return survived


def _whole(record):
    return record.rstrip().endswith(b"}")


def answer_of(work, place):
    """Return {name: content} of a run's answer."""
    return {name: content for name, content in place.files().items() if work.part_of_answer(name)}


def local_place(data, folder):
    """A run folder on this disk."""
    return Place(str(data), str(folder / "run"), dict(os.environ), (fsspec.filesystem("file"), str(folder / "run")))


def s3_place(url, proxy, data_uri, name):
    """A run folder on the object store, behind the proxy."""
    look = file_system(url), f"{BUCKET}/{name}/run"
    return Place(data_uri, f"s3://{BUCKET}/{name}/run", environment(proxy.url), look, proxy)


@dataclass(frozen=True)
class Ground:
    """What schedules run on, one after another."""

    machines: Machines
    url: str
    """Of the object store."""
    proxy: FaultProxy
    """In front of it."""
    folder: Path


@contextmanager
def ground():
    """Yield a cluster, an object store behind a proxy, and a folder."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    with (
        tempfile.TemporaryDirectory(prefix="xr-chaos-") as folder,
        object_store() as url,
        fault_proxy(url) as proxy,
    ):
        NETWORK_FILE.parent.mkdir(exist_ok=True)
        NETWORK_FILE.write_text(NETWORK.format(tests=str(Path(__file__).parent), bad=BAD, faults=None))
        os.environ.update({k: v for k, v in environment(proxy.url).items() if k.startswith("AWS_")})
        machines = Machines()
        try:
            yield Ground(machines, url, proxy, Path(folder))
        finally:
            machines.close()
            shutil.rmtree(NETWORK_FILE.parent)


def run_schedules(ground, seeds, data, work=RUN):
    """Run schedules over a folder of shards; yield how each went."""
    here, machines = ground.folder / work.command, ground.machines
    uri = upload(file_system(ground.url), data, f"{work.command}/data") if work.of_data else None
    quiet = local_place(data, here / "quiet")
    attempt = Attempt(work, machines, quiet, [], 0)
    if attempt.run() != 0:
        raise RuntimeError(f"the undisturbed run failed:\n{attempt.printed}")
    undisturbed = answer_of(work, quiet)
    if {work.part_of_answer(name) for name in undisturbed} != set(work.answer):
        raise RuntimeError("the undisturbed run has not written its whole answer")
    for seed in seeds:
        storage, disturbances = schedule(seed, work)
        if storage == "disk":
            place = local_place(data, here / str(seed))
        else:
            place = s3_place(ground.url, ground.proxy, uri, f"{work.command}/{seed}")
        with machines.one_bad(any(one.fault == BAD_MACHINE for one in disturbances)):
            survived = survive(seed, work, machines, place, undisturbed)
        yield survived


def describe(survived):
    """Write a schedule's line of the table."""
    planned = "; ".join(f"{d.attempt + 1}: {d}" for d in survived.disturbances)
    faults = sum(survived.struck.values()) + sum(survived.storage_faults.values())
    verdict = "WRONG" if survived.wrong else "same bytes"
    statuses = " ".join(map(str, survived.attempts))
    return (
        f"{survived.seed:4d}  {survived.storage:4s}  {verdict}  {faults:3d} faults  exit {statuses:12s}  "
        f"{survived.seconds:4.0f} s  {planned}"
    )


def main():
    """Run schedules and print the table; exit with 1 if one is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", type=int, default=30, metavar="N", help="how many (default: 30)")
    parser.add_argument("--first-seed", type=int, default=0, metavar="N", help="seeds from here (default: 0)")
    parser.add_argument("--job", choices=WORKS, default=RUN.command, help="its command (default: run)")
    parser.add_argument("--data", metavar="FOLDER", help="a folder of parquet shards, for run and activations")
    options = parser.parse_args()
    work = WORKS[options.job]
    if work.of_data and options.data is None:
        parser.error("--data is missing: a folder of parquet shards")
    seeds = range(options.first_seed, options.first_seed + options.schedules)
    struck, storage_faults, wrong = Counter(), Counter(), 0
    data = Path(options.data).resolve() if work.of_data else None
    with ground() as own:
        for survived in run_schedules(own, seeds, data, work):
            print(describe(survived), flush=True)
            for problem in survived.wrong:
                print(f"      {problem}", flush=True)
            struck += survived.struck
            storage_faults += survived.storage_faults
            wrong += bool(survived.wrong)
    print(f"\n{len(seeds)} schedules, {wrong} wrong; faults injected:")
    for name, count in [*struck.most_common(), *((f"storage: {n}", c) for n, c in storage_faults.most_common())]:
        print(f"  {count:4d}  {name}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
