"""Convolutions with fewer multiplications: nearly as exact as plain ones, and only where they are of use."""

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F  # noqa: N812

from exemplar_ray.network.traced_graph import simplify
from exemplar_ray.network.winograd import WinogradConvolution, use_winograd

# By how much it may be off, as a share of the largest number.
SHARE = 3e-6


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def maps(*shape):
    """Return random maps with the channels last in memory."""
    return random(*shape).contiguous(memory_format=torch.channels_last)


def off(found, expected):
    """Return by how much numbers are off, at most, as a share of the largest one."""
    assert found.shape == expected.shape
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("shape", "outputs", "padding"),
    [
        ((4, 64, 28, 28), 48, (1, 1)),
        ((3, 32, 17, 30), 33, (1, 1)),
        ((2, 40, 9, 12), 32, (0, 2)),
        ((2, 3, 3, 3), 8, (0, 0)),
    ],
)
def test_it_is_a_convolution_nearly_as_exact_as_a_plain_one(shape, outputs, padding, bias):
    x, weight = random(*shape), random(outputs, shape[1], 3, 3)
    of_bias = random(outputs) if bias else None
    exact = F.conv2d(x.double(), weight.double(), None if of_bias is None else of_bias.double(), padding=padding)
    plain = off(F.conv2d(x, weight, of_bias, padding=padding), exact)
    for relu in (False, True):
        for parts in (1, 2):
            found = WinogradConvolution(weight, of_bias, padding, relu, parts)(x)
            assert found.is_contiguous(memory_format=torch.channels_last)
            assert off(found, exact.relu() if relu else exact) < 8 * max(plain, 3e-7)


def replaced(compute, x):
    """Return what a function computes, how many of its convolutions were replaced, and what is left of operations."""
    with torch.no_grad():
        graph = make_fx(compute)(x)
        simplify(graph.graph)
        use_winograd(graph)
        names = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
        return graph(x), sum(node.op == "call_module" for node in graph.graph.nodes), names


X = maps(2, 32, 20, 20)
WEIGHT, BIAS = random(32, 32, 3, 3), random(32)


@pytest.mark.parametrize(
    ("way", "count"),
    [
        (lambda x: F.conv2d(x, WEIGHT, BIAS, padding=1), 1),
        (lambda x: F.conv2d(F.pad(x, (1, 1, 1, 1)), WEIGHT), 1),
        (lambda x: F.conv2d(F.conv2d(x, WEIGHT, BIAS).relu(), WEIGHT).clamp(min=0), 2),
        # Somebody else asks for what was before the ReLU.
        (lambda x: torch.cat([(y := F.conv2d(x, WEIGHT, BIAS)), y.relu()]), 1),
        (lambda x: F.conv2d(x, WEIGHT, BIAS, padding=1) + x, 1),
    ],
)
def test_a_network_with_it_computes_the_same(way, count):
    found, replacements, names = replaced(way, X)
    assert replacements == count
    assert not any("convolution" in name for name in names)
    assert off(found, way(X)) < SHARE


NARROW, FEW, HALF = WEIGHT[..., :1].clone(), WEIGHT[:31].clone(), random(64, 32, 3, 3)


def test_what_it_is_not_for_is_left_as_it_is():
    ways = {
        "steps of 2": lambda x: F.conv2d(torch.cat([x, x]), WEIGHT, padding=1, stride=2),
        "dilated": lambda x: F.conv2d(x, WEIGHT, dilation=2),
        "groups": lambda x: F.conv2d(torch.cat([x, x], dim=1), HALF, groups=2),
        "transposed": lambda x: F.conv_transpose2d(x, WEIGHT),
        "one axis": lambda x: F.conv1d(x[:, :, 0], NARROW[..., 0]),
        "windows of 3 by 1": lambda x: F.conv2d(x, NARROW),
        "few channels": lambda x: F.conv2d(x, FEW),
        "few tiles": lambda x: F.conv2d(x[..., :14], WEIGHT),
        "tiles over the edge": lambda x: F.conv2d(torch.cat([x, x])[..., :7], WEIGHT),
        "weights that depend on the image": lambda x: F.conv2d(x, WEIGHT * x.mean()),
        "channels first in memory": lambda x: F.conv2d(x.contiguous(), WEIGHT).relu().view(2, -1),
        "a bias that does": lambda x: F.conv2d(x, WEIGHT, x.mean(dim=(0, 2, 3))),
    }
    for name, way in ways.items():
        found, replacements, _ = replaced(way, X)
        assert not replacements, name
        assert torch.equal(found, way(X)), name


def test_maps_too_large_for_a_worker_to_keep_are_computed_in_parts():
    large = maps(4, 32, 200, 200)
    for images in (2, 4):
        found, replacements, _ = replaced(lambda x: F.conv2d(x, WEIGHT), large[:images])
        assert replacements == 1
        assert off(found, F.conv2d(large[:images], WEIGHT)) < SHARE
    # Each alone is too large.
    assert not replaced(lambda x: F.conv2d(x, WEIGHT), maps(1, 32, 400, 400))[1]


def test_normalisations_are_multiplied_into_it_and_the_networks_weights_stay():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = nn.Sequential(nn.Conv2d(32, 40, 3, bias=False), nn.BatchNorm2d(40), nn.ReLU()).eval()
    network[1].running_mean.normal_()
    network[1].running_var.uniform_(0.1, 3)
    before = {name: one.clone() for name, one in network.state_dict().items()}
    found, replacements, names = replaced(network, X)
    assert (replacements, names) == (1, [])
    assert off(found, network(X)) < SHARE
    assert all(torch.equal(one, before[name]) for name, one in network.state_dict().items())
