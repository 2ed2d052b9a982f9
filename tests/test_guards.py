"""The checks can fail: with a guard taken out of a copy of the package, the tests that hold it go red."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import PROJECT, TESTS

GUARDS = {
    "the completion record is written last": (
        "run_folder.py",
        """        self.write_all({f"parts/{_number(position)}.{ending}": content for ending, content in files.items()})
        self.write_json(f"parts/{_number(position)}.json", record)
""",
        """        self.write_json(f"parts/{_number(position)}.json", record)
        self.write_all({f"parts/{_number(position)}.{ending}": content for ending, content in files.items()})
""",
        "test_run_folder.py::test_a_commit_that_ends_anywhere_counts_whole_or_not_at_all",
    ),
    "a record counts for its own run only": (
        "run_folder.py",
        'record.get("fingerprint") == expected\n                and record.get("files")',
        'record.get("files")',
        "test_run_folder.py::test_torn_and_foreign_records_do_not_count",
    ),
    "rows are scored or skipped": (
        "scan.py",
        "if rows != scored + len(skipped):",
        "if False:",
        "test_scan_and_gather.py::test_a_row_that_gets_lost_on_the_way_fails_the_shard",
    ),
    "a part is what its record says": (
        "run_folder.py",
        'if parts.digest(files[ending]) != stored["sha256"]:',
        "if False:",
        "test_run_folder.py::test_a_part_that_is_not_the_committed_one_is_refused",
    ),
    "gather recomputes what the scan recorded": (
        "gather.py",
        "    if len(wrong):",
        "    if False:",
        "test_scan_and_gather.py::test_a_mix_up_of_rows_and_numbers_cannot_survive",
    ),
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of package and tests, in which the tests that hold the guards are green."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(PROJECT / "exemplar_ray", folder / "exemplar_ray")
    shutil.copytree(TESTS, folder / "tests", ignore=shutil.ignore_patterns("__pycache__", "oracle"))
    shutil.copy(PROJECT / "pyproject.toml", folder)
    whole = run(folder, *{tests for _, _, _, tests in GUARDS.values()})
    assert whole.returncode == 0, whole.stdout
    return folder


def run(folder, *tests):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(f"tests/{one}" for one in tests)]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("guard", GUARDS)
def test_without_its_guard_a_test_goes_red(guard, copy):
    file, code, without, tests = GUARDS[guard]
    source = copy / "exemplar_ray" / file
    text = source.read_text()
    assert text.count(code) == 1
    source.write_text(text.replace(code, without))
    broken = run(copy, tests)
    source.write_text(text)
    assert broken.returncode == 1, broken.stdout
    assert "FAILED tests/" in broken.stdout
    assert "ERROR tests/" not in broken.stdout
