"""A map whose every point is known: where it lies, what it is of, what its picture looks like."""

import numpy as np
import pyarrow as pa

from exemplar_ray.report.map_points import Categories, MapPoints, Score, StrongestChannels, Values, categories_of_labels

CLASSES = ("tench", "goldfish", "great white shark", "cock", "hen")
GROUPS = len(CLASSES)


def synset(label):
    return f"n{14_40764 + label:08d}"


def colour_of(row):
    """Of a row's picture: no two rows of one sheet have the same."""
    return np.array([40 + 6 * (row % 32), 40 + 6 * (row // 32 % 32), 128], np.uint8)


def thumbnails(count, side=32):
    return ((row, np.broadcast_to(colour_of(row), (side, side, 3))) for row in range(count))


def planted_map(count=3000, **changes):
    """Five round groups of one class each, in an order that mixes them; the last 100 rows have no class."""
    random = np.random.default_rng(0)
    label = np.arange(count) % GROUPS
    angle = 2 * np.pi * label / GROUPS
    x, y = (of(angle) * 10 + random.normal(size=count) for of in (np.cos, np.sin))
    known = np.arange(count) < count - 100
    ids = pa.table(
        {
            "shard": [f"shard-{row // 500}.parquet" for row in range(count)],
            "row": [row % 500 for row in range(count)],
            "image_path": [f"{synset(label[row])}_{row}.JPEG" for row in range(count)],
            "label": pa.array([int(label[row]) if known[row] else None for row in range(count)], pa.int64()),
            "synset_id": [synset(label[row]) if known[row] else None for row in range(count)],
            "class_name": [CLASSES[label[row]] if known[row] else None for row in range(count)],
        }
    )
    activation = np.where(np.arange(count) % 7 == 0, np.nan, x * 2.5).astype(np.float32)
    # Channel C is among the strongest of the points of class C, and channel 9 of all.
    strongest = np.stack([label, np.full(count, 9), 5 + np.arange(count) % 3], axis=1)
    pages = [None if channel == 9 else f"run/mixed/{channel}.html" for channel in range(10)]
    settings = {
        "x": x.astype(np.float32),
        "y": y.astype(np.float32),
        "ids": ids,
        "title": "mixed: five groups",
        "colourings": {
            "class": categories_of_labels(ids),
            "cluster": Categories(np.where(y > -9, label // 2, -1), ["one", "two", "three"], none="noise"),
            "mixed:3": Values(activation, group="mixed", page="run/mixed/3.html"),
        },
        "thumbnails": thumbnails(count),
        "warnings": ["UNTRAINED NETWORK: random weights"],
        "essentials": ["tiny", "mixed, mean"],
        "facts": [("map", "by hand")],
        "command": "exemplar-ray explore STORE",
        "scores": [Score("adjusted Rand index", ("0.91", "0.02"), "Whether clusters are the classes.")],
        "score_columns": ("trained", "untrained"),
        "channels": StrongestChannels(strongest, [f"mixed:{channel}" for channel in range(10)], pages),
    }
    return MapPoints(**settings | changes)
