"""What the user sets: flags over the keys of a config file, and from these the dataclasses that jobs take."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import yaml

from exemplar_ray.activations.spec import ActivationOptions
from exemplar_ray.check.options import CheckOptions
from exemplar_ray.circuits.spec import CircuitOptions
from exemplar_ray.compare.options import CompareOptions
from exemplar_ray.errors import UsageError, near_matches
from exemplar_ray.executor.resources import Resources
from exemplar_ray.exemplars.spec import RunOptions, RunSpec
from exemplar_ray.explore.spec import ExploreOptions
from exemplar_ray.keys import Key, keys_of
from exemplar_ray.visualize.spec import PictureOptions

T = TypeVar(
    "T",
    RunSpec,
    RunOptions,
    Resources,
    CheckOptions,
    PictureOptions,
    CircuitOptions,
    ActivationOptions,
    ExploreOptions,
    CompareOptions,
)

WHERE: dict[str, tuple[Key, type]] = {
    "data": (
        Key(
            "URI",
            "parquet shards, tars or images: files, folders, globs, local, s3://, hf://, ...; or OWNER/NAME on the Hub",
        ),
        list,
    ),
    "out": (Key("RUN", "the run folder, local or remote"), str),
}

RUN_KEYS = {**WHERE, **keys_of(RunSpec, RunOptions, Resources)}
"""{key: (how it is explained, what type its values are)} of `run`; `list` for several values."""

CHECK_KEYS = {**RUN_KEYS, **keys_of(CheckOptions)}
"""The same of `check`: a run's file serves it, too."""


VISUALIZE_KEYS = {**RUN_KEYS, **keys_of(PictureOptions)}
"""The same of `visualize`."""

CIRCUITS_KEYS = {**RUN_KEYS, **keys_of(CircuitOptions)}
"""The same of `circuits`."""

ACTIVATIONS_KEYS = {**RUN_KEYS, **keys_of(ActivationOptions)}
"""The same of `activations`."""

EXPLORE_KEYS = {**RUN_KEYS, **keys_of(ExploreOptions)}
"""The same of `explore`, whose `layer` and `seed` are its own."""

_OF_JOBS_UPON_RESULTS = {key: RUN_KEYS[key] for key in ("address", "cpus_per_task", "retries", "log_level")}

COMPARE_KEYS = {
    "out": (Key("DIR", "where the comparison goes: a run folder of its own, local or remote"), str),
    **keys_of(CompareOptions),
    **_OF_JOBS_UPON_RESULTS,
}
"""The same of `compare`."""


def add_keys(parser: argparse._ActionsContainer, keys: Mapping[str, tuple[Key, type]]) -> None:
    """Add a flag for each key; one that is not given leaves no trace in the options."""
    for name, (key, kind) in keys.items():
        flags = ["--" + name.replace("_", "-"), *([key.flag] if key.flag else [])]
        if kind is bool:
            parser.add_argument(*flags, help=key.text, default=argparse.SUPPRESS, action=argparse.BooleanOptionalAction)
            continue
        how: dict[str, Any] = {"type": _yaml_value if key.flow else kind}
        if kind is list and not key.flow:
            how = {"nargs": "+"}
        parser.add_argument(*flags, dest=name, metavar=key.metavar, help=key.text, default=argparse.SUPPRESS, **how)


def _yaml_value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is no YAML: {' '.join(str(error).split())}") from error


def settings_of(
    options: argparse.Namespace,
    required: Sequence[str] = ("data", "out"),
    keys: Mapping[str, tuple[Key, type]] = RUN_KEYS,
) -> dict[str, Any]:
    """Lay the flags over the config file's keys.

    Args:
        options: parsed flags; `config` may name a file.
        required: keys that must be there.
        keys: all that there are.

    Raises:
        UsageError: the file cannot be read, a key is unknown or missing, or `data` or `out` has a wrong type. The
            dataclasses check the rest.
    """
    settings = _read_config(options.config, keys) if options.config else {}
    settings.update({key: value for key, value in vars(options).items() if key in keys})
    for key in required:
        if not settings.get(key):
            raise UsageError(f"--{key} is missing: give it as a flag or as a key of --config")
    data = settings.get("data", [])
    if isinstance(data, str):
        data = settings["data"] = [data]
    if not isinstance(data, list) or not all(isinstance(uri, str) for uri in data):
        raise UsageError(f"data is one URI or several, not {data!r}")
    if not isinstance(settings.get("out", ""), str):
        raise UsageError(f"out is a text, not {settings['out']!r}")
    return settings


def _read_config(uri: str, keys: Iterable[str]) -> dict[str, Any]:
    # Only where there is a file: the command line answers sooner without.
    import fsspec

    try:
        with fsspec.open(uri, "rb") as file:
            config = yaml.safe_load(file) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"config '{uri}' cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise UsageError(f"config '{uri}' is a mapping of keys to values, not a {type(config).__name__}")
    for key in config:
        if key not in keys:
            raise UsageError(f"config '{uri}' has an unknown key '{key}'; {near_matches(str(key), keys)}")
    return config


def pick(cls: type[T], settings: Mapping[str, Any]) -> T:
    """Make a dataclass from those settings that are its fields.

    Raises:
        UsageError: a value has the wrong type or an impossible value.
    """
    names = {field.name for field in dataclasses.fields(cls)}
    return cls(**{key: value for key, value in settings.items() if key in names})
