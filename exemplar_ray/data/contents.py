"""Whether a shard holds what it held when it was scanned, told from its bytes. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from exemplar_ray.data.formats.format import Format
from exemplar_ray.data.formats.registry import format_named, format_of, open_shard
from exemplar_ray.data.shard import Shard

_MOST_NAMED = 5


def difference(_settings: Any, given: tuple[int, Shard], facts: Mapping[str, Any]) -> str | None:
    """Read a shard's bytes, and say how they differ from those that were scanned; None if they do not.

    Args:
        given: the shard's position, and the shard.
        facts: of its completion record.

    Raises:
        ShardError: the file is not the one that the shard list describes.
    """
    shard = given[1]
    with open_shard(shard) as reader:
        changed = changed_groups(format_of(shard), facts.get("contents"), reader.contents_now())
    return "what it held then was not recorded" if changed is None else changed or None


def why_done_anew(
    format_name: str | None, then: Sequence[str] | None, now: Sequence[str] | None, if_the_same: str
) -> str | None:
    """Say why a shard that was done anew, as its part was wrong, had been so; None if nothing tells.

    Args:
        format_name: as completion records have it.
        then, now: see `ShardReader.contents`.
        if_the_same: what it was if the shard's bytes are the same.
    """
    changed = changed_groups(format_named(format_name), then, now)
    if changed is None:
        return None
    return f"its file changed ({changed})" if changed else f"its file is the same: {if_the_same}"


def changed_groups(kind: Format, then: Sequence[str] | None, now: Sequence[str] | None) -> str | None:
    """Say in which groups of rows two records of a shard's bytes differ.

    Args:
        kind: the shard's.
        then, now: see `ShardReader.contents`.

    Returns:
        "" if they do not; None if one of them is not known.
    """
    if then is None or now is None:
        return None
    if len(then) != len(now):
        return f"{len(then)} groups of rows then, {len(now)} now"
    groups = [group for group, (one, other) in enumerate(zip(then, now, strict=True)) if one != other]
    if not groups:
        return ""
    more = f" and {len(groups) - _MOST_NAMED} more" if len(groups) > _MOST_NAMED else ""
    return f"other bytes in {kind.groups(groups[:_MOST_NAMED])}{more}"
