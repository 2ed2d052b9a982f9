"""The command line's manners: help for everything, one line for a mistake, light `status`."""

import os
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from conftest import TINY_FLAGS, python_without
from rich.console import Console

from exemplar_ray.cli import build_parser
from exemplar_ray.config import RUN_KEYS
from exemplar_ray.executor.progress import ProgressDisplay

COMMANDS = ["sample-data", "shard", "run", "plan", "status", "merge", "layers", "check", "visualize", "circuits"]
COMMANDS += ["activations", "export", "explore", "compare", "report", "publish"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_flag_has_help(command, capsys):
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    sub = build_parser()._subparsers._group_actions[0].choices[command]
    assert all(action.help for action in sub._actions)
    assert f"exemplar-ray {command}" in text


def test_the_commands_are_those_of_the_contract():
    assert list(build_parser()._subparsers._group_actions[0].choices) == COMMANDS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required"),
        (["rnu"], "invalid choice: 'rnu'"),
        (["run", "--laeyr", "mixed4a"], "did you mean --layer?"),
        (["run", "--top-k", "ten", "--data", "x", "--out", "y"], "invalid int value: 'ten'"),
        (["run", "--out", "y"], "--data is missing"),
        (["run", "--data", "x"], "--out is missing"),
        (["run", "--config", "nowhere.yaml"], "config 'nowhere.yaml' cannot be read"),
        (["run", "--data", "x", "--out", "y", "--max-skipped", "-1"], "max_skipped is a whole number from 0"),
        (["run", "--data", "x", "--out", "y", "--batch-size", "0"], "batch_size is a whole number from 1"),
        (["run", "--data", "x", "--out", "y", "--preprocess", "{a"], "'{a' is no YAML"),
        (["status", "nowhere"], "'nowhere' is no run folder"),
        (["merge", "nowhere"], "'nowhere' is no run folder"),
        (["report", "nowhere"], "'nowhere' is no run folder"),
        (["publish", "nowhere", "user/name", "--dry-run", "out"], "'nowhere' is no run folder"),
        (["shard", "nowhere", "out"], "neither a folder nor a data set"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(cli, arguments, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    status, text = cli(*arguments)
    assert status == 2
    assert message in text
    assert len(text.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("tpo_k: 3", "unknown key 'tpo_k'; did you mean 'top_k'"),
        ("[1, 2]", "is a mapping of keys to values, not a list"),
        ("a: b: c", "cannot be read"),
        ("{data: [1], out: x}", "data is one URI or several"),
        ("{data: x, out: [y]}", "out is a text"),
        ("{data: x, out: y, top_k: three}", "top_k is a whole number"),
        ("!!python/object/apply:os.system ['true']", "cannot be read"),
    ],
)
def test_a_config_with_a_mistake_is_refused(cli, tmp_path, content, message):
    (tmp_path / "run.yaml").write_text(content)
    status, text = cli("run", "--config", tmp_path / "run.yaml")
    assert (status, message in text) == (2, True), text


def test_every_key_of_the_contract_is_a_flag_and_a_key_of_the_config():
    contract = "data out model weights layer channels statistic top_k preprocess max_skipped"
    assert set(contract.split()) <= RUN_KEYS.keys()


@pytest.mark.usefixtures("ray_cluster")
def test_status_needs_neither_ray_nor_torch(tiny_data, tmp_path, cli):
    assert cli("run", "--data", tiny_data, "--out", tmp_path / "run", *TINY_FLAGS)[0] == 0
    unneeded = "ray torch torchvision lucent datasets huggingface_hub"
    program = "from exemplar_ray.cli import main; sys.exit(main(sys.argv[1:]))"
    assert "8 done" in python_without(unneeded, program, "status", tmp_path / "run")


def test_tasks_larger_than_this_machine_are_refused_before_they_wait_forever(tiny_data, tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "exemplar_ray", "run", "--data", str(tiny_data), "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [*command, "--cpus-per-task", "999"], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 2
    assert "999 CPUs a task are more than the" in done.stderr
    assert not (tmp_path / "run").exists()


def test_the_driver_does_not_import_torch_and_only_few_modules_import_ray():
    program = "import sys, exemplar_ray.exemplars.job; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
    package = Path(sys.modules["exemplar_ray"].__file__).parent
    importing = [
        path.name
        for path in package.rglob("*.py")
        if any(line.split()[:2] in (["import", "ray"], ["from", "ray"]) for line in path.read_text().splitlines())
    ]
    assert set(importing) == {"attempts.py", "cluster.py", "connection.py", "machines.py", "own_ray.py", "remote.py"}


def test_workers_import_neither_pandas_nor_what_shows_progress_until_somebody_wants_it():
    program = """
import sys
import exemplar_ray.exemplars.tasks
import pyarrow
table = pyarrow.table({"row": pyarrow.array([1, None])})
unwanted = {"pandas", "rich.console"} & sys.modules.keys()
assert not unwanted, unwanted
assert table.to_pandas()["row"].isna().tolist() == [False, True]
import pandas
assert pyarrow.array(pandas.Series([1.0, float("nan")])).null_count == 1
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_help_needs_none_of_the_large_packages():
    """So that it answers at once."""
    program = "from exemplar_ray.cli import build_parser; print(build_parser().format_help())"
    assert "exemplar-ray" in python_without("ray torch numpy pyarrow fsspec pandas huggingface_hub", program)


def test_a_log_gets_one_line_a_shard_and_a_terminal_a_live_display():
    log = StringIO()
    with ProgressDisplay(Console(file=log, force_terminal=False), "scan", 2) as display:
        display.finished("a.parquet", 100, "2 skipped", "node-7")
        display.failed("b [bold].parquet", "no [red] luck")
    first, second = log.getvalue().splitlines()
    assert re.fullmatch(
        r"scan 1/2  a\.parquet: 100 images, 2 skipped on node-7  "
        r"\([0-9.]+ images/s, less than a minute left\)  \d\d:\d\d:\d\d",
        first,
    )
    assert second.startswith("scan 2/2  FAILED b [bold].parquet: no [red] luck")
    terminal = StringIO()
    with ProgressDisplay(Console(file=terminal, force_terminal=True, width=120), "scan", 2) as display:
        display.finished("a.parquet", 100)
        display.failed("b.parquet", "no luck")
    shown = terminal.getvalue()
    assert "2/2" in shown
    assert "images/s" in shown
    assert "1 failed" in shown
    assert "FAILED b.parquet: no luck" in shown


def test_missing_aws_credentials_are_one_line(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"}
    command = [sys.executable, "-m", "exemplar_ray", "status", "s3://bucket/run"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    [line] = done.stderr.strip().splitlines()
    assert "Unable to locate credentials; check `aws configure`" in line


def test_what_only_figures_need_is_asked_for_in_one_line(tmp_path):
    program = "from exemplar_ray.cli import main; sys.exit(main(sys.argv[1:]) != 2)"
    arguments = ["report", tmp_path, "--figure", "mixed4a:0", "--out", tmp_path / "figure.png"]
    said = python_without("matplotlib", "sys.stderr = sys.stdout\n" + program, *arguments)
    assert said.strip().endswith("figures need one more package: pip install matplotlib")
