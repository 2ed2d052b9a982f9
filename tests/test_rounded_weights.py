"""Weights of a narrow type, rounded together: what a network gives is nearer to what it should be, and it is that."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.network import rounded_weights
from exemplar_ray.network.rounded_weights import noise, round_weights

PREPROCESS = Preprocess(resize=36, crop=32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), scale=1.0)


def pictures(first, count):
    """Return pictures of noise, float32 [count, 3, 32, 32]: others than those before the first."""
    return noise(PREPROCESS, first + count)[first:].permute(0, 3, 1, 2).float() / 255


def network(kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layers = {
            "convolution": lambda: nn.Sequential(
                nn.Conv2d(3, 16, 5, stride=2, padding=2), nn.ReLU(), nn.Conv2d(16, 8, 3)
            ),
            "without a bias": lambda: nn.Conv2d(3, 8, 3, dilation=2, bias=False),
            "groups": lambda: nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 24, 3, groups=4)),
            "linear": lambda: nn.Sequential(nn.Linear(32, 40), nn.ReLU(), nn.Linear(40, 8, bias=False)),
            "normalised": lambda: nn.Sequential(
                nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.BatchNorm2d(8)
            ),
            "normalised without weights": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False)),
        }[kind]().eval()
        for module in layers.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.1, 3)
                if module.affine:
                    module.weight.data.uniform_(0.3, 3)
                    module.bias.data.normal_()
    return layers


def tensors(module):
    return dict([*module.named_parameters(), *module.named_buffers()])


def rounded(exact, compute=None, narrow=torch.bfloat16, like=None):
    """Return a graph of a network in a narrow type, rounded, the network in that type, and its tensors before."""
    like = pictures(0, 4) if like is None else like
    module = copy.deepcopy(exact).to(narrow)
    before = {name: one.clone() for name, one in tensors(module).items()}
    graph = make_fx(compute(module) if compute else module)(like.to(narrow))
    known = {one.data_ptr(): tensors(exact)[name].detach() for name, one in tensors(module).items()}
    round_weights(graph, known, [(like.to(narrow),)])
    assert all(torch.equal(one, before[name]) for name, one in tensors(module).items())
    return graph, module


def error(found, expected, channels=1):
    """Return how far the means of channels are off, on the average."""
    difference = (found.float() - expected).movedim(channels, 1)
    return difference.mean(dim=(2, 3)).square().mean().sqrt().item()


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "kind",
    ["convolution", "without a bias", "groups", "linear", "normalised", "normalised without weights"],
)
def test_what_a_network_gives_is_nearer_to_what_it_should_be(kind, narrow):
    exact = network(kind)
    graph, module = rounded(exact, narrow=narrow)
    # Weights alone are looked at: what is computed with them is computed in float32.
    for node in [*graph.graph.nodes]:
        if node.op == "get_attr":
            value = getattr(graph, node.target)
            assert value.dtype == narrow
            setattr(graph, node.target, nn.Parameter(value.float(), requires_grad=False))
    others = pictures(4, 4)
    with torch.no_grad():
        expected, together, one_by_one = exact(others), graph(others), module.float()(others)
    channels = 3 if kind == "linear" else 1
    assert error(together, expected, channels) < 0.5 * error(one_by_one, expected, channels)
    assert "batch_norm" not in graph.code


def unchanged(graph, module):
    """Whether a graph's constants are the network's own."""
    own = {one.data_ptr() for one in tensors(module).values()}
    constants = [getattr(graph, str(node.target)) for node in graph.graph.nodes if node.op == "get_attr"]
    return all(one.data_ptr() in own for one in constants)


def test_what_is_no_layers_weight_as_it_is_stays():
    ways = {
        "a part of it": (nn.Linear(32, 8), lambda m: lambda x: nn.functional.linear(x, m.weight[:4])),
        "transposed": (nn.ConvTranspose2d(3, 8, 3), lambda m: m),
        "of one dimension": (nn.Conv1d(32, 8, 3), lambda m: lambda x: m(x[:, 0])),
        "unlike": (nn.Linear(32, 32, bias=False), lambda m: lambda x: x @ m.weight),
    }
    for name, (module, compute) in ways.items():
        graph, narrow = rounded(module, compute)
        assert unchanged(graph, narrow), name


def test_a_layer_of_too_many_inputs_stays(monkeypatch):
    monkeypatch.setattr(rounded_weights, "_MOST_INPUTS", 30)
    graph, _ = rounded(network("normalised"))
    of_weight = [n for n in graph.graph.nodes if n.op == "get_attr" and getattr(graph, n.target).shape == (8, 16, 3, 3)]
    exact = network("normalised")
    scale = exact[4].weight / torch.sqrt(exact[4].running_var + exact[4].eps)
    [weight] = [getattr(graph, n.target) for n in of_weight]
    torch.testing.assert_close(weight.float(), (exact[3].weight * scale[:, None, None, None]), rtol=2**-8, atol=0)


def test_layers_of_which_there_is_no_room_to_know_more_stay(monkeypatch):
    monkeypatch.setattr(rounded_weights, "_MOST_BYTES", 4 * 76**2)
    exact = network("convolution")
    graph, module = rounded(exact)
    constants = [getattr(graph, str(node.target)) for node in graph.graph.nodes if node.op == "get_attr"]
    kept = [any(torch.equal(one, own) for own in module.parameters()) for one in constants]
    # A bias that is rounded may come out as it was.
    assert (kept[0], *kept[2:]) == (False, True, True)


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_a_layer_that_sees_no_numbers_stays(number):
    graph, module = rounded(nn.Conv2d(3, 8, 3), like=torch.full((1, 3, 32, 32), number))
    assert unchanged(graph, module)


def test_a_weight_of_two_layers_is_rounded_for_both():
    layer = network("without a bias")
    both = lambda m: lambda x: (m(x), m(-x.flip(2)))  # noqa: E731
    graph, module = rounded(layer, both)
    names = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    [value] = {id(getattr(graph, name)): getattr(graph, name) for name in names}.values()
    assert not torch.equal(value, module.weight)
    assert (value.float() - layer.weight).abs().max() < 0.05


def test_a_normalisation_that_others_look_behind_is_left():
    class Looking(nn.Module):
        def __init__(self):
            super().__init__()
            self.both = network("normalised without weights")

        def forward(self, x):
            between = self.both[0](x)
            return self.both[1](between), between

    exact = Looking().eval()
    graph, _ = rounded(exact)
    assert "batch_norm" in graph.code
    found, expected = graph(pictures(4, 2).bfloat16()), exact(pictures(4, 2))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.float(), theirs, rtol=0.05, atol=0.05)


def test_inputs_that_are_always_0_are_no_trouble():
    graph, module = rounded(network("convolution"), like=torch.zeros(2, 3, 32, 32))
    assert all(torch.isfinite(one.float()).all() for one in graph.parameters())
    black = torch.zeros(1, 3, 32, 32, dtype=torch.bfloat16)
    torch.testing.assert_close(graph(black), module(black), rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("order", ["rgb", "grey"])
def test_noise_is_like_photographs_and_the_same_each_time(order):
    channels = 1 if order == "grey" else 3
    preprocess = Preprocess(resize=70, crop=64, mean=(0.0,) * channels, std=(1.0,) * channels, order=order)
    found = noise(preprocess, 3)
    assert (found.dtype, tuple(found.shape)) == (torch.uint8, (3, *preprocess.crop_shape))
    assert torch.equal(found, noise(preprocess, 3))
    pixels = found.numpy().astype(float)
    assert 100 < pixels.mean() < 130
    assert 35 < pixels.std() < 60
    neighbours = np.corrcoef(pixels[:, 1:].ravel(), pixels[:, :-1].ravel())[0, 1]
    assert neighbours > 0.6
