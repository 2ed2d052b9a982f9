"""What people call ImageNet's 1,000 synsets: many copies name classes by their ids alone, and n02101556 is clumber.

`imagenet_synsets.txt` has the ids of ILSVRC 2012, in the order of its labels, and torchvision's words for them: results
are read where there is no torchvision.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

_FILE = Path(__file__).parent / "imagenet_synsets.txt"


def name_of_synset(synset_id: str | None) -> str | None:
    """Return what a synset is called; None for one that is not among ImageNet's 1,000.

    >>> name_of_synset("n02101556"), name_of_synset("n00000001")
    ('clumber', None)
    """
    return _names().get(synset_id or "")


def spelled_out(class_name: str) -> str:
    """Return a class's name; where that is the id of one of ImageNet's synsets, also what people call it.

    >>> spelled_out("n02101556"), spelled_out("tench, Tinca tinca")
    ('n02101556 (clumber)', 'tench, Tinca tinca')
    """
    called = name_of_synset(class_name)
    return f"{class_name} ({called})" if called else class_name


def synset_ids() -> list[str]:
    """Return ImageNet's 1,000 synset ids, in the order of its labels."""
    return list(_names())


@cache
def _names() -> dict[str, str]:
    return dict(line.split("\t") for line in _FILE.read_text(encoding="utf-8").splitlines())
