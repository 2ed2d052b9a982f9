"""Tasks on Ray: what becomes of them when nobody waits for them any more."""

import time
from pathlib import Path

import pytest
import ray

from exemplar_ray.cluster import Cluster, Resources

pytestmark = pytest.mark.usefixtures("ray_cluster")

TASKS = 20
A_TASK_SECONDS = 0.5


@ray.remote(max_retries=0)
def leave_a_file(path):
    Path(path).touch()
    time.sleep(A_TASK_SECONDS)


def test_a_run_that_ends_early_lets_what_has_begun_end_and_begins_no_more(tmp_path):
    with Cluster(Resources()) as cluster:
        calls = ((n, lambda n=n: leave_a_file.remote(f"{tmp_path}/{n}")) for n in range(TASKS))
        outcomes = cluster._run(calls)
        assert next(outcomes).error is None
        outcomes.close()
        # Its turn comes only when there is room again.
        ray.get(leave_a_file.remote(f"{tmp_path}/after"))
        begun = len(list(tmp_path.iterdir())) - 1
        time.sleep(3 * A_TASK_SECONDS)
        assert len(list(tmp_path.iterdir())) - 1 == begun
        # One has ended, as many as there is room for were running, and each that ended meanwhile made room for another.
        assert begun <= 1 + 3 * cluster.slots < TASKS
