"""`visualizations.parquet`: a row a picture, with what it is worth beside the real images of a run."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from exemplar_ray.runs.ranked import digests
from exemplar_ray.runs.run_folder import RunFolder
from exemplar_ray.visualize.spec import PicturesSpec

# Pixels of a side, to be looked at while others are made.
_SMALL = 96

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_RGB = pa.list_(pa.float32(), 3)
_LOOKS = [
    ("mean_rgb", _RGB),
    ("std_rgb", _RGB),
    ("contrast", pa.float32()),
    ("spectral_slope", pa.float32()),
    ("orientation", pa.float32()),
    ("coherence", pa.float32()),
    ("patterns", pa.list_(pa.string())),
]
_ATTEMPTS = [("starts", pa.int32()), ("grey", pa.bool_())]
_BESIDE = [
    ("path_similarity", pa.float64()),
    ("path_layers", pa.list_(pa.string())),
    ("path_similarities", pa.list_(pa.float64())),
    *((f"exemplars_{name}", kind) for name, kind in _LOOKS),
    ("apart_rgb", pa.float32()),
    ("apart_contrast", pa.float32()),
    ("apart_spectral_slope", pa.float32()),
    ("apart_orientation", pa.float32()),
]
_MADE = [("seed_agreement", pa.float64()), ("facet_ranks", pa.list_(pa.int32()))]
PART_SCHEMA = pa.schema(
    [
        ("layer", pa.string()),
        ("channel", pa.int32()),
        ("objective", pa.string()),
        ("seed", pa.int64()),
        ("image", _IMAGE),
        ("activations", pa.list_(pa.float32())),
        ("activation_pre_relu", pa.float32()),
        ("robust_activation", pa.float32()),
        *_LOOKS,
        *_ATTEMPTS,
        *_MADE,
        *_BESIDE,
        # What tells the exemplars that it was held against from others.
        ("of_exemplars", pa.string()),
    ]
)
SCHEMA = pa.schema(
    [
        ("layer", pa.string()),
        ("channel", pa.int32()),
        ("objective", pa.string()),
        ("parameterization", pa.string()),
        ("seed", pa.int64()),
        ("size", pa.int32()),
        ("steps", pa.int32()),
        ("image", _IMAGE),
        ("activation", pa.float32()),
        ("activation_pre_relu", pa.float32()),
        ("ratio_to_top", pa.float32()),
        ("ratio_to_q99", pa.float32()),
        ("percentile", pa.float64()),
        ("robust_activation", pa.float32()),
        ("target_rank", pa.int32()),
        *_LOOKS,
        *_ATTEMPTS,
        *_MADE,
        *_BESIDE,
    ],
    # So that the Hub and `datasets` show pictures.
    metadata={"huggingface": '{"info": {"features": {"image": {"_type": "Image"}}}}'},
)


class RealImages(NamedTuple):
    """How a layer's channels answer to the images that a run searched; channels as in the run."""

    channels: np.ndarray
    """int64 [channels]"""
    top: np.ndarray
    """float [channels]: the strongest activation."""
    q99: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    bins: Mapping[int, tuple[np.ndarray, np.ndarray]]
    """{channel: upper edges of its histogram's bins, ascending, and the images in each}"""
    exemplars: Mapping[int, tuple[int, str]]
    """See `ranked.digests`."""


def real_images(run: RunFolder, layer: str, statistic: str) -> RealImages:
    """Read how a layer's channels answer to real images.

    Args:
        run: the folder of a finished run of the main job.
    """
    which = [("layer", "=", layer), ("statistic", "=", statistic)]
    with run.open("channels.parquet") as file:
        known = pq.read_table(file, filters=which, columns=["channel", "max", "q99", "mean", "variance"]).sort_by(
            "channel"
        )
    bins = {}
    with run.open("histograms.parquet") as file:
        for row in pq.read_table(file, filters=which, columns=["channel", "high", "images"]).to_pylist():
            bins[row["channel"]] = np.array(row["high"]), np.array(row["images"])
    channel, top, q99, mean, variance = (known[name].to_numpy() for name in known.column_names)
    return RealImages(channel.astype(np.int64), top, q99, mean, np.sqrt(variance), bins, digests(run, layer, statistic))


def rows_of(part: bytes, spec: PicturesSpec, real: Mapping[str, RealImages]) -> Iterator[dict[str, Any]]:
    """Yield the result's rows of one part.

    Args:
        real: {layer: its real images}; {} without a run.
    """
    options = spec.options
    for row in pq.read_table(pa.BufferReader(part)).to_pylist():
        layer = spec.layer(row["layer"])
        activations = np.array(row.pop("activations"), np.float64)
        own = layer.channels.index(row["channel"])
        known = real.get(layer.name)
        _, exemplars = known.exemplars.get(row["channel"], (0, None)) if known else (0, None)
        if row.pop("of_exemplars") != exemplars:
            # It was held against others than the run has now.
            row |= dict.fromkeys(name for name, _ in _BESIDE)
        yield {
            **row,
            "parameterization": options.parameterization,
            "size": spec.size,
            "steps": options.steps,
            "activation": activations[own],
            **_beside(known, np.array(layer.channels), activations, own, row["objective"]),
        }


def small_pictures(part: bytes) -> list[tuple[str, bytes]]:
    """Return the pictures of a part, small, as JPEG, each with its name."""
    small = []
    columns = ["layer", "channel", "objective", "image"]
    for row in pq.read_table(pa.BufferReader(part), columns=columns).to_pylist():
        picture = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
        picture.thumbnail((_SMALL, _SMALL))
        file = io.BytesIO()
        picture.save(file, "JPEG")
        small.append((f"{row['layer']}:{row['channel']} {row['objective']}", file.getvalue()))
    return small


def _beside(
    real: RealImages | None, channels: np.ndarray, activations: np.ndarray, own: int, objective: str
) -> dict[str, Any]:
    """Say how a picture's activations stand beside those of real images."""
    names = ("ratio_to_top", "ratio_to_q99", "percentile", "target_rank")
    if real is None:
        return dict.fromkeys(names)
    place = np.searchsorted(real.channels, channels)
    top, q99 = real.top[place][own], real.q99[place][own]
    high, images = real.bins[int(channels[own])]
    below = images[high <= activations[own]].sum() / max(images.sum(), 1)
    sign = -1 if objective.endswith("-") else 1
    std = real.std[place]
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = np.where(std > 0, sign * (activations - real.mean[place]) / std, -np.inf)
    return {
        "ratio_to_top": float(activations[own] / top) if top > 0 else None,
        "ratio_to_q99": float(activations[own] / q99) if q99 > 0 else None,
        "percentile": 100.0 * float(below),
        "target_rank": 1 + int((scores > scores[own]).sum()),
    }
