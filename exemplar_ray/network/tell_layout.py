"""How a layer's output lies in its tensor, told from what an inquiry finds, or by the user."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from exemplar_ray.errors import UsageError
from exemplar_ray.network import evidence
from exemplar_ray.network.evidence import ANOTHER_ORDER, Grid
from exemplar_ray.network.inquiry import CONTENT, Found, Inquiry
from exemplar_ray.network.layers import NCHW, NHWC, TOKENS, VECTOR
from exemplar_ray.network.layouts import AUTO
from exemplar_ray.network.questions import AS_GIVEN


def tell_layout(inquiry: Inquiry, name: str, given: str) -> tuple[str, str]:
    """Return how a layer's output lies, and in words why; "" where there is nothing to say.

    Raises:
        UsageError: it cannot be told, or two readings stand.
    """
    found = inquiry.found[name]
    if len(found.shape) == 2:
        return VECTOR, ""
    word, _, prefix = given.partition(":")
    if word != AUTO:
        _refuse_other_axes(name, found.shape, word)
    if len(found.shape) == 3:
        return TOKENS, _tell_tokens(inquiry, name, word, prefix)
    if word == AUTO and not found.votes:
        seen = inquiry.responses(name)
        inquiry.vote(name, CONTENT, evidence.from_content(seen) if seen else None)
    votes = {what: vote for what, vote in found.votes.items() if vote != word}
    if word != AUTO:
        against = "".join(f"; {what} speaks for {vote}" for what, vote in votes.items())
        return word, f"{word}, {AS_GIVEN}{against}"
    layout = _agreed(name, found, inquiry.module_of(name))
    return layout, "" if layout == NCHW else f"{layout}, found by {', '.join(found.votes)}"


def _tell_tokens(inquiry: Inquiry, name: str, word: str, prefix: str) -> str:
    """Find out where the tokens of the map are, and return in words how."""
    found = inquiry.found[name]
    if word == AUTO and ANOTHER_ORDER in found.votes.values():
        raise UsageError(_cannot_be_told(name, found, "its second axis does not grow with the image alone"))
    if word == AUTO and evidence.contradicts(inquiry.module_of(name), TOKENS):
        raise UsageError(_cannot_be_told(name, found, "it is a layer that has its channels before its tokens"))
    if prefix:
        found.grid = evidence.square_grid(found.shape[1], int(prefix))
        if found.grid is None:
            raise UsageError(
                f"layer '{name}' gives {found.shape[1]} tokens, which without {prefix} make up no square map"
            )
        return f"tokens, {_in_words(found.grid)}, {AS_GIVEN}"
    seen = inquiry.responses(name)
    found.grid = (evidence.grid_from_content(seen) if seen else None) or _grid_of_others(inquiry, found.shape[1])
    if found.grid is None:
        why = "its tokens do not answer to the image's corners as those of a map do"
        raise UsageError(_cannot_be_told(name, found, why))
    return f"tokens, {_in_words(found.grid)}, found by {CONTENT}"


def _grid_of_others(inquiry: Inquiry, tokens: int) -> Grid | None:
    """Return where the tokens of other layers stand that give as many: attention answers everywhere."""
    grids = {
        grid
        for seen in inquiry.responses_of_all.values()
        if len(seen.along) == 2 and seen.along[0].shape[1] == tokens
        if (grid := evidence.grid_from_content(seen)) is not None
    }
    return grids.pop() if len(grids) == 1 else None


def _refuse_other_axes(name: str, shape: Sequence[int], layout: str) -> None:
    axes = {NCHW: 4, NHWC: 4, TOKENS: 3}[layout]
    if len(shape) != axes:
        raise UsageError(
            f"layer '{name}' gives a tensor of shape {list(shape)}, which is no {layout}: that has {axes} axes"
        )


def _agreed(name: str, found: Found, module: nn.Module) -> str:
    """Return the layout that all that was found speaks for.

    Raises:
        UsageError: nothing speaks for one, or not all for the same.
    """
    layouts = set(found.votes.values())
    if not layouts:
        raise UsageError(_cannot_be_told(name, found, "no axis answers to the image's size or content"))
    if layouts == {ANOTHER_ORDER}:
        raise UsageError(
            f"layer '{name}' gives a tensor of shape {list(found.shape)}, whose axes are not channels and one map, in "
            "any order that is known; name another layer"
        )
    if len(layouts) > 1:
        told = "; ".join(f"{what} speaks for {vote}" for what, vote in found.votes.items())
        raise UsageError(_cannot_be_told(name, found, told))
    [layout] = layouts
    if evidence.contradicts(module, layout):
        kind = type(module).__name__
        raise UsageError(_cannot_be_told(name, found, f"its axes look like {layout}, but it is a {kind}"))
    return layout


def _cannot_be_told(name: str, found: Found, why: str) -> str:
    choices = f"{NCHW} or {NHWC}" if len(found.shape) == 4 else "tokens:1, with the number of tokens before the map's"
    return (
        f"layer '{name}' gives a tensor of shape {list(found.shape)}, and which axis is its channels cannot be told: "
        f"{why}; name another layer, or say it with --layout ({choices}) if you know"
    )


def _in_words(grid: Grid) -> str:
    before = f" after {grid.prefix} of no place" if grid.prefix else ""
    return f"{grid.height} x {grid.width}{before}"
