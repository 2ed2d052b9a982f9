"""The way to a Ray: start one on this machine, or join one; what it says of itself."""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import ray

from exemplar_ray.errors import UsageError
from exemplar_ray.executor.machine import cpus
from exemplar_ray.executor.own_ray import own_processes
from exemplar_ray.executor.ray_address import CLIENT, refuse_unusable, why_not
from exemplar_ray.executor.ray_token import RayToken
from exemplar_ray.executor.search_path import SearchPath

# Where Ray's monitor says what it sees, every 5 s.
_AUTOSCALER = "__autoscaling_status"
_LOOKS_FOR_AUTOSCALER = 10


def connect(address: str | None, token: RayToken, meanwhile: Callable[[], None] | None = None) -> tuple[str, ...]:
    """Connect.

    Args:
        address: of the Ray to join; None to start one on this machine.
        token: shown to the one that is joined, and made for one of our own.
        meanwhile: what there is to do while one of our own gets ready: called in a thread of its own.

    Returns:
        The folders that Ray would have workers look for modules in first, and that they look in last.

    Raises:
        UsageError: there is no Ray at the address, or none can be started.
        KeyboardInterrupt: SIGTERM came meanwhile.
    """
    on_sigterm = signal.getsignal(signal.SIGTERM)
    place = address or "local"
    if address:
        refuse_unusable(_found(address), token.shown(address))
    else:
        token.make()
    config, path = ray.job_config.JobConfig(), SearchPath()
    config._py_driver_sys_path = path
    options: dict[str, Any] = {} if place.startswith(CLIENT) else {"job_config": config}
    try:
        with nullcontext() if address else own_processes(config, meanwhile):
            ray.init(
                # "local" starts a Ray of our own; without it ray.init would join whatever
                # cluster it finds on this machine.
                address=place,
                num_cpus=None if address else cpus(),
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **options,
            )
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise UsageError(why_not(place, error)) from error
    except SystemExit as error:
        # Ray's own handlers of SIGTERM, there meanwhile, and nothing else in it, raise that.
        raise KeyboardInterrupt from error
    finally:
        if not ray.is_initialized():
            token.restore()
        # They would end the process on the spot.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)
    return tuple(path.left_out)


def disconnect() -> None:
    """Leave a Ray; end it if `connect` started it."""
    ray.shutdown()


def _found(address: str) -> str:
    """Return where the Ray is that `auto` stands for; other addresses as they are."""
    if address != "auto":
        return address
    try:
        return ray._private.services.canonicalize_bootstrap_address(address) or address
    except (ConnectionError, ValueError):
        # Ray will say so.
        return address


def raylet() -> str | None:
    """Return the address of Ray's process on this machine; None for a client, which has none."""
    if ray.util.client.ray.is_connected():
        return None
    here = ray.get_runtime_context().get_node_id()
    addresses = [(n["NodeManagerAddress"], n["NodeManagerPort"]) for n in ray.nodes() if n["NodeID"] == here]
    return "{}:{}".format(*addresses[0]) if addresses else None


def _known_to_ray(key: str) -> bytes | None:
    """Return a value out of Ray's own store; None if there is none."""
    store = ray.experimental.internal_kv
    if not store._internal_kv_initialized():
        # It was seen to be gone from a process that was connected: a late ray.shutdown takes it along.
        client = ray._raylet.GcsClient(address=ray.get_runtime_context().gcs_address)  # type: ignore[attr-defined]
        store._initialize_internal_kv(client)
    return store._internal_kv_get(key)


def may_grow() -> bool:
    """Whether machines may join while tasks wait for them: there is an autoscaler, or Ray does not tell."""
    for _ in range(_LOOKS_FOR_AUTOSCALER):
        status = json.loads(_known_to_ray(_AUTOSCALER) or "{}")
        kinds = (status.get("autoscaler_report") or {}).get("active_nodes")
        if kinds:
            # Without an autoscaler Ray's monitor calls every machine after itself.
            return not all(kind.startswith("node_") for kind in kinds)
        time.sleep(1)
    return True


def kinds_to_come() -> list[dict[str, float]] | None:
    """Return what each kind of machine has that Ray's autoscaler may start; None where Ray does not tell, as its first
    version does not, or has no autoscaler."""
    if ray.util.client.ray.is_connected():
        return None
    config = ray._private.state.state.get_cluster_config()
    if config is None:
        return None
    return [dict(group.resources) for group in config.node_group_configs if group.max_count != 0] or None
