"""A finished run of as many channels as wanted, its numbers made up: for what depends on their count only."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from conftest import encode, random_picture
from test_spec import resolved

from exemplar_ray.data.labels import ClassLabels
from exemplar_ray.data.shards import Shard
from exemplar_ray.exemplars.gathered import MAPS_SCHEMA
from exemplar_ray.exemplars.plan import CHANNELS, CLASSES, EXEMPLARS, HISTOGRAMS, Plan, ScannedShard
from exemplar_ray.exemplars.rerank.selected import Selected
from exemplar_ray.exemplars.summary import Account, summarise
from exemplar_ray.exemplars.tables.exemplars import exemplars_schema
from exemplar_ray.exemplars.topk import Scores
from exemplar_ray.network.layers import Axis, Layer, ReceptiveField
from exemplar_ray.runs.manifest import RUN
from exemplar_ray.runs.run_folder import SUMMARY

TOP_K, CLASS_COUNT, MAP_SIDE = 10, 100, 7
CHANNELS_PER_GROUP = 10
_QUANTILES = ("q01", "q05", "q10", "q25", "q50", "q75", "q90", "q95", "q99")


def write_run(folder, channels):
    """Write the run folder: an image more for every channel, each an exemplar of ten of them."""
    field = ReceptiveField(Axis(-16, 64, 32), Axis(-16, 64, 32))
    layer = Layer("layer", channels, (MAP_SIDE, MAP_SIDE), tuple(range(channels)), field)
    labels = ClassLabels([f"class number {i}" for i in range(CLASS_COUNT)])
    shard = Shard("train.parquet", "/data/train.parquet", 1, channels)
    plan = Plan(resolved(layers=(layer,), trained=True), [shard], labels, {"numpy": np.__version__})
    folder.mkdir()
    (folder / RUN).write_text(json.dumps(plan.manifest().to_json()))
    scanned = ScannedShard(channels, channels, 0, 1.0, "host", "cpu", (), ())
    selected = Selected(Scores.empty(), [], np.empty(0, np.int32), [], MAPS_SCHEMA.empty_table(), 0.0, [], [], {}, [])
    summary = summarise(plan, {0: scanned}, selected, Account(channels, settled_anew=None, partial=None))
    (folder / SUMMARY).write_text(json.dumps(summary.to_json()))

    random = np.random.default_rng(0)
    names = {
        "layer": ["layer"] * channels,
        "statistic": ["mean"] * channels,
        "channel": np.arange(channels, dtype=np.int32),
    }
    quantiles = np.sort(random.gamma(1, 1, (len(_QUANTILES), channels)), axis=0)
    known = {**names, "images": np.full(channels, channels), "mean": quantiles[4], "variance": quantiles[4]}
    known |= {"min": quantiles[0], "max": quantiles[-1] + 1, "active_fraction": random.random(channels)}
    known |= {"settled": [True] * channels, "scan_error": np.zeros(channels), "margin": np.ones(channels)}
    known |= dict(zip(_QUANTILES, quantiles, strict=True)) | {"selectivity": random.random(channels)}
    pq.write_table(pa.table(known), folder / CHANNELS)
    edges = np.linspace(0, 8, 201, dtype=np.float32)
    bins = {"low": [edges[:-1]] * channels, "high": [edges[1:]] * channels, "images": [np.arange(1, 201)] * channels}
    pq.write_table(pa.table({**names, **bins}), folder / HISTOGRAMS)
    of_class = {"label": np.tile(np.arange(CLASS_COUNT), channels), "images": np.ones(channels * CLASS_COUNT, np.int64)}
    of_class |= {"mean": random.random(channels * CLASS_COUNT), "max": random.random(channels * CLASS_COUNT)}
    of_class["class_name"] = labels.names * channels
    repeated = {name: np.repeat(values, CLASS_COUNT) for name, values in names.items()}
    pq.write_table(pa.table({**repeated, **of_class}), folder / CLASSES)
    _write_exemplars(folder / EXEMPLARS, plan, channels, random)


def _write_exemplars(path, plan, channels, random):
    pictures = [encode(random_picture(seed, 96, 72), "JPEG") for seed in range(200)]

    def row(channel, rank):
        image = (channel + 7 * rank) % channels
        # Different bytes of a few different pictures: what follows a JPEG's end is not looked at.
        data = pictures[image % len(pictures)] + image.to_bytes(4)
        return {
            "layer": "layer",
            "statistic": "mean",
            "sample": "top",
            "channel": channel,
            "rank": rank,
            "activation": 10.0 - rank,
            "percentile": 100.0 - rank,
            "shard": "train.parquet",
            "row": image,
            "image_path": f"{image}.jpg",
            "label": image % CLASS_COUNT,
            "class_name": f"class number {image % CLASS_COUNT}",
            "image": {"bytes": data, "path": f"{image}.jpg"},
            "peak_y": 0,
            "peak_x": 0,
            "activation_map": random.random(MAP_SIDE**2).astype(np.float16),
            "map_height": MAP_SIDE,
            "map_width": MAP_SIDE,
            "view_box": [12.0, 0.0, 84.0, 72.0],
            "field_box": [12.0, 0.0, 36.0, 24.0],
        }

    schema = exemplars_schema(plan, None)
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, channels, CHANNELS_PER_GROUP):
            group = range(start, min(start + CHANNELS_PER_GROUP, channels))
            rows = [row(channel, rank) for channel in group for rank in range(1, TOP_K + 1)]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
