"""`ray job submit` of the job script gives what the command line gives."""

import os
import subprocess
import sys
from pathlib import Path

import yaml
from conftest import PROJECT, TESTS

CONFIG = {
    "model": "tiny_network.py:trained",
    "layer": "mixed",
    "top_k": 3,
    "preprocess": {"resize": 36, "crop": 32, "mean": [117, 117, 117]},
}


def test_a_submitted_job_gives_the_same_bytes_as_the_command_line(ray_head, tiny_data, tmp_path):
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "tiny_network.py").write_text((TESTS / "tiny_network.py").read_text())
    (tmp_path / "job" / "run.yaml").write_text(yaml.safe_dump(CONFIG))
    script = (PROJECT / "jobs" / "find_exemplars.py").read_text()
    (tmp_path / "job" / "find_exemplars.py").write_text(script)

    arguments = ["--config", "run.yaml", "--data", str(tiny_data), "--out"]
    submitted, local = tmp_path / "submitted", tmp_path / "local"
    ray = Path(sys.executable).parent / "ray"
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [ray, "job", "submit", "--address", ray_head["dashboard"], "--working-dir", tmp_path / "job", "--"]
    command += [sys.executable, "find_exemplars.py", *arguments, submitted]
    job = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert job.returncode == 0, job.stdout + job.stderr
    assert "scan 8/8" in job.stdout  # one line a finished shard in the job's log

    # The command line, with a Ray of its own.
    command = [sys.executable, "-m", "exemplar_ray", "run", *arguments, local]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path / "job", timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    assert (submitted / "exemplars.parquet").read_bytes() == (local / "exemplars.parquet").read_bytes()
