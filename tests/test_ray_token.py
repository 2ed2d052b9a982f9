"""Ray's token: a Ray of our own leaves none behind and takes none that is there; that of another is asked for."""

import json
import os
import subprocess
import sys

import pytest
from conftest import PROJECT, free_port, start_ray_head

OTHERS = "b" * 64
# Starts a Ray of its own twice, the second time with authentication switched off after the first; tells who may come.
OWN_RAY = """
import os, sys
import ray
from exemplar_ray.errors import UsageError
from exemplar_ray.executor.cluster import Cluster
from exemplar_ray.executor.ray_address import refuse_unusable
from exemplar_ray.executor.resources import Resources

def may_come(token):
    try:
        refuse_unusable(ray.get_runtime_context().gcs_address, token)
        return True
    except UsageError:
        return False

def of_tokens():
    return {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH")}

before = of_tokens()
for mode in (None, "disabled"):
    if mode:
        before["RAY_AUTH_MODE"] = os.environ["RAY_AUTH_MODE"] = mode
    with Cluster(Resources()) as cluster:
        assert cluster.call("os:fspath", "a task", "a task fails") == "a task"
        own = os.environ.get("RAY_AUTH_TOKEN")
        print(mode, [may_come(token) for token in (None, sys.argv[1], own)])
        started = {kind: one.process for kind, [one] in ray._private.worker._global_node.all_processes.items()}
    assert started.keys() == {"raylet", "gcs_server"}, started
    for process in started.values():
        process.wait(10)
    assert of_tokens() == before
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home of a user who has said nothing about authentication."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in [name for name in os.environ if name.startswith("RAY_A")]:
        monkeypatch.delenv(name)
    return home


@pytest.mark.parametrize("there", [None, OTHERS])
def test_a_ray_of_our_own_has_a_token_that_nobody_else_has(home, there):
    if there:
        (home / ".ray").mkdir()
        (home / ".ray" / "auth_token").write_text(there)
    done = subprocess.run(
        [sys.executable, "-c", OWN_RAY, OTHERS],
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["None [False, False, True]", "disabled [True, True, True]"]
    written = {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()}
    assert written == ({".ray/auth_token"} if there else set())
    assert there is None or (home / ".ray" / "auth_token").read_text() == there


@pytest.fixture(scope="module")
def guarded_head():
    """A head that wants a token: ("HOST:PORT", "ray://HOST:PORT", token)."""
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64}
    port = free_port()
    for head in start_ray_head(environment, client_port=port):
        yield head["address"], f"ray://127.0.0.1:{port}", "a" * 64


# As a notebook does it: in one process, with another environment each time.
JOINING = """
import json, os, sys
from exemplar_ray.errors import UsageError
from exemplar_ray.executor.cluster import Cluster
from exemplar_ray.executor.resources import Resources

for change in json.loads(sys.argv[2]):
    os.environ.update(change)
    try:
        with Cluster(Resources(address=sys.argv[1])):
            print("in")
    except UsageError as error:
        print(error)
"""


def joining(address, *changes):
    """Join there in a process of its own, with one change of its environment after the other; return what it says."""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-c", JOINING, address, json.dumps(changes)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("client", [False, True])
def test_joining_a_ray_that_wants_another_token_is_refused_in_a_line(guarded_head, home, client):
    address = guarded_head[client]
    (home / "others").write_text(OTHERS)
    wants = f"the Ray at '{address}' wants a token, and"
    starts = {
        f"{wants} is shown none; set RAY_AUTH_MODE=token": {},
        "RAY_AUTH_MODE is 'token', and there is none": {"RAY_AUTH_MODE": "token"},
        f"RAY_AUTH_TOKEN_PATH names '{home}/no', where no token can be read": {"RAY_AUTH_TOKEN_PATH": f"{home}/no"},
        f"{wants} that of the file that RAY_AUTH_TOKEN_PATH names is": {"RAY_AUTH_TOKEN_PATH": f"{home}/others"},
        f"{wants} that of RAY_AUTH_TOKEN is another": {"RAY_AUTH_TOKEN": OTHERS},
    }
    said = joining(address, *starts.values())
    assert len(said) == len(starts)
    for line, start in zip(said, starts, strict=True):
        assert line.startswith(start)
        assert "put the token that `ray get-auth-token` prints on its head into ~/.ray/auth_token" in line


def test_who_has_its_token_joins(guarded_head, home):
    """What a person does whom the line told: the token into its usual file, the mode into the environment."""
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text(guarded_head[2])
    assert joining(guarded_head[0], {"RAY_AUTH_MODE": "token"}) == ["in"]
