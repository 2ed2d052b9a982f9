"""Looking at shards before a run: what each says of itself, and whether they agree on what labels are."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import pyarrow as pa

from exemplar_ray.data.columns import NO_LABELS, Chosen
from exemplar_ray.data.footers import PointerError
from exemplar_ray.data.formats.format import Look
from exemplar_ray.data.formats.registry import format_of
from exemplar_ray.data.shard import Shard
from exemplar_ray.errors import UsageError

_THREADS = 32
_MOST_NAMED = 10
# Texts that are as many are captions, or names of files.
_MOST_CLASSES = 100_000


class Surveyed(NamedTuple):
    """What a data set's shards are."""

    looks: list[Look | None]
    """In the order of the shards; None for those that are not what they should be."""
    class_names: list[str] | None
    """Index = label."""


def look_at(shards: Sequence[Shard], chosen: Chosen, numbers_are_known: bool) -> Surveyed:
    """Find out what is where.

    Args:
        chosen: the columns that the user names.
        numbers_are_known: the user says what class each number is, so that shards may name them differently.

    Raises:
        UsageError: see `shards.inspect`.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        looked = list(pool.map(lambda shard: _look_or_pointer(shard, chosen), shards))
        _refuse_pointers([pointer for pointer in looked if isinstance(pointer, PointerError)])
        looks = [look for look in looked if not isinstance(look, PointerError)]
        found = [look for look in looks if look is not None]
        _refuse_different_labels(found, chosen)
        if any(look.columns.texts for look in found):
            names: list[str] | None = _texts(shards, looks, pool)
            texts = tuple(names or ())
            looks = [
                look and look._replace(columns=replace(look.columns, names=texts if look.columns.texts else None))
                for look in looks
            ]
        else:
            list(pool.map(_refuse_odd_labels, shards, looks))
            names = None if numbers_are_known and _differing_names(found) else _agreed_names(found)
    return Surveyed(looks, names)


def _look_or_pointer(shard: Shard, chosen: Chosen) -> Look | PointerError | None:
    try:
        return format_of(shard).look_at(shard, chosen)
    except PointerError as pointer:
        return pointer


def _refuse_pointers(pointers: Sequence[PointerError]) -> None:
    """Refuse files that are pointers, all of them in one line.

    Raises:
        UsageError: there are some.
    """
    if len(pointers) == 1:
        raise pointers[0]
    if pointers:
        _, what, command = pointers[0].args
        named = ", ".join(f"'{pointer.args[0]}'" for pointer in pointers[:_MOST_NAMED])
        more = f" and {len(pointers) - _MOST_NAMED} more" if len(pointers) > _MOST_NAMED else ""
        raise UsageError(
            f"{len(pointers)} files are {what}s, not the files: {named}{more}; run `{command}` where the data set was "
            "cloned"
        )


# Labels that agree ------------------------------------------------------------------------


def _refuse_different_labels(looks: Sequence[Look], chosen: Chosen) -> None:
    """Refuse shards whose labels cannot be put together.

    Raises:
        UsageError: labels are in columns of different names, or texts here and numbers there; or nowhere, though the
            user names a column.
    """
    labelled = [look for look in looks if look.label_type is not None]
    if looks and not labelled and chosen.label not in (None, NO_LABELS):
        raise UsageError(
            f"no shard has a column '{chosen.label}' (--label-column), '{looks[0].uri}' as little as others"
        )
    for look in labelled[1:]:
        first = labelled[0]
        here, there = look.columns, first.columns
        if here.label != there.label:
            raise UsageError(
                f"labels are in column '{there.label}' of '{first.uri}', and in '{here.label}' of '{look.uri}'; choose "
                f"one with --label-column NAME, or --label-column {NO_LABELS}"
            )
        # A column without a single value says nothing of its type.
        if here.texts != there.texts and not any(pa.types.is_null(one.label_type) for one in (look, first)):
            raise UsageError(
                f"labels in column '{here.label}' are {first.label_type} in '{first.uri}' and {look.label_type} in "
                f"'{look.uri}'; make them the same, or give --label-column {NO_LABELS}"
            )


def _agreed_names(looks: Sequence[Look]) -> list[str] | None:
    """Return the class names of the shard that has most.

    Raises:
        UsageError: two shards name a class differently.
    """
    differing = _differing_names(looks)
    if differing:
        first, second, label = differing
        names = [(look.class_names or [])[label] for look in (first, second)]
        raise UsageError(
            f"class {label} is '{names[0]}' in '{first.uri}' and '{names[1]}' in '{second.uri}': their labels are "
            "numbered differently; give the shards the same numbers, or each a run of its own. If the numbers are the "
            "same and only names differ, --class-labels FILE says what they are"
        )
    return max((look.class_names for look in looks if look.class_names), key=len, default=None)


def _differing_names(looks: Sequence[Look]) -> tuple[Look, Look, int] | None:
    """Return two shards that name a class differently, and the class; None if all agree as far as they go."""
    longest: Look | None = None
    for look in looks:
        if not look.class_names:
            continue
        if longest is None or not longest.class_names:
            longest = look
            continue
        if look.class_names == longest.class_names:
            continue
        for label, (there, here) in enumerate(zip(longest.class_names, look.class_names, strict=False)):
            if there != here:
                return longest, look, label
        longest = max(longest, look, key=lambda one: len(one.class_names or ()))
    return None


# Labels that have to be read ---------------------------------------------------------------


def _refuse_odd_labels(shard: Shard, look: Look | None) -> None:
    if look is not None:
        format_of(shard).refuse_odd_labels(shard, look)


def _texts(shards: Sequence[Shard], looks: Sequence[Look | None], pool: Executor) -> list[str]:
    """Return the texts that labels are, sorted.

    Raises:
        UsageError: a shard cannot be read, so that its classes are not known; or there are too many to be classes.
    """
    unknown = [shard for shard, look in zip(shards, looks, strict=True) if look is None]
    if unknown:
        raise UsageError(
            f"labels are texts, and '{unknown[0].uri}' is no {unknown[0].format} file, so that its classes are not "
            "known; mend it, or leave it out"
        )
    of_texts = [(shard, look.columns) for shard, look in zip(shards, looks, strict=True) if look and look.columns.texts]
    texts: set[str] = set()
    for found in pool.map(lambda one: format_of(one[0]).texts(one[0], one[1], _MOST_CLASSES), of_texts):
        texts |= found
        if len(texts) > _MOST_CLASSES:
            shard, columns = of_texts[0]
            raise UsageError(
                f"column '{columns.label}' of '{shard.uri}' and others has more than {_MOST_CLASSES:,} different "
                f"texts, which are no classes; choose another with --label-column NAME, or --label-column {NO_LABELS}"
            )
    return sorted(texts)
