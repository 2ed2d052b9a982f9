"""Which channels a map's page can be coloured by."""

from __future__ import annotations

from collections.abc import Sequence

from exemplar_ray.errors import UsageError
from exemplar_ray.network.layers import parse_channels


def coloured_by(asked: str | None, channels: Sequence[int]) -> list[int]:
    """Return the places of the wanted channels among those that a store has.

    Args:
        asked: "all", "none", or numbers as `layers.parse_channels` reads them; None for all.
        channels: the numbers of the store's channels, ascending.

    Raises:
        UsageError: it is none of these, or a channel is not in the store.

    >>> coloured_by("3-5", [1, 3, 5, 4])
    [1, 2, 3]
    """
    if asked == "none":
        return []
    wanted = set(channels) if asked in (None, "all") else set(parse_channels(str(asked), max(channels) + 1))
    if lacking := wanted - set(channels):
        raise UsageError(f"channel {min(lacking)} is not in the store; leave it out of --colours")
    return [place for place, channel in enumerate(channels) if channel in wanted]
