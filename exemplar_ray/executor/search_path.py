"""Where workers look for modules: not in the working folder first, whose files may be called as modules are."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

# The folder that this package is in.
_ROOT = Path(__file__).parents[2]


class SearchPath(list[str]):
    """The folders that Ray puts first on the path of its workers: none but that of this package, if it is needed.

    Ray adds the driver's working folder and its script's. There `profile.py` or `code.py` would stand for the modules
    that torch means, which the driver does not look for there. What is left out goes last, see `cluster`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.left_out: list[str] = []

    def extend(self, folders: Iterable[str]) -> None:
        """Take what Ray adds."""
        for folder in folders:
            (self if _has_this_package(folder) else self.left_out).append(folder)


def _has_this_package(folder: str) -> bool:
    """Whether the driver has this package from a folder, before it looks anywhere else: a clone that is not installed,
    or not the one that is."""
    root, here = (os.path.realpath(path) for path in (_ROOT, folder))
    standard = os.path.realpath(os.path.dirname(os.__file__))
    before = []
    for entry in map(os.path.realpath, sys.path):
        if entry == standard:
            break
        before.append(entry)
    return here == root and here in before
