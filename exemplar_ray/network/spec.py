"""Which network, and what is asked of it: small, hashable, and pickled to every worker. Imports no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.network.layers import NCHW, PRECISIONS, VECTOR, Layer, format_channels
from exemplar_ray.network.layouts import AUTO, GivenLayout

IN_HAND = "module:"
"""What the name of a module in hand begins with; its file, which is in the run folder, comes after it."""

LABELS_GIVEN, LABELS_LEFT_OUT = "given", "left out"
_LABELS_IN_WORDS = {
    LABELS_GIVEN: "the network is given the images' labels",
    LABELS_LEFT_OUT: "the network is given no labels: its forward has a default for its parameter `labels`",
}


@dataclass(frozen=True)
class NetworkRequest:
    """Which network, in the user's words."""

    model: str
    """See `models.load_network`."""
    weights: str
    """See `models.load_network`."""
    layers: tuple[str, ...]
    """Names of the wanted layers."""
    channels: str
    """The wanted channels, as `layers.parse_channels` reads them."""
    preprocess: Mapping[str, Any] | None = None
    """Keys over the model's own preprocessing."""
    layout: GivenLayout = AUTO

    def with_whole_paths(self) -> NetworkRequest:
        """Return the same for processes with another working folder, see `whole_paths`."""
        model, weights = whole_paths(self.model, self.weights)
        return replace(self, model=model, weights=weights)


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
    labels: str | None = None
    """What is done with the parameter `labels` of its forward: `LABELS_GIVEN` if it must have the images' labels,
    `LABELS_LEFT_OUT` where it has a default; None where there is no such parameter."""

    @property
    def takes_labels(self) -> bool:
        """Return whether it is given the images' labels."""
        return self.labels == LABELS_GIVEN

    def said_of_labels(self) -> list[str]:
        """Say in lines what is done with its parameter `labels`; nothing where it has none."""
        return [_LABELS_IN_WORDS[self.labels]] if self.labels else []

    @property
    def title(self) -> str:
        """Return model and weights in words; untrained ones are called so."""
        return f"{self.model_title}, {self.weights_title}{'' if self.trained else ' — UNTRAINED'}"

    @property
    def is_in_hand(self) -> bool:
        """Whether it was a module in hand, which the run folder keeps."""
        return self.model.startswith(IN_HAND)

    @property
    def model_words(self) -> str:
        """Return the model in words, and the name that it is asked for by, if it has one."""
        return self.model_title if self.is_in_hand else f"{self.model_title} ({self.model})"

    def kept_in(self, folder: str) -> NetworkSpec:
        """Return the same where the file of a module in hand is in a folder; "" for that folder itself, wherever it
        may come to lie."""
        if not self.is_in_hand:
            return self
        name = self.model.removeprefix(IN_HAND).rpartition("/")[2]
        return replace(self, model=IN_HAND + (f"{folder.rstrip('/')}/{name}" if folder else name))

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
            # Which labels these are, the data set's columns say, and what was read of each shard.
            **({"labels": self.labels} if self.takes_labels else {}),
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


# Of which a model's name may be a folder's, or a file's.
_OF_FOLDERS = ("transformers", IN_HAND.rstrip(":"))


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
