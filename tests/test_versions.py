"""What computed each part stays with the part; a rerun by other versions is seen, and changes no more than it must."""

import ast
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import TINY_FLAGS, write_tiny_data
from test_run_folder import a_part, a_record, make_plan

from exemplar_ray import open_run
from exemplar_ray.report.provenance import provenance_of
from exemplar_ray.results.status import describe
from exemplar_ray.runs.manifest import Manifest
from exemplar_ray.runs.records import CompletionRecord
from exemplar_ray.runs.run_folder import RunFolder
from exemplar_ray.runs.versions import ComputedBy, in_words, versions

OLD, NEW = {"python": "3.11", "torch": "2.13.0", "numpy": "2.1"}, {"python": "3.11", "torch": "2.14.1", "numpy": "2.1"}


@pytest.fixture
def folder(tmp_path):
    """A run folder that was begun by an old version, one shard of three scanned."""
    folder = RunFolder(str(tmp_path / "run"))
    plan = make_plan(versions=OLD)
    folder.adopt(plan.manifest())
    folder.commit(0, a_part(), a_record(plan, 0, versions=OLD))
    return folder


def written(folder):
    """What tells whether `run.json` was written."""
    return os.stat(f"{folder.uri}/run.json").st_mtime_ns


def test_a_rerun_keeps_the_versions_that_began_the_run_and_writes_nothing_anew(folder):
    before = written(folder)
    folder.adopt(make_plan(versions=NEW).manifest())
    assert written(folder) == before
    assert folder.read_json("run.json")["versions"] == OLD


def test_what_is_repaired_or_named_otherwise_is_written_beside_the_first_versions(folder):
    plan = make_plan(versions=NEW)
    shards = [plan.shards[0], replace(plan.shards[1], size=7), *plan.shards[2:]]
    folder.adopt(replace(plan, shards=shards).manifest())
    values = folder.read_json("run.json")
    assert values["shards"][1]["size"] == 7
    assert values["versions"] == OLD


def test_a_run_that_is_answered_is_left_as_it_is(folder):
    plan = make_plan(versions=NEW)
    moved = replace(plan, shards=[replace(shard, uri="/elsewhere" + shard.uri) for shard in plan.shards])
    before = written(folder)
    for position in (1, 2):
        folder.commit(position, a_part(), a_record(plan, position, versions=NEW))
    folder.adopt(moved.manifest(), is_answered=lambda: True)
    assert written(folder) == before
    folder.adopt(moved.manifest(), is_answered=lambda: False)
    assert written(folder) > before
    # Not before every item is done.
    folder.retract(2)
    folder.adopt(plan.manifest(), is_answered=lambda: pytest.fail("asked too early"))
    assert folder.read_json("run.json")["shards"][0]["uri"] == plan.shards[0].uri


def test_what_a_job_keeps_may_be_tuples_too():
    manifest = Manifest("a job", {"size": (1, 2)}, make_plan().shards, {"more": {1: (2.5, None)}})
    there = json.loads(json.dumps(manifest.to_json()))
    assert manifest.renewal_of(there) is None
    assert replace(manifest, details={"more": {1: (2.5, 0)}}).renewal_of(there)["more"] == {1: (2.5, 0)}


def test_a_record_keeps_its_workers_versions_and_one_without_them_is_read(folder):
    record = CompletionRecord.from_json(folder.read_json("parts/000000.json"), "shard")
    assert record.versions == OLD
    assert "versions" not in record.facts
    values = {**record.to_json()}
    del values["versions"]
    assert CompletionRecord.from_json(values, "shard") == replace(record, versions=None)
    assert "versions" not in replace(record, versions=None).to_json()


def test_versions_that_differ_are_named_and_others_are_not():
    one, other = ComputedBy(OLD, 2), ComputedBy(NEW, 1)
    assert in_words([one], "shards") is None
    assert in_words([ComputedBy(None, 3)], "shards") is None
    assert in_words([one, other], "shards") == "2 shards by torch 2.13.0; 1 shard by torch 2.14.1"
    assert in_words([one, ComputedBy({"python": "3.11", "torch": "2.13.0"}, 1)], "shards") == (
        "2 shards by numpy 2.1; 1 shard by no numpy"
    )
    assert in_words([ComputedBy(None, 1), other], "shards") == (
        "1 shard by versions that were not recorded; 1 shard by python 3.11, torch 2.14.1, numpy 2.1"
    )


@pytest.mark.parametrize(
    ("second", "line"),
    [
        (NEW, "computed by different versions: 1 shard by torch 2.13.0; 1 shard by torch 2.14.1"),
        (OLD, None),
        (
            None,
            "computed by different versions: 1 shard by python 3.11, torch 2.13.0, numpy 2.1; 1 shard by versions",
        ),
    ],
)
def test_the_status_says_so(folder, second, line):
    folder.commit(2, a_part(), a_record(make_plan(), 2, versions=second))
    lines, _ = describe(folder.uri)
    found = [one for one in lines if "computed by" in one]
    assert len(found) == (line is not None)
    assert line is None or found[0].startswith(line)


# The whole command -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def incomplete(tmp_path_factory, ray_cluster):
    """A run over three shards of which one is broken: (data, run folder, the whole shard, what was said)."""
    from exemplar_ray.cli import main

    folder = tmp_path_factory.mktemp("a name with spaces")
    broken = write_tiny_data(folder / "data", shards=3)[1]
    whole = Path(broken).read_bytes()
    Path(broken).write_bytes(whole[:500])
    arguments = ["run", "--data", f"{folder / 'data'}/*.parquet", "--out", str(folder / "run"), *TINY_FLAGS]
    assert main([*arguments, "--retries", "0"]) == 1
    return folder, broken, whole, arguments


def rerun_that_is_printed(text):
    """Return the arguments of the one call that is printed, see test_invocation.py."""
    [call] = [line.split(": ", 1)[1] for line in text.splitlines() if line.startswith("to scan only these again: ")]
    return ast.literal_eval(call.removeprefix("from exemplar_ray.cli import main; main(").removesuffix(")"))


def test_every_part_says_what_computed_it_and_a_rerun_mixes_them(incomplete, cli, tmp_path, monkeypatch):
    folder, broken, whole, arguments = incomplete
    records = [json.loads(path.read_text()) for path in sorted((folder / "run" / "parts").glob("*.json"))]
    assert [record["versions"] for record in records] == [versions()] * 2
    assert {"exemplar_ray", "python", "torch", "numpy", "pyarrow", "pillow", "ray"} <= versions().keys()

    status, text = cli(*arguments)
    assert status == 1
    again = rerun_that_is_printed(text)
    assert again == arguments
    status, text = cli("merge", folder / "run")
    assert status == 1
    after_merge = rerun_that_is_printed(text)

    Path(broken).write_bytes(whole)
    for number, words in enumerate((again, after_merge)):
        run = Path(shutil.copytree(folder / "run", tmp_path / str(number)))
        # Somewhere else.
        words[words.index("--out") + 1] = run
        # Those that are there were computed by another torch.
        for path in (run / "parts").glob("*.json"):
            record = json.loads(path.read_text())
            path.write_text(json.dumps({**record, "versions": {**record["versions"], "torch": "2.10.0"}}))
        status, text = cli(*words)
        assert status == 0, text
        mixed = f"computed by different versions: 2 shards by torch 2.10.0; 1 shard by torch {versions()['torch']}"
        assert mixed in text
        assert mixed in cli("status", run)[1]
        summary = json.loads((run / "summary.json").read_text())
        assert [group["shards"] for group in summary["computed_by"]] == [2, 1]
        assert dict(provenance_of(open_run(str(run)), str(run)).facts)["versions"] == mixed

    # With other versions, and nothing to do, nothing is written.
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    monkeypatch.setattr("exemplar_ray.exemplars.job.versions", lambda: NEW)
    status, text = cli(*words)
    assert (status, "nothing to do" in text) == (0, True), text
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
