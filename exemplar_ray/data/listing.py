"""The files that paths, folders, globs, addresses and names of data sets stand for.

What a system hides is no data: names that begin with a dot, and `__MACOSX`. Links are followed, and a shard that is
named twice counts once. What is there under a name wins over reading the name as a glob.
"""

from __future__ import annotations

import glob
import os
import posixpath
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, NoReturn

from fsspec.implementations.local import LocalFileSystem

from exemplar_ray.data import hub_data_sets
from exemplar_ray.data.disk_files import OnDisk
from exemplar_ray.data.listed import (
    PARQUET_ENDING,
    TAR_ENDING,
    ImageFile,
    ImageFolder,
    LeftOut,
    Listed,
    Place,
    in_order,
    is_image,
    refuse_names_that_are_no_text,
    shown,
)
from exemplar_ray.data.remote_files import InStorage
from exemplar_ray.errors import UsageError, one_line
from exemplar_ray.storage import chained, hub
from exemplar_ray.storage.hub_uri import PROTOCOL, AccessError, is_on_hub, without_revision
from exemplar_ray.storage.transient import ATTEMPTS, is_transient, patiently

_PARQUET, _TAR, _IMAGES, _OTHER = PARQUET_ENDING, TAR_ENDING, "images", "other"
_COMPRESSED = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)


@dataclass
class Found:
    """What data are made of."""

    files: list[Listed] = field(default_factory=list)
    """Shards: parquet files and tars."""
    folders: list[ImageFolder] = field(default_factory=list)
    """Images that are files of their own."""
    images: list[Listed] = field(default_factory=list)
    """Images that are named one by one."""


def list_files(data: Sequence[str], revisions: Mapping[str, str], left_out: LeftOut, split: str | None = None) -> Found:
    """List the files that some URIs stand for, each once, sorted by place.

    Args:
        data: paths or URIs of any file system that fsspec opens. A folder stands for the parquet files directly in it,
            or the tars, or else for the images in it and its folders. A data set on the Hub stands for the files that
            its card says.
        revisions: see `hub.resolve_revisions`.
        left_out: gets what is passed over.
        split: of data sets on the Hub.

    Raises:
        UsageError: nothing matches, or a file system cannot be reached, or a file is in the data at two revisions; or
            an URI may be read in several ways, or is of what cannot be read.
    """
    found = Found()
    for uri in data:
        one = _expand(hub.pinned(uri, revisions), left_out, split)
        if not (one.files or one.folders or one.images):
            raise UsageError(f"no parquet shard, tar or image matches '{shown(uri)}'")
        found.files += one.files
        found.folders += one.folders
        found.images += one.images
    folders = [*found.folders, *_of_common_folders(found.images)]
    return Found(_each_once(found.files, left_out), _put_together(folders, left_out))


# Shards -----------------------------------------------------------------------------------


def _each_once(files: Iterable[Listed], left_out: LeftOut) -> list[Listed]:
    """Return files sorted by place, each once, under whatever names it was found.

    Raises:
        UsageError: a file is there at two revisions, or a name is no text.
    """
    found: dict[str, Listed] = {}
    for file in files:
        known = found.setdefault(file.place, file)
        if known is not file:
            if known.uri != file.uri and is_on_hub(file.uri):
                raise UsageError(f"'{file.place}' is in the data at two revisions; give one")
            left_out.again.append(file.place)
    refuse_names_that_are_no_text(found, "shard")
    # Of several names of one file its own is kept, or else the first.
    themselves = _files_themselves(place for place, file in found.items() if file.uri == place and os.path.isabs(place))
    names: dict[str, str] = {}
    for place in sorted(themselves, key=lambda place: (themselves[place] != place, place)):
        if names.setdefault(themselves[place], place) != place:
            left_out.again.append(place)
            del found[place]
    return [found[place] for place in sorted(found)]


def _files_themselves(paths: Iterable[str]) -> dict[str, str]:
    """Return {path: the same without links on the way}, asking of every folder once."""
    folders: dict[str, str] = {}
    files = {}
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        there = os.path.join(folders[folder], name)
        files[path] = os.path.realpath(there) if os.path.islink(there) else there
    return files


# Images -----------------------------------------------------------------------------------


def _put_together(folders: Sequence[ImageFolder], left_out: LeftOut) -> list[ImageFolder]:
    """Return folders of images sorted by place, each image once.

    A link to an image is an image of its own: it may be of another class, or stand for another with the same content.

    Raises:
        UsageError: a name is no text, or a folder is there at two revisions.
    """
    together: dict[str, ImageFolder] = {}
    for folder in folders:
        known = together.setdefault(folder.place, folder)
        if known is folder:
            continue
        if known.uri != folder.uri:
            raise UsageError(f"'{folder.place}' is in the data at two revisions; give one")
        files = in_order([*known.files, *folder.files])
        together[folder.place] = ImageFolder(known.uri, known.uri, known.place, files)
    found = [together[place] for place in sorted(together)]
    seen: set[str] = set()
    for folder in found:
        refuse_names_that_are_no_text((f"{folder.place}/{file.name}" for file in folder.files), "image")
        # A folder on the disk may be given by several names.
        real = os.path.realpath(folder.place) if os.path.isabs(folder.place) else folder.place
        once = []
        for file in folder.files:
            place = f"{real.rstrip('/')}/{file.name}"
            if place in seen:
                left_out.again.append(place)
            else:
                once.append(file)
            seen.add(place)
        folder.files = once
    return [folder for folder in found if folder.files]


def _of_common_folders(images: Sequence[Listed]) -> list[ImageFolder]:
    """Return images that were named one by one as those of the folder that all are in; one for each storage."""
    by_storage: dict[tuple[str, ...], list[Listed]] = {}
    for image in images:
        parts = image.place.split("/")
        root = 1 if os.path.isabs(image.place) else 5 if is_on_hub(image.place) else 3
        by_storage.setdefault(tuple(parts[:root]), []).append(image)
    folders = []
    for of_storage in by_storage.values():
        levels = zip(*(image.place.split("/")[:-1] for image in of_storage), strict=False)
        shared = len(list(takewhile(lambda names: len(set(names)) == 1, levels)))
        names = ["/".join(image.place.split("/")[shared:]) for image in of_storage]
        # A place has no commit, and so may be shorter.
        [uri, place] = (path[: -len(names[0]) - 1] or "/" for path in (of_storage[0].uri, of_storage[0].place))
        files = [ImageFile(name, image.size, image.stamp) for name, image in zip(names, of_storage, strict=True)]
        folders.append(ImageFolder(uri, uri, place, in_order(files)))
    return folders


# What one URI stands for ------------------------------------------------------------------


def _expand(uri: str, left_out: LeftOut, split: str | None) -> Found:
    """Return what one URI stands for."""
    chained.refuse_hub_inside(uri)
    try:
        # The Hub's client is patient itself.
        return patiently(lambda: _listed(uri, left_out, split), 1 if is_on_hub(uri) else ATTEMPTS)
    except FileNotFoundError:
        return Found()
    except AccessError as error:
        raise UsageError(str(error)) from error
    except PermissionError as error:
        raise UsageError(
            f"cannot list '{shown(uri)}': access denied ({one_line(error)}); check permissions or credentials"
        ) from error
    except Exception as error:
        if not isinstance(error, (OSError, ValueError, ImportError, TypeError)) and not is_transient(error):
            raise
        raise UsageError(f"cannot list '{shown(uri)}': {one_line(error)}") from error


def _listed(uri: str, left_out: LeftOut, split: str | None) -> Found:
    # An attempt that fails half-way leaves nothing behind.
    passed_over = LeftOut()
    fs, path = hub.file_system(uri)
    if isinstance(fs, LocalFileSystem):
        found = _of_place(OnDisk(path), uri, passed_over)
    else:
        fs.invalidate_cache()
        try:
            if hub_data_sets.is_data_set(uri):
                found = _of_data_set(uri, split, fs, passed_over)
            else:
                found = _of_place(InStorage(uri, fs, path), uri, passed_over)
        except FileNotFoundError as error:
            # fsspec's web client says so of whatever went wrong.
            if error.__cause__ is not None and is_transient(error.__cause__):
                raise ConnectionError(one_line(error.__cause__)) from error
            raise
    left_out.add(passed_over)
    return found


def _of_place(place: Place, uri: str, left_out: LeftOut) -> Found:
    """Return what is at a place, if that is one thing.

    Raises:
        UsageError: it may be several, or is none that can be read.
    """
    if not place.folder:
        return _of_matches(place, uri, left_out)
    kinds = {kind for name in place.names() if (kind := _kind_of(name)) is not None}
    if kinds == {_TAR} and place.has_images():
        kinds.add(_IMAGES)
    _refuse_several(uri, kinds)
    for kind in kinds & {_PARQUET, _TAR}:
        return Found(list(place.files(kind, left_out)))
    images = place.images(left_out)
    if not images.files:
        for name in filter(_COMPRESSED.search, place.names()):
            _refuse_compressed(name)
    return Found(folders=[images] if images.files else [])


def _of_matches(place: Place, uri: str, left_out: LeftOut) -> Found:
    """Return the file at a place, or those that a glob matches."""
    files = place.matches(left_out)
    images = [file for file in files if is_image(file.place)]
    if not images or chained.is_chained(uri) or place.glob:
        found = _of_files(uri, files, left_out)
        return Found(found.files, [place.as_images(images)] if images else [])
    return Found(images=images)


def _of_files(uri: str, files: Sequence[Listed], left_out: LeftOut) -> Found:
    """Sort out files.

    Raises:
        UsageError: they are of several kinds, or compressed.
    """
    by_kind: dict[str, list[Listed]] = {}
    for file in files:
        by_kind.setdefault(_kind_of(file.place) or _OTHER, []).append(file)
    others = by_kind.pop(_OTHER, [])
    _refuse_several(uri, by_kind.keys())
    for file in others:
        if _COMPRESSED.search(file.place):
            _refuse_compressed(file.place)
    if _IMAGES in by_kind:
        left_out.others += [file.place for file in others]
        return Found(images=by_kind[_IMAGES])
    # A file of another name may be a parquet file: its footer says so.
    return Found([*(file for of_kind in by_kind.values() for file in of_kind), *others])


def _of_data_set(uri: str, split: str | None, fs: Any, left_out: LeftOut) -> Found:
    """Return the files of a data set on the Hub.

    Raises:
        UsageError: see `hub_data_sets.files_of`; or none can be read where it is.
    """
    paths = hub_data_sets.files_of(uri, split, fs)
    files = [file for path in paths for file in InStorage(PROTOCOL + path, fs, path).matches(left_out)]
    readable = [file for file in files if _kind_of(file.place)]
    if not readable:
        name, of_split = without_revision(uri), f" --split {split}" if split else ""
        raise UsageError(
            f"'{name}' has neither parquet files, tars nor images that can be read where they are, but files such as "
            f"'{posixpath.basename(files[0].place)}'; write shards of it: exemplar-ray shard "
            f"{name.removeprefix(f'{PROTOCOL}datasets/')} DIR{of_split}"
        )
    left_out.others += [file.place for file in files if not _kind_of(file.place)]
    return _of_files(uri, readable, left_out)


def _kind_of(name: str) -> str | None:
    """Return what a file is by its name: an ending, or `_IMAGES`; None where that does not tell."""
    for ending in (_PARQUET, _TAR):
        if name.endswith(ending):
            return ending
    return _IMAGES if is_image(name) else None


def _refuse_several(uri: str, kinds: Collection[str]) -> None:
    """Refuse what may be read in several ways.

    Raises:
        UsageError: it may be.
    """
    if len(kinds) < 2:
        return
    words = {_PARQUET: "parquet shards", _TAR: "tars", _IMAGES: "images"}
    globs = {_PARQUET: "*.parquet", _TAR: "*.tar", _IMAGES: "**/*.jpg"}
    name = shown(without_revision(uri))
    folder = "FOLDER" if glob.has_magic(name) else name
    choices = " or ".join(f"'{folder.rstrip('/')}/{globs[kind]}'" for kind in globs if kind in kinds)
    raise UsageError(
        f"'{name}' stands for {' and '.join(words[kind] for kind in words if kind in kinds)}; choose with a "
        f"glob that matches one kind of them, such as {choices}"
    )


def _refuse_compressed(name: str) -> NoReturn:
    raise UsageError(
        f"'{shown(name)}' is a compressed tar, in which no image can be found without reading all before it; "
        "decompress it, and give the .tar"
    )
