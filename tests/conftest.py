"""Fixtures: a tiny network and data set for fast runs, a real Ray cluster, the shared inputs."""

import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# Before anything imports ray: no Ray of the tests leaves a token in the home folder, or wants the one there.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Nothing in the tests is on the Hub; without this its client waits and tries again.
os.environ["HF_HUB_OFFLINE"] = "1"
# Before anything imports torch: where files are run side by side, threads that wait for one another would otherwise
# burn the cores that another file's need; twice to three times the time for the same numbers.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from exemplar_ray.cli import main
from exemplar_ray.data.write_shards import LabelledImage, write_images

TESTS = Path(__file__).parent
PROJECT = TESTS.parent
SHARED = PROJECT.parent / "shared"
SAMPLE = SHARED / "data" / "imagenet-sample"
BVLC = SHARED / "models" / "bvlc_googlenet.py"

needs_shared = pytest.mark.skipif(not SAMPLE.exists() or not BVLC.exists(), reason="needs ../shared")

TINY_NETWORK = f"{TESTS / 'tiny_network.py'}:trained"
TINY_FLAGS = ["--model", TINY_NETWORK, "--layer", "mixed", "--top-k", "3"]
TINY_FLAGS += ["--preprocess", "{resize: 36, crop: 32, mean: [117, 117, 117]}"]

TINY_SHARDS = 8
TINY_ROWS = 10
TINY_CLASSES = ["tench", "goldfish", "great white shark"]


# Files that take long, the longest first: where files are run side by side, the short ones fill up the end.
LONG_FILES = ["test_chaos.py", "test_exactness.py", "test_check.py", "test_hostile.py", "test_compiled.py"]
LONG_FILES += ["test_docs.py", "test_visualize_networks.py", "test_bad_machine.py", "test_submission.py", "test_hub.py"]
LONG_FILES += ["test_activation_space.py", "test_job.py", "test_visualize_api.py", "test_visualize.py"]
LONG_FILES += ["test_report_many.py", "test_guards.py", "test_circuit_exercise.py", "test_forms_of_data.py"]
LONG_FILES += ["test_layouts_of_libraries.py", "test_object_store.py", "test_machine.py", "test_list_layers.py"]


def pytest_collection_modifyitems(items):
    """Put the long files first."""
    place = {name: number for number, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


def encode(pixels, kind="PNG", **options):
    """Encode uint8 pixels or a Pillow image."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def random_picture(seed, width=48, height=40):
    """A smooth random RGB picture."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def write_tiny_data(folder, shards=TINY_SHARDS, rows=TINY_ROWS, first_seed=0):
    """Write tiny shards; image paths carry synset ids as ImageNet's do."""
    images = [
        LabelledImage(encode(random_picture(first_seed + i)), f"n0144076{i % 3}_{i}.JPEG", i % 3)
        for i in range(shards * rows)
    ]
    paths, _ = write_images(images, str(folder), TINY_CLASSES, rows)
    return paths


@pytest.fixture
def tiny_data(tmp_path):
    """A folder of 8 shards of 10 tiny images."""
    write_tiny_data(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def cli(capsys):
    """Run a command in this process; return (exit status, what it printed)."""

    def run(*arguments):
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return run


def python_without(packages, program, *arguments):
    """Run a program in a Python of its own in which these packages cannot be imported; return what it printed."""
    blocked = f"import sys\nfor name in {packages.split()!r}: sys.modules[name] = None\n"
    # The package beside these tests, whichever is installed.
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-c", blocked + program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def free_port():
    """A port that nothing listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="session")
def ray_head():
    """A Ray head of our own: {"address"}. Stopped by its process group."""
    yield from start_ray_head(os.environ)


def start_ray_head(environment, jobs=False, client_port=None):
    """Yield such a head; its workers get the environment.

    Args:
        jobs: with the server that takes jobs, at "dashboard"; it takes long to start.
        client_port: with a server of clients (`ray://`) there.
    """
    for attempt in (1, 2, 3):
        try:
            yield from _running_ray_head(environment, jobs, client_port)
            return
        except RayDidNotStartError:
            # A port may have been taken between asking for a free one and using it.
            if attempt == 3:
                raise


class RayDidNotStartError(Exception):
    """The message is Ray's own output."""


def _running_ray_head(environment, jobs, client_port):
    port, dashboard = free_port(), free_port()
    # Ray's socket names must be short, so not below pytest's long temporary folder.
    with tempfile.TemporaryDirectory(prefix="xr-", ignore_cleanup_errors=True) as folder:
        command = [Path(sys.executable).parent / "ray", "start", "--head", "--block", "--num-cpus=2"]
        command += [f"--port={port}", f"--include-dashboard={str(jobs).lower()}"]
        command += [f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"]
        # It sends what workers print to drivers, which none of ours asks for.
        command += ["--include-log-monitor=false"]
        # Of two heads on one machine the second finds the usual port taken, and has no agent for jobs.
        command += [f"--dashboard-agent-listen-port={free_port()}"]
        command += ["--node-ip-address=127.0.0.1", f"--temp-dir={folder}", "--disable-usage-stats"]
        if client_port is not None:
            command.append(f"--ray-client-server-port={client_port}")
        log = open(Path(folder) / "start.log", "w+")  # noqa: SIM115
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)
        try:
            url = f"http://127.0.0.1:{dashboard}"
            _wait_until(lambda: "Ray runtime started" in Path(log.name).read_text(), process, log)
            if jobs:
                _wait_until(lambda: _answers(f"{url}/api/version"), process, log)
            yield {"address": f"127.0.0.1:{port}", "dashboard": url if jobs else None}
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
            log.close()


def _wait_until(ready, process, log, seconds=60):
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        if ready():
            return
        time.sleep(0.2)
    raise RayDidNotStartError(Path(log.name).read_text())


def _answers(url):
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError as error:
        # It wants to know who asks.
        return error.code == 401
    except OSError:
        return False
    return True


@pytest.fixture(scope="session")
def ray_cluster(ray_head):
    """A connection to that head; commands run in this process use it."""
    import ray

    ray.init(address=ray_head["address"], log_to_driver=False, logging_level="ERROR")
    yield ray_head
    ray.shutdown()


@pytest.fixture
def visit(chromium):
    """Open addresses in a page of a fresh browser, the module's `chromium`; afterwards, hold the page to what every
    page owes its reader: no error, no message on the console, nothing fetched from outside the report's folder.

    `visit(address, first=script)` runs a script in the page before its own."""
    contexts, messages, fetched, allowed = [], [], [], []

    def failed(request):
        # Who goes on to another page does not wait for this one's pictures.
        if request.failure != "net::ERR_ABORTED":
            messages.append(f"{request.url}: {request.failure}")

    def visit(address, width=1400, first=None, **options):
        context = chromium.new_context(viewport={"width": width, "height": 900}, reduced_motion="reduce", **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("requestfailed", failed)
        page.on("request", lambda request: fetched.append(request.url))
        if first:
            page.add_init_script(first)
        base, _, rest = address.partition("!")
        allowed.append(base)
        page.goto(base + rest)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert messages == []
    assert [url for url in fetched if not url.startswith((*allowed, "data:"))] == []


@pytest.fixture
def run_notebook(ray_head, tmp_path, monkeypatch):
    """Run a notebook of the documentation in `tmp_path`, by a real Jupyter, on the session's Ray; return its cells of
    code.

    `run_notebook(path, parameters, most_lines)` puts the parameters in their cell's place, and holds the notebook to
    what is promised of all: it is short, and holds no results.
    """

    import nbformat
    from nbclient import NotebookClient

    def run(path, parameters, most_lines):
        notebook = nbformat.read(path, as_version=4)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert len([line for cell in code for line in cell.source.splitlines() if line.strip()]) <= most_lines
        assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
        [cell] = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
        cell.source = parameters
        # The package beside these tests, and the commands of this environment, whichever are installed.
        monkeypatch.setenv("PYTHONPATH", str(PROJECT))
        monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        monkeypatch.setenv("RAY_ADDRESS", ray_head["address"])
        there = {"metadata": {"path": tmp_path}}
        NotebookClient(notebook, timeout=300, kernel_name="python3", resources=there).execute()
        return code

    return run


def wait_for(page, expression, seconds=10):
    """Wait until an expression is true. Playwright's own way evaluates in the page, whose policy forbids that."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, expression
        page.wait_for_timeout(20)
