"""A new job is one file: it gets rerun, refusal, retries, status and progress from the driver, for nothing."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mean_colour_job
import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import PROJECT, TESTS, TINY_ROWS, TINY_SHARDS
from mean_colour_job import MeanColour
from PIL import Image
from rich.console import Console

from exemplar_ray.errors import UsageError
from exemplar_ray.executor.cluster import Cluster
from exemplar_ray.executor.driver import run_job
from exemplar_ray.executor.resources import Resources
from exemplar_ray.results.status import describe

pytestmark = pytest.mark.usefixtures("ray_cluster")

BROKEN = "train-00003-of-00008.parquet"


def run(job, out):
    """Run it; return (outcome, what it printed)."""
    said = io.StringIO()
    with Cluster(Resources()) as cluster:
        outcome = run_job(job, str(out), cluster, Console(file=said, force_terminal=False, width=200))
    return outcome, said.getvalue()


def records(out):
    return {path.name: path.read_text() for path in sorted((out / "parts").glob("*.json"))}


class KilledOnce(MeanColour):
    """The same, whose worker is killed in the middle of its first task."""

    task = "test_new_job:killed_once"

    def __init__(self, data, marker):
        super().__init__(data)
        self.settings = str(marker)

    def identity(self):
        return {"data": [shard.name for shard in self.items]}


def killed_once(marker, given):
    if given[0] == 0 and not os.path.exists(marker):
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return mean_colour_job.sum_colours(255.0, given)


def test_it_is_short_and_complete_in_one_file():
    assert len((TESTS / "mean_colour_job.py").read_text().splitlines()) < 80
    package = PROJECT / "exemplar_ray"
    assert not [path for path in package.rglob("*.py") if "colour_job" in path.read_text()]


def test_its_answer_is_what_a_loop_gives_and_progress_is_shown(tiny_data, tmp_path):
    outcome, said = run(MeanColour([str(tiny_data)]), tmp_path / "run")
    assert (outcome.complete, outcome.items, outcome.failed) == (True, TINY_SHARDS, {})
    colours = {}
    for path in sorted(tiny_data.glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            pixels = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB"))
            colours.setdefault(row["label"], []).append(pixels.mean(axis=(0, 1)))
    table = pq.read_table(tmp_path / "run" / "colours.parquet").to_pylist()
    assert [row["label"] for row in table] == sorted(colours)
    for row in table:
        np.testing.assert_allclose(row["mean_rgb"], np.mean(colours[row["label"]], axis=0))
    assert f"map {TINY_SHARDS}/{TINY_SHARDS}" in said
    assert f": {TINY_ROWS} images" in said
    assert "3 classes" in said
    lines, complete = describe(str(tmp_path / "run"))
    assert complete
    assert lines[0] == "mean-colour: scale: 255.0"
    assert "shards: 8 in all, 8 done, 0 failed, 0 pending" in lines
    assert lines[-1] == f"result: {tmp_path / 'run'}/colours.parquet"
    assert "nothing to do" in run(MeanColour([str(tiny_data)]), tmp_path / "run")[1]


def test_a_rerun_does_the_failed_item_only(tiny_data, tmp_path):
    whole = (tiny_data / BROKEN).read_bytes()
    (tiny_data / BROKEN).write_bytes(whole[:1000])
    outcome, said = run(MeanColour([str(tiny_data)]), tmp_path / "run")
    assert not outcome.complete
    assert list(outcome.failed) == [BROKEN]
    assert f"FAILED {BROKEN}" in said
    lines, complete = describe(str(tmp_path / "run"))
    assert not complete
    assert "shards: 8 in all, 7 done, 1 failed, 0 pending" in lines
    assert any(line.startswith(f"failed: {BROKEN}: ") for line in lines)
    [failed] = (json.loads(path.read_text()) for path in (tmp_path / "run" / "failed").iterdir())
    assert (failed["shard"]["name"], failed["attempts"]) == (BROKEN, 1)
    assert "sum_colours" in failed["details"]
    assert failed["log"][-1].endswith(f"shard {BROKEN} begins")
    before = records(tmp_path / "run")
    (tiny_data / BROKEN).write_bytes(whole)
    outcome, said = run(MeanColour([str(tiny_data)]), tmp_path / "run")
    assert outcome.complete
    assert "map 1/1" in said
    assert {name: text for name, text in records(tmp_path / "run").items() if name in before} == before


def test_a_folder_of_another_identity_or_another_job_is_refused(tiny_data, tmp_path, cli):
    assert run(MeanColour([str(tiny_data)]), tmp_path / "run")[0].complete
    with pytest.raises(UsageError, match=r"these keys differ: scale \(scale: 255.0 there, 1.0 here\)"):
        run(MeanColour([str(tiny_data)], scale=1.0), tmp_path / "run")
    renamed = MeanColour([str(tiny_data)])
    renamed.name = "another"
    with pytest.raises(UsageError, match="of another job: mean-colour there, another here"):
        run(renamed, tmp_path / "run")
    status, text = cli("merge", tmp_path / "run")
    assert (status, "mean-colour" in text) == (2, True), text


def test_what_cannot_be_done_is_refused_before_anything_is(tiny_data, tmp_path):
    with pytest.raises(UsageError, match="hf://datasets/user/name/run' is on the Hugging Face Hub"):
        run(MeanColour([str(tiny_data)]), "hf://datasets/user/name/run")
    nothing = MeanColour([str(tiny_data)])
    nothing.items = []
    with pytest.raises(UsageError, match="mean-colour: there are no items"):
        run(nothing, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_whole_wait_counts_from_when_the_invocation_began(tiny_data, tmp_path):
    with Cluster(Resources()) as cluster:
        job, quiet = MeanColour([str(tiny_data)]), Console(file=io.StringIO())
        assert run_job(job, str(tmp_path / "run"), cluster, quiet, started=time.monotonic() - 1000).complete
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["this_invocation"]["seconds"] > 1000


def test_a_killed_worker_costs_another_attempt_and_nothing_else(tiny_data, tmp_path):
    outcome, _ = run(KilledOnce([str(tiny_data)], tmp_path / "killed"), tmp_path / "run")
    assert (tmp_path / "killed").exists()
    assert outcome.complete
    assert run(MeanColour([str(tiny_data)]), tmp_path / "again")[0].complete
    one, other = (pq.read_table(tmp_path / name / "colours.parquet") for name in ("run", "again"))
    assert one.equals(other)


def test_it_runs_as_a_program(tiny_data, tmp_path):
    command = [sys.executable, str(TESTS / "mean_colour_job.py"), str(tiny_data), str(tmp_path / "run")]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(command, capture_output=True, text=True, env={**environment, "PYTHONPATH": str(PROJECT)})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "colours.parquet").exists()
