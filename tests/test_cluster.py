"""Tasks on Ray: named functions, what becomes of them when nobody waits, and what a failed one had logged."""

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

from exemplar_ray.errors import UsageError
from exemplar_ray.executor.cluster import Cluster
from exemplar_ray.executor.own_ray import own_processes
from exemplar_ray.executor.resources import Resources

pytestmark = pytest.mark.usefixtures("ray_cluster")

TASKS = 20


def leave_a_file(folder, number):
    time.sleep(0.2)
    Path(folder, str(number)).touch()


def log_and_fail(reason):
    log = logging.getLogger("exemplar_ray.tests")
    log.debug("too fine to keep")
    log.info("reading %s", reason)
    raise {"value": ValueError, "usage": UsageError}[reason](reason)


def name_of_this_task(item):
    return ray.get_runtime_context().get_task_name()


def add(one, two, item):
    return one + two + item


@ray.remote(max_retries=0)
def after(path):
    Path(path).touch()


def test_a_run_that_ends_early_on_a_ray_that_stays_leaves_it_few_tasks_and_those_end(tmp_path):
    with Cluster(Resources()) as cluster:
        outcomes = cluster.map("test_cluster:leave_a_file", ((n, n) for n in range(TASKS)), str(tmp_path))
        assert next(outcomes).error is None
        outcomes.close()
    # It is handed to Ray after them, so it begins after them.
    ray.get(after.remote(tmp_path / "after"))
    time.sleep(1)
    assert len(list(tmp_path.iterdir())) == 2 * cluster.slots + 1 < TASKS


def test_a_function_is_called_with_what_is_shared_and_its_item():
    with Cluster(Resources()) as cluster:
        outcomes = cluster.map("test_cluster:add", [("a", 1), ("b", 2)], 10, 100)
        assert {outcome.key: outcome.value for outcome in outcomes} == {"a": 111, "b": 112}


def test_a_task_is_called_after_its_item():
    with Cluster(Resources()) as cluster:
        [outcome] = cluster.map("test_cluster:name_of_this_task", [(5, None)], named="train-{:05d}".format)
        assert outcome.value == "name_of_this_task train-00005"
        assert outcome.host
        assert cluster.call("test_cluster:name_of_this_task", None, "it has no name") == "name_of_this_task"


def test_a_task_that_fails_brings_along_what_it_had_logged():
    with Cluster(Resources()) as cluster:
        [outcome] = cluster.map("test_cluster:log_and_fail", [("a", "value")])
    assert outcome.error == "ValueError: value"
    assert [line.split(": ", 1)[1] for line in outcome.log] == ["reading value"]
    assert "log_and_fail" in outcome.details


@pytest.mark.parametrize("function", ["__main__:task", "no_such_module:task"])
def test_a_task_that_no_worker_can_import_is_refused(function):
    with Cluster(Resources()) as cluster, pytest.raises(UsageError, match="for a worker to import; put the task into"):
        list(cluster.map(function, [("a", 1)]))


def test_a_mistake_of_the_users_ends_them_all():
    with Cluster(Resources()) as cluster, pytest.raises(UsageError, match="usage"):
        list(cluster.map("test_cluster:log_and_fail", [("a", "usage")]))


@pytest.mark.parametrize("environment", [None, {"env_vars": {"GIVEN": "given"}}])
def test_a_ray_of_its_own_has_the_processes_that_a_run_needs(environment):
    # In a process of its own: this one is connected to the tests' Ray.
    connect_and_look = (
        "import os, psutil, ray\n"
        "from exemplar_ray.executor.cluster import Cluster\n"
        "from exemplar_ray.executor.resources import Resources\n"
        "with Cluster(Resources(address='local')):\n"
        "    print(ray.get(ray.remote(lambda: os.environ.get('GIVEN')).remote()))\n"
        "    for process in psutil.Process().children(recursive=True):\n"
        "        print(' '.join(process.cmdline()[:4]))\n"
    )
    variables = dict(os.environ)
    if environment:
        # As where a job's driver starts a Ray of its own.
        variables["RAY_JOB_CONFIG_JSON_ENV_VAR"] = json.dumps({"runtime_env": environment, "metadata": {}})
    command = [sys.executable, "-c", connect_and_look]
    said = subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout
    assert said.startswith("given" if environment else "None")
    assert "raylet" in said
    assert "gcs_server" in said
    for not_needed in ("monitor", "dashboard/dashboard.py"):
        assert not_needed not in said
    # Agents make the environment; they are called otherwise once they are up.
    for names in (("dashboard/agent.py", "ray::DashboardAgent"), ("runtime_env/agent", "ray::RuntimeEnvAgent")):
        assert any(name in said for name in names) == bool(environment)


def test_what_a_ray_lacks_is_not_replaced_and_all_else_is_put_back(monkeypatch):
    monkeypatch.delattr(ray._private.services, "get_node")
    owners = ray._private.parameter, ray._private.node.Node, ray._private.utils, ray._private.services
    before = [dict(vars(owner)) for owner in owners]
    with own_processes(ray.job_config.JobConfig()):
        assert not hasattr(ray._private.services, "get_node")
        parameters = ray._private.parameter.RayParams()
        assert (parameters.no_monitor, parameters.include_log_monitor) == (True, False)
    assert [dict(vars(owner)) for owner in owners] == before


STARTING = """
import sys, threading
import ray
from exemplar_ray.executor.connection import connect, disconnect
from exemplar_ray.executor.ray_token import RayToken
done = []
connect(None, RayToken(ray._raylet), lambda: done.append((threading.current_thread().daemon, ray.is_initialized())))
print(*done)
sys.stdout.flush()
disconnect()
"""


def test_while_a_ray_of_its_own_gets_ready_something_else_is_done(ray_cluster):
    started = subprocess.run([sys.executable, "-c", STARTING], capture_output=True, text=True, timeout=60)
    assert started.stdout.split("\n")[0] == "(True, False)", started.stderr
    # A Ray that is joined needs no time.
    joining = STARTING.replace("connect(None", f"connect({ray_cluster['address']!r}")
    joined = subprocess.run([sys.executable, "-c", joining], capture_output=True, text=True, timeout=60)
    assert joined.stdout.split("\n")[0] == "", joined.stderr


@pytest.mark.parametrize("set_before", [None, "ACTIVE"])
def test_a_ray_of_its_own_has_threads_that_sleep_where_they_wait(monkeypatch, set_before):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if set_before:
        monkeypatch.setenv("OMP_WAIT_POLICY", set_before)
    with own_processes(ray.job_config.JobConfig()):
        assert os.environ["OMP_WAIT_POLICY"] == (set_before or "PASSIVE")
    assert os.environ.get("OMP_WAIT_POLICY") == set_before
