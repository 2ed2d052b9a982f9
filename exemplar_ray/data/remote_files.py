"""What a path stands for in a file system that fsspec opens, other than this machine's disk."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from exemplar_ray.data.listed import (
    SHARD_ENDINGS,
    ImageFile,
    ImageFolder,
    LeftOut,
    Listed,
    Place,
    in_order,
    is_hidden,
    is_image,
)
from exemplar_ray.storage import chained
from exemplar_ray.storage.hub_uri import without_revision

# What file systems call it: the Hub, S3 and the web, Google and Azure, archives; then when it was modified.
_STAMPS = (
    *("sha256", "blob_id", "ETag", "etag", "md5Hash", "CRC"),
    *("LastModified", "Last-Modified", "last_modified", "mtime", "modified"),
)
# What in an address is no part of a path.
_QUERY = re.compile(r"[?#]")

Info = Mapping[str, Any]
"""How fsspec describes a file."""


class InStorage(Place):
    """A path in such a file system.

    Args:
        uri: as the user gave it, with the commit if it is on the Hub.
        fs, path: what it stands for.

    Raises:
        Exception: it cannot be looked at: whatever the file system's client raises.
    """

    def __init__(self, uri: str, fs: Any, path: str) -> None:
        self._uri, self._fs = uri, fs
        self._root, self._parts = _glob_of(fs, path)
        self._here: list[Info] | None = None
        self._matched: list[Info] = []
        self.glob = bool(self._parts)
        self.folder = not self.glob and self._is_folder()

    def _is_folder(self) -> bool:
        """Whether there is a folder; unlike fsspec's `isdir`, does not say no where it could not look."""
        if _is_web(self._fs):
            # The web has no folders, but pages with links; to look for them in a file is to download it.
            is_file = self._root.endswith(SHARD_ENDINGS) or is_image(self._root)
            return not is_file and self._fs.isdir(self._root)
        return self._fs.info(self._root)["type"] == "directory"

    def names(self) -> list[str]:
        """Return the names of files directly in the folder, but for hidden ones."""
        return [_name(info) for info in self._listing() if info["type"] == "file" and not _is_hidden(info)]

    def _listing(self) -> list[Info]:
        """List what is directly in the folder, once."""
        if self._here is None:
            # Some stores have a file for the folder itself.
            infos = self._fs.ls(self._root, detail=True)
            self._here = [info for info in infos if info["name"].rstrip("/") != self._root.rstrip("/")]
        return self._here

    def has_images(self) -> bool:
        """Whether there is an image in the folder or one in it, but for hidden ones."""
        return any(not self._is_hidden_below(info) for info in self._images())

    def _images(self) -> list[Info]:
        # The web has no folders: whatever a page links to might be one.
        infos = self._listing() if _is_web(self._fs) else self._fs.find(self._root, detail=True).values()
        return [info for info in infos if info["type"] == "file" and is_image(info["name"])]

    def files(self, ending: str, left_out: LeftOut) -> Iterator[Listed]:
        """Yield files directly in the folder whose names end so."""
        for info in self._listing():
            if info["type"] == "file" and info["name"].endswith(ending):
                if _is_hidden(info):
                    left_out.hidden.append(info["name"])
                else:
                    yield self._listed(info)

    def images(self, left_out: LeftOut) -> ImageFolder:
        """Return the images in the folder and those in it; on the web, those directly in it."""
        images = self._images()
        left_out.hidden += [info["name"] for info in images if self._is_hidden_below(info)]
        return self._folder([info for info in images if not self._is_hidden_below(info)])

    def matches(self, left_out: LeftOut) -> list[Listed]:
        """Return the file, or those that match the glob."""
        self._matched = list(self._infos(left_out))
        return [self._listed(info) for info in self._matched]

    def _infos(self, left_out: LeftOut) -> Iterator[Info]:
        if not self.glob:
            yield self._fs.info(self._root)
            return
        asked = any(map(is_hidden, self._parts))
        pattern = "/".join([*([glob.escape(self._root)] if self._root else []), *self._parts])
        for info in self._fs.glob(pattern, detail=True).values():
            if info["type"] != "file":
                continue
            if not asked and self._is_hidden_below(info):
                left_out.hidden.append(info["name"])
            else:
                yield info

    def as_images(self, files: Sequence[Listed]) -> ImageFolder:
        """Return images among `matches` as those of a folder."""
        wanted = {file.uri for file in files}
        return self._folder([info for info in self._matched if self._address(info["name"]) in wanted])

    def _folder(self, infos: Sequence[Info]) -> ImageFolder:
        root = self._root if self.folder or self.glob else self._root.rpartition("/")[0]
        uri = self._address(root)
        given = uri if not self.glob or _QUERY.search(self._uri) else self._given()
        below = f"{root.rstrip('/')}/" if root else ""
        files = [ImageFile(i["name"].removeprefix(below).lstrip("/"), self._size(i), _stamp(i)) for i in infos]
        return ImageFolder(given, uri, self._place(uri), in_order(files))

    def _is_hidden_below(self, info: Info) -> bool:
        return any(map(is_hidden, info["name"].removeprefix(self._root).strip("/").split("/")))

    def _listed(self, info: Info) -> Listed:
        """Return a file by an address that others can open."""
        size, address = self._size(info), self._address(info["name"])
        return Listed(address, self._place(address), size, _stamp(info))

    def _size(self, info: Info) -> int:
        size = info.get("size")
        if size is None:
            size = self._fs.info(info["name"]).get("size")
        if size is None:
            raise OSError(
                f"the server does not say how large '{info['name']}' is; copy the files to a disk or an object store"
            )
        return size

    def _given(self) -> str:
        # A chain may end on the disk, where workers have another working folder.
        pattern = "/".join([*([self._root] if self._root else []), *self._parts])
        return chained.address_of(self._uri, pattern) if chained.is_chained(self._uri) else self._uri

    def _address(self, name: str) -> str:
        if chained.is_chained(self._uri):
            return chained.address_of(self._uri, name)
        return self._fs.unstrip_protocol(name)

    def _place(self, address: str) -> str:
        return chained.place_of(address) if chained.is_chained(self._uri) else without_revision(address)


def _name(info: Info) -> str:
    return info["name"].rstrip("/").rpartition("/")[2]


def _is_hidden(info: Info) -> bool:
    return is_hidden(_name(info))


def _glob_of(fs: Any, path: str) -> tuple[str, list[str]]:
    """Return the folder below which a glob matches, and the glob's parts, one for each level; no parts if it is none.

    Stars are stars. Brackets and question marks may stand in names, too: what is there under such a name is taken.
    """
    magic = re.compile(r"[*\[]" if _is_web(fs) else r"[*?\[]")
    fixed: list[str] = []
    parts = path.split("/")
    for i, part in enumerate(parts):
        if magic.search(part) and ("*" in part or not _is_there(fs, "/".join([*fixed, part]))):
            return "/".join(fixed), parts[i:]
        fixed.append(part)
    return path.rstrip("/"), []


def _is_there(fs: Any, path: str) -> bool:
    try:
        fs.info(path)
    except FileNotFoundError:
        return False
    return True


def _is_web(fs: Any) -> bool:
    return "http" in (fs.protocol if isinstance(fs.protocol, (list, tuple)) else (fs.protocol,))


def _stamp(info: Mapping[str, Any]) -> str | None:
    """Return what tells of another content, of what fsspec's file systems say of a file; the surest that there is."""
    of_large_files = info.get("lfs") or {}
    for name in _STAMPS:
        value = of_large_files.get(name) if name == "sha256" else info.get(name)
        if value is not None and value != "":
            return f"{name} {value}".replace('"', "")
    return None
