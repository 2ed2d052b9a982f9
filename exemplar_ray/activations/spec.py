"""Which activations are stored: the request as the user states it, and what it comes to. Neither torch nor Ray."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from exemplar_ray.activations.job_names import WHOLE
from exemplar_ray.errors import UsageError, near_matches
from exemplar_ray.keys import key
from exemplar_ray.network.layers import Layer
from exemplar_ray.network.spec import NetworkSpec, TrunkSpec
from exemplar_ray.network.statistics import STATISTICS
from exemplar_ray.storage.folder_names import folder_names

# Counted up when parts come out otherwise than before.
FORMAT_VERSION = 1

DTYPES = ("float32", "float16")
POOLS = (*STATISTICS, WHOLE)


@dataclass(frozen=True)
class ActivationOptions:
    """Which activations are stored, and how. Every field is a key of the config file and a flag.

    Raises:
        UsageError: a value has the wrong type or an impossible value.
    """

    pool: tuple[str, ...] = key(("mean",), "NAME", f"one or several of {', '.join(POOLS)}, whole maps (default: mean)")
    dtype: str = key(DTYPES[0], "TYPE", f"of what is stored: {' (default), '.join(DTYPES)}")
    allow_overflow: bool = key(False, "", "store what float16 cannot hold as infinity (default: refuse)")

    def __post_init__(self) -> None:
        pools = (self.pool,) if isinstance(self.pool, str) else self.pool
        if not isinstance(pools, Sequence) or not pools or not all(isinstance(one, str) for one in pools):
            raise UsageError(f"pool is one or several of {', '.join(POOLS)}, not {self.pool!r}")
        for one in pools:
            if one not in POOLS:
                raise UsageError(f"unknown pool '{one}'; {near_matches(one, POOLS)}")
        if len(set(pools)) < len(pools):
            raise UsageError(f"pool names '{next(one for one in pools if pools.count(one) > 1)}' twice")
        object.__setattr__(self, "pool", tuple(pools))
        if self.dtype not in DTYPES:
            raise UsageError(f"unknown dtype '{self.dtype}'; {near_matches(str(self.dtype), DTYPES)}")
        if not isinstance(self.allow_overflow, bool):
            raise UsageError(f"allow_overflow is true or false, not {self.allow_overflow!r}")


class Stored(NamedTuple):
    """What each image has a row of: a pool of a layer."""

    layer: Layer
    pool: str
    folder: str
    """Of the layer's files, see `job_names.folder_of`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of one image's activations."""
        channels = len(self.layer.channels)
        if self.pool == WHOLE and self.layer.map_size is not None:
            return (channels, *self.layer.map_size)
        return (channels,)


@dataclass(frozen=True)
class ActivationsSpec:
    """What is stored of each image: small, and pickles to every worker."""

    network: NetworkSpec
    pools: tuple[str, ...]
    dtype: str
    decode: str

    @property
    def stored(self) -> list[Stored]:
        """Return what each image has a row of, layer by layer."""
        folders = folder_names([layer.name for layer in self.network.layers])
        return [Stored(layer, pool, folders[layer.name]) for layer in self.network.layers for pool in self.pools]

    @property
    def trunk(self) -> TrunkSpec:
        """Return what is computed of an image: pools that are none are taken from its maps."""
        return TrunkSpec(self.network, tuple(pool for pool in self.pools if pool != WHOLE))

    def identity(self) -> dict[str, Any]:
        """Return what decides the activations, under the user's key names."""
        own = {"pool": list(self.pools), "dtype": self.dtype, "decode": self.decode}
        # As it reads back from a file, where tuples are lists.
        return json.loads(json.dumps({"format": FORMAT_VERSION, **self.network.identity(), **own}))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, the network's among its own; `from_json` reads them back."""
        own = asdict(self)
        return {**self.network.kept_in("").to_json(), **{name: own[name] for name in ("pools", "dtype", "decode")}}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ActivationsSpec:
        """Read back what `to_json` wrote."""
        return cls(NetworkSpec.from_json(values), tuple(values["pools"]), values["dtype"], values["decode"])
