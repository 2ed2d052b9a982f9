"""A short, seeded form of `make chaos`: faults of machines and storage, and the bytes of an undisturbed run."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from chaos import (
    BAD_MACHINE,
    INTERRUPT,
    KILL_DRIVER,
    KILL_NODE,
    KILL_WORKER,
    PICTURES,
    SECOND_DRIVER,
    STORAGE,
    STORE,
    WRONG_DATA,
    describe,
    ground,
    run_schedules,
    schedule,
)
from conftest import TINY_FLAGS, write_tiny_data

# Nodes, a worker and a driver lost, an interruption, storage that fails, two drivers at once, both storages, a shard
# that is wrong, a machine that is bad.
SEEDS = (80, 22)

# Of the visualisations: a worker is killed in the middle of pictures, then the driver, as soon as a part is recorded.
PICTURE_SEED = 137
# Of the activations: on an object store that fails, and with a bad machine, first a worker is killed, then the driver.
STORE_SEED = 129


def test_the_seeds_are_of_every_kind_that_matters():
    drawn = [schedule(seed) for seed in SEEDS]
    assert {storage for storage, _ in drawn} == {"disk", "s3"}
    faults = {one.fault for _, disturbances in drawn for one in disturbances}
    assert faults == {KILL_DRIVER, KILL_NODE, KILL_WORKER, INTERRUPT, SECOND_DRIVER, STORAGE, WRONG_DATA, BAD_MACHINE}


@pytest.fixture(scope="module")
def machines():
    """A cluster and an object store for all schedules."""
    with ground() as shared:
        yield shared


def test_whatever_breaks_the_answer_is_the_undisturbed_runs(tmp_path, machines):
    data = tmp_path / "data"
    write_tiny_data(data, rows=40)
    injected = Counter()
    for survived in run_schedules(machines, SEEDS, data):
        print(describe(survived))
        assert survived.wrong == []
        injected += survived.struck + survived.storage_faults
    assert injected.keys() >= {KILL_DRIVER, KILL_NODE}
    assert sum(injected.values()) >= 5


def test_pictures_are_the_undisturbed_ones_whatever_breaks(machines):
    [survived] = run_schedules(machines, [PICTURE_SEED], None, PICTURES)
    print(describe(survived))
    assert survived.wrong == []
    assert survived.struck == {KILL_WORKER: 1, KILL_DRIVER: 1}
    # Killed, and run again.
    assert survived.attempts == [-signal.SIGKILL, 0]


def test_activations_are_the_undisturbed_ones_whatever_breaks(tmp_path, machines):
    write_tiny_data(tmp_path / "data", rows=40)
    [survived] = run_schedules(machines, [STORE_SEED], tmp_path / "data", STORE)
    print(describe(survived))
    assert survived.wrong == []
    assert survived.struck == {KILL_WORKER: 1, KILL_DRIVER: 1, BAD_MACHINE: 1}
    assert survived.storage_faults
    assert survived.attempts == [-signal.SIGKILL, 0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_driver_says_how_to_go_on(tmp_path, ray_head, number):
    data = tmp_path / "data"
    write_tiny_data(data, rows=40)
    command = [sys.executable, "-m", "exemplar_ray", "run", "--data", data, "--out", tmp_path / "run", *TINY_FLAGS]
    driver = subprocess.Popen([*command, "--address", ray_head["address"]], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "run").glob("parts/*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    driver.send_signal(number)
    _, said = driver.communicate(timeout=60)
    assert driver.returncode == 130, said
    assert "finished shards are kept, run the same command to go on" in said
    assert "Traceback" not in said


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 100 KB, and a function that makes it large."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield disk, lambda: subprocess.run(["mount", "-o", "remount,size=50m", disk], check=True)
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_leaves_no_torn_part_and_more_room_mends_it(tiny_data, small_disk, tmp_path, cli, ray_cluster):
    disk, enlarge = small_disk
    arguments = ["run", "--data", tiny_data, "--out", disk / "run", *TINY_FLAGS, "--retries", "0"]
    status, text = cli(*arguments)
    assert status in (1, 2), text
    assert "No space left" in text
    records = {path: path.read_bytes() for path in (disk / "run" / "parts").glob("*.json")}
    assert len(records) < 8
    for path, record in records.items():
        for ending, stored in json.loads(record)["files"].items():
            content = path.with_name(f"{path.stem}.{ending}").read_bytes()
            assert hashlib.sha256(content).hexdigest() == stored["sha256"]
    assert not list((disk / "run").rglob(".*.tmp"))
    enlarge()
    status, text = cli(*arguments)
    assert status == 0, text
    assert all(path.read_bytes() == record for path, record in records.items())
    assert cli("run", "--data", tiny_data, "--out", tmp_path / "roomy", *TINY_FLAGS)[0] == 0
    for name in ("exemplars.parquet", "channels.parquet"):
        assert (disk / "run" / name).read_bytes() == (tmp_path / "roomy" / name).read_bytes()
