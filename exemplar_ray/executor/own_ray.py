"""A Ray of our own: started with the processes that a run needs, and no others, without waiting longer than needed.

What is replaced for that is Ray 2.60's; another Ray that has no such thing starts as it does.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial, partialmethod
from typing import Any

import ray

_WHILE_IT_STARTS = {
    # torch's threads sleep where they wait for one another. By default they keep a core busy meanwhile. There are as
    # many workers as cores, so that it is another worker's core, and where one of them uses several threads, as to
    # question a network, all take twice as long. OpenMP's name for it.
    "OMP_WAIT_POLICY": "PASSIVE",
    # A process that looks for Ray's socket before it is there looks again after 20 ms, not after 1 s; for 10 s, too.
    "RAY_raylet_client_connect_timeout_milliseconds": "20",
    "RAY_raylet_client_num_connect_attempts": "500",
    # What became of each task is told to Ray's dashboard alone, and a driver that ends waits up to a quarter of a
    # second for the thread that tells it.
    "RAY_task_events_report_interval_ms": "0",
}
_SECONDS_BETWEEN_LOOKS = 0.01
_MOST_SECONDS = 30

# Stands for each of the raylet's agents: the raylet wants a process, and ends if that does. It ends with the raylet.
_NO_AGENT = "import os, time; raylet = os.getppid()\nwhile os.getppid() == raylet: time.sleep(1)"
_AGENTS = ("--dashboard_agent_command", "--runtime_env_agent_command")
# What agents write for the raylet, which waits for it: where they listen. -1 is Ray's own word for one that does not;
# nobody asks for environments, but their agent has to have a port.
_PORTS_OF_AGENTS = {
    "METRICS_AGENT_PORT_NAME": -1,
    "METRICS_EXPORT_PORT_NAME": -1,
    "DASHBOARD_AGENT_LISTEN_PORT_NAME": -1,
    "RUNTIME_ENV_AGENT_PORT_NAME": 1,
}


@contextmanager
def own_processes(config: ray.job_config.JobConfig, meanwhile: Callable[[], None] | None = None) -> Iterator[None]:
    """While inside, a Ray that starts has the processes that a run needs, as they should be.

    It has no autoscaler, no process that brings workers' output here, and no dashboard. Where none is wanted
    (`include_dashboard=False`), Ray starts that all the same, for statistics of its use alone, and waits for it.
    Nor has it the raylet's agents, one for the dashboard, one that makes environments for workers, for both of which it
    waits, too, unless the driver has an environment that workers are to have, as where `uv run` started it.

    Args:
        config: what `ray.init` is given; it adds the environment.
        meanwhile: what there is to do while the processes, once started, get ready: called in a thread of its own.
    """
    private: Any = ray._private
    fewer = {"no_monitor": True, "include_log_monitor": False}
    with ExitStack() as replaced:
        for variable, setting in _WHILE_IT_STARTS.items():
            replaced.enter_context(_set_unless_set(variable, setting))
        for owner, name, instead_of in (
            (private.parameter, "RayParams", lambda before: partial(before, **fewer)),
            (private.node.Node, "start_api_server", lambda _: _nothing),
            # It finds out by importing all that the dashboard imports.
            (private.utils, "get_dashboard_dependency_error", lambda _: _no_dashboard),
            (private.services, "get_node", lambda before: partial(_soon, before)),
            (private.services, "start_ray_process", lambda before: partial(_without_agents, before, config)),
            (private.node.Node, "start_raylet", lambda before: partialmethod(_started, before, meanwhile)),
        ):
            replaced.enter_context(_replaced(owner, name, instead_of))
        yield


def _nothing(*_: Any, **__: Any) -> None:
    pass


def _no_dashboard() -> ImportError:
    return ImportError("no dashboard is wanted")


def _started(node: Any, start_raylet: Callable[..., Any], meanwhile: Callable[[], None] | None, *args: Any) -> Any:
    """Start the raylet, which is the last process, and do something else while it gets ready."""
    started = start_raylet(node, *args)
    if meanwhile is not None:
        threading.Thread(target=meanwhile, daemon=True).start()
    return started


def _without_agents(
    start: Callable[..., Any], config: ray.job_config.JobConfig, command: list[str], *args: Any, **options: Any
) -> Any:
    """Start one of Ray's processes; if it is a raylet, one without agents."""
    given = dict(word.split("=", 1) for word in command if "=" in word)
    ports = {getattr(ray._raylet, name, None): port for name, port in _PORTS_OF_AGENTS.items()}
    if not config.runtime_env and None not in ports and {"--session_dir", "--node_id", *_AGENTS} <= set(given):
        for name, port in ports.items():
            ray._raylet.persist_port(given["--session_dir"], given["--node_id"], name, port)  # type: ignore[attr-defined]
        no_agent = subprocess.list2cmdline([sys.executable, "-I", "-S", "-c", _NO_AGENT])
        command = [word for word in command if word.split("=")[0] not in _AGENTS]
        command += [f"{agent}={no_agent}" for agent in _AGENTS]
    return start(command, *args, **options)


def _soon(get_node: Callable[[str, str], Any], address: str, node: str) -> Any:
    """Return what Ray knows of a machine as soon as that is there: Ray itself looks every half second."""
    end = time.monotonic() + _MOST_SECONDS
    # If it cannot be asked so, Ray says why, or finds out in its own way.
    with suppress(AttributeError, ray.exceptions.RayError):
        client = ray._raylet.GcsClient(address=address)  # type: ignore[attr-defined]
        while time.monotonic() < end and node not in (known.hex() for known in client.get_all_node_info()):
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    return get_node(address, node)


@contextmanager
def _set_unless_set(name: str, value: str) -> Iterator[None]:
    """While inside, a variable of the environment has a value, unless the user gave it another."""
    before = os.environ.get(name)
    os.environ.setdefault(name, value)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


@contextmanager
def _replaced(owner: Any, name: str, instead_of: Callable[[Any], Any]) -> Iterator[None]:
    """While inside, an attribute is what a function makes of it, if there is one."""
    if not hasattr(owner, name):
        yield
        return
    before = getattr(owner, name)
    setattr(owner, name, instead_of(before))
    try:
        yield
    finally:
        setattr(owner, name, before)
