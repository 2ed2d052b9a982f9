"""How a layer's output lies in its tensor, and how it is read: as maps, whatever its layout. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from exemplar_ray.errors import UsageError, near_matches
from exemplar_ray.network.layers import NCHW, NHWC, TOKENS, Layer

if TYPE_CHECKING:
    from torch import Tensor

AUTO = "auto"
LAYOUTS = (NCHW, NHWC, TOKENS)

GivenLayout = str | Mapping[str, str]
"""The key `layout`: one word for every layer, or a word for each; `auto` to ask the network."""


class Reading(NamedTuple):
    """A layer's output, read."""

    maps: Tensor
    """[images, channels, height, width], or [images, channels] where there is no map."""
    prefix: Tensor | None = None
    """[images, prefix tokens, channels] where the layer gives tokens."""

    def of_channels(self, index: Tensor) -> Reading:
        """Return the same of some channels only."""
        prefix = None if self.prefix is None else self.prefix.index_select(2, index)
        return Reading(self.maps.index_select(1, index), prefix)

    def copied(self) -> Reading:
        """Return float32 copies whose channels lie one after another: a channel's sum is then the same, to the last
        bit, whatever other channels are wanted, and whatever the layer's layout."""
        prefix = None if self.prefix is None else self.prefix.contiguous().float()
        return Reading(self.maps.contiguous().float(), prefix)


def read(output: Tensor, layer: Layer) -> Reading:
    """Read a layer's output, float of any precision, as maps. What is returned are views of it."""
    if layer.layout == NHWC:
        return Reading(output.permute(0, 3, 1, 2))
    if layer.layout == TOKENS and layer.map_size is not None:
        height, width = layer.map_size
        first = layer.prefix_tokens
        grid = output[:, first : first + height * width].transpose(1, 2)
        return Reading(grid.unflatten(2, (height, width)), output[:, :first])
    return Reading(output)


def check_layout(given: Any) -> None:
    """Refuse what is no value of the key `layout`.

    Raises:
        UsageError: it is none; the message says what is one.
    """
    words = list(given.values()) if isinstance(given, Mapping) else [given]
    for word in words:
        name, separator, prefix = word.partition(":") if isinstance(word, str) else ("", "", "")
        known = name in (AUTO, *LAYOUTS) and (not separator or (name == TOKENS and prefix.isdecimal()))
        if not known:
            hint = near_matches(str(word), (AUTO, *LAYOUTS))
            raise UsageError(
                f"unknown layout {word!r}; {hint}; one word for all layers, tokens:1 with the number of tokens before "
                "those of the map, or a mapping such as {features.3: nhwc}"
            )


def layout_of(given: GivenLayout, layer: str) -> str:
    """Return the layout that was given for a layer, `auto` if none was."""
    return given if isinstance(given, str) else given.get(layer, AUTO)


def refuse_unknown_layers(given: GivenLayout, layers: Sequence[str]) -> None:
    """Refuse layouts of layers that nobody asked for.

    Raises:
        UsageError: with near matches.
    """
    for name in given if isinstance(given, Mapping) else ():
        if name not in layers:
            raise UsageError(f"layout: '{name}' is none of the run's layers; {near_matches(name, layers)}")
