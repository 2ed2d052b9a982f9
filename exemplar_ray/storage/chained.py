"""fsspec's chained addresses: `zip://*.parquet::s3://bucket/all.zip`, `simplecache::https://...`.

The first link opens the files. What is behind `::` is where it gets them from, and has to stay with every file's
address.
"""

from __future__ import annotations

import os

import fsspec
from fsspec.implementations.chained import ChainedFileSystem

from exemplar_ray.errors import UsageError
from exemplar_ray.storage.hub_uri import is_on_hub

_SEPARATOR = "::"
_ON_DISK = ("file://", "local://")


def is_chained(uri: str) -> bool:
    """Whether an address has several links; a file or folder on this disk may have `::` in its name."""
    first, separator, _ = uri.partition(_SEPARATOR)
    on_disk = ("/" in first and "://" not in first) or os.path.exists(uri)
    return bool(separator) and not on_disk


def refuse_hub_inside(uri: str) -> None:
    """Refuse what would be read at whatever commit a branch is at.

    Raises:
        UsageError: a link of a chain is on the Hub.
    """
    if is_chained(uri) and any(map(is_on_hub, uri.split(_SEPARATOR))):
        raise UsageError(
            f"'{uri}': a file on the Hugging Face Hub is read by its own address, hf://..., which names a commit; "
            "inside another address (::) it would not"
        )


def address_of(uri: str, name: str) -> str:
    """Return the address of one file.

    Args:
        uri: what stands for the file: a chain whose first path may be a folder or a glob.
        name: the file's, in the file system of that chain.
    """
    links = uri.split(_SEPARATOR)
    at = _place_of_path(links)
    protocol = _protocol(links[at])
    links[at] = name if protocol in ("", "file", "local") or "://" in name else f"{protocol}://{name}"
    # Workers may have another working folder.
    return _SEPARATOR.join(_whole(link) for link in links)


def place_of(address: str) -> str:
    """Return where a file is, without caches: `s3://bucket/all.zip/train.parquet`.

    >>> place_of("zip://data/a.parquet::simplecache::s3://bucket/all.zip")
    's3://bucket/all.zip/data/a.parquet'
    >>> place_of("simplecache::s3://bucket/a.parquet")
    's3://bucket/a.parquet'
    """
    outermost, *inner = reversed([link for link in address.split(_SEPARATOR) if not _is_bare(link)])
    return "/".join([outermost, *(link.partition("://")[2].strip("/") for link in inner)])


def _place_of_path(links: list[str]) -> int:
    """Return which link says the file: caches take their path from the link behind them."""
    for at, link in enumerate(links):
        cache = issubclass(fsspec.get_filesystem_class(_protocol(link) or "file"), ChainedFileSystem)
        if not (cache and _is_bare(link)):
            return at
    raise UsageError(f"'{_SEPARATOR.join(links)}' names no file")


def _is_bare(link: str) -> bool:
    """Whether a link is a protocol and nothing else."""
    return link.endswith("://") or ("/" not in link and link in fsspec.available_protocols())


def _protocol(link: str) -> str:
    """Return a link's protocol; "" of a path on the disk."""
    return link if _is_bare(link) and "://" not in link else link.partition("://")[0] if "://" in link else ""


def _whole(link: str) -> str:
    """Return a link with its path on the disk, if it is one, as a whole one."""
    if _is_bare(link):
        return link
    for protocol in _ON_DISK:
        if link.startswith(protocol):
            return protocol + os.path.abspath(os.path.expanduser(link.removeprefix(protocol)))
    return link if "://" in link else os.path.abspath(os.path.expanduser(link))
