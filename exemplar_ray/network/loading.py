"""The trunk in a worker process: loaded once, and kept from one task to the next."""

from __future__ import annotations

import logging
import socket
import time
from dataclasses import dataclass
from functools import lru_cache, partial

import torch

from exemplar_ray.errors import MachineError, UnlikeRunError
from exemplar_ray.network.compiled_trunk import CannotCompileError, CompiledForm, CompiledTrunk, compiled_trunk, is_made
from exemplar_ray.network.models import Network, find_architecture, load_network
from exemplar_ray.network.spec import NetworkSpec, TrunkSpec, split_model
from exemplar_ray.network.trunk import ContiguousTrunk, Trunk

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedTrunk:
    """A trunk to scan with, and why it is not compiled, if it should have been."""

    trunk: Trunk | CompiledTrunk
    not_compiled: str | None = None


counts = {"trunks_loaded": 0, "trunks_compiled": 0}
"""What this process has done so far: a network is loaded once, however many shards it scans."""


def device(use_gpu: bool) -> str:
    """Return what torch calls the device that a task was given.

    Raises:
        MachineError: it was given a GPU, and torch sees none.
    """
    if use_gpu and not torch.cuda.is_available():
        raise MachineError(
            f"the task was given a GPU on {socket.gethostname()}, but torch {torch.__version__} sees none there; "
            "check the driver, or run with --gpus-per-task 0"
        )
    return "cuda" if use_gpu else "cpu"


@lru_cache(maxsize=2)
def scanning_trunk(form: CompiledForm, device: str, compile_it: str) -> LoadedTrunk:
    """Return the trunk to scan with: compiled where that can be had and is wanted.

    Args:
        device: `cpu`, or `cuda`, for which nothing is compiled.
        compile_it: `always` (or fail), `never`, `auto`: if that can be done, or `made`: if it was done here before.

    Raises:
        MachineError: the weights here are not the spec's, or it cannot be compiled as it must be.
    """
    counts["trunks_loaded"] += 1
    if compile_it == "never" or device != "cpu" or (compile_it == "made" and not is_made(form)):
        return LoadedTrunk(trunk_of(form.trunk, device))
    try:
        trunk, new = compiled_trunk(form, partial(trunk_of, device=device))
    except CannotCompileError as error:
        if compile_it == "always":
            raise MachineError(
                f"'{form.trunk.network.model}' cannot be compiled on {socket.gethostname()} ({error}); "
                "run with --compile never"
            ) from error
        _log.warning("the network was not compiled: %s", error)
        return LoadedTrunk(trunk_of(form.trunk, device), str(error))
    counts["trunks_compiled"] += new
    return LoadedTrunk(trunk)


@lru_cache(maxsize=2)
def trunk_of(spec: TrunkSpec, device: str) -> Trunk:
    """Build the network, with the very weights that the spec names.

    Raises:
        UnlikeRunError: the model's file here, or the weights, are others.
    """
    network = network_of(spec.network)
    kind = Trunk if spec.network.channels_last else ContiguousTrunk
    return kind(
        network.module,
        spec.network.layers,
        spec.statistics,
        spec.network.preprocess,
        torch.device(device),
        spec.precision,
        spec.pre_relu,
    )


def import_library(named: tuple[str, str]) -> None:
    """Import what a network is made with, which may take as long as importing torch, before it is wanted.

    Args:
        named: the model and its weights, see `models.load_network`.
    """
    find_architecture(*named)


def network_of(spec: NetworkSpec) -> Network:
    """Build a network, on the CPU: the very one that the spec names.

    Raises:
        UnlikeRunError: the model's file here, or the weights, are others.
    """
    started = time.perf_counter()
    network = load_network(spec.model, spec.weights, check_factory=False, preprocess=spec.preprocess)
    _refuse_another_network(network, spec)
    _log.info("%s loaded in %.1f s", spec.model_title, time.perf_counter() - started)
    return network


def _refuse_another_network(network: Network, of_run: NetworkSpec) -> None:
    here, source = socket.gethostname(), network.architecture.source_sha256
    if source != of_run.model_source_sha256:
        configured = f"the configuration of '{of_run.model}'"
        of_file = f"the file of '{of_run.model}', or a file that it imports,"
        raise UnlikeRunError(
            f"{of_file if split_model(of_run.model)[2] else configured} is not the run's on {here}: {_short(source)} "
            f"there, {_short(of_run.model_source_sha256)} in the run; put it back, or start a new run"
        )
    if network.model != of_run.model:
        raise UnlikeRunError(
            f"the run is of '{of_run.model}', and torchvision's own loader gives '{network.model}', which transforms "
            "its input; start a new run with another --out"
        )
    if network.weights_sha256 != of_run.weights_sha256:
        raise UnlikeRunError(
            f"the weights of '{of_run.model}' on {here} are not the run's: "
            f"{_short(network.weights_sha256)} there, {_short(of_run.weights_sha256)} in the run"
        )


def _short(sha256: str | None) -> str:
    return sha256[:12] if sha256 else "none"
