"""Where the row groups of a table with images end.

The bytes of an image stand once in each row group that shows it. So where few images are shown again and again, a row
group takes in more rows, as long as it costs a reader of one channel little. Numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# What a row group may hold where its images repeat: rows, in multiples of the usual; bytes of images, each once, and of
# all else.
_MOST_STEPS = 20
_MOST_BYTES = 32 << 20
# Then its images are shown so many times each, or more.
_SHOWN_AGAIN = 2
# No reader has more than this to unpack from a row group: lists and bytes of Arrow end at 2 GB.
_MOST_UNPACKED = 1 << 30


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
        window = slice(start, min(start + _MOST_STEPS * step, count))
        unpacked = np.cumsum(image_bytes[window] + other_bytes[window])
        each_once = np.cumsum(np.where(shown_before[window] < start, image_bytes[window], 0))
        others = np.cumsum(other_bytes[window])
        most = max(1, int(np.searchsorted(unpacked, _MOST_UNPACKED, side="right")))
        usual = min(step, most)
        wide = most
        for size in (each_once, others):
            wide = min(wide, int(np.searchsorted(size, max(_MOST_BYTES, int(size[usual - 1])), side="right")))
        shown = int(unpacked[wide - 1] - others[wide - 1])
        repeats = shown > 0 and shown >= _SHOWN_AGAIN * int(each_once[wide - 1])
        groups.append(range(start, start + (wide if repeats else usual)))
        start = groups[-1].stop
    return groups


def share_stored(image: np.ndarray, image_bytes: np.ndarray, groups: Sequence[range]) -> float:
    """Return what is left of the bytes of images if each stands once in a row group: 1 if none repeats."""
    shown_before = _last_shown(image)
    starts = np.repeat([group.start for group in groups], [len(group) for group in groups])
    return float(image_bytes[shown_before < starts].sum() / max(1, image_bytes.sum()))


def _last_shown(image: np.ndarray) -> np.ndarray:
    """Return in which row before each its image stood last; -1 where there is none."""
    order = np.argsort(image, kind="stable")
    result = np.full(len(image), -1, np.int64)
    again = np.flatnonzero(image[order][1:] == image[order][:-1]) + 1
    result[order[again]] = order[again - 1]
    return result
