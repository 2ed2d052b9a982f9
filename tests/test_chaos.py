"""A short, seeded form of `make chaos`: faults of machines and storage, and the bytes of an undisturbed run."""

import signal
import subprocess
import sys
import time

import pytest
from chaos import KILL_DRIVER, KILL_NODE, SECOND_DRIVER, STORAGE, describe, run_schedules, schedule
from conftest import SAMPLE, TINY_FLAGS, write_tiny_data

# A node and a driver lost, storage that fails, two drivers at once, both storages.
SEEDS = (12, 11, 4)


def test_the_seeds_are_of_every_kind_that_matters():
    drawn = [schedule(seed) for seed in SEEDS]
    assert {storage for storage, _ in drawn} == {"disk", "s3"}
    faults = {one.fault for _, disturbances in drawn for one in disturbances}
    assert {KILL_DRIVER, KILL_NODE, SECOND_DRIVER, STORAGE} <= faults


def test_whatever_breaks_the_answer_is_the_undisturbed_runs(tmp_path):
    data = SAMPLE
    if not SAMPLE.exists():
        data = tmp_path / "data"
        write_tiny_data(data, rows=40)
    injected = 0
    for survived in run_schedules(SEEDS, data):
        print(describe(survived))
        assert survived.wrong == []
        injected += sum((survived.struck + survived.storage_faults).values())
    assert injected >= len(SEEDS)


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
    assert driver.returncode == 130
    assert "finished shards are kept, run the same command to go on" in said
    assert "Traceback" not in said
