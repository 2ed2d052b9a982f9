"""What is compared with what: which of the two kinds of comparison, layer by layer, or one line that says why not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from exemplar_ray.activations.job_names import WHOLE
from exemplar_ray.compare.options import CompareOptions
from exemplar_ray.compare.sides import Readout, Side, ids_of
from exemplar_ray.comparisons.same_images import same_rows
from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.data.shard import Shard
from exemplar_ray.errors import UsageError, near_matches
from exemplar_ray.network.layers import format_channels

FORMAT_VERSION = 1

SETS, NETWORKS = "images", "networks"
"""What differs: two sets of images in the same network, or two networks over the same images."""

A, B = "A", "B"


class Names(NamedTuple):
    """Which layers are compared, and of which pool."""

    layer: str
    other_layer: str
    pool: str


@dataclass(frozen=True)
class Piece:
    """An item: two layers to compare, or the small pictures of a shard's images."""

    name: str
    layer: str = ""
    other_layer: str = ""
    """Of B; the same of two sets of images."""
    pool: str = ""
    digests: tuple[str, str] = ("", "")
    """Of what is compared."""
    of_channels: bool = True
    """Whether channels are laid beside one another, too; of two networks only layers of one name, where there are
    such."""
    set: str = ""
    shard: Shard | None = None
    """Whose pictures, of which set."""
    share: float = 1.0
    """Of how many of its images."""

    @property
    def names(self) -> Names:
        """Return which layers it compares."""
        return Names(self.layer, self.other_layer, self.pool)

    @property
    def readouts(self) -> tuple[Readout, Readout]:
        """Return what it compares, of A and of B."""
        return Readout(self.layer, self.pool), Readout(self.other_layer, self.pool)

    @property
    def kind(self) -> str:
        """Return what it is called in records and for people."""
        return "piece"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        if self.shard is not None:
            return {"name": self.name, "set": self.set, "shard": self.shard.to_json()}
        values = {key: getattr(self, key) for key in ("name", "layer", "other_layer", "pool", "of_channels")}
        return {**values, "digests": list(self.digests)}

    def change_since(self, recorded: Mapping[str, Any]) -> str | None:
        """Say how it differs from what a completion record has of it; None if it does not."""
        if self.shard is not None:
            return self.shard.change_since(recorded["shard"])
        return None if recorded["digests"] == list(self.digests) else "other activations"

    def may_differ(self, recorded: Mapping[str, Any]) -> bool:
        """Whether only a closer look can tell."""
        return False


@dataclass(frozen=True)
class CompareSpec:
    """What is compared with what, and how: small, and pickles to every worker."""

    kind: str
    a: str
    """Its URI, which means the same in every process."""
    b: str
    preprocess: tuple[Preprocess, Preprocess]
    options: CompareOptions

    def identity(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """Return what decides the result: what is in A and B, not where they are."""
        own = {key: value for key, value in asdict(self.options).items() if key not in ("layer", "other_layer", "pool")}
        compared = [piece.to_json() for piece in pieces if piece.shard is None]
        preprocess = [of.to_json() for of in self.preprocess]
        # As it reads back from a file, where tuples are lists.
        identity = {"format": FORMAT_VERSION, "kind": self.kind, "compared": compared, "preprocess": preprocess, **own}
        return dict(json.loads(json.dumps(identity)))


def decided(a: Side, b: Side, options: CompareOptions) -> tuple[str, list[Piece]]:
    """Find out from two folders which kind of comparison they are for, and of what.

    Raises:
        UsageError: it would mean nothing.
    """
    if WHOLE in options.pool:
        raise UsageError("whole maps (pool none) are not compared: name a pool, such as mean")
    of_network = [(side.network.weights_sha256, side.network.identity()["model"]) for side in (a, b)]
    if of_network[0] == of_network[1]:
        _refuse_another_input(a, b)
        if options.other_layer:
            raise UsageError(
                "A and B are of the same network, whose layers are compared each with itself: leave --other-layer out"
            )
        if options.by != CompareOptions().by:
            raise UsageError("A and B are of the same network: its images are not paired, so leave --by out")
        return SETS, _of_sets(a, b, options)
    _refuse_other_images(a, b, options.by)
    return NETWORKS, _of_networks(a, b, options)


def _refuse_another_input(a: Side, b: Side) -> None:
    """Refuse one network that is shown images in two ways."""
    ways = [{"preprocessing": side.network.preprocess.in_words(), **side.computed} for side in (a, b)]
    for what, of_a in ways[0].items():
        if of_a != ways[1][what]:
            raise UsageError(
                f"{what} differs: {of_a} in A, {ways[1][what]} in B; what would be compared is that, and not the images"
            )


def _refuse_other_images(a: Side, b: Side, by: str) -> None:
    """Refuse two networks over other images."""
    differ = f"A and B are of two networks ({a.network.title}; {b.network.title}), but not over the same images"
    both_stores = a.store is not None and b.store is not None
    if by != CompareOptions().by and not both_stores:
        raise UsageError("the images of a run are named by shard and row: leave --by out")
    if by == CompareOptions().by:
        names = [{shard.name: shard for shard in side.shards} for side in (a, b)]
        for name in sorted(names[0].keys() & names[1].keys()):
            if names[1][name].change_since(names[0][name].to_json()):
                raise UsageError(f"{differ}: shard {name} holds others in B than in A")
        of_images = [(sorted(of), side.images.identity()) for of, side in zip(names, (a, b), strict=True)]
        if not both_stores and of_images[0] != of_images[1]:
            raise UsageError(f"{differ}: their shards, or the parts of these that were asked for, are others")
    if a.store is not None and b.store is not None:
        try:
            same_rows(ids_of(a.store, by), ids_of(b.store, by))
        except UsageError as error:
            hint = "; --by image_path pairs them by their paths" if by == CompareOptions().by else ""
            raise UsageError(f"{differ}: {error}{hint}") from error


def _of_sets(a: Side, b: Side, options: CompareOptions) -> list[Piece]:
    wanted = _wanted(a, options.layer, options.pool)
    there = _wanted(b, options.layer, options.pool)
    common = [readout for readout in wanted if readout in there]
    if not common:
        have = "; ".join(
            f"{side.letter} has {', '.join(f'{layer} ({pool})' for layer, pool in side.readouts) or 'whole maps only'}"
            for side in (a, b)
        )
        raise UsageError(f"A and B have no layer and pool in common: {have}")
    for readout in common:
        _refuse_other_channels(a, b, readout.layer)
    return [_piece(a, b, readout, readout) for readout in common]


def _refuse_other_channels(a: Side, b: Side, layer: str) -> None:
    one, other = a.layer(layer), b.layer(layer)
    if one.channels != other.channels:
        raise UsageError(
            f"'{layer}' has the channels {format_channels(one.channels)} in A and {format_channels(other.channels)} in "
            "B: compare the same ones"
        )
    if one.layout != other.layout:
        raise UsageError(
            f"'{layer}' was read as {one.written_layout} in A and as {other.written_layout} in B: compare the same"
        )


def _of_networks(a: Side, b: Side, options: CompareOptions) -> list[Piece]:
    ones, others = _wanted(a, options.layer, options.pool), _wanted(b, options.other_layer, options.pool)
    pairs = [(one, other) for one in ones for other in others if one.pool == other.pool]
    named_alike = [(one, other) for one, other in pairs if one == other]
    if a.store is None or b.store is None:
        # Of a run there is no activation of every image: only channels of one name and number can be laid together.
        pairs = named_alike
        _refuse_other_rankings(a, b)
        for one, _ in pairs:
            _refuse_other_channels(a, b, one.layer)
    if not pairs:
        have = "; ".join(
            f"{side.letter} has {', '.join(f'{layer} ({pool})' for layer, pool in readouts) or 'whole maps only'}"
            for side, readouts in ((a, ones), (b, others))
        )
        raise UsageError(f"A and B have nothing to compare with one another: {have}")
    return [_piece(a, b, one, other, not named_alike or one == other) for one, other in pairs]


def _refuse_other_rankings(a: Side, b: Side) -> None:
    """Refuse exemplars that were chosen in two ways; a store has no rule but the activation."""
    rules = [side.rules for side in (a, b)]
    for rule, of_a in rules[0].items():
        if of_a != rules[1][rule]:
            raise UsageError(f"exemplars were chosen in two ways: {rule} is {of_a} in A, and {rules[1][rule]} in B")


def _wanted(side: Side, layers: Sequence[str], pools: Sequence[str]) -> list[Readout]:
    """Return what of a side is asked for."""
    readouts = side.readouts
    for asked, known, what in (
        (layers, dict.fromkeys(one.layer for one in readouts), "layer"),
        (pools, dict.fromkeys(one.pool for one in readouts), "pool"),
    ):
        for name in asked:
            if name not in known:
                raise UsageError(f"{side.letter} has no {what} '{name}'; {near_matches(name, known)}")
    return [one for one in readouts if (not layers or one.layer in layers) and (not pools or one.pool in pools)]


def _piece(a: Side, b: Side, one: Readout, other: Readout, of_channels: bool = True) -> Piece:
    name = f"{one.layer} {one.pool}" if one == other else f"{one.layer} with {other.layer}, {one.pool}"
    return Piece(name, one.layer, other.layer, one.pool, (a.digest(one), b.digest(other)), of_channels)


def of_pictures(sides: Sequence[Side], most: int) -> list[Piece]:
    """Return the pieces that make small pictures for a map.

    Args:
        sides: stores.
        most: of so many images; of more, the same share of each shard.
    """
    share = min(1.0, most / max(1, sum(side.count for side in sides)))
    return [
        Piece(f"pictures of {side.letter}: {shard.name}", set=side.letter, shard=shard, share=share)
        for side in sides
        for shard in side.shards
    ]
