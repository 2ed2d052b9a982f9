"""Hooks, pooling and the shortened forward pass."""

import pytest
import torch
from conftest import TINY_NETWORK
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.errors import UsageError
from exemplar_ray.network.describe import describe_layers
from exemplar_ray.network.models import load_network
from exemplar_ray.network.response_norm import FastResponseNorm, local_response_norm
from exemplar_ray.network.statistics import STATISTICS, check_statistics
from exemplar_ray.network.trunk import PlainTrunk, Trunk, to_input

TINY = Preprocess(mean=(117, 117, 117), resize=36, crop=32)
CPU = torch.device("cpu")


@pytest.fixture
def network():
    return load_network(TINY_NETWORK, "pretrained").module


def random_crops(count, size=32):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)


def test_the_trunks_activations_are_those_of_the_whole_network(network):
    crops = random_crops(5)
    layers = describe_layers(network, ("conv1", "mixed", "classifier"), "all", TINY)
    outputs = {}
    for layer in layers:
        network.get_submodule(layer.name).register_forward_hook(lambda m, i, o, n=layer.name: outputs.update({n: o}))
    with torch.inference_mode():
        logits = network(crops.permute(0, 3, 1, 2).contiguous().float() - 117)
    pooled, pre_relu = PlainTrunk(network, layers, ("max", "mean"), TINY, CPU)(crops)
    assert pre_relu == {}
    assert set(pooled) == {(layer.name, statistic) for layer in layers for statistic in ("max", "mean")}
    for name in ("conv1", "mixed"):
        assert torch.equal(pooled[name, "mean"], outputs[name].mean(dim=(2, 3)))
        assert torch.equal(pooled[name, "max"], outputs[name].flatten(2).max(dim=2).values)
    assert torch.equal(pooled["classifier", "mean"], logits)
    assert torch.equal(pooled["classifier", "max"], logits)


def test_the_forward_pass_ends_at_the_deepest_wanted_layer(network):
    ran = []
    for name, module in network.named_children():
        module.register_forward_hook(lambda m, i, o, n=name: ran.append(n))
    layers = describe_layers(network, ("conv1", "wide"), "all", TINY)
    ran.clear()
    Trunk(network, layers, ("mean",), TINY, CPU)(random_crops(1))
    assert ran == ["conv1", "relu", "wide"]


def test_hooks_are_gone_afterwards_also_after_an_error(network):
    layers = describe_layers(network, ("mixed",), "all", TINY)
    trunk = Trunk(network, layers, ("mean",), TINY, CPU)
    trunk(random_crops(1))
    with pytest.raises(RuntimeError):
        trunk(torch.zeros((1, 32, 32, 5), dtype=torch.uint8))
    assert not network.mixed._forward_hooks
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 5)


def test_wanted_channels_are_picked_in_order(network):
    crops = random_crops(3)
    everything = Trunk(network, describe_layers(network, ("mixed",), "all", TINY), ("mean",), TINY, CPU)(crops)
    some = Trunk(network, describe_layers(network, ("mixed",), "11,0-2", TINY), ("mean",), TINY, CPU)(crops)
    wanted = everything.activations["mixed", "mean"][:, [0, 1, 2, 11]]
    assert torch.equal(some.activations["mixed", "mean"], wanted)


def test_layers_are_described(network):
    conv1, classifier = describe_layers(network, ("conv1", "classifier"), "1-3", TINY)
    assert (conv1.channel_count, conv1.map_size, conv1.channels) == (8, (16, 16), (1, 2, 3))
    assert (classifier.channel_count, classifier.map_size) == (5, None)


@pytest.mark.parametrize(
    ("layer", "channels", "message"),
    [
        ("mixd", "all", "unknown layer 'mixd'; did you mean 'mixed'"),
        ("relu", "all", "layer 'relu' runs 3 times in a forward pass"),
        ("unused", "all", "layer 'unused' runs 0 times in a forward pass"),
        ("conv1", "0-8", "layer 'conv1': channel 8 is out of range; valid channels are 0-7"),
    ],
)
def test_layers_that_cannot_be_had_are_refused(network, layer, channels, message):
    with pytest.raises(UsageError, match=message):
        describe_layers(network, (layer,), channels, TINY)


def test_an_image_size_the_network_cannot_take_is_refused():
    network = load_network("inceptionv1", "random:0").module
    with pytest.raises(UsageError, match="the model fails on a 8 x 8 image"):
        describe_layers(network, ("mixed5b",), "all", Preprocess(mean=(0, 0, 0), resize=8, crop=8))


def test_a_misspelt_statistic_is_refused():
    check_statistics(tuple(STATISTICS))
    with pytest.raises(UsageError, match="unknown statistic 'maen'; did you mean 'mean'"):
        check_statistics(("maen",))


def test_input_on_0_to_1_is_torchvisions_to_tensor_and_normalize():
    from torchvision import transforms

    crops = random_crops(2)
    preprocess = Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), scale=1.0)
    pipeline = transforms.Compose([transforms.ToTensor(), transforms.Normalize(preprocess.mean, preprocess.std)])
    expected = torch.stack([pipeline(crop.numpy()) for crop in crops])
    assert torch.equal(to_input(crops, preprocess), expected)


@pytest.mark.parametrize("shape", [(6, 6, 9), (2, 6, 3, 4, 5), (0, 6, 3, 3)])
def test_response_normalisation_of_other_than_maps_is_torchs_own(shape):
    """As many images as channels: their rows would be taken for the maps of one image."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.local_response_norm(x, 5)
    with FastResponseNorm():
        assert torch.equal(torch.nn.functional.local_response_norm(x, 5), expected)


@pytest.mark.parametrize("size", [2, 5, 9, 11])
@pytest.mark.parametrize("beta", [0.5, 0.75, 0.6])
def test_fast_response_normalisation_is_torchs(size, beta):
    x = torch.randn(3, 16, 7, 5, generator=torch.Generator().manual_seed(size)) * 30
    expected = torch.nn.functional.local_response_norm(x, size, alpha=1e-2, beta=beta, k=2.0)
    torch.testing.assert_close(local_response_norm(x, size, 1e-2, beta, 2.0), expected, rtol=2e-6, atol=1e-7)
    with FastResponseNorm():
        replaced = torch.nn.LocalResponseNorm(size, alpha=1e-2, beta=beta, k=2.0)(x)
        assert torch.equal(torch.relu(x), x.clamp(min=0))
    torch.testing.assert_close(replaced, expected, rtol=2e-6, atol=1e-7)
    traced = make_fx(lambda x: local_response_norm(x, size, 1e-2, beta, 2.0))(x)
    assert "convolution" not in traced.code
    # Both add neighbours up in one order.
    assert torch.equal(traced(x), local_response_norm(x, size, 1e-2, beta, 2.0))
    assert torch.equal(torch.nn.functional.local_response_norm(x, size, alpha=1e-2, beta=beta, k=2.0), expected)


@pytest.mark.parametrize("model", ["inceptionv1", "inceptionv1-tf", "torchvision:googlenet", "torchvision:alexnet"])
def test_the_faster_trunk_gives_what_the_plain_one_gives(model):
    network = load_network(model, "random:1")
    preprocess = network.architecture.preprocess
    name = {"inceptionv1": "mixed4a", "inceptionv1-tf": "mixed4a", "torchvision:googlenet": "inception4a"}.get(model)
    layers = describe_layers(network.module, [name or "features.8"], "all", preprocess)
    crops = torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    results = []
    for kind in (PlainTrunk, Trunk):
        module = load_network(model, "random:1").module
        results.append(kind(module, layers, ["mean", "max"], preprocess, CPU)(crops).activations)
    for key, expected in results[0].items():
        torch.testing.assert_close(results[1][key], expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


class Overwriting(nn.Module):
    """What comes after a layer works in place on the layer's output."""

    def __init__(self):
        super().__init__()
        self.maps = nn.Conv2d(3, 4, 3, padding=1)
        self.logits = nn.Linear(4, 5)
        self.last = nn.Linear(5, 2)

    def forward(self, x):
        x = self.maps(x / 60).mul_(2).mean(dim=(2, 3))
        return self.last(self.logits(x).mul_(3))


@pytest.mark.parametrize("kind", [PlainTrunk, Trunk])
@pytest.mark.parametrize("statistic", ["mean", "max", "center"])
@pytest.mark.parametrize("layer", ["maps", "logits"])
def test_a_layers_activations_do_not_depend_on_what_works_in_place_after_it(layer, statistic, kind):
    torch.manual_seed(0)
    network, crops = Overwriting().eval(), random_crops(3)
    alone, several = (
        kind(network, describe_layers(network, layers, "all", TINY), (statistic,), TINY, CPU)(crops).activations
        for layers in ((layer,), (layer, "last"))
    )
    assert torch.equal(several[layer, statistic], alone[layer, statistic])
