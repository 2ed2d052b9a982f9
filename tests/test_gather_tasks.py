"""Gather's tasks: small enough that all workers share the end of a run, and large enough for what copies ask for."""

import os
import shutil

import pyarrow.parquet as pq
import pytest
from conftest import TINY_FLAGS, encode, random_picture
from test_copies import copies, forward_passes, gathered  # noqa: F401 (a fixture)
from test_scan_and_gather import tiny
from test_topk import make_scores

from exemplar_ray.data.write_shards import LabelledImage, write_images
from exemplar_ray.exemplars import gather_tasks
from exemplar_ray.exemplars import reference as reference_module
from exemplar_ray.exemplars.gather_tasks import split
from exemplar_ray.exemplars.gathered import bytes_of_answer
from exemplar_ray.exemplars.reference import Reference

ROWS = 12


def of_shards(rows_and_activations):
    """Return {position: scores of one channel}, given of each shard {row: activation}."""
    shards = enumerate(rows_and_activations)
    return {p: make_scores([0] * len(of), list(of.values()), p, list(of)) for p, of in shards}


def shards_for(wanted):
    return dict.fromkeys(wanted, type("Shard", (), {"size": 0, "expected_rows": 0})())


def test_a_shard_of_which_much_is_recomputed_is_several_tasks_of_a_size(monkeypatch):
    monkeypatch.setattr(gather_tasks, "_ORIGINALS_PER_TASK", 3)
    # Without maps, and of files whose size is not known.
    spec, _ = tiny(layer=("classifier",))
    # The second shard has copies of four of the first's seven images, and two of its own.
    first = {row: 1.1 + row for row in range(7)}
    second = {**{10 + row: first[row] for row in (0, 2, 3, 6)}, 20: 0.3, 21: 0.4}
    wanted = of_shards([first, second])
    tasks = split(spec, shards_for(wanted), wanted)
    rows = [{p: wanted[p].row[which].tolist() for p, which in task.candidates.items()} for task in tasks]
    assert rows == [{0: [0, 1, 2], 1: [10, 12]}, {0: [3, 4], 1: [13]}, {0: [5, 6], 1: [16]}, {1: [20, 21]}]
    assert [len(task.originals) for task in tasks] == [3, 2, 2, 2]


def test_a_task_is_not_larger_than_what_a_reference_remembers(copies, monkeypatch):  # noqa: F811
    spec, trunk, shards, scanned = copies
    for module in (gather_tasks, reference_module):
        monkeypatch.setattr(module, "MOST_REMEMBERED_BYTES", 2 * bytes_of_answer(spec) + 1)
    asked = forward_passes(trunk, monkeypatch)
    tasks = split(spec, dict(enumerate(shards)), scanned)
    for task in tasks:
        gathered(copies, task.candidates, Reference(trunk, spec.network))
    assert [len(task.originals) for task in tasks] == [2, 2, 2]
    assert asked == [1] * 6


@pytest.fixture
def data(tmp_path):
    """Three shards: the second has copies of the first's images, the third others."""
    for name, seed in (("a", 0), ("b", 0), ("c", 100)):
        images = [LabelledImage(encode(random_picture(seed + i)), f"{i}.png", 0) for i in range(ROWS)]
        write_images(images, str(tmp_path / name), ["n01440764"], ROWS)
    return [tmp_path / name for name in "abc"]


def told(text, name):
    """Return what is said of the tasks of a shard, line by line, without speed and time."""
    lines = [line.partition("  ")[2] for line in text.splitlines() if line.startswith("gather ")]
    return [line.partition("  (")[0] for line in lines if f"{name}/train-" in line]


def test_a_shards_tasks_give_one_answer_and_one_reason(data, tmp_path, cli, ray_cluster, monkeypatch):
    out = tmp_path / "run"
    status, text = cli("run", "--data", *data, "--out", out, *TINY_FLAGS)
    assert status == 0, text
    assert "(piece" not in text
    whole = pq.read_table(out / "exemplars.parquet")
    monkeypatch.setattr(gather_tasks, "_ORIGINALS_PER_TASK", 2)
    (out / "summary.json").unlink()
    status, text = cli("merge", out)
    assert status == 0, text
    pieces = told(text, "a")
    assert len(pieces) > 2
    assert f"(piece {len(pieces)} of {len(pieces)}): " in text
    assert pq.read_table(out / "exemplars.parquet").equals(whole)

    # A file that is gone: each of its tasks fails, and those with copies in it are done without it.
    for folder in ("c", "b"):
        [path] = (tmp_path / folder).glob("*.parquet")
        kept = shutil.move(path, tmp_path / "kept")
        status, text = cli("merge", out)
        assert status == 1
        assert "INCOMPLETE: 1 of 3 shards have no result" in text
        first, *others = told(text, folder)
        assert first.startswith("FAILED "), text
        assert others, text
        assert all(line.endswith(": failed as well") for line in others), text
        shutil.move(kept, path)

    # A file that is another one now: one reason why it has to be scanned again.
    [path], [other] = ((tmp_path / folder).glob("*.parquet") for folder in "ac")
    stamp = path.stat()
    shutil.copy(other, path)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    status, text = cli("merge", out)
    assert status == 1
    assert sum(line.startswith("FAILED ") for line in told(text, "a")) == 1, text
    assert "; a run scans it again" in text, text
