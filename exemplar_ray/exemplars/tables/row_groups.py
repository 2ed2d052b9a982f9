"""Where the row groups of a table with images end.

The bytes of an image stand once in each row group that shows it. So where few images are shown again and again, a row
group takes in as many rows as readers can bear. Numpy only.
"""

from __future__ import annotations

import numpy as np

# What a row group may hold where its images repeat, in bytes: images, each once, and all else that may be large. Who
# reads a channel reads its row group, the Hub shows none of more than 300 MB, and writing one takes four times as much.
_MOST_BYTES = 256 << 20
# Then its images are shown so many times each, or more.
_SHOWN_AGAIN = 2
# No row group is more than this when a reader has an image's bytes as often as it is shown. `datasets` and pyarrow read
# several row groups at a time, and a row group of 2 GB is more than `datasets` can read at all.
_MOST_UNPACKED = 1 << 30
# What else stands in so many rows is not worth counting.
_MOST_ROWS = 1 << 15


def row_groups(image: np.ndarray, image_bytes: np.ndarray, other_bytes: np.ndarray, step: int) -> list[range]:
    """Split rows into row groups.

    Args:
        image: int64 [rows]: equal numbers for equal images, -1 for none.
        image_bytes: int64 [rows]: size of the image, 0 for none.
        other_bytes: int64 [rows]: size of all else that may be large.
        step: how many rows a row group has as a rule.
    """
    count = len(image)
    shown_before = _last_shown(image)
    groups, start = [], 0
    while start < count:
        window = slice(start, min(start + max(step, _MOST_ROWS), count))
        shown = np.cumsum(image_bytes[window])
        each_once = np.cumsum(np.where(shown_before[window] < start, image_bytes[window], 0))
        others = np.cumsum(other_bytes[window])
        stored = each_once + others
        most = max(1, _within(shown + others, _MOST_UNPACKED))
        usual = min(step, most)
        wide = min(most, _within(stored, max(_MOST_BYTES, stored[usual - 1])))
        repeats = 0 < _SHOWN_AGAIN * each_once[wide - 1] <= shown[wide - 1]
        groups.append(range(start, start + (wide if repeats else usual)))
        start = groups[-1].stop
    return groups


def _within(sizes: np.ndarray, most: int) -> int:
    """Return how many of some ascending sizes are at most so large."""
    return int(np.searchsorted(sizes, most, side="right"))


def _last_shown(image: np.ndarray) -> np.ndarray:
    """Return in which row before each its image stood last; -1 where there is none."""
    order = np.argsort(image, kind="stable")
    result = np.full(len(image), -1, np.int64)
    again = np.flatnonzero(image[order][1:] == image[order][:-1]) + 1
    result[order[again]] = order[again - 1]
    return result
