"""Channels by the names of classes, where a layer gives one number a class. Imports neither torch nor Ray."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from exemplar_ray.data.imagenet_names import synset_ids
from exemplar_ray.data.labels import ClassLabels
from exemplar_ray.errors import UsageError, near_matches
from exemplar_ray.network.layers import Layer, parse_channels

_NUMBERS = re.compile(r"all|[\d,\s-]*")


def are_names(channels: str) -> bool:
    """Whether channels are asked for by names, and not as `layers.parse_channels` reads them.

    >>> are_names("0-9"), are_names("tench"), are_names("n01440764,3")
    (False, True, True)
    """
    return _NUMBERS.fullmatch(channels) is None


def known_classes(model: str, weights: str) -> ClassLabels | None:
    """Return the classes of the outputs of a network that no run has; None where nothing tells.

    torchvision's own weights for classification are of ImageNet's classes, in the order of its labels.
    """
    if model.startswith("torchvision:") and weights == "pretrained":
        return ClassLabels(synset_ids())
    return None


def channels_of(text: str, layer: Layer, classes: ClassLabels | None) -> tuple[int, ...]:
    """Return the channels that are meant, ascending.

    Args:
        text: `all`, `0-9`, or names of classes or synset ids, with numbers among them: `tench,n01443537,7`.
        classes: that the outputs may be of; None where these are not known.

    Raises:
        UsageError: nothing tells that channel i is class i, or a name is of no class, or of several.
    """
    if not are_names(text):
        return parse_channels(text, layer.channel_count)
    count = classes.count if classes else None
    if classes is None or layer.map_size is not None or count != layer.channel_count:
        why = f"there are {count:,} classes" if count else "its classes, and their order, are not known"
        raise UsageError(
            f"channels are 'all', '0-9' or '0,3,7'; '{text}' would be names of classes, but layer '{layer.name}' has "
            f"{layer.channel_count:,} channels{' with maps' if layer.map_size else ''}, and {why}"
        )
    names = classes.by_name()
    known: dict[str, set[int]] = {}
    for name, labels in names.items():
        known.setdefault(_plain(name), set()).update(labels)
    # A name may have commas in it: "tench, Tinca tinca".
    pieces = [text] if _plain(text) in known else text.split(",")
    return tuple(sorted({channel for piece in pieces for channel in _channels(piece.strip(), layer, known, names)}))


def _plain(name: str) -> str:
    # The key comes without spaces, which a list of numbers may have.
    return name.replace(" ", "").casefold()


def _channels(piece: str, layer: Layer, known: Mapping[str, set[int]], names: Iterable[str]) -> Iterable[int]:
    found = known.get(_plain(piece))
    if found is None:
        if not are_names(piece):
            return parse_channels(piece, layer.channel_count)
        raise UsageError(f"channels: no class is called '{piece}'; {near_matches(piece.casefold(), names)}")
    if len(found) > 1:
        of = " and ".join(map(str, sorted(found)))
        raise UsageError(f"channels: '{piece}' is the name of {len(found)} classes, {of}; give one of these numbers")
    return found
