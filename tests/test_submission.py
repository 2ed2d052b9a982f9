"""`ray job submit` of the job script gives what the command line gives; `ray job stop` leaves it to be gone on with."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import PROJECT, TESTS, TINY_SHARDS, start_ray_head
from ray.util.state import list_tasks

CONFIG = {
    "model": "tiny_network.py:trained",
    "layer": "mixed",
    "top_k": 3,
    "preprocess": {"resize": 36, "crop": 32, "mean": [117, 117, 117]},
}
# The same network, which waits once two shards are done, as long as a file is there.
WAITING = """
import pathlib, sys, time
sys.path.insert(0, {tests!r})
import tiny_network


class Waiting(tiny_network.TinyNetwork):
    def forward(self, x):
        while pathlib.Path({marker!r}).exists() and len(list(pathlib.Path({out!r}).glob("parts/*.json"))) >= 2:
            time.sleep(0.1)
        return super().forward(x)


def trained():
    network = Waiting()
    network.load_state_dict(tiny_network.trained().state_dict())
    return network
"""
PRINTED = ("to scan only these again", "or to merge what is there")
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}


@pytest.fixture(scope="module")
def head():
    """A Ray head that takes jobs."""
    yield from start_ray_head(os.environ, jobs=True)


@pytest.fixture
def job_folder(tmp_path):
    """What is submitted: the script, its configuration, the user's network."""
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "tiny_network.py").write_text((TESTS / "tiny_network.py").read_text())
    (folder / "run.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "find_exemplars.py").write_text((PROJECT / "jobs" / "find_exemplars.py").read_text())
    return folder


def test_what_an_incomplete_job_prints_runs_where_it_was_submitted(head, tiny_data, tmp_path, job_folder):
    broken = sorted(tiny_data.glob("*.parquet"))[3]
    whole = broken.read_bytes()
    broken.write_bytes(whole[:500])
    arguments = ["--config", "run.yaml", "--data", f"{tiny_data}/*.parquet", "--out", tmp_path / "a run"]
    script = [sys.executable, "find_exemplars.py", *map(str, arguments), "--retries", "0"]
    first = shlex.join(["ray", "job", "submit", "--working-dir", ".", "--", *script])
    status, said = in_shell(head, job_folder, first)
    assert status == 1, said
    again, partial = (re.search(f"^{words}: (.+)$", said, re.M).group(1) for words in PRINTED)
    assert again == first
    status, said = in_shell(head, job_folder, partial)
    assert (status, "PARTIAL" in said) == (1, True), said
    broken.write_bytes(whole)
    status, said = in_shell(head, job_folder, again)
    assert status == 0, said
    assert json.loads((tmp_path / "a run" / "summary.json").read_text())["complete"]


def test_a_plan_that_is_submitted_is_of_the_cluster(head, tiny_data, job_folder):
    program = [sys.executable, "-m", "exemplar_ray", "plan", "--config", "run.yaml", "--data", str(tiny_data)]
    command = ["ray", "job", "submit", "--working-dir", ".", "--", *program]
    status, said = in_shell(head, job_folder, shlex.join(command))
    assert status == 0, said
    # What the head was started with, which is less than most machines have.
    assert re.search(r"\b2 tasks at once", said), said


def in_shell(head, folder, command):
    """Give a command in a shell there; return (exit status, what it printed)."""
    bin_folder = Path(sys.executable).parent
    environment = {**ENVIRONMENT, "RAY_API_SERVER_ADDRESS": head["dashboard"]}
    environment["PATH"] = f"{bin_folder}{os.pathsep}{ENVIRONMENT['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    return done.returncode, done.stdout + done.stderr


def ray_job(head, *words):
    """Run `ray job ...`; return what it printed."""
    command = [Path(sys.executable).parent / "ray", "job", words[0], "--address", head["dashboard"], *words[1:]]
    job = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert job.returncode == 0, job.stdout + job.stderr
    return job.stdout


def run_from_command_line(head, job_folder, network, *arguments):
    """Run the same, not submitted: workers start elsewhere, so that the network's path is a whole one."""
    command = [sys.executable, "-m", "exemplar_ray", "run", "--address", head["address"], *arguments]
    command += ["--model", f"{job_folder / network}:trained"]
    run = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=job_folder, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr


def test_a_submitted_job_gives_the_same_bytes_as_the_command_line(head, tiny_data, tmp_path, job_folder):
    arguments = ["--config", "run.yaml", "--data", str(tiny_data), "--out"]
    submitted, local = tmp_path / "submitted", tmp_path / "local"
    script = [sys.executable, "find_exemplars.py", *arguments, submitted]
    said = ray_job(head, "submit", "--working-dir", job_folder, "--", *script)
    assert "scan 8/8" in said  # one line a finished shard in the job's log

    run_from_command_line(head, job_folder, "tiny_network.py", *arguments, local)
    assert (submitted / "exemplars.parquet").read_bytes() == (local / "exemplars.parquet").read_bytes()
    # Not the driver's copy of it, which is on the driver's machine only.
    assert json.loads((submitted / "run.json").read_text())["spec"]["model"] == CONFIG["model"]


def test_a_stopped_job_leaves_the_cluster_at_once_and_the_same_submission_goes_on(
    head, tiny_data, tmp_path, job_folder
):
    marker, out = tmp_path / "wait", tmp_path / "run"
    marker.touch()
    waiting = WAITING.format(tests=str(TESTS), marker=str(marker), out=str(out))
    (job_folder / "waiting_network.py").write_text(waiting)
    arguments = ["--config", "run.yaml", "--model", "waiting_network.py:trained", "--data", str(tiny_data), "--out"]
    submission = ["--working-dir", job_folder, "--", sys.executable, "find_exemplars.py", *arguments]

    said = ray_job(head, "submit", "--no-wait", *submission, out)
    job = re.search(r"'(raysubmit_\w+)' submitted", said).group(1)
    deadline = time.monotonic() + 120
    while len(list(out.glob("parts/*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    started = time.monotonic()
    assert "was stopped" in ray_job(head, "stop", job)
    assert time.monotonic() - started < 20
    assert "STOPPED" in ray_job(head, "list").split(job)[1].split("JobDetails")[0]
    again = shlex.join(["ray", "job", "submit", *map(str, submission), str(out)]).replace(str(job_folder), ".")
    said = ray_job(head, "logs", job)
    assert f"finished shards are kept, run the same command to go on: {again}\n" in said

    # No task of it stays, so nothing is written any more.
    deadline = time.monotonic() + 20
    while (left := tasks_at_work(head)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert left == []
    kept = {path.name: path.read_bytes() for path in out.glob("parts/*.json")}
    assert 2 <= len(kept) < TINY_SHARDS
    assert {json.loads(record)["scored"] for record in kept.values()} == {10}
    assert not (out / "exemplars.parquet").exists()

    marker.unlink()
    said = ray_job(head, "submit", *submission, out)
    assert f"scan 1/{TINY_SHARDS - len(kept)}  " in said
    assert {name: (out / "parts" / name).read_bytes() for name in kept} == kept
    run_from_command_line(head, job_folder, "waiting_network.py", *arguments, tmp_path / "undisturbed")
    for name in ("exemplars.parquet", "channels.parquet", "classes.parquet"):
        assert (out / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()


def tasks_at_work(head):
    """Return the cluster's tasks that have neither finished nor failed."""
    tasks = list_tasks(address=head["dashboard"], limit=1000)
    return [(task.name, task.state) for task in tasks if task.state not in ("FINISHED", "FAILED")]
