"""What runs in a worker: a named function, with what is shared and an item."""

from __future__ import annotations

import importlib.util
import logging
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from exemplar_ray.errors import UsageError
from exemplar_ray.executor.failures import TaskError, failure_of
from exemplar_ray.executor.memory import peak
from exemplar_ray.executor.named_function import named_function
from exemplar_ray.executor.task_log import logged

_LOGGER = "exemplar_ray"


@dataclass(frozen=True)
class Called:
    """Which function a task calls, and how."""

    function: str
    """`module:function`"""
    folders: tuple[str, ...]
    """Where the driver has code that is not this package's."""
    log_level: str
    leaves: bool = False
    """It returns two values: what comes back to the driver, and what it leaves in Ray's memory for another task."""


def folder_of(function: str) -> str | None:
    """Return the folder that the driver imports a `module:function` from; None for those of this package, which
    workers have, too.

    Raises:
        UsageError: there is no such module; a program's or notebook's own (`__main__`) is none that can be imported.
    """
    package = function.split(":")[0].split(".")[0]
    if package == __package__.split(".")[0]:
        return None
    spec = None if package == "__main__" else importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UsageError(f"there is no module '{package}' for a worker to import; put the task into a file of its own")
    file = Path(spec.origin)
    return str(file.parent.parent if spec.submodule_search_locations else file.parent)


@dataclass(frozen=True)
class Done:
    """What a task gave, and where."""

    value: Any
    node: str
    """What Ray calls the machine."""
    host: str
    peak_memory: int | None
    """The most that its process has had in use, in bytes; None where the system does not tell."""


# Retries are the driver's (max_retries=0): it shows them and gives up after so many. A GPU
# task gets a new process each time unless max_calls says otherwise; ours keep the network.
# `left` are values that other tasks have left: taken from Ray's memory one by one.
@ray.remote(max_retries=0, max_calls=0)
def call(
    called: Called, item: bytes, shared: list[ray.ObjectRef], left: list[ray.ObjectRef]
) -> Done | tuple[Done, Any]:
    # Last: what a job brings along, or a machine has installed, goes first.
    sys.path.extend(folder for folder in called.folders if folder not in sys.path)
    node = ray.get_runtime_context().get_node_id()
    try:
        with logged(logging.getLogger(_LOGGER), called.log_level):
            given = [ray.cloudpickle.loads(item), *([map(ray.get, left)] if left else [])]
            value = named_function(called.function)(*ray.get(shared), *given)
        host = socket.gethostname()
        if called.leaves:
            return Done(value[0], node, host, peak()), value[1]
        return Done(value, node, host, peak())
    except (Exception, SystemExit) as error:
        # What a model's file raises to end its program would end the worker, as if that were lost; Ray's own may.
        if hasattr(error, "ray_terminate_msg"):
            raise
        # Ray's errors are of what is shared: it was lost, or came too late.
        failure = failure_of(error, isinstance(error, ray.exceptions.RayError), node)
        gone = bool(left) and isinstance(error, ray.exceptions.ObjectLostError)
        raise TaskError(replace(failure, left_is_gone=gone)) from None


@ray.remote(max_retries=0, max_calls=0)
def prepare(function: str, item: Any) -> None:
    # The tasks that follow fail as well, and say why.
    with suppress(Exception, SystemExit):
        named_function(function)(item)
