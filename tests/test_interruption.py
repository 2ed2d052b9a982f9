"""An interruption takes effect whenever it comes, and leaves nothing half done that complains."""

import os
import signal
import subprocess
import sys
import threading
import time
from importlib import import_module

import pytest
from conftest import TINY_FLAGS

from exemplar_ray.executor.interruption import interruptible

NUMBERS = [signal.SIGINT, signal.SIGTERM]
# Interrupts itself when it is about to import a module of Ray, or to start one of its programs. It does so from where
# Python's own code runs in any case: an audit hook's would run, and be interrupted, where C drops what is raised.
INTERRUPTED = """
import signal, subprocess, sys
from exemplar_ray.cli import main

def interrupt(about_to):
    if {of!r} in about_to and not came:
        came.append(about_to)
        signal.raise_signal(signal.{signal})

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        interrupt(name)

class Popen(subprocess.Popen):
    def __init__(self, command, *arguments, **more):
        interrupt(str(command))
        super().__init__(command, *arguments, **more)

came = []
sys.meta_path.insert(0, Finder)
subprocess.Popen = Popen
status = main(sys.argv[1:])
assert came
sys.exit(status)
"""


@pytest.fixture(autouse=True)
def handlers_are_as_before():
    before = [signal.getsignal(number) for number in NUMBERS], sys.unraisablehook
    yield
    assert ([signal.getsignal(number) for number in NUMBERS], sys.unraisablehook) == before


class Freed:
    """Interrupts when it is freed; Python drops what is raised then."""

    def __init__(self, number):
        self.number = number

    def __del__(self):
        signal.raise_signal(self.number)


def do_and_wait(action):
    """Do it, then be there to be interrupted."""
    with interruptible():
        action()
        for _ in range(100):
            time.sleep(0.05)


@pytest.mark.parametrize("number", NUMBERS)
def test_in_the_middle_of_an_import_it_waits_for_the_end(number, tmp_path, monkeypatch):
    name = f"interrupted_by_{number}"
    (tmp_path / f"{name}.py").write_text(f"import signal\nsignal.raise_signal({number})\nwhole = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        do_and_wait(lambda: import_module(name))
    assert sys.modules.pop(name).whole


@pytest.mark.parametrize("number", NUMBERS)
def test_where_python_drops_it_it_comes_again(number, capfd):
    with pytest.raises(KeyboardInterrupt):
        do_and_wait(lambda: Freed(number))
    assert capfd.readouterr().err == ""


def test_where_python_drops_what_rays_handler_raises_it_comes_again(capfd):
    """While Ray starts, its own handler of SIGTERM is there."""

    def start():
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        Freed(signal.SIGTERM)

    with pytest.raises(SystemExit):
        do_and_wait(start)
    assert capfd.readouterr().err == ""


def test_another_thread_is_left_alone():
    def work():
        with interruptible():
            seen.append(signal.getsignal(signal.SIGTERM))

    seen = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


def test_an_ignored_interruption_stays_ignored_and_another_is_not():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible():
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            do_and_wait(lambda: Freed(signal.SIGTERM))
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("of", ["ray.client_builder", "gcs_server"])
def test_while_ray_is_imported_or_started_the_command_ends_in_one_line(name, of, tiny_data, tmp_path):
    command = [sys.executable, "-c", INTERRUPTED.format(signal=name, of=of), "run", *TINY_FLAGS]
    command += ["--data", tiny_data, "--out", tmp_path / "run"]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 130, done.stderr
    assert done.stderr == "exemplar-ray: interrupted; finished shards are kept, run the same command to go on\n"
    assert not (tmp_path / "run").exists()
