"""Data sets on the Hugging Face Hub by their name and split: which files these are, as the library `datasets` has it.

That is what the data set's card says of its configurations, or else what the names of its files and folders say.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from exemplar_ray.errors import UsageError, near_matches, one_line
from exemplar_ray.storage import hub
from exemplar_ray.storage.hub_uri import PROTOCOL, is_on_hub, parse, without_revision

_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?")
# A name that ends so is that of a file, which is not there.
_OF_A_FILE = re.compile(r"\.(parquet|tar|tar\.\w+|tgz|zip|jpe?g|png|csv|json|txt)$", re.IGNORECASE)
_CARD = "README.md"


def addressed(data: Sequence[str], already: Mapping[str, str] | None = None) -> tuple[list[str], dict[str, str]]:
    """Return data in which `OWNER/NAME` is a data set on the Hub, if no file or folder is there under that name; and
    the commits at which to read it.

    Args:
        already: see `hub.resolve_revisions`.

    Raises:
        UsageError: see `hub.resolve_revisions`.
    """
    names = [uri for uri in data if _NAME.fullmatch(uri) and not _OF_A_FILE.search(uri) and not os.path.lexists(uri)]
    whole = [f"{PROTOCOL}datasets/{uri}" if uri in names else uri for uri in data]
    try:
        return whole, hub.resolve_revisions(whole, already)
    except UsageError as error:
        if not names:
            raise
        raise UsageError(
            f"'{names[0]}' is no file or folder here, and a data set of that name cannot be had from the Hugging Face "
            f"Hub: {error}"
        ) from error


def is_data_set(uri: str) -> bool:
    """Whether a URI is a data set on the Hub as a whole: its name, and nothing in it.

    >>> is_data_set("hf://datasets/org/birds@v1"), is_data_set("hf://datasets/org/birds/data")
    (True, False)
    """
    if not is_on_hub(uri) or (place := parse(uri)).is_bucket:
        return False
    return place.type == "dataset" and not place.path_in_repo


def refuse_split_elsewhere(data: Sequence[str], split: str | None) -> None:
    """Refuse to choose a split of what has none.

    Raises:
        UsageError: some of the data is no data set on the Hub, and `split` is not None.
    """
    others = [uri for uri in data if not is_data_set(uri)]
    if split is not None and others:
        raise UsageError(
            f"--split is of a data set on the Hub that is given by its name, and '{others[0]}' is none: "
            "name its files, folders or globs"
        )


def files_of(uri: str, split: str | None, fs: Any) -> list[str]:
    """Return the paths, in the Hub's file system, of the files that are a split of a data set.

    Args:
        uri: of the data set, with a commit.
        split: None for the only one.
        fs: the Hub's file system, to read the card.

    Raises:
        UsageError: it has other splits, or several, or several configurations, or no data.
        OSError: see `HubFileSystem`.
    """
    # It takes seconds to import.
    from datasets import data_files
    from datasets.utils.metadata import MetadataConfigs

    from exemplar_ray.storage.hub_files import explained

    name = without_revision(uri)
    with explained(uri):
        try:
            config = _config(name, MetadataConfigs.from_dataset_card_data(_card(uri, fs)))
            base = f"{uri}/{config['data_dir'].strip('/')}" if config.get("data_dir") else uri
            patterns: dict[str, Any] = (
                data_files.get_data_patterns(base)
                if config.get("data_files") is None
                else data_files.sanitize_patterns(config["data_files"])
            )
            chosen = patterns[_split(name, list(patterns), split)]
            found = data_files.DataFilesList.from_patterns(chosen, base_path=base)
        except data_files.EmptyDatasetError:
            raise UsageError(f"'{name}' has no files of data") from None
        except ValueError as error:
            raise UsageError(f"what the card of '{name}' says of its files is unclear: {one_line(error)}") from error
    return [path.removeprefix(PROTOCOL) for path in dict.fromkeys(found)]


def _card(uri: str, fs: Any) -> Any:
    from huggingface_hub import DatasetCard, DatasetCardData

    path = f"{uri.removeprefix(PROTOCOL)}/{_CARD}"
    if not fs.exists(path):
        return DatasetCardData()
    with fs.open(path, "rb") as file:
        return DatasetCard(file.read().decode()).data


def _config(name: str, configs: Any) -> Mapping[str, Any]:
    """Return the configuration that the card says is the default, or the only one; nothing where it names none."""
    default = configs.get_default_config_name()
    if default is not None or not configs:
        return configs.get(default, {})
    of_one: Any = next(iter(configs.values())).get("data_files", "**")
    while not isinstance(of_one, str):
        of_one = of_one["path"] if isinstance(of_one, Mapping) else of_one[0]
    raise UsageError(
        f"'{name}' has several configurations: {', '.join(map(str, configs))}; name the files of one by a glob, such "
        f"as '{name}/{of_one}'"
    )


def _split(name: str, splits: Sequence[str], split: str | None) -> str:
    if split is None and len(splits) == 1:
        return splits[0]
    if split is None:
        raise UsageError(f"'{name}' has several splits: {', '.join(splits)}; choose one with --split NAME")
    if split not in splits:
        raise UsageError(f"'{name}' has no split '{split}'; {near_matches(split, splits)}")
    return split
