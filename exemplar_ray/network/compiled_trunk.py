"""The trunk as machine code: compiled once a machine, loaded in milliseconds by all who come after.

The network's own forward pass, with its hooks, is traced into one graph of what the wanted activations
need; torch's compiler makes a library of it, which is kept in a cache folder under a name that says everything
it depends on. The library runs without the network being built.

torch's public way (`torch._inductor.aoti_compile_and_package`) packs the library into an archive. Every process that
loads it imports the compiler (1.3 to 2.5 s) and unpacks 6 MB into the machine's temporary folder, which Ray's
workers, ended without a goodbye, leave there. The library itself loads in 0.01 s and leaves nothing.
"""

from __future__ import annotations

import math
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from exemplar_ray.network.layers import PRECISIONS
from exemplar_ray.network.machine_cache import cache_folder, name_by_content
from exemplar_ray.network.reference_precision import reference_precision
from exemplar_ray.network.rounded_weights import noise, round_weights
from exemplar_ray.network.spec import TrunkSpec
from exemplar_ray.network.traced_graph import simplify
from exemplar_ray.network.trunk import Pooled, Trunk
from exemplar_ray.network.winograd import use_winograd

# How far compiled and plain activations may differ, as a share of the largest one.
_TOLERANCE = {"float32": 1e-5, "bfloat16": 0.05, "float16": 0.01}

# How many pictures show how the inputs of layers go together.
_LIKE_PHOTOGRAPHS = 8

# What takes so many times as long, each time of so many, is of no use.
_TIMES_AS_LONG = 3.0
_MOST_LOOKS = 5


class CannotCompileError(Exception):
    """This network cannot be compiled on this machine; the message is the reason."""


@dataclass(frozen=True)
class CompiledForm:
    """What a library is made for."""

    trunk: TrunkSpec
    batch_size: int
    threads: int
    """How many it computes with."""

    def example(self, random: torch.Generator, label: int) -> tuple[Tensor, ...]:
        """Return an input: crops, uint8, and labels, all the same, where it takes some."""
        shape = (self.batch_size, *self.trunk.network.preprocess.crop_shape)
        crops = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
        return (crops, torch.full(shape[:1], label)) if self.trunk.network.takes_labels else (crops,)

    def like_photographs(self) -> list[tuple[Tensor, ...]]:
        """Return inputs that a network sees much as photographs, see `rounded_weights.noise`."""
        crops = noise(self.trunk.network.preprocess, max(self.batch_size, _LIKE_PHOTOGRAPHS)).split(self.batch_size)
        return [(batch, *self.example(torch.Generator(), 0)[1:]) for batch in crops if len(batch) == self.batch_size]


class CompiledTrunk:
    """What `trunk.Trunk` computes, for one batch size on the CPU.

    Args:
        library: the compiled library's path.
        spec: what it computes.
    """

    device = torch.device("cpu")

    def __init__(self, library: Path, spec: TrunkSpec) -> None:
        # What torch._inductor's loader comes to; importing that takes as long as importing torch.
        self._library = torch._C._aoti.AOTIModelContainerRunnerCpu(str(library), 1)
        self._readouts = spec.readouts

    def __call__(self, crops: Tensor, labels: Tensor | None = None) -> Pooled:
        """Score one batch: see `Trunk.__call__`."""
        with torch.inference_mode():
            outputs = self._library.run([crops] if labels is None else [crops, labels])
        count = len(self._readouts)
        of_readouts = (dict(zip(self._readouts, outputs[i : i + count], strict=False)) for i in (0, count))
        return Pooled(*of_readouts)


def compiled_trunk(form: CompiledForm, build: Callable[[TrunkSpec], Trunk]) -> tuple[CompiledTrunk, bool]:
    """Load the compiled trunk from this machine's cache; make it first if it is not there.

    Workers that come while it is being made wait for it.

    Args:
        build: makes the trunk to compile, and the same in float32; not called where the cache has it.

    Returns:
        The trunk, and whether it was compiled now.

    Raises:
        CannotCompileError: the network cannot be traced, there is no C++ compiler, or the result is not the network's,
            or takes far longer.
    """
    library = _library(form)
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{library}.lock"):
            new = not library.exists()
            if new:
                _compile(build, form, library)
        return CompiledTrunk(library, form.trunk), new
    except OSError as error:
        raise CannotCompileError(f"{library.parent}: {error}") from error


def is_made(form: CompiledForm) -> bool:
    """Whether this machine's cache has the compiled trunk."""
    return _library(form).exists()


def _library(form: CompiledForm) -> Path:
    return cache_folder() / f"{_key(form)}.so"


def _key(form: CompiledForm) -> str:
    """Name a library by all that it depends on: what it computes, with what, for which processor."""
    spec = form.trunk
    what = {**spec.network.identity(), "statistic": spec.statistics, "precision": spec.precision}
    what["pre_relu"] = spec.pre_relu
    return name_by_content([what, form.batch_size, form.threads, _processor()], spec.network)


def _processor() -> str:
    """Return what decides which instructions a library may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.platform() + platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


def _compile(build: Callable[[TrunkSpec], Trunk], form: CompiledForm, library: Path) -> None:
    """Make the library of a trunk, and hold it against the trunk on other images.

    Raises:
        CannotCompileError: that cannot be done, or the library computes something else, or far more slowly.
    """
    trunk, exact = build(form.trunk), build(replace(form.trunk, precision=PRECISIONS[0]))
    random = torch.Generator().manual_seed(0)
    examples = [form.example(random, label) for label in range(2)]
    try:
        # In a folder of its own, as the compiler leaves its sources beside the library; it goes with them.
        with tempfile.TemporaryDirectory(prefix=".", dir=library.parent) as folder:
            made = os.path.join(folder, library.name)
            graph = _traced(trunk, form.trunk, examples[0])
            if form.trunk.precision == PRECISIONS[0]:
                use_winograd(graph)
            else:
                in_float32 = {tensor.data_ptr(): exact.tensors[name] for name, tensor in trunk.tensors.items()}
                round_weights(graph, in_float32, form.like_photographs())
            _make_library(graph, examples[0], made)
            # The second example shows a graph that holds only for the images that it was traced with.
            compiled = CompiledTrunk(Path(made), form.trunk)
            _refuse_another_network(compiled(*examples[1]), exact(*examples[1]), form.trunk.precision)
            _refuse_slower(compiled, trunk, examples[1])
            os.replace(made, library)
    except CannotCompileError:
        raise
    except Exception as error:  # the compiler raises whatever a foreign network or a missing tool makes it raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise CannotCompileError(f"{type(error).__name__}: {reason}") from error


def _traced(trunk: Trunk, spec: TrunkSpec, example: tuple[Tensor, ...]) -> fx.GraphModule:
    def activations(*given: Tensor) -> tuple[Tensor, ...]:
        result = trunk(*given)
        of_readouts = [result.activations, result.pre_relu] if spec.pre_relu else [result.activations]
        return tuple(values[readout] for values in of_readouts for readout in spec.readouts)

    with torch.no_grad(), reference_precision():
        graph = make_fx(activations)(*example)
    simplify(graph.graph)
    graph.recompile()
    return graph


def _make_library(graph: fx.GraphModule, example: tuple[Tensor, ...], path: str) -> None:
    with torch.no_grad(), reference_precision():
        exported = torch.export.export(graph, example)
        # Weights are laid out once, as the processor's convolutions want them, and normalisations multiplied into them.
        options = {"aot_inductor.output_path": path, "freezing": True}
        torch._inductor.aot_compile(exported.module(), example, options=options)


def _refuse_another_network(compiled: Pooled, plain: Pooled, precision: str) -> None:
    for is_pre_relu, (found, of_network) in enumerate(zip(compiled, plain, strict=True)):
        for (layer, statistic), expected in of_network.items():
            values = found[layer, statistic]
            # What was before a ReLU is not there in a layer that ends in none.
            if is_pre_relu and expected.isnan().all() and values.isnan().all():
                continue
            if not (values - expected).abs().max() <= _TOLERANCE[precision] * expected.abs().max():
                raise CannotCompileError(f"the compiled {statistic} of {layer} is not the network's")


def _refuse_slower(compiled: CompiledTrunk, plain: Trunk, example: tuple[Tensor, ...]) -> None:
    """Refuse machine code that takes far longer than the network: the compiler may make too much of a part of it."""
    trunks: tuple[CompiledTrunk | Trunk, ...] = (compiled, plain)
    seconds = [math.inf, math.inf]
    for _ in range(_MOST_LOOKS):
        for number, trunk in enumerate(trunks):
            started = time.perf_counter()
            trunk(*example)
            seconds[number] = min(seconds[number], time.perf_counter() - started)
        # Something else may have run meanwhile.
        if seconds[0] <= _TIMES_AS_LONG * seconds[1]:
            return
    raise CannotCompileError(f"as machine code it takes {seconds[0] / seconds[1]:.0f} times as long")
