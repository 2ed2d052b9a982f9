"""The run folder: whole files or none, records that count and records that do not, refusals."""

import os
import pickle
from dataclasses import replace
from functools import partial

import fsspec
import numpy as np
import pytest
from test_spec import resolved
from test_topk import make_scores

from exemplar_ray.data.labels import ClassLabels
from exemplar_ray.data.shards import Shard
from exemplar_ray.errors import UsageError
from exemplar_ray.exemplars import parts
from exemplar_ray.exemplars.plan import Plan, ScannedShard
from exemplar_ray.network.layers import Layer
from exemplar_ray.results.status import describe
from exemplar_ray.runs.records import CompletionRecord, FailureRecord
from exemplar_ray.runs.run_folder import RunFolder, TornPartError


def make_plan(**changes):
    shards = [Shard(f"train-{i}.parquet", f"/data/train-{i}.parquet", 1000 + i, 10, f"footer{i}") for i in range(3)]
    spec = resolved(layers=(Layer("mixed4a", 508, (14, 14), (0, 1)),), top_k=2)
    return replace(Plan(spec, shards, ClassLabels(), {"python": "3.11"}), **changes)


def a_part(seed=0):
    """The files of a part."""
    spec = make_plan().spec
    scores = make_scores([0, 0, 1, 1], np.arange(4) + seed, 0, np.arange(4))
    return parts.to_files(replace(parts.Part.empty(spec), scores=scores), spec)


def test_a_folder_of_another_format_is_refused_by_whoever_reads_it(tmp_path):
    folder = RunFolder(str(tmp_path / "run"))
    folder.adopt(make_plan().manifest())
    values = folder.read_json("run.json")
    values["identity"]["format"] -= 1
    del values["spec"]["samples"]
    folder.write_json("run.json", values)
    for read in (lambda: Plan.read(folder), lambda: folder.adopt(make_plan().manifest())):
        with pytest.raises(UsageError, match="written by another version"):
            read()


def a_record(plan, position, **changes):
    facts = {"rows": 10, "scored": 10, "skipped": 0, "skipped_images": [], "not_finite": [], "device": "cpu"}
    item = plan.shards[position].to_json()
    record = CompletionRecord(plan.fingerprint, "shard", item, facts, 1.5, "here", "2026-01-01T00:00:00Z")
    return replace(record, **changes)


def read_part(folder, position, plan):
    """One committed part."""
    [(read, part)] = parts.read_parts(folder, [position], plan.fingerprint, plan.spec)
    assert read == position
    return part


@pytest.fixture(params=["local disk", "object store"])
def folder(request, tmp_path):
    """A new run folder, on a disk and on fsspec's in-memory object store."""
    if request.param == "local disk":
        yield RunFolder(str(tmp_path / "run"))
        return
    memory = fsspec.filesystem("memory")
    yield RunFolder("memory://bucket/run")
    memory.rm("/bucket", recursive=True)


def test_a_plan_is_adopted_and_read_back(folder):
    plan = make_plan()
    folder.adopt(plan.manifest())
    assert Plan.read(folder) == plan
    folder.adopt(plan.manifest())
    assert folder.state(plan.manifest()).pending == [0, 1, 2]


def test_commits_complete_and_failures_stay_until_then(folder):
    plan = make_plan()
    folder.adopt(plan.manifest())
    shard = plan.shards[1].to_json()
    folder.fail(1, FailureRecord("shard", shard, "no such luck", "a traceback", ["a line"], 1, "2026-01-01T00:00:00Z"))
    assert folder.read_json("failed/000001.json")["shard"] == shard
    state = folder.state(plan.manifest())
    assert (list(state.completed), list(state.failed), state.pending) == ([], [1], [0, 2])
    assert state.unfinished == [0, 1, 2]
    folder.commit(1, a_part(), a_record(plan, 1))
    state = folder.state(plan.manifest())
    assert (list(state.completed), list(state.failed), state.pending) == ([1], [], [0, 2])
    assert read_part(folder, 1, plan).scores.shard.tolist() == [1] * 4
    assert list(folder.names("failed")) == []


def test_a_part_without_its_record_and_a_record_without_its_part_do_not_count(folder):
    plan = make_plan()
    folder.adopt(plan.manifest())
    folder.commit(0, a_part(), a_record(plan, 0))
    folder.remove("parts/000000.json")
    folder.commit(1, a_part(), a_record(plan, 1))
    folder.remove("parts/000001.parquet")
    folder.commit(2, a_part(), a_record(plan, 2))
    folder.remove("parts/000002.histogram.parquet")
    assert folder.state(plan.manifest()).pending == [0, 1, 2]


@pytest.mark.parametrize(
    "name", ["000000.json.tmp", ".000000.json.abc.tmp", "0.json", "x.json", "000009.json", "000000 copy.json"]
)
def test_stray_files_are_not_read_as_results(folder, name):
    plan = make_plan()
    folder.adopt(plan.manifest())
    record = folder.commit(0, a_part(), a_record(plan, 0))
    folder.remove("parts/000000.json")
    folder.write_json(f"parts/{name}", record.to_json())
    assert folder.state(plan.manifest()).pending == [0, 1, 2]


def test_torn_and_foreign_records_do_not_count(folder):
    plan = make_plan()
    folder.adopt(plan.manifest())
    for position in range(3):
        folder.commit(position, a_part(), a_record(plan, position))
    folder.write("parts/000000.json", b'{"fingerprint": "')
    folder.commit(1, a_part(), a_record(plan, 1, fingerprint="of another run"))
    assert folder.state(plan.manifest()).pending == [0, 1]


def test_a_part_that_is_not_the_committed_one_is_refused(folder):
    plan = make_plan()
    folder.adopt(plan.manifest())
    folder.commit(0, a_part(), a_record(plan, 0))
    for ending, content in a_part().items():
        folder.write(f"parts/000000.{ending}", content + b" ")
        with pytest.raises(TornPartError, match=f"parts/000000.{ending} is not the file that was committed"):
            read_part(folder, 0, plan)
        folder.remove(f"parts/000000.{ending}")
        with pytest.raises(TornPartError, match=f"parts/000000.{ending} is gone") as torn:
            read_part(folder, 0, plan)
        # As it comes out of a task.
        assert pickle.loads(pickle.dumps(torn.value)).position == 0
        folder.write(f"parts/000000.{ending}", content)
    assert len(read_part(folder, 0, plan).scores.row) == 4
    folder.retract(0)
    with pytest.raises(TornPartError, match="parts/000000.json is gone"):
        read_part(folder, 0, plan)


def spec_with(**changes):
    return replace(make_plan().spec, **changes)


def network_with(**changes):
    return spec_with(network=replace(make_plan().spec.network, **changes))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"spec": network_with(layers=(Layer("mixed4b", 508, (14, 14), (0, 1)),))}, "layer"),
        ({"spec": network_with(layers=(Layer("mixed4a", 508, (14, 14), (0, 2)),))}, "channels"),
        ({"spec": spec_with(top_k=3)}, "top_k"),
        ({"spec": network_with(weights_sha256="b" * 64)}, "weights"),
        ({"spec": network_with(model="inceptionv1-tf")}, "model"),
        ({"spec": spec_with(statistics=("max",))}, "statistic"),
        ({"spec": network_with(preprocess=replace(make_plan().spec.network.preprocess, resize=300))}, "preprocess"),
        ({"shards": make_plan().shards[:2]}, "data"),
        ({"shards": [replace(shard, name="x" + shard.name) for shard in make_plan().shards]}, "data"),
    ],
)
def test_another_plan_is_refused_naming_the_keys_that_differ(folder, changes, key):
    folder.adopt(make_plan().manifest())
    before = folder.read_json("run.json")
    with pytest.raises(UsageError, match=f"these keys differ: .*{key}"):
        folder.adopt(make_plan(**changes).manifest())
    assert folder.read_json("run.json") == before


@pytest.mark.parametrize("change", [{"size": 7}, {"footer": "other"}, {"footer": None, "rows": None}])
def test_a_shard_may_change_until_it_is_scanned_and_not_after(folder, change):
    plan = make_plan()
    folder.adopt(plan.manifest())
    folder.commit(0, a_part(), a_record(plan, 0))
    shards = list(plan.shards)
    shards[1] = replace(shards[1], **change)
    folder.adopt(replace(plan, shards=shards).manifest())
    assert Plan.read(folder).shards[1] == shards[1]
    shards[0] = replace(shards[0], **change)
    state = folder.adopt(replace(plan, shards=shards).manifest())
    assert (list(state.completed), list(state.changed), state.touched) == ([0], [0], [])


def test_where_most_shards_are_others_it_is_other_data(folder):
    plan = make_plan()
    folder.adopt(plan.manifest())
    for position in (0, 1):
        folder.commit(position, a_part(), a_record(plan, position))
    shards = [replace(plan.shards[0], size=7), *plan.shards[1:]]
    assert list(folder.adopt(replace(plan, shards=shards).manifest()).changed) == [0]
    before = folder.read_json("run.json")
    others = [replace(shard, size=8) for shard in plan.shards]
    with pytest.raises(UsageError, match=r"data differs: shard train-0.parquet changed .* 1 more of the 2"):
        folder.adopt(replace(plan, shards=others).manifest())
    assert folder.read_json("run.json") == before


def test_a_stamp_that_is_another_one_calls_for_a_closer_look(folder):
    plan = make_plan()
    stamped = [replace(shard, stamp="ETag 1") for shard in plan.shards]
    of_then = replace(plan, shards=stamped)
    folder.adopt(of_then.manifest())
    folder.commit(0, a_part(), a_record(of_then, 0))
    manifest = replace(plan, shards=[replace(shard, stamp="ETag 2") for shard in stamped]).manifest()
    state = folder.adopt(manifest)
    assert (list(state.completed), state.changed, state.touched) == ([0], {}, [0])
    assert folder.committed(0, manifest.items[0], manifest.fingerprint) is None
    assert folder.committed(0, stamped[0], manifest.fingerprint) is not None
    # A storage that says nothing, then or now, gives no reason to look.
    assert folder.adopt(plan.manifest()).touched == []


def test_the_same_data_at_another_place_is_the_same_run(folder):
    plan = make_plan()
    folder.adopt(plan.manifest())
    folder.commit(0, a_part(), a_record(plan, 0))
    moved = [replace(shard, uri="s3://bucket/" + shard.name) for shard in plan.shards]
    folder.adopt(replace(plan, shards=moved).manifest())
    assert list(folder.state(plan.manifest()).completed) == [0]


def test_a_folder_with_other_files_is_not_taken(folder):
    folder.write("thesis.tex", b"mine")
    with pytest.raises(UsageError, match="has no run.json but holds thesis.tex"):
        folder.adopt(make_plan().manifest())
    with pytest.raises(UsageError, match="is no run folder"):
        Plan.read(folder)


def test_an_exception_while_writing_leaves_the_old_file_and_nothing_else(folder):
    folder.write("exemplars.parquet", b"old")
    half_done = RuntimeError("half done")

    def write_half():
        with folder.writing("exemplars.parquet") as path:
            with open(path, "wb") as file:
                file.write(b"half of the n")
            raise half_done

    with pytest.raises(RuntimeError, match="half done"):
        write_half()
    with folder.open("exemplars.parquet") as file:
        assert file.read() == b"old"
    assert list(folder.names("")) == ["exemplars.parquet"]
    with folder.writing("exemplars.parquet") as path, open(path, "wb") as file:
        file.write(b"new")
    with folder.open("exemplars.parquet") as file:
        assert file.read() == b"new"


def test_reading_never_writes(tmp_path):
    folder = RunFolder(str(tmp_path / "nothing"))
    assert list(folder.names("parts")) == []
    assert not folder.exists("run.json")
    assert folder.read_json("run.json") is None
    assert not os.path.exists(tmp_path / "nothing")


def test_an_interruption_is_no_answer(tmp_path, monkeypatch):
    """What asks whether a file is there must not take Ctrl-C for a no."""
    folder = RunFolder(str(tmp_path))
    folder.write("here", b"")

    def interrupted(path, *others, ask, **named):
        if str(path).endswith("here"):
            raise KeyboardInterrupt
        return ask(path, *others, **named)

    for name in ("stat", "lstat"):
        monkeypatch.setattr(os, name, partial(interrupted, ask=getattr(os, name)))
    with pytest.raises(KeyboardInterrupt):
        folder.exists("here")
    monkeypatch.undo()
    assert folder.exists("here")


def test_what_another_attempt_committed_is_found_without_a_listing(folder):
    plan = make_plan()
    folder.adopt(plan.manifest())
    fingerprint, shard = plan.fingerprint, plan.shards[0]
    assert folder.committed(0, shard, fingerprint) is None
    record = folder.commit(0, a_part(), a_record(plan, 0))
    assert folder.committed(0, shard, fingerprint) == record
    assert folder.committed(0, replace(shard, uri="/elsewhere/train-0.parquet"), fingerprint) == record
    assert folder.committed(0, shard, "of another run") is None
    assert folder.committed(0, replace(shard, footer="another"), fingerprint) is None
    folder.remove("parts/000000.parquet")
    assert folder.committed(0, shard, fingerprint) is None
    folder.commit(0, a_part(), a_record(plan, 0))
    folder.retract(0)
    assert folder.committed(0, shard, fingerprint) is None
    assert folder.state(plan.manifest()).pending == [0, 1, 2]


def test_a_commit_that_ends_anywhere_counts_whole_or_not_at_all(folder, monkeypatch):
    """The process may die after any of the files, which are written side by side, in no order; what a later one finds
    is nothing, or the part and its record."""
    plan = make_plan()
    folder.adopt(plan.manifest())
    write, write_all = RunFolder.write, RunFolder.write_all
    files = a_part()
    for order in (list(files), list(reversed(files))):
        for writes in range(len(files) + 2):
            left = writes

            def dying(self, name, content):
                nonlocal left
                if left == 0:
                    raise SystemExit
                left -= 1
                write(self, name, content)

            def dying_among(self, files, order=order, dying=dying):
                for ending in order:
                    dying(self, f"parts/000001.{ending}", files[f"parts/000001.{ending}"])

            monkeypatch.setattr(RunFolder, "write", dying)
            monkeypatch.setattr(RunFolder, "write_all", dying_among)
            if writes <= len(files):
                with pytest.raises(SystemExit):
                    folder.commit(1, files, a_record(plan, 1))
            else:
                folder.commit(1, files, a_record(plan, 1))
            monkeypatch.setattr(RunFolder, "write", write)
            monkeypatch.setattr(RunFolder, "write_all", write_all)
            there = list(folder.names("parts"))
            recorded = "000001.json" in there
            assert recorded == (writes > len(files))
            assert len(there) == writes
            assert list(folder.state(plan.manifest()).completed) == ([1] if recorded else [])
            assert (folder.committed(1, plan.shards[1], plan.fingerprint) is not None) == recorded
            for name in there:
                folder.remove(f"parts/{name}")


def test_of_files_written_side_by_side_one_that_fails_fails_them_all_and_leaves_nothing_half_written(tmp_path):
    folder = RunFolder(str(tmp_path / "run"))
    (tmp_path / "run" / "parts" / "b").mkdir(parents=True)
    (tmp_path / "run" / "parts" / "b" / "in the way").touch()
    with pytest.raises(OSError, match="parts/b"):
        folder.write_all({f"parts/{name}": name.encode() * 1000 for name in "abc"})
    assert sorted(folder.names("parts")) == ["a", "b", "c"]
    assert folder.read("parts/a") + folder.read("parts/c") == b"a" * 1000 + b"c" * 1000


def test_what_is_written_has_reached_the_disk_before_what_follows_it(tmp_path, monkeypatch):
    """Every file before its name, every name before the record."""
    events = []
    fsync, rename = os.fsync, os.replace

    def path_of(handle):
        return os.path.relpath(os.readlink(f"/proc/self/fd/{handle}"), tmp_path)

    def seen_fsync(handle):
        events.append(("on disk", path_of(handle)))
        fsync(handle)

    def seen_rename(old, new):
        events.append(("renamed", os.path.relpath(old, tmp_path), os.path.relpath(new, tmp_path)))
        rename(old, new)

    plan, folder = make_plan(), RunFolder(str(tmp_path))
    folder.adopt(plan.manifest())
    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "replace", seen_rename)
    folder.commit(1, a_part(), a_record(plan, 1))
    renamed = {
        new: (number, old) for number, (kind, old, *rest) in enumerate(events) if kind == "renamed" for new in rest
    }
    assert renamed.keys() == {f"parts/000001.{ending}" for ending in [*a_part(), "json"]}
    for number, old in renamed.values():
        assert ("on disk", old) in events[:number]
    record = renamed.pop("parts/000001.json")[0]
    last = max(number for number, _ in renamed.values())
    assert ("on disk", "parts") in events[last:record]
    assert events[-1] == ("on disk", "parts")


def test_the_status_lists_some_skipped_images_and_counts_the_others(tmp_path):
    plan, folder = make_plan(), RunFolder(str(tmp_path / "run"))
    folder.adopt(plan.manifest())
    skipped = [{"row": row, "reason": "empty image bytes"} for row in range(15)]
    for position in range(2):
        record = a_record(plan, position)
        facts = {**record.facts, "rows": 25, "skipped": 15, "skipped_images": skipped}
        folder.commit(position, a_part(), replace(record, facts=facts))
    lines, complete = describe(str(tmp_path / "run"))
    assert not complete
    listed = [line for line in lines if line.startswith("skipped: ")]
    assert listed[0] == "skipped: train-0.parquet row 0: empty image bytes"
    assert listed[-1] == "skipped: train-1.parquet row 4: empty image bytes"
    assert len(listed) == 20
    assert lines[lines.index(listed[-1]) + 1] == "and 10 more skipped images"
    state = folder.state(plan.manifest(), ScannedShard.of)
    assert sum(len(scanned.skipped_images) for scanned in state.completed.values()) == 30
