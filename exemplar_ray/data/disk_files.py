"""What a path on this machine's disk stands for.

What is there under a name wins over reading the name as a glob. Links are followed, but none back to where they come
from.
"""

from __future__ import annotations

import errno
import fnmatch
import glob
import os
import re
import stat
from collections.abc import Iterator, Sequence

from exemplar_ray.data.listed import ImageFile, ImageFolder, LeftOut, Listed, Place, in_order, is_hidden, is_image

_FOLDER, _FILE = stat.S_IFDIR, stat.S_IFREG


class OnDisk(Place):
    """A whole path.

    Raises:
        OSError: it cannot be looked at.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._kind = _kind(path)
        self.folder = self._kind == _FOLDER
        self.glob = self._kind is None and glob.has_magic(path)

    def names(self) -> list[str]:
        """Return the names of files directly in the folder, but for hidden ones."""
        entries = _visible(self._path, LeftOut(), None)
        return [entry.name for entry in entries if entry.is_file() and not is_hidden(entry.name)]

    def has_images(self) -> bool:
        """Whether there is an image in the folder or one in it, but for hidden ones."""
        return any(map(is_image, _matching(self._path, ["**"], LeftOut())))

    def files(self, ending: str, left_out: LeftOut) -> Iterator[Listed]:
        """Yield files directly in the folder whose names end so."""
        return map(_listed, _matching(self._path, ["*" + glob.escape(ending)], left_out))

    def images(self, left_out: LeftOut) -> ImageFolder:
        """Return the images in the folder and those in it."""
        passed_over = LeftOut()
        paths = [path for path in _matching(self._path, ["**"], passed_over) if is_image(path)]
        # A folder has other hidden files, too, which nobody misses.
        left_out.hidden += [path for path in passed_over.hidden if is_image(path) or os.path.isdir(path)]
        left_out.lost_links += [path for path in passed_over.lost_links if is_image(path)]
        return _folder(self._path, self._path, paths)

    def matches(self, left_out: LeftOut) -> list[Listed]:
        """Return the file, or those that match the glob."""
        if self._kind == _FILE:
            return [_listed(self._path)]
        if not self.glob:
            return []
        parts = [part for part in self._path.split("/") if part]
        return list(map(_listed, dict.fromkeys(_matching("/", parts, left_out))))

    def as_images(self, files: Sequence[Listed]) -> ImageFolder:
        """Return images among `matches` as those of a folder."""
        folder = os.path.dirname(self._path)
        while glob.has_magic(folder) and _kind(folder) is None:
            folder = os.path.dirname(folder)
        return _folder(self._path, folder, [file.uri for file in files])


def _folder(given: str, folder: str, paths: Sequence[str]) -> ImageFolder:
    def image(path: str) -> ImageFile:
        size, stamp = _size_and_stamp(path)
        return ImageFile(path.removeprefix(below), size, stamp)

    below = folder.rstrip("/") + "/"
    return ImageFolder(given, folder, folder, in_order(map(image, paths)))


def _listed(path: str) -> Listed:
    return Listed(path, path, *_size_and_stamp(path))


def _size_and_stamp(path: str) -> tuple[int, str]:
    there = os.stat(path)
    return there.st_size, f"modified {there.st_mtime_ns}"


def _matching(folder: str, parts: list[str], left_out: LeftOut, way: frozenset[str] = frozenset()) -> Iterator[str]:
    """Yield the files below a folder whose names match the parts of a glob, one for each level.

    Args:
        way: the folders on the way down through `**`, themselves: a link back to one of them is not followed.
    """
    part, rest = parts[0], parts[1:]
    literal = os.path.join(folder, part)
    if not glob.has_magic(part) or _kind(literal) is not None:
        if rest and _kind(literal) == _FOLDER:
            yield from _matching(literal, rest, left_out)
        elif not rest and _kind(literal) == _FILE:
            yield literal
        return
    deep = part == "**"
    if deep and rest:
        yield from _matching(folder, rest, left_out, way)
    pattern = re.compile(fnmatch.translate(part))
    here = way | {os.path.realpath(folder)}
    for entry in _visible(folder, left_out, None if part.startswith(".") else pattern):
        if not pattern.match(entry.name):
            continue
        if not rest and entry.is_file():
            yield entry.path
        elif entry.is_dir() and deep and not (entry.is_symlink() and os.path.realpath(entry.path) in here):
            yield from _matching(entry.path, parts, left_out, here)
        elif entry.is_dir() and rest and not deep:
            yield from _matching(entry.path, rest, left_out)


def _kind(path: str) -> int | None:
    """Return what is there, links followed: `_FOLDER`, `_FILE` or another format of `stat`; None if nothing is.

    os.path would say so, too, where it could not look.
    """
    try:
        return stat.S_IFMT(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
            return None
        raise


def _visible(folder: str, left_out: LeftOut, asked: re.Pattern[str] | None) -> Iterator[os.DirEntry[str]]:
    """Yield what is in a folder, by name, without what is hidden and links that lead nowhere.

    Args:
        asked: what of these is told as left out; None where hidden ones are asked for.
    """
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if asked is not None and is_hidden(entry.name):
                if asked.match(entry.name):
                    left_out.hidden.append(entry.path)
            elif entry.is_symlink() and _kind(entry.path) is None:
                if asked is None or asked.match(entry.name):
                    left_out.lost_links.append(entry.path)
            else:
                yield entry
