"""Which axes of a tensor are an image's map, followed through operations that move, join and divide axes. No torch.

A tensor's axes are groups of atoms. An atom is a size and, where it is the map's, a name: "y" or "x". A view only
groups the atoms anew: [images, height, width, channels] seen as [images * height * width, channels] and back, as
linear layers do, loses nothing. An atom that a view divides, as cutting a map into windows does, becomes two, "y>0" and
"y>1", which are one again where they come to stand one behind the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

Atom = tuple[int, str | None]
"""A size, and the name of the map's axis if it is one."""


@dataclass(frozen=True)
class Axes:
    """A tensor's axes: for each the atoms that it is made of."""

    groups: tuple[tuple[Atom, ...], ...]

    @classmethod
    def of_image(cls, shape: Sequence[int]) -> Axes:
        """Return the axes of the network's input, [images, colours, height, width]."""
        images, colours, height, width = shape
        return cls((((images, None),), ((colours, None),), ((height, "y"),), ((width, "x"),)))

    @classmethod
    def unknown(cls, shape: Sequence[int]) -> Axes:
        """Return axes of which none is the map's."""
        return cls(tuple(((size, None),) for size in shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the tensor's shape."""
        return tuple(prod(size for size, _ in group) for group in self.groups)

    @property
    def map_places(self) -> tuple[int, int] | None:
        """Return at which places height and width stand, each alone; None if they do not."""
        places = {self.name_at(place): place for place in range(len(self.groups))}
        return (places["y"], places["x"]) if "y" in places and "x" in places else None

    def has(self, name: str) -> bool:
        """Whether one of the map's axes is there, alone or joined with others."""
        return any(name == named for group in self.groups for _, named in group)

    def name_at(self, place: int) -> str | None:
        """Return the name of the axis at a place if it is one of the map's, alone."""
        if not -len(self.groups) <= place < len(self.groups):
            return None
        named = [atom for atom in self.groups[place] if atom[1] is not None]
        alone = len(named) == 1 and all(size == 1 for size, name in self.groups[place] if name is None)
        return named[0][1] if alone and named[0][1] in ("y", "x") else None

    def is_of_map(self, place: int) -> bool:
        """Whether an axis has one of the map's in it."""
        return any(name is not None for _, name in self.groups[place])

    def is_row_by_row(self, place: int) -> bool:
        """Whether an axis is the map, row by row, and nothing else."""
        return [name for size, name in self.groups[place] if size > 1] == ["y", "x"]

    def without(self, *names: str) -> Axes:
        """Return the same, with some of the map's axes, or of their parts, not known as such any more."""
        gone = set(names)
        return Axes(
            tuple(tuple((s, n if n and n.split(">")[0] not in gone else None) for s, n in g) for g in self.groups)
        )

    def names_at(self, places: Iterable[int]) -> set[str]:
        """Return of which of the map's axes there is anything in some axes: "y", "x"."""
        return {name.split(">")[0] for place in places for _, name in self.groups[place] if name is not None}

    def named(self, names: Mapping[int, str]) -> Axes:
        """Return the same, where an axis at a place is known to be the map's."""
        groups = list(self.groups)
        for place, name in names.items():
            groups[place] = ((self.shape[place], name),)
        return Axes(tuple(groups))

    def permuted(self, order: Sequence[int]) -> Axes:
        """Return the axes in another order."""
        return Axes(tuple(self.groups[place] for place in order))

    def dropped(self, places: Iterable[int]) -> Axes:
        """Return the axes but for some."""
        gone = {place % len(self.groups) for place in places}
        return Axes(tuple(group for place, group in enumerate(self.groups) if place not in gone))

    def with_new(self, place: int) -> Axes:
        """Return the axes with one of size 1 put in."""
        return Axes((*self.groups[:place], ((1, None),), *self.groups[place:]))

    def with_new_last(self, size: int) -> Axes:
        """Return the axes with the last one replaced, as by a product with a matrix."""
        return Axes((*self.groups[:-1], ((size, None),)))

    def resized(self, shape: Sequence[int], places: Iterable[int]) -> Axes | None:
        """Return the axes where those at some places have other sizes; None if others differ, too."""
        changed = {place % len(self.groups) for place in places}
        if len(shape) != len(self.groups):
            return None
        groups: list[tuple[Atom, ...]] = []
        for place, (group, before, after) in enumerate(zip(self.groups, self.shape, shape, strict=True)):
            if before == after:
                groups.append(group)
            elif place not in changed:
                return None
            else:
                groups.append(((after, self.name_at(place)),))
        return Axes(tuple(groups))

    def repeated(self, shape: Sequence[int]) -> Axes:
        """Return the axes of what is repeated to a shape, aligned at the last axis. One that is repeated is not the
        map's any more: all its units are one."""
        new = len(shape) - len(self.groups)
        if new < 0:
            return Axes.unknown(shape)
        groups: list[tuple[Atom, ...]] = [((size, None),) for size in shape[:new]]
        for group, before, after in zip(self.groups, self.shape, shape[new:], strict=True):
            groups.append(group if before == after else ((after, None),))
        return Axes(tuple(groups))

    def agreeing_with(self, other: Axes) -> Axes:
        """Return the axes of what two tensors of one shape are combined to, element by element: those that are known of
        either, and that the other does not contradict."""
        mine, others = ({name: self_._places_of(name) for name in "yx"} for self_ in (self, other))
        agreed = Axes(
            tuple(
                theirs if any(n for _, n in theirs) and not any(n for _, n in own) else own
                for own, theirs in zip(self.groups, other.groups, strict=True)
            )
        )
        return agreed.without(*(n for n in "yx" if mine[n] and others[n] and mine[n] != others[n]))

    def _places_of(self, name: str) -> tuple[tuple[int, tuple[Atom, ...]], ...]:
        """Return which axes have anything of one of the map's in them, and how."""
        return tuple(
            (place, group)
            for place, group in enumerate(self.groups)
            if any(n is not None and n.split(">")[0] == name for _, n in group)
        )

    def regrouped(self, shape: Sequence[int]) -> Axes | None:
        """Return the axes of a view of another shape; None where they cannot be told."""
        atoms = [atom for group in self.groups for atom in group if atom[0] != 1 or atom[1] is not None]
        groups: list[tuple[Atom, ...]] = []
        for size in shape:
            group, atoms = _taken(atoms, size)
            if group is None:
                return None
            groups.append(group)
        if groups:
            groups[-1] = (*groups[-1], *atoms)
        return (
            Axes(tuple(_whole(group) or ((1, None),) for group in groups)) if prod(s for s, _ in atoms) == 1 else None
        )


def _taken(atoms: list[Atom], size: int) -> tuple[tuple[Atom, ...] | None, list[Atom]]:
    """Take atoms from the front until they make up a size; return them, and the rest. None where they do not."""
    group: list[Atom] = []
    rest = list(atoms)
    if size == 1:
        return (tuple(rest[:1]), rest[1:]) if rest and rest[0][0] == 1 else ((), rest)
    while (have := prod(s for s, _ in group)) != size:
        if not rest:
            return None, rest
        (length, name), *rest = rest
        if size % (have * length) == 0:
            group.append((length, name))
            continue
        missing = size // have
        if size % have or length % missing:
            return None, rest
        group.append((missing, name and f"{name}>0"))
        rest.insert(0, (length // missing, name and f"{name}>1"))
    return tuple(group), rest


def _whole(group: tuple[Atom, ...]) -> tuple[Atom, ...]:
    """Join parts of an axis that stand one behind the other again."""
    joined: list[Atom] = []
    for size, name in group:
        joined.append((size, name))
        while len(joined) > 1 and _are_parts(joined[-2][1], joined[-1][1]):
            (first, part), (second, _) = joined[-2:]
            joined[-2:] = [(first * second, str(part).removesuffix(">0"))]
    return tuple(joined)


def _are_parts(one: str | None, other: str | None) -> bool:
    return bool(one and other) and one == f"{str(other).removesuffix('>1')}>0" and str(other).endswith(">1")
