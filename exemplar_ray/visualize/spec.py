"""Which pictures: the request as the user states it, and what it comes to. Imports neither torch nor Ray."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from exemplar_ray.data.preprocess import is_whole
from exemplar_ray.errors import UsageError, near_matches
from exemplar_ray.keys import key
from exemplar_ray.network.layers import Layer, format_channels
from exemplar_ray.network.spec import NetworkSpec

# Counted up when pictures come out otherwise than before.
FORMAT_VERSION = 2

MACO = "maco"
PARAMETERIZATIONS = ("fourier", MACO, "pixels")
OBJECTIVES = ("mean", "center", "max", "cls")
"""Statistics that pictures can be made for, see `objectives`."""
DEFAULT_SIZE = 128
_SMALLEST = 16

CHANNEL, DIVERSE, FACET = "channel", "diverse", "facet"
# What lucid calls the objective of one unit in the middle.
_CALLED = {"center": "neuron"}

AT_ONCE, AT_ONCE_ON_GPU = 4, 64
"""How many pictures are computed in one batch. Sums round otherwise in a batch of another size, so that every batch has
this one: a smaller group is filled up."""


@dataclass(frozen=True)
class PictureOptions:
    """Which pictures are made of each channel, and how. Every field is a key of the config file and a flag.

    Raises:
        UsageError: a value has the wrong type or an impossible value.
    """

    negative: bool = key(False, "", "also a picture of what each channel says no to")
    diverse: int = key(0, "N", "also N pictures of each channel that differ from one another (default: 0)")
    facets: int = key(
        0, "N", "also N pictures of each channel, of the several things that its exemplars show (default: 0)"
    )
    seeds: int = key(1, "N", "N pictures of what excites each channel, from picture-seed on (default: 1)")
    parameterization: str = key(
        PARAMETERIZATIONS[0], "HOW", f"what is optimised: {', '.join(PARAMETERIZATIONS)} (default: fourier)"
    )
    size: int | None = key(
        None, "PIXELS", f"of a picture's side (default: {DEFAULT_SIZE}, or what the network takes only)"
    )
    steps: int = key(256, "N", "of the optimiser (default: 256)")
    picture_seed: int = key(0, "N", "another one gives other pictures (default: 0)")

    def __post_init__(self) -> None:
        if not isinstance(self.negative, bool):
            raise UsageError(f"negative is true or false, not {self.negative!r}")
        if self.parameterization not in PARAMETERIZATIONS:
            hint = near_matches(str(self.parameterization), PARAMETERIZATIONS)
            raise UsageError(f"unknown parameterization '{self.parameterization}'; {hint}")
        for name, least in (
            ("diverse", 0),
            ("facets", 0),
            ("seeds", 1),
            ("size", _SMALLEST),
            ("steps", 1),
            ("picture_seed", 0),
        ):
            value = getattr(self, name)
            if name == "size" and value is None:
                continue
            if not is_whole(value) or value < least:
                raise UsageError(f"{name} is a whole number from {least}, not {value!r}")
        if self.diverse == 1:
            raise UsageError("diverse is how many pictures are to differ from one another: 0, or from 2")
        if self.facets == 1:
            raise UsageError("facets is into how many a channel's exemplars are divided: 0, or from 2")


@dataclass(frozen=True)
class PicturesSpec:
    """What is made: small, and pickles to every worker."""

    network: NetworkSpec
    statistic: str
    options: PictureOptions
    size: int
    run: str | None = None
    """The fingerprint of the run that pictures are of, where these depend on its result."""
    spectrum_sha256: str | None = None
    """Of the magnitudes that `maco` keeps to."""

    def identity(self) -> dict[str, Any]:
        """Return what decides the pictures, under the user's key names."""
        options = self.options
        identity = {
            "format": FORMAT_VERSION,
            **self.network.identity(),
            "statistic": self.statistic,
            "negative": options.negative,
            "diverse": options.diverse,
            "parameterization": options.parameterization,
            "size": self.size,
            "steps": options.steps,
            "picture_seed": options.picture_seed,
            # Pictures of one thing and one seed are older than these keys.
            **({"seeds": options.seeds} if options.seeds > 1 else {}),
            **({"facets": options.facets, "run": self.run} if options.facets else {}),
        }
        if self.spectrum_sha256 is not None:
            identity["spectrum"] = self.spectrum_sha256
        # As it reads back from a file, where tuples are lists.
        return json.loads(json.dumps(identity))

    @property
    def objective(self) -> str:
        """Return what one picture of a channel is called: `channel`, or `neuron` for the unit in the middle."""
        return _CALLED.get(self.statistic, CHANNEL)

    def groups(self, on_gpu: bool = False, exemplars: Mapping[str, Mapping[int, str]] | None = None) -> list[Group]:
        """Return what is made at a time: all of a few channels, before the next few.

        Args:
            exemplars: {layer: {channel: what tells its exemplars from others}}, of which facets are.
        """
        groups = []
        at_once = max(1, (AT_ONCE_ON_GPU if on_gpu else AT_ONCE) // self.options.seeds)
        for layer in self.network.layers:
            for first in range(0, len(layer.channels), at_once):
                few = layer.channels[first : first + at_once]
                groups.append(Group(layer.name, self.objective, few))
                if self.options.negative:
                    groups.append(Group(layer.name, f"{self.objective}-", few))
                if self.options.diverse:
                    groups += [Group(layer.name, DIVERSE, (channel,)) for channel in few]
                if self.options.facets:
                    known = (exemplars or {}).get(layer.name, {})
                    groups += [Group(layer.name, FACET, (channel,), known.get(channel)) for channel in few]
        return groups

    def pictures_a_channel(self, group: Group) -> int:
        """Return how many pictures of each of its channels a group is."""
        options = self.options
        return {DIVERSE: options.diverse, FACET: options.facets, self.objective: options.seeds}.get(group.objective, 1)

    def layer(self, name: str) -> Layer:
        """Return a layer by its name."""
        return next(layer for layer in self.network.layers if layer.name == name)


@dataclass(frozen=True)
class Group:
    """Pictures that one task makes: one of each of a few channels, or several of one channel that are to differ."""

    layer: str
    objective: str
    channels: tuple[int, ...]
    exemplars: str | None = None
    """What tells the exemplars that the pictures are of from others; None of pictures that are of none."""

    @property
    def kind(self) -> str:
        """Return what it is called in records and for people."""
        return "group"

    @property
    def name(self) -> str:
        """Return what it goes by.

        >>> Group("mixed4a", "channel-", (0, 1, 2, 3)).name
        'mixed4a:0-3 channel-'
        """
        return f"{self.layer}:{format_channels(self.channels)} {self.objective}"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "name": self.name,
            "layer": self.layer,
            "objective": self.objective,
            "channels": list(self.channels),
            **({"exemplars": self.exemplars} if self.exemplars else {}),
        }

    def change_since(self, recorded: Mapping[str, Any]) -> str | None:
        """Say whether the channel's exemplars are others now; all else is in the run's identity."""
        return None if self.exemplars == recorded.get("exemplars") else "the channel's exemplars are others now"

    def may_differ(self, recorded: Mapping[str, Any]) -> bool:
        """Nor can that be in doubt."""
        return False
