"""Tasks on Ray: what becomes of them when nobody waits for them any more."""

import time
from pathlib import Path

import pytest
import ray

from exemplar_ray.executor.cluster import Cluster
from exemplar_ray.executor.resources import Resources

pytestmark = pytest.mark.usefixtures("ray_cluster")

TASKS = 20


@ray.remote(max_retries=0)
def leave_a_file(path):
    time.sleep(0.2)
    Path(path).touch()


def test_a_run_that_ends_early_on_a_ray_that_stays_leaves_it_few_tasks_and_those_end(tmp_path):
    with Cluster(Resources()) as cluster:
        outcomes = cluster._run((n, lambda n=n: leave_a_file.remote(tmp_path / str(n))) for n in range(TASKS))
        assert next(outcomes).error is None
        outcomes.close()
    # It is handed to Ray after them, so it begins after them.
    ray.get(leave_a_file.remote(tmp_path / "after"))
    time.sleep(1)
    assert len(list(tmp_path.iterdir())) == 2 * cluster.slots + 1 < TASKS
