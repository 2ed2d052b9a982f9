"""URIs of the Hugging Face Hub: commits instead of branches.

A branch moves while a run goes on. Its commit is therefore looked up once, on the driver, and every URI that goes
to a task names the commit. The Hub's client takes long to import, and is not before there is something to ask it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from exemplar_ray.storage.chained import is_chained
from exemplar_ray.storage.hub_uri import PROTOCOL, is_on_hub, parse, repository_of


def file_system(uri: str) -> tuple[Any, str]:
    """Return a URI's file system and the path in it, as `fsspec.url_to_fs` does."""
    if not is_on_hub(uri):
        if "::" in uri and not is_chained(uri):
            # fsspec takes any name with this in it for a chain of addresses.
            return fsspec.filesystem("file"), os.path.abspath(uri)
        return fsspec.url_to_fs(uri)
    from exemplar_ray.storage.hub_files import HubFileSystem

    return HubFileSystem(), uri.removeprefix(PROTOCOL)


def is_on_disk(uri: str) -> bool:
    """Whether a URI stands for something in this machine's own file system."""
    return isinstance(file_system(uri)[0], LocalFileSystem)


def resolve_revisions(uris: Sequence[str], already: Mapping[str, str] | None = None) -> dict[str, str]:
    """Look up the commits that the repositories of some URIs are at.

    Args:
        uris: files, folders or globs; those that are not in a repository on the Hub are passed over.
        already: what an earlier call returned: what is in it is not looked up again.

    Returns:
        {"hf://datasets/ORG/NAME@REVISION": commit}; without a revision in the URI it is `main`.

    Raises:
        UsageError: there is no such repository or revision, or no access to it, or no Hub.
    """
    commits = dict(already or {})
    repositories = dict.fromkeys(repository for uri in uris if (repository := repository_of(uri)) is not None)
    for repository in repositories.keys() - commits.keys():
        from exemplar_ray.storage.hub_files import commit_of

        commits[repository] = commit_of(repository)
    return {repository: commits[repository] for repository in repositories}


def pinned(uri: str, revisions: Mapping[str, str]) -> str:
    """Return a URI that names the commit of its repository, as `resolve_revisions` found it."""
    repository = repository_of(uri)
    return uri if repository is None else replace(parse(uri), revision=revisions[repository]).to_uri()
