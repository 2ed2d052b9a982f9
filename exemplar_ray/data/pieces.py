"""Pieces: runs of a shard's rows that can be worked on by themselves.

They are runs of row groups, which can be read by themselves, too. Of a shard that is too short for two of these, and
of which each row is much work, they are small: whoever has one reads the whole shard.

Where one ends depends on the shard alone. What is computed of a shard is folded piece by piece, in order, whoever did
which: so its bytes do not depend on that.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ROWS_A_PIECE = 1000
"""About so many rows, or more, are a piece: half a minute's work of a core, beside which opening the file takes
nothing."""
ROWS_A_SMALL_PIECE = 16
"""About so many rows are a small piece: half a second's work of a core, beside which handing it over takes little."""
_MOST_SMALL_PIECES = 16


def first_rows(rows: int) -> list[int]:
    """Return the rows that small pieces begin with, but for the first piece's: pieces are as long as one another.

    Args:
        rows: of the shard.

    >>> first_rows(20), first_rows(30), first_rows(100), len(first_rows(1000))
    ([], [15], [16, 33, 50, 66, 83], 15)
    """
    pieces = min(round(rows / ROWS_A_SMALL_PIECE), _MOST_SMALL_PIECES)
    return [rows * number // pieces for number in range(1, pieces)]


def first_groups(rows: Sequence[int]) -> list[int]:
    """Return the row groups that pieces begin with, but for the first piece's: pieces are as long as one another, as
    far as row groups allow.

    Args:
        rows: of each row group.

    >>> first_groups([100] * 44), first_groups([100] * 19), first_groups([5000]), first_groups([1500, 500])
    ([11, 22, 33], [], [], [1])
    """
    ends = np.cumsum(rows, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    pieces = total // ROWS_A_PIECE
    wanted = [total * number / pieces for number in range(1, pieces)]
    found = {int(np.searchsorted(ends, end)) + 1 for end in wanted}
    return sorted(group for group in found if ends[group - 1] < total)
