"""Every command that is printed runs: pasted into a shell where one was given, called where Python called."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROJECT, TINY_FLAGS, write_tiny_data

from exemplar_ray.executor.invocation import invocation_of

BIN = Path(sys.executable).parent
# In the folder that the data is in.
ARGUMENTS = ["run", "--data", "data/*.parquet", "--out", "a run", *TINY_FLAGS, "--retries", "0"]
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"


@pytest.fixture
def broken(tmp_path):
    """A folder with data of which one shard is broken, and what it was: what is printed needs quotes."""
    folder = tmp_path / "it's a $HOME"
    shard = Path(write_tiny_data(folder / "data", shards=2)[1])
    whole = shard.read_bytes()
    shard.write_bytes(whole[:500])
    return folder, shard, whole


def printed(text):
    """Return the commands that were printed, by the words before them."""
    return dict(re.findall(r"^(to scan only|or to merge|to go on|.*interrupted)[^:]*: (.+)$", text, flags=re.M))


def in_shell(head, folder, command, path):
    """Run a shell's line there; return (exit status, what it printed)."""
    environment = {**os.environ, "RAY_ADDRESS": head["address"], "PATH": path, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    return done.returncode, done.stdout + done.stderr


PROGRAMS = ["exemplar-ray", str(BIN / "exemplar-ray"), f"{sys.executable} -m exemplar_ray"]


def found_as(program):
    """Return a PATH by which only the bare name is found."""
    others = [one for one in os.environ["PATH"].split(os.pathsep) if one != str(BIN)]
    return os.pathsep.join([str(BIN), *others] if program == "exemplar-ray" else others)


def test_pasted_into_the_same_shell(ray_head, broken):
    folder, shard, whole = broken
    path = found_as("exemplar-ray")
    status, text = in_shell(ray_head, folder, shlex.join(["exemplar-ray", *ARGUMENTS]), path)
    assert status == 1, text
    commands = printed(text)
    assert in_shell(ray_head, folder, commands["or to merge"], path)[0] == 1
    assert json.loads((folder / "a run" / "summary.json").read_text())["partial"] == "1 of 2 shards"
    of_merge = printed(in_shell(ray_head, folder, "exemplar-ray merge 'a run' --retries 0", path)[1])["to scan only"]
    for program in PROGRAMS:
        text = in_shell(ray_head, folder, f"{program} status 'a run'", found_as(program))[1]
        # How the program is called is how it was called; and what `merge` says is the same.
        assert printed(text)["to go on"] + " --retries 0" == of_merge.replace("exemplar-ray", program, 1)

    shard.write_bytes(whole)
    shutil.copytree(folder / "a run", folder / "before")
    for number, command in enumerate((commands["to scan only"], of_merge)):
        if number:
            shutil.rmtree(folder / "a run")
            (folder / "before").rename(folder / "a run")
        status, text = in_shell(ray_head, folder, command, path)
        assert status == 0, text


@pytest.mark.usefixtures("ray_cluster")
def test_called_again_in_a_notebooks_process(broken, cli, monkeypatch):
    folder, shard, whole = broken
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "/run/kernel-1.json"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "ipykernel_launcher", "-f", "/run/kernel-1.json"])
    status, text = cli(*ARGUMENTS)
    assert status == 1, text
    commands = printed(text)
    assert not any("kernel" in command for command in commands.values())
    exec(commands["or to merge"])
    assert json.loads((folder / "a run" / "summary.json").read_text())["partial"] == "1 of 2 shards"
    of_merge = printed(cli("merge", "a run")[1])["to scan only"]

    shard.write_bytes(whole)
    for command in (commands["to scan only"], of_merge):
        exec(command)
        assert cli("status", "a run")[0] == 0
        shutil.rmtree(folder / "a run")


def test_what_a_job_was_started_with_beside_its_words_is_named_and_no_secret_printed(monkeypatch):
    environment = {"working_dir": "gcs://_ray_pkg_x.zip", "env_vars": {"TOKEN": "secret"}, "pip": ["timm"]}
    config = {"metadata": {"job_submission_id": "raysubmit_x"}, "runtime_env": environment}
    monkeypatch.setenv(JOB, json.dumps(config))
    job = invocation_of(["run"], ["python", "find_exemplars.py", "--config", "a b.yaml"])
    assert job.again == "ray job submit --working-dir . -- python find_exemplars.py --config 'a b.yaml'"
    assert job.beside == ", with the --runtime-env-json of this job (env_vars, pip)"
    del environment["working_dir"], environment["pip"]
    environment["env_vars"] = {}
    monkeypatch.setenv(JOB, json.dumps(config))
    assert job.again.startswith("ray job submit -- python find_exemplars.py")
    assert job.beside == ""
