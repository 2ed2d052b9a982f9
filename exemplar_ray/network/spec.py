"""Which network, and what is asked of it: small, hashable, and pickled to every worker. Imports no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.network.layers import NCHW, PRECISIONS, VECTOR, Layer, format_channels


@dataclass(frozen=True)
class NetworkSpec:
    """A network that has been built and looked at: what every job shares."""

    model: str
    model_title: str
    model_source_sha256: str | None
    """See `Architecture.source_sha256`; None for a model from a registry."""
    weights: str
    weights_title: str
    weights_sha256: str
    trained: bool
    layers: tuple[Layer, ...]
    preprocess: Preprocess
    channels_last: bool = True
    """Whether it runs where its input and weights lie in memory with the channels last, which is faster. Some networks
    only take an image's plain form, such as those that flatten maps by `view`."""

    @property
    def title(self) -> str:
        """Return model and weights in words; untrained ones are called so."""
        return f"{self.model_title}, {self.weights_title}{'' if self.trained else ' — UNTRAINED'}"

    def identity(self) -> dict[str, Any]:
        """Return what decides a network's numbers, under the user's own key names.

        Weights count by their hash, a model's file or configuration by its contents: what they are called on
        this machine does not matter.
        """
        layouts = {layer.name: layer.written_layout for layer in self.layers if layer.layout not in (NCHW, VECTOR)}
        return {
            "model": self.model_source_sha256 or self.model,
            "weights": self.weights_sha256,
            "layer": [layer.name for layer in self.layers],
            "channels": {layer.name: format_channels(layer.channels) for layer in self.layers},
            # Runs of layers with channels first are older than the key.
            **({"layout": layouts} if layouts else {}),
            "preprocess": self.preprocess.to_json(),
        }

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; `from_json` reads them back."""
        values = asdict(self)
        values["layers"] = [layer.to_json() for layer in self.layers]
        values["preprocess"] = self.preprocess.to_json()
        return json.loads(json.dumps(values))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> NetworkSpec:
        """Read back what `to_json` wrote, whatever else stands beside it."""
        own = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        layers = tuple(Layer.from_json(layer) for layer in values["layers"])
        return cls(**{**own, "layers": layers, "preprocess": Preprocess(**values["preprocess"])})


@dataclass(frozen=True)
class TrunkSpec:
    """What a trunk computes of an image."""

    network: NetworkSpec
    statistics: tuple[str, ...]
    precision: str = PRECISIONS[0]
    pre_relu: bool = False
    """Whether a call also says how near an image comes to exciting a channel that it leaves at 0."""

    @property
    def readouts(self) -> list[tuple[str, str]]:
        """Return (layer, statistic) of all that it gives, in the order of results."""
        return [(layer.name, statistic) for layer in self.network.layers for statistic in self.statistics]


# Libraries of which a model's name may be a folder's.
_OF_FOLDERS = ("transformers",)


def split_model(model: str) -> tuple[str, str, str]:
    """Split a model's name at the path in it.

    Returns:
        What stands before the path; the path of a file, or of what may be a folder, '' where there is none; what stands
        behind: of a user's own file `:factory`, of others ''.

    >>> split_model("nets/own.py:make"), split_model("transformers:nets/vit"), split_model("timm:resnet18")
    (('', 'nets/own.py', ':make'), ('transformers:', 'nets/vit', ''), ('timm:resnet18', '', ''))
    """
    file, separator, factory = model.rpartition(":")
    if separator and file.endswith(".py"):
        return "", file, f":{factory}"
    library, separator, folder = model.partition(":")
    return (f"{library}:", folder, "") if separator and library in _OF_FOLDERS else (model, "", "")


def whole_paths(model: str, weights: str) -> tuple[str, str]:
    """Return a model's and its weights' names for processes with another working folder: what is here, by its whole
    path."""
    before, path, behind = split_model(model)
    if path and os.path.exists(path):
        model = f"{before}{os.path.abspath(path)}{behind}"
    # Whatever lies about under the name of a choice.
    chosen = weights == "pretrained" or weights.startswith("random:")
    return model, os.path.abspath(weights) if not chosen and os.path.isfile(weights) else weights
