"""What the user says of a data set's columns. Imports nothing: the command line answers sooner."""

from __future__ import annotations

from typing import NamedTuple

NO_LABELS = "none"
"""What stands for a column where no labels are wanted."""


class Chosen(NamedTuple):
    """What the user names of a data set: columns, None to find them, and the split."""

    image: str | None = None
    label: str | None = None
    """`NO_LABELS` to read none."""
    split: str | None = None
    """Of a data set on the Hub that is given by its name; None for the only one."""
