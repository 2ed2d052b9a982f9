"""The trunk as machine code: compiled once a machine, loaded in milliseconds by all who come after.

The network's own forward pass, with its hooks, is traced into one graph of what the wanted activations
need; torch's compiler makes a library of it, which is kept in a cache folder under a name that says everything
it depends on. The library runs without the network being built.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import exemplar_ray
from exemplar_ray.activations import Trunk, reference_precision
from exemplar_ray.parts import candidate_series, series_of
from exemplar_ray.spec import ResolvedSpec

# How far compiled and plain activations may differ, as a share of the largest one.
_TOLERANCE = {"float32": 1e-5, "bfloat16": 0.05, "float16": 0.01}

# Whose code goes into the library, beside the network's.
_TRACED = ("activations.py", "compiled.py", "pre_relu.py", "response_norm.py")


class CannotCompileError(Exception):
    """This network cannot be compiled on this machine; the message is the reason."""


class CompiledTrunk:
    """What `activations.Trunk` computes, for one batch size on the CPU."""

    device = torch.device("cpu")

    def __init__(self, library: Path, series: list[tuple[str, str]]) -> None:
        # What torch._inductor's loader comes to; importing that takes as long as importing torch.
        self._library = torch._C._aoti.AOTIModelContainerRunnerCpu(str(library), 1)
        self._series = series

    def __call__(self, crops: Tensor) -> dict[tuple[str, str], Tensor]:
        """Score one batch: see `Trunk.__call__`."""
        with torch.inference_mode():
            return dict(zip(self._series, self._library.run([crops]), strict=True))


def compiled_trunk(
    spec: ResolvedSpec, batch_size: int, threads: int, build: Callable[[], Trunk]
) -> tuple[CompiledTrunk, bool]:
    """Load the compiled trunk from this machine's cache; make it first if it is not there.

    Workers that come while it is being made wait for it.

    Args:
        threads: how many threads it computes with.
        build: makes the trunk to compile; not called where the cache has it.

    Returns:
        The trunk, and whether it was compiled now.

    Raises:
        CannotCompileError: the network cannot be traced, there is no C++ compiler, or the result is not the network's.
    """
    library = cache_folder() / f"{_key(spec, batch_size, threads)}.so"
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{library}.lock"):
            new = not library.exists()
            if new:
                _compile(build(), spec, batch_size, library)
        return CompiledTrunk(library, candidate_series(spec)), new
    except OSError as error:
        raise CannotCompileError(f"{library.parent}: {error}") from error


def cache_folder() -> Path:
    """Return where compiled trunks are kept: `EXEMPLAR_RAY_CACHE`, or `exemplar_ray` in the user's cache folder."""
    own = os.environ.get("EXEMPLAR_RAY_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "exemplar_ray"


def _key(spec: ResolvedSpec, batch_size: int, threads: int) -> str:
    """Name a library by all that it depends on: what it computes, with what, for which processor."""
    identity = spec.identity()
    what = {name: identity[name] for name in ("model", "weights", "channels", "statistic", "preprocess", "precision")}
    what["gives"] = candidate_series(spec)
    own = Path(__file__).parent
    code = [hashlib.sha256((own / name).read_bytes()).hexdigest() for name in _TRACED]
    versions = [exemplar_ray.__version__, torch.__version__, code]
    known = json.dumps([what, batch_size, threads, versions, _processor()], sort_keys=True)
    return hashlib.sha256(known.encode()).hexdigest()[:32]


def _processor() -> str:
    """Return what decides which instructions a library may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.platform() + platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


def _compile(trunk: Trunk, spec: ResolvedSpec, batch_size: int, library: Path) -> None:
    def activations(crops: Tensor) -> tuple[Tensor, ...]:
        pooled = trunk(crops)
        return tuple(pooled[one] for one in candidate_series(spec))

    random = torch.Generator().manual_seed(0)
    shape = (batch_size, spec.preprocess.crop, spec.preprocess.crop, 3)
    examples = [torch.randint(0, 256, shape, dtype=torch.uint8, generator=random) for _ in range(2)]
    try:
        # In a folder of its own, as the compiler leaves its sources beside the library; it goes with them.
        with tempfile.TemporaryDirectory(prefix=".", dir=library.parent) as folder:
            made = os.path.join(folder, library.name)
            with torch.no_grad(), reference_precision():
                graph = make_fx(activations)(examples[0])
                graph.graph.eliminate_dead_code()
                graph.recompile()
                exported = torch.export.export(graph, (examples[0],))
                options = {"aot_inductor.output_path": made}
                torch._inductor.aot_compile(exported.module(), (examples[0],), options=options)
            # The second example shows a graph that holds only for the images that it was traced with.
            found = CompiledTrunk(Path(made), candidate_series(spec))(examples[1])
            for key, values in trunk(examples[1]).items():
                # What was before a ReLU is not there in a layer that ends in none.
                if key not in series_of(spec) and values.isnan().all() and found[key].isnan().all():
                    continue
                allowed = _TOLERANCE[spec.precision] * values.abs().max()
                if not (found[key] - values).abs().max() <= allowed:
                    raise CannotCompileError(f"the compiled {key[1]} of {key[0]} is not the network's")
            os.replace(made, library)
    except CannotCompileError:
        raise
    except Exception as error:  # the compiler raises whatever a foreign network or a missing tool makes it raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise CannotCompileError(f"{type(error).__name__}: {reason}") from error
