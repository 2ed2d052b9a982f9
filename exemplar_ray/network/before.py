"""What comes before a layer: where its inputs are, in the network's own graph.

It is the last place that all paths from the image to the layer pass through, outside the layer's own module, with
weights between that make each channel of several; of the first layer it is the image. Its channels are called by the
module whose channels they are: that of a pooling's output is what is pooled.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from exemplar_ray.errors import UsageError, near_matches
from exemplar_ray.network.affine import (
    NotAffineError,
    Piece,
    before_relu,
    is_dense,
    is_each_channel_by_itself,
    is_no_layer,
)
from exemplar_ray.network.tape import Step, Tape, Value

IMAGE = "image"
"""What the channels of the network's input are called by."""


@dataclass(frozen=True)
class Before:
    """Where a layer's inputs are."""

    layer: str
    """The module that their channels are called by."""
    value: Value
    through: tuple[str, ...]
    """What is done to each of that module's channels by itself before it is the input: `relu`, `max_pool2d`."""
    piece: Piece
    """From there to what the layer is before its ReLU."""


def before(tape: Tape, layer: str, named: str | None = None, known: Collection[str] = ()) -> Before:
    """Find a layer's inputs.

    Args:
        tape: what the network does.
        layer: the module whose inputs are wanted.
        named: the module whose output they are; None to find it.
        known: layers that are preferred for a name, such as those of a run.

    Raises:
        UsageError: there is none, or not for this layer; the message says why.
    """
    after = before_relu(tape, _output(tape, layer))
    if named is not None:
        return Before(named, _output(tape, named), (), _piece(tape, layer, named, _output(tape, named), after))
    for number in range(min(value.number for value in after) - 1, -1, -1):
        value = Value(number)
        step = tape.made_by(value)
        if (step is not None and _is_within(step.scope, layer)) or not _has_channels(tape, value):
            continue
        steps = tape.between(value, after)
        if steps is None or not any(is_dense(one) for one in steps) or value in after:
            continue
        if name := _name(tape, value, layer, known):
            return Before(name[0], value, name[1], _piece(tape, layer, name[0], value, after))
    raise UsageError(f"before '{layer}' there are no weights, so that it is made of nothing")


@dataclass(frozen=True)
class Kernels:
    """The weights of one convolution, or matrix, that some of a layer's channels come out of."""

    first: int
    """The first of these channels."""
    channels: int
    before: Before


def directly_before(tape: Tape, layer: str, known: Collection[str] = ()) -> list[Kernels]:
    """Find the weights that a layer's channels come out of before their ReLU, and what these are given.

    Args:
        tape: what the network does.
        layer: the module.
        known: layers that are preferred for a name.

    Returns:
        Along the channels; those that come out of two convolutions, which are added, twice. What does not come out of
        one, such as what is handed on unchanged, is left out.
    """
    found, first = [], 0
    for value in before_relu(tape, _output(tape, layer)):
        channels = tape.shapes[value.number][1]
        for dense in _made_densely(tape, value):
            given = dense.inputs[0]
            if name := _name(tape, given, layer, known):
                piece = Piece(tape, given, [one for one in dense.results if one is not None])
                found.append(Kernels(first, channels, Before(name[0], given, name[1], piece)))
        first += channels
    return found


def _made_densely(tape: Tape, value: Value) -> list[Step]:
    """Return the convolutions and matrices whose channels a value's are, but for what is done to each by itself."""
    step = tape.made_by(value)
    if step is None:
        return []
    if is_dense(step):
        return [step]
    if step.name in ("add", "iadd") and len(step.inputs) == 2:
        return [dense for one in step.inputs for dense in _made_densely(tape, one)]
    if step.name == "batch_norm" or (is_each_channel_by_itself(step) and step.name in ("dropout", "identity")):
        return _made_densely(tape, step.inputs[0])
    return []


def after(tape: Tape, layer: str) -> tuple[str, Before] | None:
    """Find the layer that is made of this one, or None.

    It is the first whose inputs are this layer, and that everything goes through afterwards; if there is none, as for
    what is inside a block, the first whose inputs it is.
    """
    names, last = list(tape.outputs), [one for one in tape.steps[-1].results if one is not None]
    depth, aside = layer.count("."), None
    for name in names[names.index(layer) + 1 :]:
        if name.count(".") > depth or layer.startswith(f"{name}."):
            continue
        try:
            found = before(tape, name, known=(layer,))
        except UsageError:
            continue
        if found.layer == layer:
            if tape.between(tape.outputs[name], last) is not None:
                return name, found
            aside = aside or (name, found)
    return aside


def _name(tape: Tape, value: Value, layer: str, known: Collection[str]) -> tuple[str, tuple[str, ...]] | None:
    """Return the module that a value's channels are called by, and what is done to them since."""
    found = []
    through: tuple[str, ...] = ()
    at = value
    while True:
        step = tape.made_by(at)
        if step is None:
            found.append(((True, True, len(through), 0, 0), IMAGE, through))
        for name, output in tape.outputs.items():
            if output == at:
                # A pooling's own name is worse than that of what is pooled: it is the layer whose channels they are. Of
                # as good ones the nearest is taken, and of its names the one at the layer's own depth.
                pooling, depth = step is not None and is_no_layer(step), abs(name.count(".") - layer.count("."))
                found.append(((name not in known, pooling, len(through), depth, len(name)), name, through))
        if step is None or not is_each_channel_by_itself(step):
            break
        through, at = (step.name, *through), step.inputs[0]
    if not found:
        return None
    _, name, through = min(found)
    return name, through


def _is_within(scope: str, layer: str) -> bool:
    return scope == layer or scope.startswith(f"{layer}.")


def _has_channels(tape: Tape, value: Value) -> bool:
    shape = tape.shapes[value.number]
    return len(shape) == 4 or (len(shape) == 2 and not _is_flattened_map(tape, value))


def _is_flattened_map(tape: Tape, value: Value) -> bool:
    """Whether a vector's numbers are those of a map, and no channels."""
    step = tape.made_by(value)
    while step is not None and step.name in ("dropout", "contiguous"):
        step = tape.made_by(step.inputs[0])
    if step is None or step.name not in ("flatten", "view", "reshape"):
        return False
    shape = tape.shapes[step.inputs[0].number]
    return len(shape) == 4 and shape[2] * shape[3] > 1


def _output(tape: Tape, layer: str) -> Value:
    if layer == IMAGE and IMAGE not in tape.outputs:
        return tape.image
    if layer not in tape.outputs:
        raise UsageError(
            f"'{layer}' gives no tensor that can be followed, or runs more than once; "
            f"{near_matches(layer, list(tape.outputs))}"
        )
    return tape.outputs[layer]


def _piece(tape: Tape, layer: str, named: str, value: Value, after: tuple[Value, ...]) -> Piece:
    try:
        piece = Piece(tape, value, after)
    except NotAffineError as error:
        raise UsageError(f"'{layer}' cannot be taken apart into '{named}': {error}") from error
    if not any(is_dense(step) for step in piece.steps):
        raise UsageError(f"between '{named}' and '{layer}' there are no weights; name an earlier one: --from")
    return piece
