"""A scan task that takes more memory than there is: killed by Ray's memory monitor, for real.

The monitor watches the whole machine, so its threshold is put a little above what is in use when a run starts: the
machine is never filled, whatever it has. What others take or give back meanwhile disturbs the measurement; such a run
is made again.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys

import psutil
import pytest
from conftest import TESTS, TINY_FLAGS, start_ray_head, write_tiny_data
from session import session

# What may come into use until Ray kills: Ray itself and its workers take 1.5 GB of it, the hungry task the rest.
_HEADROOM = 3 * 10**9
_MOST_BY_OTHERS = 10**9
# With all of the headroom eaten the machine is above the threshold, unless others gave back as much.
_NOT_FULL = "all of the headroom eaten, and the machine is not full"

# Eats until the machine is above the threshold that the head was given, and waits for what must come.
HUNGRY = """
import importlib.util, os, pathlib, time
import psutil

spec = importlib.util.spec_from_file_location("tiny", {tiny!r})
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)


def eat():
    eaten = []
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        # Another task may be killed in this one's place, and its memory is free again.
        if psutil.virtual_memory().percent / 100 > float(os.environ["RAY_memory_usage_threshold"]) + 0.005:
            time.sleep(0.1)
            continue
        eaten.append(b"x" * 50_000_000)
        if len(eaten) > {headroom} / 50_000_000:
            raise RuntimeError({not_full!r})
    raise RuntimeError("above the threshold, and not killed")


class Hungry(tiny.TinyNetwork):
    def forward(self, x):
        marker = pathlib.Path({marker!r})
        if len(x) > {most} and not marker.exists():
            {before}
            eat()
        return super().forward(x)


def trained():
    network = Hungry()
    network.load_state_dict(tiny.trained().state_dict())
    return network
"""


def in_use():
    memory = psutil.virtual_memory()
    return memory.total - memory.available


def hungry_network(folder, marker, most, before="pass"):
    """Write a network that eats on batches of more than `most`, until the marker is there."""
    tiny = str(TESTS / "tiny_network.py")
    names = {"tiny": tiny, "marker": str(marker), "most": most, "before": before}
    text = HUNGRY.format(**names, headroom=_HEADROOM, not_full=_NOT_FULL)
    (folder / "hungry.py").write_text(text)
    return f"{folder / 'hungry.py'}:trained"


def words(data, out, model, *more):
    return ["run", "--data", data, "--out", out, *TINY_FLAGS, "--model", model, *more]


def run(head, *arguments):
    command = [sys.executable, "-m", "exemplar_ray", *words(*arguments)]
    environment = {**os.environ, "RAY_ADDRESS": head["address"]}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


def run_with_little_memory(data, out, model, *more, marker, expected):
    """The same, on a Ray head of its own that kills workers when the machine uses a little more memory than now.

    A run that does not end with the expected status, while others disturbed it, is made again.
    """
    for _ in range(4):
        before, total = in_use(), psutil.virtual_memory().total
        if total - before < 2 * _HEADROOM:
            pytest.skip("needs 6 GB of free memory, of which it uses 3")
        limits = {"RAY_memory_usage_threshold": f"{(before + _HEADROOM) / total:.4f}"}
        limits["RAY_memory_monitor_refresh_ms"] = "100"
        with contextlib.contextmanager(start_ray_head)({**os.environ, **limits}) as head:
            status, said = run(head, data, out, model, *more)
        # Nothing of ours runs before or after; and while it builds the model, nothing of ours is hungry (but where
        # that is expected).
        disturbed = abs(in_use() - before) > _MOST_BY_OTHERS or "the model cannot be built" in said
        if _NOT_FULL not in said and (status == expected or not disturbed):
            return status, said
        shutil.rmtree(out, ignore_errors=True)
        marker.unlink(missing_ok=True)
    pytest.skip("others on this machine take and give back too much memory to tell")


def failures(out):
    return [json.loads(path.read_text()) for path in sorted((out / "failed").glob("*.json"))]


def answer(out):
    return {name: (out / name).read_bytes() for name in ("exemplars.parquet", "channels.parquet", "classes.parquet")}


def test_a_task_killed_for_memory_is_tried_again_and_the_answer_is_the_undisturbed_one(ray_head, tiny_data, tmp_path):
    marker = tmp_path / "ate once"
    model = hungry_network(tmp_path, marker, most=1, before="marker.touch()")
    status, said = run_with_little_memory(tiny_data, tmp_path / "run", model, marker=marker, expected=0)
    assert marker.exists()
    assert status == 0, said
    # The marker is there, so that this one eats nothing.
    status, said = run(ray_head, tiny_data, tmp_path / "undisturbed", model)
    assert status == 0, said
    assert answer(tmp_path / "run") == answer(tmp_path / "undisturbed")


def test_a_task_always_killed_for_memory_fails_saying_so_and_a_smaller_batch_goes_on(ray_head, tmp_path):
    data, out, sated = tmp_path / "data", tmp_path / "run", tmp_path / "sated"
    write_tiny_data(data, shards=2)
    model = hungry_network(tmp_path, sated, most=4)
    more = ["--retries", "1", "--batch-size", "8"]
    status, said = run_with_little_memory(data, out, model, *more, marker=sated, expected=1)
    assert status == 1, said
    assert "Traceback" not in said
    failed = [line for line in said.splitlines() if "FAILED" in line]
    assert len(failed) == 2
    for line in failed:
        assert "killed for memory: " in line
        assert "GB limit" in line
        assert "fewer tasks at once (a larger --cpus-per-task), a smaller --batch-size" in line
    assert [failure["attempts"] for failure in failures(out)] == [2, 2]
    with session({**os.environ, "RAY_ADDRESS": ray_head["address"]}) as command:
        status, said = command(*words(data, out, model, "--batch-size", "4"))
        assert status == 0, said
        assert failures(out) == []
        sated.touch()
        assert command(*words(data, tmp_path / "undisturbed", model, "--batch-size", "8"))[0] == 0
    assert answer(out) == answer(tmp_path / "undisturbed")


def test_a_model_that_cannot_be_built_for_memory_is_one_line(tiny_data, tmp_path):
    sated = tmp_path / "sated"
    model = hungry_network(tmp_path, sated, most=0)
    status, said = run_with_little_memory(
        tiny_data, tmp_path / "run", model, "--retries", "0", marker=sated, expected=2
    )
    assert status == 2
    [line] = said.strip().splitlines()
    assert "the model cannot be built: killed for memory: " in line
    assert not (tmp_path / "run").exists()
