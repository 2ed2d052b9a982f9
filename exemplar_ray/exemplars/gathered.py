"""What gather hands over: images, exact scores, and where in their maps the channels are strongest. No torch."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from exemplar_ray.exemplars.topk import Scores

# A row an image.
IMAGES_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("label", pa.int64()),
        ("path", pa.string()),
        ("bytes", pa.large_binary()),
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


@dataclass(frozen=True)
class GatheredShard:
    """What gather found out about one shard's candidates."""

    images: pa.Table
    """`IMAGES_SCHEMA`: a row an image, in row order."""
    exact: Scores
    """The candidates in the order given, with recomputed activations."""
    maps: pa.Table
    """`MAPS_SCHEMA`: a row a candidate, in the same order. Null for layers without maps."""
