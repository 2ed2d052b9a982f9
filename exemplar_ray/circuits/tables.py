"""The tables of circuits, as parts hold them and the result does. Imports neither torch nor Ray."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from exemplar_ray.circuits.edges import EDGES, USES
from exemplar_ray.circuits.job_names import CHANNELS, EXEMPLARS, RESULT, USES_RESULT
from exemplar_ray.circuits.spec import EXEMPLARS as OF_EXEMPLARS
from exemplar_ray.circuits.spec import EXPANDED, GATED

_TWINS = pa.list_(pa.struct([("channel", pa.int32()), ("turned", pa.string()), ("cosine", pa.float32())]))
_FACTORS = pa.list_(
    pa.struct([("share", pa.float32()), ("pattern", pa.list_(pa.float32())), ("inputs", pa.list_(pa.int32()))])
)
# No map: `datasets` has none.
_AGREEMENT = pa.struct([(kind, pa.float32()) for kind in (EXPANDED, GATED, OF_EXEMPLARS)])
_NAMES = [("layer", pa.string()), ("channel", pa.int32()), ("from_layer", pa.string())]

CHANNELS_SCHEMA = pa.schema(
    [
        *_NAMES,
        ("through", pa.list_(pa.string())),
        ("inputs", pa.int32()),
        ("nearly_zero", pa.int32()),
        ("l2", pa.float32()),
        ("sum", pa.float32()),
        ("positive_share", pa.float32()),
        ("images_measured", pa.int32()),
        ("exemplars", pa.int32()),
        ("removed", pa.list_(pa.int32())),
        ("activation_left", pa.float32()),
        ("predicts", _AGREEMENT),
        ("residual", pa.float32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("factors", _FACTORS),
        ("twins", _TWINS),
    ]
)
EXEMPLARS_SCHEMA = pa.schema(
    [
        *_NAMES,
        ("statistic", pa.string()),
        ("rank", pa.int32()),
        ("shard", pa.string()),
        ("row", pa.int64()),
        ("peak_y", pa.int32()),
        ("peak_x", pa.int32()),
        ("activation_pre_relu", pa.float32()),
        ("bias", pa.float32()),
        ("inputs", pa.list_(pa.int32())),
        ("contributions", pa.list_(pa.float32())),
        ("others_excite", pa.float32()),
        ("others_inhibit", pa.float32()),
        ("activation_left", pa.float32()),
    ]
)
SCHEMAS = {"edges": EDGES, "channels": CHANNELS_SCHEMA, "exemplars": EXEMPLARS_SCHEMA, "uses": USES}
"""{table: its columns}"""
FILES = {"channels": CHANNELS, "exemplars": EXEMPLARS, "uses": USES_RESULT, "edges": RESULT}
"""{table: its file}; that with which the result is there comes last."""


def parquet(table: str, rows: Sequence[dict[str, Any]]) -> bytes:
    """Write rows of a table."""
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMAS[table]), file, compression="zstd")
    return file.getvalue()
