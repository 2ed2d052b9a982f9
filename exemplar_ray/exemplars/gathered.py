"""What gather hands over: images, exact scores, and where in their maps the channels are strongest. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from exemplar_ray.data.shard import Shard
from exemplar_ray.exemplars.spec import ExemplarsSpec
from exemplar_ray.exemplars.topk import NEAR_ZERO, Scores, concatenate

BYTES_OF_A_UNIT = np.dtype(np.float16).itemsize
"""What a unit of a kept map takes."""

MOST_REMEMBERED_BYTES = 64 << 20
"""Of what the network says of images, a task remembers so much for copies of them."""

# A row an image.
IMAGES_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("label", pa.int64()),
        ("path", pa.string()),
        # Null where whoever asked has them.
        ("bytes", pa.large_binary()),
        # Equal for images of equal bytes: their SHA-256.
        ("content", pa.binary(32)),
        ("hash", pa.binary(32)),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)

# A row a candidate.
MAPS_SCHEMA = pa.schema(
    [
        # Where in the layer's map the channel is strongest, and the map, row by row.
        ("peak_y", pa.int32()),
        ("peak_x", pa.int32()),
        ("activation_map", pa.list_(pa.float16())),
    ]
)

# The same where the maps lie in a spool: which of its maps.
SPOOLED_MAPS_SCHEMA = pa.schema([("peak_y", pa.int32()), ("peak_x", pa.int32()), ("map_number", pa.int64())])


class OfShard(NamedTuple):
    """What a task is to gather of a shard."""

    shard: Shard
    candidates: Scores
    """As scanned."""
    had: Mapping[int, bytes] = MappingProxyType({})
    """{row: content} of images whose bytes are there already"""


class ToGather(NamedTuple):
    """What a task is to gather."""

    shards: Sequence[OfShard]
    leave: bool
    """Whether it is to leave what the network says of the images."""


@dataclass(frozen=True)
class GatheredShard:
    """What gather found out about one shard's candidates."""

    images: pa.Table
    """`IMAGES_SCHEMA`: a row an image, in row order."""
    exact: Scores
    """The candidates in the order given, with recomputed activations."""
    maps: pa.Table
    """`MAPS_SCHEMA`: a row a candidate, in the same order. Null for layers without maps."""
    beyond_rounding: int = 0
    """How many candidates an exact scan saw otherwise than rounding explains in most networks; see `mix_up`."""

    def with_bytes_once(self, had: Mapping[int, bytes], sent: set[bytes]) -> GatheredShard:
        """Return the same without bytes that are there already.

        Args:
            had: see `OfShard`.
            sent: contents that others bring along; those that are left here are added.
        """
        brought = []
        for row, content in zip(*(self.images[name].to_pylist() for name in ("row", "content")), strict=True):
            brought.append(content not in sent and had.get(row) != content)
            if brought[-1]:
                sent.add(content)
        field = IMAGES_SCHEMA.field("bytes")
        data = pc.if_else(pa.array(brought, pa.bool_()), self.images["bytes"], pa.scalar(None, field.type))
        return replace(self, images=self.images.set_column(IMAGES_SCHEMA.get_field_index("bytes"), field, data))


@dataclass(frozen=True)
class NotAsScanned:
    """What gather found out where a shard's part is not what the shard gives."""

    reason: str


def bytes_of_answer(spec: ExemplarsSpec) -> int:
    """Return how much memory it takes, about, what the network says of an image."""
    return 4 * sum(len(layer.channels) * math.prod(layer.map_size or (1,)) for layer in spec.layers)


def units_of_maps(spec: ExemplarsSpec, candidates: Scores) -> np.ndarray:
    """Return how many numbers each candidate's map has, int64; 0 where there is none.

    Before a ReLU only the number is asked for.
    """
    sizes = [layer.map_size or (0, 0) for layer, _ in spec.readouts]
    units = np.array([height * width for height, width in sizes], np.int64)[candidates.readout]
    return np.where(candidates.ranking == NEAR_ZERO, 0, units)


def joined(pieces: Sequence[np.ndarray], gathered: Sequence[GatheredShard]) -> GatheredShard:
    """Return what was gathered of a shard piece by piece.

    Args:
        pieces: of each piece the indices of its candidates; all of an image's are in one.
        gathered: of each piece.
    """
    if len(pieces) == 1:
        return gathered[0]
    order = np.argsort(np.concatenate(pieces))
    images = pa.concat_tables([one.images for one in gathered])
    return GatheredShard(
        images=images.take(pa.array(np.argsort(images["row"].to_numpy()))),
        exact=concatenate(one.exact for one in gathered).take(order),
        maps=pa.concat_tables([one.maps for one in gathered]).take(pa.array(order)),
        beyond_rounding=sum(one.beyond_rounding for one in gathered),
    )
