"""transformers' vision models, `transformers:ID` or `transformers:FOLDER`, as transformers makes them.

An ID is of a repository on the Hugging Face Hub, or in its cache here; a folder has the same files. Of a model of
images and texts it is the image tower. Images are prepared as transformers' own image processors do it by Pillow.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from exemplar_ray.data.decode import crop
from exemplar_ray.data.preprocess import BGR, FLOORED, RGB, Preprocess
from exemplar_ray.errors import MachineError, UsageError
from exemplar_ray.network.architecture import Architecture, StateDict
from exemplar_ray.network.trunk import to_input
from exemplar_ray.network.weights import differences, load_into, misfit_in_words, one_line

_PIXELS = "pixel_values"

# What a configuration says of how it was written, and of how its weights are stored, not of the network.
_NOT_OF_THE_NETWORK = ("architectures", "dtype", "torch_dtype", "transformers_version", "_commit_hash", "_name_or_path")

# ConvNextImageProcessor cuts off a share of images below this size, and squashes from it on.
_SQUASHED_FROM = 384
# LevitImageProcessor enlarges the size that it is given.
_OF_LEVIT = 256 / 224

# How far a prepared image may be from transformers' own, as a share of its largest number.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class _ImageNetwork:
    """A network of transformers, or an image tower."""

    kind: Any
    """Its class."""
    config: Any
    is_tower: bool

    def build(self) -> nn.Module:
        """Make it with random weights."""
        with _quiet():
            return self.kind(self._own_config())

    def load(self, state: StateDict) -> nn.Module:
        """Return the network with a state dict.

        The class makes it, and not transformers' loader, which leaves what state dicts do not hold (the numbers of
        places, in CLIP) as memory has it, and trusts that it is made up for later.

        Raises:
            ValueError: it does not fit; the message says what differs.
        """
        module = self.build()
        return load_into(module, self._renamed(state) if differences(module, state) else state)

    def _renamed(self, state: StateDict) -> StateDict:
        """Return a state dict as transformers' loader reads it.

        It renames what older files, and those that transformers writes itself, call otherwise, and takes a tower out of
        the whole model's.

        Raises:
            ValueError: it does not fit.
        """
        try:
            module, told = self._from_loader(None, state_dict=dict(state))
        except Exception as error:  # whatever the loader meets
            raise ValueError(one_line(error)) from error
        unknown = [] if self.is_tower else told["unexpected_keys"]
        misfit = misfit_in_words(sorted(told["missing_keys"]), sorted(unknown), [])
        if misfit:
            raise ValueError(misfit)
        return module.state_dict()

    def pretrained(self, name: str) -> StateDict:
        """Return the weights that transformers' loader gives, from a folder, its cache, or the Hugging Face Hub.

        Raises:
            UsageError: they cannot be had, or some are not there.
        """
        try:
            module, told = self._from_loader(name)
        except Exception as error:  # whatever the Hub's client, a cache or a torn file raise
            raise UsageError(
                f"transformers' weights of '{name}' cannot be had ({type(error).__name__}: {one_line(error)}); fetch "
                "them once where the Hub can be reached and copy HF_HOME here, or give --weights FILE, or random:SEED "
                "for an untrained network"
            ) from error
        if told["missing_keys"]:
            raise UsageError(
                f"'{name}' lacks weights of its {self.kind.__name__}, which transformers would draw at random: "
                f"{misfit_in_words(sorted(told['missing_keys']), [], [])}; give --weights FILE"
            )
        return module.state_dict()

    def _from_loader(self, name: str | None, **given: Any) -> tuple[nn.Module, dict[str, Any]]:
        # Weights that are kept in fewer bits are widened.
        settings = {"config": self._own_config(), "dtype": torch.float32, "output_loading_info": True}
        with _quiet():
            found: tuple[nn.Module, dict[str, Any]] = self.kind.from_pretrained(name, **settings, **given)
        return found

    def _own_config(self) -> Any:
        """Return a copy: networks write into theirs."""
        return copy.deepcopy(self.config)


def transformers_model(name: str, _weights: str) -> Architecture:
    """Look a vision model up.

    Raises:
        UsageError: transformers is not installed, or has no such model, or it takes no images, or its code is not
            transformers' own.
    """
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "'transformers:...' needs one more package: pip install 'transformers>=5.24' (the extra `transformers`)"
        ) from error
    with _quiet():
        values, config = _configuration(name)
        network = _image_network(name, config)
        preprocess, why_none = _preprocess(name)
    return Architecture(
        title=f"transformers {Path(name).name if os.path.isdir(name) else name}, {network.kind.__name__}",
        build=network.build,
        pretrained=partial(network.pretrained, name),
        preprocess=preprocess,
        why_no_preprocess=why_none,
        load=network.load,
        source=partial(_structure_sha256, network.kind, values),
    )


# Looking up ------------------------------------------------------------------------------


def _configuration(name: str) -> tuple[dict[str, Any], Any]:
    """Return what a model's config.json says, and transformers' object of it.

    Raises:
        UsageError: it cannot be had, or is of a model whose code transformers has not.
    """
    from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

    if not os.path.isdir(name) and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise MachineError(f"model folder '{name}' does not exist on {socket.gethostname()}")
    try:
        values, _ = PreTrainedConfig.get_config_dict(name)
        if "auto_map" in values and values.get("model_type") not in CONFIG_MAPPING:
            raise UsageError(
                f"'{name}' brings code of its own (trust_remote_code), which is not run here; make the network in a "
                "file of yours, file.py:factory"
            )
        return values, AutoConfig.from_pretrained(name, trust_remote_code=False)
    except UsageError:
        raise
    except Exception as error:  # whatever the Hub's client, a cache or a foreign file raise
        raise UsageError(
            f"transformers finds no model '{name}' ({one_line(error)}); name a folder that has a config.json, or an ID "
            "that is on the Hub, or in the cache of it that HF_HOME names"
        ) from error


def _image_network(name: str, config: Any) -> _ImageNetwork:
    """Return the network that a model's weights were saved from, or, where that takes texts, too, its image tower.

    Raises:
        UsageError: it takes no images, or transformers has no such class.
    """
    import transformers

    named = next(iter(config.architectures or ()), None)
    kind = getattr(transformers, named, None) if named else transformers.MODEL_MAPPING.get(type(config), None)
    if not isinstance(kind, type):
        raise UsageError(f"'{name}' is of the class {named or type(config).__name__}, which transformers has not")
    if _takes_images(kind):
        return _ImageNetwork(kind, config, is_tower=False)
    of_images = getattr(config, "vision_config", None)
    tower = transformers.MODEL_MAPPING.get(type(of_images), None) if of_images is not None else None
    if isinstance(tower, type) and _takes_images(tower):
        return _ImageNetwork(tower, of_images, is_tower=True)
    raise UsageError(
        f"'{name}' is no image model: {kind.__name__} takes {getattr(kind, 'main_input_name', 'something else')}, and "
        "has no image tower that stands alone"
    )


def _takes_images(kind: Any) -> bool:
    """Whether images are what a network's forward pass takes first."""
    return list(inspect.signature(kind.forward).parameters)[1:2] == [_PIXELS]


def _structure_sha256(kind: Any, values: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) of what a network is, but for its weights: a folder's or repository's name decides
    nothing."""
    return hashlib.sha256(json.dumps([kind.__name__, _of_network(values)], sort_keys=True).encode()).hexdigest()


def _of_network(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {name: _of_network(value) for name, value in values.items() if name not in _NOT_OF_THE_NETWORK}
    return values


@contextmanager
def _quiet() -> Iterator[None]:
    """While inside, transformers prints neither bars nor warnings: what matters of them is said in one line."""
    from transformers.utils import logging

    # Else it asks a service on the Hub to convert a repository that has its weights in another format.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    level, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if has_bars:
            logging.enable_progress_bar()


# Preprocessing ---------------------------------------------------------------------------


def _preprocess(name: str) -> tuple[Preprocess | None, str]:
    """Return what transformers' image processor for a model does; None where that has no words here, and why.

    Most processors are there twice: by default for torch's tensors, whose rounding hangs on the CPU, and for Pillow. It
    is the latter's. What the settings come to is tried on images, as processors may do more than their settings say.
    """
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(name, backend="pil", trust_remote_code=False)
    except Exception as error:  # whatever the Hub's client or a foreign file raise
        return None, f"'{name}' has no image processor that transformers can read ({one_line(error).split('. ')[0]})"
    try:
        preprocess = _keys_of(processor)
        same = _does_the_same(processor, preprocess)
        why = "" if same else "it gives other pixels than resizing, cropping and normalising by Pillow"
    except Exception as error:  # a processor without such settings, or that takes no lone image
        why = one_line(error)
    if not why:
        return preprocess, ""
    return None, (
        f"transformers prepares images for '{name}' in a way that has no words here ({type(processor).__name__}: {why})"
    )


def _keys_of(processor: Any) -> Preprocess:
    """Return what an image processor's settings come to.

    Raises:
        ValueError: to nothing that has words.
        UsageError: to impossible values.
    """
    sizes, crops = dict(processor.size or {}), dict(processor.crop_size or {}) if processor.do_center_crop else {}
    shorter, sides = sizes.get("shortest_edge"), (sizes.get("height"), sizes.get("width"))
    resize: Any = shorter or sides
    side = crops.get("height")
    if shorter and type(processor).__name__.startswith("Levit"):
        resize = int(_OF_LEVIT * shorter)
    if shorter and getattr(processor, "crop_pct", None):
        resize = int(shorter / processor.crop_pct) if shorter < _SQUASHED_FROM else (shorter, shorter)
        side = shorter
    if not processor.do_resize or (shorter is None) == (None in sides) or crops.get("width") != crops.get("height"):
        raise ValueError(f"size {sizes}, crop {crops}, resize {processor.do_resize}")
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
    if getattr(processor, "include_top", False):
        # EfficientNetImageProcessor then divides once more.
        std = np.square(std)
    red, green, blue = np.broadcast_to(mean, 3).tolist()
    return Preprocess(
        resize=resize,
        crop=side,  # type: ignore[arg-type]  # None: no crop
        scale=processor.rescale_factor * 255.0 if processor.do_rescale else 255.0,
        mean=(red, green, blue),
        std=tuple(np.broadcast_to(std, 3).tolist()),
        interpolation=Image.Resampling(processor.resample).name.lower(),
        order=BGR if getattr(processor, "do_flip_channel_order", False) else RGB,
        centre=FLOORED,
    )


def _does_the_same(processor: Any, preprocess: Preprocess) -> bool:
    """Whether images are prepared as the processor does it."""
    for image in _noise(preprocess):
        own = processor(image, return_tensors="pt")[_PIXELS][0]
        here = to_input(torch.from_numpy(crop(image, preprocess).copy())[None], preprocess)[0]
        if own.shape != here.shape or not (own - here).abs().max() <= _ROUNDING * own.abs().max():
            return False
    return True


def _noise(preprocess: Preprocess) -> Iterator[Image.Image]:
    """Yield images that are enlarged, made smaller, and cropped where rounding the centre matters."""
    side = preprocess.resize if isinstance(preprocess.resize, int) else preprocess.crop
    # 3 pixels over, or 7, ...: half to even is then another centre than the floor.
    longer = side + 32 + (preprocess.crop + 3 - side) % 4
    random = np.random.default_rng(0)
    for width, height in ((longer, side), (side, longer), (2 * side + 11, side + 77), (side // 2 + 1, side // 3 + 1)):
        yield Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
