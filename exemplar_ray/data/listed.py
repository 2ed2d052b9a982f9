"""Files as they were found: one by one, or as the images of a folder; and what was passed over on the way."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from PIL import Image

from exemplar_ray.errors import UsageError

SHARD_ENDINGS = PARQUET_ENDING, TAR_ENDING = ".parquet", ".tar"
_MACS = "__MACOSX"
# Pillow has an ending for these, and only writes them, or reads none of them without another program or package.
_NEVER_READ = {"PALM", "PDF"} | {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}


class Listed(NamedTuple):
    """One file, as it was found."""

    uri: str
    """For any process to open it by; a path of the local disk is whole."""
    place: str
    """Where it is, for names: without commits, an archive like a folder."""
    size: int
    """Bytes."""
    stamp: str | None = None
    """What the storage says of the content, without reading it: an ETag, or when it was modified."""

    @property
    def is_tar(self) -> bool:
        """Whether it is a tar by its name."""
        return self.place.endswith(TAR_ENDING)


class ImageFile(NamedTuple):
    """An image that is a file of its own."""

    name: str
    """Its path below the folder that it was found in, with `/`."""
    size: int
    stamp: str | None = None
    """See `Listed`."""


@dataclass
class ImageFolder:
    """Images below a folder, by name: folder by folder, in each by its parts."""

    given: str
    """What the user named: the folder, or a glob; as a whole URI."""
    uri: str
    """The folder."""
    place: str
    """See `Listed`."""
    files: list[ImageFile]


@dataclass
class LeftOut:
    """What was passed over on the way."""

    hidden: list[str] = field(default_factory=list)
    lost_links: list[str] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    """Files that were named before, under this or another name."""
    others: list[str] = field(default_factory=list)
    """Files that are no data, beside those that are."""

    def lines(self) -> list[str]:
        """Say it; nothing where there was nothing."""
        kinds = (
            (self.hidden, "hidden files or folders are left out"),
            (self.lost_links, "links that lead nowhere are left out"),
            (self.again, "files are named again, and counted once"),
            (self.others, "other files are left out"),
        )
        return [f"{len(names)} {what}, such as '{shown(names[0])}'" for names, what in kinds if names]

    def add(self, other: LeftOut) -> None:
        """Take in what was passed over elsewhere."""
        for name in ("hidden", "lost_links", "again", "others"):
            getattr(self, name).extend(getattr(other, name))


class Place(ABC):
    """What a path stands for in some file system."""

    folder: bool
    """Whether it is one."""
    glob: bool
    """Whether it is a pattern of names."""

    @abstractmethod
    def names(self) -> list[str]:
        """Return the names of files directly in the folder, but for hidden ones."""

    @abstractmethod
    def has_images(self) -> bool:
        """Whether there is an image in the folder or one in it, but for hidden ones."""

    @abstractmethod
    def files(self, ending: str, left_out: LeftOut) -> Iterator[Listed]:
        """Yield files directly in the folder whose names end so."""

    @abstractmethod
    def images(self, left_out: LeftOut) -> ImageFolder:
        """Return the images in the folder and those in it."""

    @abstractmethod
    def matches(self, left_out: LeftOut) -> list[Listed]:
        """Return the files that the path stands for, if it is no folder: itself, or those that it matches as a glob."""

    @abstractmethod
    def as_images(self, files: Sequence[Listed]) -> ImageFolder:
        """Return images among `matches` as those of a folder: the one that the glob looks into, or that the file is
        in."""


def shown(name: str) -> str:
    """Return a name that can be printed, whatever bytes it has."""
    return name.encode(errors="backslashreplace").decode()


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is for the system, not for people."""
    return name.startswith(".") or name == _MACS


def is_image(path: str) -> bool:
    """Whether a file's name ends as those of images do that Pillow reads."""
    ending = os.path.splitext(path)[1].lower()
    # Asking Pillow makes it import all that it can read.
    return ending not in SHARD_ENDINGS and ending in _endings()


@cache
def _endings() -> frozenset[str]:
    Image.init()
    return frozenset(ending for ending, kind in Image.EXTENSION.items() if kind not in _NEVER_READ)


def in_order(files: Iterable[ImageFile]) -> list[ImageFile]:
    """Sort images: folder by folder, as names of parts go."""
    return sorted(files, key=lambda file: file.name.split("/"))


def class_of(name: str) -> str | None:
    """Return the class of an image by its path below the folder: the first folder in it; None directly in it.

    >>> class_of("ant/winged/1.png"), class_of("1.png")
    ('ant', None)
    """
    folder, separator, _ = name.partition("/")
    return folder if separator else None


def refuse_names_that_are_no_text(paths: Iterable[str], what: str) -> None:
    """Refuse names that cannot be written down, as tables and `run.json` do.

    Raises:
        UsageError: a path is not valid UTF-8, or has half a character in it.
    """
    bad = [path for path in paths if not _is_text(path)]
    if bad:
        more = f" ({len(bad)} such names)" if len(bad) > 1 else ""
        raise UsageError(f"{what} '{shown(bad[0])}' has a name that is not UTF-8{more}; rename it, such as with convmv")


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
