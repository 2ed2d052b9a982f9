"""A traced graph that is simplified computes what it did, bit for bit, and pads only where it has to."""

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F  # noqa: N812

from exemplar_ray.network.traced_graph import simplify

WEIGHT = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(1))
MINUS_INFINITY = -torch.inf


def images(size=9):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))


def traced(compute, x):
    """Return the graph's function, what its operations are called, and what it computes, simplified."""
    graph = make_fx(compute)(x)
    before = graph(x)
    simplify(graph.graph)
    graph.recompile()
    names = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    return before, graph(x), names


def pads(names):
    return sum("pad" in name for name in names)


def assert_equal(found, expected):
    ours, theirs = (given if isinstance(given, tuple) else (given,) for given in (found, expected))
    assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize(
    ("padding", "kept"), [((1, 1, 1, 1), 0), ((2, 2, 1, 1), 0), ((1, 1), 0), ((2, 3, 2, 3), 1), ((-1, -1, 0, 0), 1)]
)
def test_a_convolution_pads_itself_what_is_as_much_on_both_sides(padding, kept):
    before, after, names = traced(lambda x: F.conv2d(F.pad(x, padding), WEIGHT, stride=2), images())
    assert_equal(after, before)
    assert pads(names) == kept


def test_what_a_convolution_does_not_pad_as_it_does_is_left():
    ways = [
        lambda x: F.conv2d(F.pad(x, (1, 1, 1, 1), value=0.5), WEIGHT),
        lambda x: F.conv2d(F.pad(x, (1, 1, 1, 1)), WEIGHT, padding=1),
        lambda x: F.conv_transpose2d(F.pad(x, (1, 1, 1, 1)), WEIGHT.transpose(0, 1), stride=2),
        lambda x: F.conv1d(F.pad(x[:, :, 0], (1, 1)), WEIGHT[:, :, 0]),
        lambda x: F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), WEIGHT),
    ]
    for number, way in enumerate(ways):
        before, after, names = traced(way, images())
        assert_equal(after, before)
        assert pads(names) == 1, number


# A window of 3 and steps of 2 reach over the edge of 8, but not of 9: there, the windows would be fewer.
@pytest.mark.parametrize(
    ("size", "padding", "kept"), [(8, (0, 1, 0, 1), 0), (9, (0, 2, 0, 2), 1), (8, (1, 0, 1, 0), 1)]
)
def test_a_poolings_last_windows_reach_over_the_edge(size, padding, kept):
    before, after, names = traced(
        lambda x: F.max_pool2d(F.pad(x, padding, value=MINUS_INFINITY), 3, 2), images(size).sub(5)
    )
    assert_equal(after, before)
    assert pads(names) == kept


def test_what_a_pooling_would_see_is_left():
    ways = [
        lambda x: F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=0.0), 3, 2),
        lambda x: F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=MINUS_INFINITY), 3, 2, padding=1),
        lambda x: F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=MINUS_INFINITY), 3, 2, return_indices=True),
        lambda x: F.max_pool2d(F.pad(x, (0, -1, 0, -1), value=MINUS_INFINITY), 3, 2),
    ]
    for number, way in enumerate(ways):
        before, after, names = traced(way, images(8).sub(5))
        assert_equal(after, before)
        assert pads(names) == 1, number


def test_a_clamp_at_zero_is_a_relu_and_no_other_is():
    values = torch.tensor([[-1.0, 0.0, 2.0, torch.nan]])
    for way, relus in (
        (lambda x: x.clamp(0), 1),
        (nn.ReLU(), 1),
        (lambda x: x.clamp(0, 1), 0),
        (lambda x: x.clamp(1), 0),
        (lambda x: x.clamp(max=0), 0),
    ):
        before, after, names = traced(way, values)
        assert torch.equal(after.nan_to_num(7), before.nan_to_num(7))
        assert sum("relu" in name for name in names) == relus


def test_a_matrix_that_multiplies_many_is_not_repeated():
    """As in attention, whose tokens come first and whose images second."""
    matrix, bias = torch.randn(5, 3, generator=torch.Generator().manual_seed(4)), torch.ones(5)
    tokens = images()[:, :, :, 0].permute(2, 0, 1)
    assert not tokens.is_contiguous()
    before, after, names = traced(lambda x: F.linear(x, matrix, bias), tokens)
    assert torch.allclose(after, before)
    assert sum("bmm" in name for name in names) == 0
    # Each with its own.
    own = torch.randn(9, 3, 4, generator=torch.Generator().manual_seed(5))
    before, after, names = traced(lambda x: torch.bmm(x, own), tokens)
    assert_equal(after, before)
    assert sum("bmm" in name for name in names) == 1
