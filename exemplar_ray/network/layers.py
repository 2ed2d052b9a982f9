"""Layers as data: channels, maps, and what their units see. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from exemplar_ray.errors import UsageError

# What a scan may compute in, and how it may decode: the first of each is the reference.
PRECISIONS = ("float32", "bfloat16", "float16")

# How a layer's output lies: [images, channels, height, width], [images, height, width, channels], or
# [images, tokens, channels]; and [images, channels] where there is no map.
NCHW, NHWC, TOKENS, VECTOR = "nchw", "nhwc", "tokens", "nc"


@dataclass(frozen=True)
class Axis:
    """What a layer's units see along one axis, in pixels of the network's input.

    Unit i sees from `first + i * stride` up to, but not including, `first + i * stride + size`.
    Pixels outside the input are padding.
    """

    first: int
    size: int
    stride: int


@dataclass(frozen=True)
class ReceptiveField:
    """What a layer's units see; an axis is None where every unit may see the whole image."""

    y: Axis | None
    x: Axis | None


@dataclass(frozen=True)
class Layer:
    """One wanted layer: its output's channel count, map size, wanted channels, receptive field, and how it lies.

    `map_size` is (height, width), or None where the layer's output has no map (logits).
    `field` is None where there is no map, or where the network's arithmetic is not known.
    `layout` is `nchw`, `nhwc` or `tokens`, and `nc` where there is no map. Where it is `tokens`, `prefix_tokens` stand
    before those of the map: the class token first.
    """

    name: str
    channel_count: int
    map_size: tuple[int, int] | None
    channels: tuple[int, ...]
    field: ReceptiveField | None = None
    layout: str = NCHW
    prefix_tokens: int = 0

    @property
    def written_layout(self) -> str:
        """Return the layout as the key `layout` has it: `nhwc`, or `tokens:1` with the number of prefix tokens."""
        return f"{self.layout}:{self.prefix_tokens}" if self.layout == TOKENS else self.layout

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; `from_json` reads them back."""
        return {**asdict(self), "channels": format_channels(self.channels)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Layer:
        """Read back what `to_json` wrote."""
        return cls(
            name=values["name"],
            channel_count=values["channel_count"],
            map_size=tuple(values["map_size"]) if values["map_size"] else None,
            channels=parse_channels(values["channels"], values["channel_count"]),
            field=_field_from_json(values["field"]),
            # Older run folders know no other layout than channels first.
            layout=values.get("layout", NCHW if values["map_size"] else VECTOR),
            prefix_tokens=values.get("prefix_tokens", 0),
        )


def parse_channels(text: str, channel_count: int) -> tuple[int, ...]:
    """Turn "all", "0-9" or "0,3,7-9" into sorted channel numbers.

    >>> parse_channels("0,3,7-9", 16)
    (0, 3, 7, 8, 9)

    Raises:
        UsageError: the text is none of these, or a channel is not in 0..channel_count-1.
    """
    if text == "all":
        return tuple(range(channel_count))
    wanted: set[int] = set()
    for piece in text.split(","):
        first, _, last = piece.partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()) or piece.endswith("-"):
            raise UsageError(f"channels are 'all', '0-9' or '0,3,7', not '{text}'")
        low, high = int(first), int(last or first)
        if low > high:
            raise UsageError(f"channels: the range '{piece}' runs backwards")
        if high >= channel_count:
            raise UsageError(f"channel {high} is out of range; valid channels are 0-{channel_count - 1}")
        wanted.update(range(low, high + 1))
    return tuple(sorted(wanted))


def format_channels(channels: Sequence[int]) -> str:
    """Write channel numbers as ranges, the inverse of `parse_channels`.

    >>> format_channels([0, 1, 2, 7, 9, 10])
    '0-2,7,9-10'
    """
    runs: list[list[int]] = []
    for channel in channels:
        if runs and channel == runs[-1][1] + 1:
            runs[-1][1] = channel
        else:
            runs.append([channel, channel])
    return ",".join(f"{low}" if low == high else f"{low}-{high}" for low, high in runs)


def _field_from_json(field: Mapping[str, Any] | None) -> ReceptiveField | None:
    if field is None:
        return None
    return ReceptiveField(*(Axis(**field[axis]) if field[axis] else None for axis in ("y", "x")))
