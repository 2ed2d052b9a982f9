"""One bad machine among several, on a real cluster: it is named and left out, and the others do its work."""

import contextlib
import errno
import json
import os
import subprocess
import sys
import time

import pytest
from conftest import TESTS, TINY_FLAGS, write_tiny_data

from exemplar_ray.errors import MachineError, ShardError, UnlikeRunError, UsageError
from exemplar_ray.executor.blame import Blame, is_of_machine, is_unlike_run

BAD = "XR_TEST_BAD_MACHINE"

# A network that cannot store anything on some machines, or has other weights there. Where there is a file to count
# faults in, the good machines' images wait until a bad one has done what it is left out for, however late it begins:
# two failures, or a network that is another.
NETWORK = """
import errno, os, sys, time
import torch
sys.path.insert(0, {tests!r})
import tiny_network

BAD = os.environ.get({bad!r})
FAULTS = {faults!r}


def mark(faults):
    if FAULTS is not None:
        with open(FAULTS, "a") as file:
            file.write("." * faults)


def is_waited_for():
    return FAULTS is not None and not (os.path.exists(FAULTS) and os.path.getsize(FAULTS) >= 2)


class Network(tiny_network.TinyNetwork):
    def forward(self, x):
        if BAD == "disk" and len(x) > 2:
            mark(1)
            raise OSError(errno.ENOSPC, "No space left on device")
        given_up = time.monotonic() + 60
        while not BAD and len(x) > 2 and is_waited_for() and time.monotonic() < given_up:
            time.sleep(0.02)
        return super().forward(x)


def trained():
    network = Network()
    network.load_state_dict(tiny_network.trained().state_dict())
    if BAD == "weights":
        mark(2)
        with torch.no_grad():
            next(network.parameters()).add_(1)
    return network
"""


@contextlib.contextmanager
def machines(*faults):
    """A head without CPUs and a machine for each fault (None: a good one); yields the environment of a driver there."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for fault in faults:
            more = {"env_vars": {BAD: fault}} if fault else {}
            cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20, **more)
        yield {**os.environ, "RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": "disabled"}
    finally:
        cluster.shutdown()


def run(environment, folder, *more):
    faults = str(folder / "faults")
    (folder / "network.py").write_text(NETWORK.format(tests=str(TESTS), bad=BAD, faults=faults))
    command = [sys.executable, "-m", "exemplar_ray", "run", "--data", folder / "data", "--out", folder / "run"]
    # What was compiled elsewhere would not be bad here.
    command += [*TINY_FLAGS, "--model", f"{folder / 'network.py'}:trained", "--compile", "never", *more]
    started = time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    return done.returncode, done.stdout + done.stderr, time.monotonic() - started


def test_a_machine_with_a_full_disk_is_left_out_and_the_others_do_everything(tmp_path):
    write_tiny_data(tmp_path / "data", shards=8)
    with machines("disk", None, None) as environment:
        status, said, _ = run(environment, tmp_path)
    assert status == 0, said
    [line] = [line for line in said.splitlines() if "is left out" in line]
    assert line.startswith("machine ")
    assert "No space left on device" in line
    assert line.endswith("the run goes on with the others")
    assert "attempt 1 failed on" in said
    assert not list((tmp_path / "run" / "failed").glob("*"))


def test_where_every_disk_is_full_items_fail_and_nothing_waits(tmp_path):
    write_tiny_data(tmp_path / "data", shards=2)
    with machines("disk", "disk") as environment:
        status, said, seconds = run(environment, tmp_path, "--retries", "1")
    assert status == 1, said
    assert seconds < 120
    failed = [json.loads(path.read_text()) for path in (tmp_path / "run" / "failed").glob("*.json")]
    assert len(failed) == 2
    for one in failed:
        assert one["host"]
        assert one["reason"].endswith(f"(on {one['host']})")


def test_a_machine_with_other_weights_is_left_out(tmp_path):
    write_tiny_data(tmp_path / "data", shards=8)
    with machines("weights", None, None) as environment:
        status, said, _ = run(environment, tmp_path)
    # Where the odd one built the model, the two others do not agree with it.
    assert (status, "are not the run's" in said) == (0, True) or (status, "do not agree" in said) == (2, True), said
    assert "tried again on another machine" in said
    assert (tmp_path / "run" / "exemplars.parquet").exists() == (status == 0)


def test_where_the_machine_that_built_the_model_is_the_odd_one_nothing_is_guessed():
    said = []
    blame = Blame(said.append)
    # One of three is another: it is left out.
    blame.fared_well("a")
    blame.unlike_run("b", "the weights are not the run's")
    # Two of three are: the first may be the bad one.
    with pytest.raises(UsageError, match="do not agree on what the run is of: 2 have something else .* 1 the same"):
        blame.unlike_run("c", "the weights are not the run's")
    # Where most are like the run, they are right.
    blame = Blame(said.append)
    for machine in "abcd":
        blame.fared_well(machine)
    for machine in "efgh":
        blame.unlike_run(machine, "the weights are not the run's")
    with pytest.raises(UsageError, match="do not agree"):
        blame.unlike_run("i", "the weights are not the run's")


def test_where_no_machine_is_there_yet_the_wait_is_said_and_tasks_begin_when_one_joins(tmp_path):
    from ray.cluster_utils import Cluster

    write_tiny_data(tmp_path / "data", shards=2)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    command = [sys.executable, "-m", "exemplar_ray", "run", "--data", tmp_path / "data", "--out", tmp_path / "run"]
    environment = {**os.environ, "RAY_ADDRESS": cluster.address, "PYTHONUNBUFFERED": "1"}
    # An autoscaler may bring some; that there is one is not asked for where tasks would fit.
    program = "import sys, exemplar_ray.executor.cluster as c; c.may_grow = lambda: True; "
    program += "from exemplar_ray.cli import main; sys.exit(main(sys.argv[1:]))"
    command[1:3] = ["-c", program]
    driver = subprocess.Popen([*command, *TINY_FLAGS], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        first = driver.stdout.readline()
        assert first.startswith("waiting for a machine that has what a task asks for (1 CPUs); there is ")
        cluster.add_node(num_cpus=2, object_store_memory=100 * 2**20)
        said, _ = driver.communicate(timeout=200)
    finally:
        driver.kill()
        cluster.shutdown()
    assert driver.returncode == 0, said
    assert "2 shards; tasks begin as machines join, 1 CPUs each" in said
    assert "0 tasks at once" not in said


KINDS = """
import sys
import ray
from ray.core.generated import autoscaler_pb2
from ray.experimental.internal_kv import _internal_kv_put
from exemplar_ray.executor.cluster import Cluster
from exemplar_ray.executor.resources import Resources

# As Ray's autoscaler tells which kinds of machines it may start.
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
config = autoscaler_pb2.ClusterConfig()
for name, resources, most in (("gpu", {"CPU": 4, "GPU": 1}, 3), ("cpu", {"CPU": 2}, 3), ("none", {"CPU": 64}, 0)):
    group = config.node_group_configs.add(name=name, max_count=most)
    group.resources.update(resources)
namespace, key = ray._raylet.GCS_AUTOSCALER_STATE_NAMESPACE, ray._raylet.GCS_AUTOSCALER_CLUSTER_CONFIG_KEY
_internal_kv_put(key.encode(), config.SerializeToString(), namespace=namespace.encode())
for resources in (Resources(), Resources(cpus_per_task=3, gpus_per_task=0), Resources(cpus_per_task=7)):
    try:
        with Cluster(resources) as cluster:
            print(cluster.demand.words, "|", cluster.slots, "|", cluster.at_once)
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_what_no_kind_of_machine_has_is_refused_and_gpus_to_come_are_used():
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        command = [sys.executable, "-c", KINDS, cluster.address]
        environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    finally:
        cluster.shutdown()
    asked, few, many = done.stdout.splitlines()[-3:]
    assert asked == "4 CPUs and 1 GPUs | 0 | tasks begin as machines join, 4 CPUs and 1 GPUs each", done.stderr
    assert few == "3 CPUs | 0 | tasks begin as machines join, 3 CPUs each"
    assert many.startswith(
        "UsageError 7 CPUs a task are more than the 4 that any machine of this cluster has or may get;"
    )


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (FileNotFoundError(errno.ENOENT, "No such file", "/data/x.parquet"), True),
        (FileNotFoundError("s3://bucket/x.parquet"), False),
        (ImportError("torchvision"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True),
        (MachineError("the weights are not the run's"), True),
        (UsageError("unknown layer"), False),
        (ShardError("broken"), False),
        (TimeoutError("timed out"), False),
        (ValueError("x"), False),
    ],
    ids=repr,
)
def test_an_error_is_the_machines_or_not(error, expected):
    assert is_of_machine(error) == expected


def test_other_weights_are_told_from_other_trouble():
    assert is_unlike_run(UnlikeRunError("the weights are not the run's"))
    assert is_of_machine(UnlikeRunError("the weights are not the run's"))
    assert not is_unlike_run(MachineError("no GPU"))


def test_what_an_error_was_raised_from_tells_unless_it_is_the_items():
    full = OSError(errno.ENOSPC, "No space left on device")
    for error, expected in ((UsageError("weights cannot be read"), True), (ShardError("broken"), False)):
        error.__cause__ = full
        assert is_of_machine(error) == expected
