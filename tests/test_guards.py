"""The checks can fail: with a guard taken out, the tests that hold it go red."""

import os
import subprocess
import sys

import pytest
from conftest import PROJECT, TESTS
from guards import GUARDS

HELD_BY = {
    "the completion record is written last": (
        "test_run_folder.py::test_a_commit_that_ends_anywhere_counts_whole_or_not_at_all"
    ),
    "a record counts for its own run only": "test_run_folder.py::test_torn_and_foreign_records_do_not_count",
    "rows are scored or skipped": ("test_scan_and_gather.py::test_a_row_that_gets_lost_on_the_way_fails_the_shard"),
    "a part is what its record says": ("test_run_folder.py::test_a_part_that_is_not_the_committed_one_is_refused"),
    "gather recomputes what the scan recorded": (
        "test_scan_and_gather.py::test_a_mix_up_of_rows_and_numbers_cannot_survive"
    ),
}


def run(*arguments, **environment):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT), str(TESTS)]), **environment}
    return subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def green():
    """With all guards in place, the tests that hold them are green."""
    whole = run(*(f"tests/{test}" for test in HELD_BY.values()))
    assert whole.returncode == 0, whole.stdout


@pytest.mark.usefixtures("green")
@pytest.mark.parametrize("guard", GUARDS)
def test_without_its_guard_a_test_goes_red(guard):
    broken = run("-p", "guards", f"tests/{HELD_BY[guard]}", GUARD=guard)
    assert broken.returncode == 1, broken.stdout
    assert "FAILED tests/" in broken.stdout
    assert "ERROR tests/" not in broken.stdout
