"""The machine that a run starts on: its CPUs, its Ray, the address of one, its working folder, its terminal."""

import http.server
import io
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import psutil
import pytest
import ray
from conftest import PROJECT, TESTS, TINY_FLAGS, free_port, write_tiny_data

from exemplar_ray.errors import UsageError
from exemplar_ray.executor import machine, ray_address
from exemplar_ray.executor.cluster import Cluster
from exemplar_ray.executor.connection import may_grow
from exemplar_ray.executor.memory import MemoryDemand
from exemplar_ray.executor.ray_address import LostRayError, Watch, is_same, refuse_unusable
from exemplar_ray.executor.resources import Demand, Resources, demand_of
from exemplar_ray.executor.search_path import SearchPath
from exemplar_ray.executor.terminal import printable

# The package beside these tests, whichever is installed.
WITHOUT_ADDRESS = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
WITHOUT_ADDRESS["PYTHONPATH"] = str(PROJECT)


# CPUs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "own", "expected"),
    [
        ({}, "", None),
        ({"cpu.max": "max 100000"}, "0::/", None),
        ({"cpu.max": "150000 100000\n"}, "0::/", 1.5),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, "4:cpu,cpuacct:/docker/x", 2),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, "4:cpu:/", None),
        # A job of a batch system, that sees the whole hierarchy: the narrowest of the limits around it holds.
        ({"slurm/job/cpu.max": "400000 100000", "slurm/job/step/cpu.max": "max 100000"}, "0::/slurm/job/step", 4),
        ({"slurm/job/cpu.max": "400000 100000", "slurm/job/step/cpu.max": "800000 100000"}, "0::/slurm/job/step", 4),
        ({"cpu,cpuacct/slurm/cpu.cfs_quota_us": "300000", "cpu,cpuacct/slurm/cpu.cfs_period_us": "100000"},
         "5:memory:/slurm\n4:cpu,cpuacct:/slurm", 3),
        ({"cpu.max": "torn"}, "0::/../elsewhere", None),
    ],
)  # fmt: skip
def test_a_containers_quota_is_found(tmp_path, files, own, expected):
    for name, content in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(content)
    (tmp_path / "own").write_text(own)
    assert machine.cpu_quota(tmp_path / "cgroup", tmp_path / "own") == expected


def test_a_process_has_the_cpus_that_it_may_use(monkeypatch):
    monkeypatch.setattr(machine, "cpu_quota", lambda: None)
    assert machine.cpus() == len(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    for quota, expected in ((None, 64), (2.5, 2), (0.5, 1), (100.0, 64)):
        monkeypatch.setattr(machine, "cpu_quota", lambda quota=quota: quota)
        assert machine.cpus() == expected
    # As on macOS.
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(machine, "cpu_quota", lambda: None)
    assert machine.cpus() == 8


# Addresses ----------------------------------------------------------------------------------


@contextmanager
def listening(answers):
    """A server that is no Ray: one of the web, or one that says nothing. Yields its address."""
    if not answers:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        return
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "https://cluster.example/ray"])
def test_the_dashboards_address_is_refused_saying_which_is_meant(address):
    with pytest.raises(UsageError, match=r"where `ray job submit` goes; a run wants the head's, such as 10.0.0.1:6379"):
        refuse_unusable(address)


@pytest.mark.parametrize(
    "form", ["127.0.0.1:{}", "localhost:{}", "[::1]:{}", "ray://127.0.0.1:{}", "nowhere.invalid:{}"]
)
def test_where_nobody_listens_there_is_no_ray(form):
    started = time.monotonic()
    with pytest.raises(
        UsageError, match=r"no Ray listens at '.*' \(.+\): the cluster is gone, or the address is another's"
    ):
        refuse_unusable(form.format(free_port()))
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("answers", [True, False])
def test_who_listens_is_asked_whether_it_is_a_ray(answers, monkeypatch):
    monkeypatch.setattr(ray_address, "_ANSWER_SECONDS", 0.5)
    with listening(answers) as address, pytest.raises(UsageError, match="is no Ray head, though it may be Ray's dash"):
        refuse_unusable(address)


def test_a_head_is_one(ray_head):
    refuse_unusable(ray_head["address"])
    refuse_unusable("auto")
    refuse_unusable("no address at all")


def test_places_are_the_same_whatever_they_are_called():
    import ray.util

    here = ray.util.get_node_ip_address()
    assert is_same("127.0.0.1:6379", "localhost:6379")
    assert is_same(f"{here}:6379", "127.0.0.1:6379")
    assert not is_same("127.0.0.1:6379", "127.0.0.1:6380")
    assert not is_same("10.1.2.3:6379", "10.1.2.4:6379")


@pytest.mark.usefixtures("ray_cluster")
def test_a_process_that_is_connected_joins_no_other_ray(ray_head):
    with Cluster(Resources(address=ray_head["address"])) as cluster:
        assert cluster.slots == 2
    with pytest.raises(
        UsageError, match=r"connected to the Ray at '.+:\d+' already, so .* cannot join '10.0.0.1:6379'"
    ):
        Cluster(Resources(address="10.0.0.1:6379")).__enter__()


@pytest.mark.usefixtures("ray_cluster")
def test_rays_own_store_is_found_again_where_a_late_shutdown_took_it_away():
    ray.experimental.internal_kv._internal_kv_reset()
    assert not may_grow()


@pytest.mark.usefixtures("ray_cluster")
def test_what_no_machine_of_a_fixed_cluster_has_is_refused():
    message = r"99 CPUs a task are more than the 2 that any machine of this cluster has; lower --cpus-per-task"
    with pytest.raises(UsageError, match=message):
        Cluster(Resources(cpus_per_task=99)).__enter__()


@pytest.mark.usefixtures("ray_cluster")
def test_where_machines_may_join_the_wait_is_said(monkeypatch):
    monkeypatch.setattr("exemplar_ray.executor.cluster.may_grow", lambda: True)
    with Cluster(Resources(cpus_per_task=99)) as cluster:
        assert "no machine of this cluster has what a task asks for (99 CPUs): tasks wait" in cluster.waits_for


def test_a_task_needs_one_machine_that_has_everything():
    machines = [{"CPU": 64.0}, {"CPU": 4.0, "GPU": 8.0}]
    assert Demand(4, 1).fits(machines)
    assert not Demand(8, 1).fits(machines)
    with pytest.raises(UsageError, match="8 CPUs and 1 GPUs a task are more than what this machine has"):
        Demand(8, 1).refuse_impossible(machines)


def test_nothing_is_asked_of_memory_until_it_has_run_out():
    demand = MemoryDemand()
    demand.measured(800)
    assert demand.asked(10_000) is None
    demand.ran_out()
    assert demand.asked(10_000) == 1000
    assert demand.asked(0) is None
    demand.measured(1600)
    demand.measured(None)
    assert demand.asked(10_000) == 2000
    demand.ran_out()
    assert demand.asked(10_000) == 4000
    for _ in range(5):
        demand.ran_out()
    # What no machine has would wait for ever.
    assert demand.asked(10_000) == 10_000
    # None was measured, as none was left.
    demand = MemoryDemand()
    demand.ran_out()
    assert demand.asked(10_000) == 2500


def test_a_process_knows_its_own_peak():
    program = "from exemplar_ray.executor.memory import peak; b'x' * 300_000_000; print(peak())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=PROJECT)
    assert 300e6 < int(done.stdout) < 600e6


def test_a_gpu_task_takes_its_share_of_the_cpus_beside_gpus():
    """Machines without GPUs do not count: no GPU machine may have so many CPUs."""
    gpus, other = {"CPU": 4.0, "GPU": 1.0}, {"CPU": 64.0}
    assert demand_of(Resources(), [gpus, other]) == Demand(4, 1)
    assert demand_of(Resources(), [{"CPU": 96.0, "GPU": 8.0}, gpus]) == Demand(4, 1)
    assert demand_of(Resources(), [{"CPU": 96.0, "GPU": 8.0}]) == Demand(8, 1)
    assert demand_of(Resources(gpus_per_task=0.5), [gpus]) == Demand(2, 0.5)
    assert demand_of(Resources(gpus_per_task=0), [gpus, other]) == demand_of(Resources(), [other]) == Demand(1, 0)
    # No machine is there yet.
    assert demand_of(Resources(gpus_per_task=1), []) == Demand(1, 1)


# A Ray that is lost -------------------------------------------------------------------------


def test_a_head_may_come_back_and_a_raylet_does_not(monkeypatch):
    monkeypatch.setattr(Watch, "EVERY_SECONDS", 0.0)
    with listening(answers=False) as head, listening(answers=False) as raylet:
        watch = Watch(head, raylet)
        watch.look()
    watch = Watch(head)
    watch.look()
    monkeypatch.setattr(Watch, "MOST_SECONDS", 0.0)
    with pytest.raises(LostRayError, match="is lost .*; finished shards are kept, run the same command to go on"):
        watch.look()
    with listening(answers=False) as head, pytest.raises(LostRayError):
        Watch(head, raylet).look()


SLOW = """
import sys, time
sys.path.insert(0, {tests!r})
import tiny_network


class Slow(tiny_network.TinyNetwork):
    def forward(self, x):
        if len(x) > 1:
            time.sleep(1)
        return super().forward(x)


def trained():
    network = Slow()
    network.load_state_dict(tiny_network.trained().state_dict())
    return network
"""


def test_a_ray_that_is_lost_while_the_run_goes_on_is_a_line(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW.format(tests=str(TESTS)))
    write_tiny_data(tmp_path / "data", shards=60, rows=4)
    command = [sys.executable, "-m", "exemplar_ray", "run", "--data", tmp_path / "data", "--out", tmp_path / "run"]
    command += [*TINY_FLAGS, "--model", f"{tmp_path / 'slow.py'}:trained"]
    with open(tmp_path / "said", "w") as said:
        driver = subprocess.Popen(command, env=WITHOUT_ADDRESS, stdout=said, stderr=said)
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("run/parts/*.json")) and time.monotonic() < deadline:
            time.sleep(0.1)
        [raylet] = [one for one in psutil.Process(driver.pid).children(recursive=True) if one.name() == "raylet"]
        raylet.kill()
        assert driver.wait(60) == 2
    finally:
        driver.kill()
    text = (tmp_path / "said").read_text()
    assert text.strip().splitlines()[-1].startswith("exemplar-ray: error: the Ray at '")
    assert "is lost" in text
    assert "Traceback" not in text


# The working folder, and TMPDIR -------------------------------------------------------------

NAMES = ["profile", "code", "random", "types", "queue", "numpy", "logging", "copy", "statistics", "torchvision", "ray"]


def test_files_called_as_modules_are_no_workers_modules_and_any_terminal_will_do(tmp_path):
    write_tiny_data(tmp_path / "data", shards=1)
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('usage: not this one')\n")
    (tmp_path / "network.py").write_text(
        f"import sys\nsys.path.insert(0, {str(TESTS)!r})\nfrom tiny_network import trained\n"
    )
    words = ["run", "--data", "data", "--out", "run", *TINY_FLAGS, "--model", "network.py:trained"]
    # Not in the working folder: Python looks in the script's own folder first.
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "start.py").write_text(
        f"import sys; from exemplar_ray.cli import main; sys.exit(main({words!r}))"
    )
    environment = {**WITHOUT_ADDRESS, "PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "elsewhere/start.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "network:trained, the factory's own weights" in done.stdout
    status = [sys.executable, "-m", "exemplar_ray", "status", tmp_path / "run"]
    done = subprocess.run(status, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_workers_look_first_where_the_driver_does(tmp_path, monkeypatch):
    path = SearchPath()
    path.extend([str(tmp_path), "/usr/bin"])
    assert (list(path), path.left_out) == ([], [str(tmp_path), "/usr/bin"])
    # A clone that is not installed, as with `python -m exemplar_ray` there.
    root = str(TESTS.parent)
    monkeypatch.setattr(sys, "path", [root, *(entry for entry in sys.path if entry != root)])
    path.extend([root])
    assert list(path) == [root]
    # Installed from there: the driver looks there last.
    monkeypatch.setattr(sys, "path", [*sys.path[1:], root])
    path.extend([root])
    assert (list(path), path.left_out[-1]) == ([root], root)


def test_a_long_tmpdir_is_named(tmp_path):
    long = tmp_path / ("scratch-of-the-research-group-of-vision-" * 3)
    long.mkdir()
    command = [sys.executable, "-m", "exemplar_ray", "run", "--data", write_tiny_data(tmp_path / "data", 1)[0]]
    environment = {key: value for key, value in WITHOUT_ADDRESS.items() if key != "RAY_TMPDIR"}
    done = subprocess.run(
        [*command, "--out", "run", *TINY_FLAGS],
        env={**environment, "TMPDIR": str(long)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    [line] = done.stderr.strip().splitlines()
    assert f"below TMPDIR ('{long}')" in line
    assert "set RAY_TMPDIR to a short folder of your own" in line


# What is said -------------------------------------------------------------------------------


def test_a_terminal_need_not_know_every_sign():
    for encoding, expected in (("ascii", "a - b ... \\u732b \\udcff"), ("utf-8", "a — b … 猫 \\udcff")):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        with printable(stream, io.StringIO()):
            stream.write("a — b … 猫 \udcff")
        stream.flush()
        assert stream.buffer.getvalue().decode(encoding) == expected
        assert stream.errors == "strict"
