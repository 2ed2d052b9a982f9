"""Which circuits: the request as the user states it, and what it comes to. Imports neither torch nor Ray."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from exemplar_ray.data.preprocess import is_whole
from exemplar_ray.errors import UsageError
from exemplar_ray.keys import key
from exemplar_ray.network.layers import format_channels, parse_channels
from exemplar_ray.network.spec import NetworkSpec

# Counted up when circuits come out otherwise than before.
FORMAT_VERSION = 1

LITERAL, EXPANDED, GATED, EXEMPLARS = "literal", "expanded", "gated", "exemplars"
KINDS = (LITERAL, EXPANDED, GATED, EXEMPLARS)
"""What a channel is made of: the kernel itself; through all that lies between, as if nothing of it were not linear; the
same with each unit weighted by how often it fires; and what it comes to on the channel's exemplars."""
_CHANNELS_AT_ONCE = 16


@dataclass(frozen=True)
class CircuitOptions:
    """Which circuits are made, and how much of each is kept. Every field is a key of the config file and a flag.

    Raises:
        UsageError: a value has the wrong type or an impossible value.
    """

    from_layer: str | None = key(
        None, "LAYER", "that channels are made of (default: found in the network's graph)", flag="--from"
    )
    top: int = key(50, "N", "input channels of each, the strongest first (default: 50; 0: all)")
    exemplars: int = key(50, "N", "of each channel's, that are taken apart, the strongest first (default: 50)")
    removed: int = key(10, "N", "of these are removed to see what is left (default: 10)")

    def __post_init__(self) -> None:
        if self.from_layer is not None and not isinstance(self.from_layer, str):
            raise UsageError(f"from_layer is a layer's name, not {self.from_layer!r}")
        for name, least in (("top", 0), ("exemplars", 1), ("removed", 1)):
            value = getattr(self, name)
            if not is_whole(value) or value < least:
                raise UsageError(f"{name} is a whole number from {least}, not {value!r}")


@dataclass(frozen=True)
class Stretch:
    """What lies between two layers."""

    layer: str
    channels: tuple[int, ...]
    from_layer: str
    inputs: int
    """How many channels that has."""
    through: tuple[str, ...]
    """What is done to each of them by itself before it is an input."""
    kinds: tuple[str, ...]
    next_layer: str | None = None
    """The layer that is made of this one; None if it has none, or it was not looked for."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; `from_json` reads them back."""
        return {**asdict(self), "channels": format_channels(self.channels)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Stretch:
        """Read back what `to_json` wrote."""
        channels = parse_channels(values["channels"], 1 << 30)
        lists = {name: tuple(values[name]) for name in ("through", "kinds")}
        return cls(**{**values, **lists, "channels": channels})


@dataclass(frozen=True)
class CircuitsSpec:
    """What is made: small, and pickles to every worker."""

    network: NetworkSpec
    stretches: tuple[Stretch, ...]
    options: CircuitOptions
    statistic: str | None = None
    """By which the run ranks whose exemplars are looked at; None without a run."""
    run: str | None = None
    """That run's folder."""
    of_exemplars: str | None = None
    """A SHA-256 of which images its exemplars are."""

    def identity(self) -> dict[str, Any]:
        """Return what decides the circuits, under the user's key names."""
        identity = {
            "format": FORMAT_VERSION,
            **self.network.identity(),
            **asdict(self.options),
            "statistic": self.statistic,
            "of_exemplars": self.of_exemplars,
            "stretches": [stretch.to_json() for stretch in self.stretches],
        }
        # As it reads back from a file, where tuples are lists.
        return json.loads(json.dumps(identity))

    def groups(self) -> list[Group]:
        """Return what is made at a time: a few channels of a layer."""
        return [
            Group(number, stretch.layer, stretch.from_layer, stretch.channels[first : first + _CHANNELS_AT_ONCE])
            for number, stretch in enumerate(self.stretches)
            for first in range(0, len(stretch.channels), _CHANNELS_AT_ONCE)
        ]


@dataclass(frozen=True)
class Group:
    """Channels whose circuits one task makes."""

    stretch: int
    """Which of the spec's stretches."""
    layer: str
    from_layer: str
    channels: tuple[int, ...]

    @property
    def kind(self) -> str:
        """Return what it is called in records and for people."""
        return "group"

    @property
    def name(self) -> str:
        """Return what it goes by.

        >>> Group(0, "mixed4a", "mixed3b", (0, 1, 2, 3)).name
        'mixed4a:0-3 from mixed3b'
        """
        return f"{self.layer}:{format_channels(self.channels)} from {self.from_layer}"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"name": self.name, "channels": list(self.channels)}

    def change_since(self, recorded: Mapping[str, Any]) -> str | None:
        """Nothing of it can change: it is all in the run's identity."""
        return None

    def may_differ(self, recorded: Mapping[str, Any]) -> bool:
        """Nor can that be in doubt."""
        return False
