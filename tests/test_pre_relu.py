"""What a layer was before its ReLU, however the network writes its ReLU."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.errors import UsageError
from exemplar_ray.network.describe import describe_layers
from exemplar_ray.network.models import load_network
from exemplar_ray.network.trunk import PlainTrunk, Trunk, to_input

CPU = torch.device("cpu")
TINY = Preprocess(mean=(117, 117, 117), resize=36, crop=32)

RECTIFIERS = {
    "function": functional.relu,
    "in place": lambda x: functional.relu(x, inplace=True),
    "method": lambda x: x.relu_(),
    "module": nn.ReLU(),
    "module in place": nn.ReLU(inplace=True),
    "clamp": lambda x: x.clamp(min=0),
    "clamp_min": lambda x: torch.clamp_min(x, 0),
    "relu6": functional.relu6,
    "module relu6 in place": nn.ReLU6(inplace=True),
    "hardtanh": lambda x: functional.hardtanh(x, 0.0, 6.0),
}


class Rectifying(nn.Module):
    """A convolution, a ReLU of some kind, and a layer whose output it is, alone or beside another's."""

    def __init__(self, rectify, branches):
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(3, 4, 3, padding=1) for _ in range(branches))
        self.layer = nn.Identity()
        self.rectify = rectify
        self.last = nn.Conv2d(4 * branches, 2, 1)

    def forward(self, x):
        pieces = [self.rectify(convolution(x / 60)) for convolution in self.convolutions]
        x = self.layer(pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1))
        return self.last(x.mul_(2))


def crops(count=3):
    return torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("branches", [1, 3])
@pytest.mark.parametrize("kind", RECTIFIERS)
def test_every_kind_of_relu_is_seen_through(kind, branches):
    torch.manual_seed(1)
    network = Rectifying(RECTIFIERS[kind], branches).eval()
    layers = describe_layers(network, ("layer", "layer_pre_relu"), "all", TINY)
    assert [layer.channel_count for layer in layers] == [4 * branches] * 2
    assert layers[0].field == layers[1].field is not None
    pooled, outputs = PlainTrunk(network, layers, ("mean", "max"), TINY, CPU).with_maps(crops())
    x = to_input(crops(), TINY)
    with torch.inference_mode():
        expected = torch.cat([convolution(x / 60) for convolution in network.convolutions], dim=1)
    assert torch.equal(outputs["layer_pre_relu"], expected)
    assert (expected < 0).any()
    assert torch.equal(outputs["layer"], network.rectify(expected.clone()))
    assert torch.equal(pooled.activations["layer_pre_relu", "mean"], expected.mean(dim=(2, 3)))


def test_wanted_channels_are_those_of_the_layer():
    network = Rectifying(functional.relu, 3).eval()
    whole, some = (
        Trunk(network, describe_layers(network, ("layer_pre_relu",), channels, TINY), ("max",), TINY, CPU)
        for channels in ("all", "9,2")
    )
    found, expected = (trunk(crops()).activations["layer_pre_relu", "max"] for trunk in (some, whole))
    assert torch.equal(found, expected[:, [2, 9]])


def test_lucents_relu_with_its_own_gradient_is_seen_through():
    network = load_network("inceptionv1", "random:0")
    preprocess = network.architecture.preprocess
    layers = describe_layers(network.module, ("mixed3a", "mixed3a_pre_relu"), "all", preprocess)
    trunk = Trunk(network.module, layers, ("mean",), preprocess, CPU)
    images = torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    _, outputs = trunk.with_maps(images)
    assert torch.equal(outputs["mixed3a_pre_relu"].clamp(min=0), outputs["mixed3a"])
    assert (outputs["mixed3a_pre_relu"] < 0).float().mean() > 0.2


@pytest.mark.parametrize(
    "not_a_relu", [lambda x: x, functional.gelu, lambda x: x.clamp(min=-1), lambda x: functional.relu(x) + 1]
)
def test_a_layer_without_a_relu_has_no_values_before_it(not_a_relu):
    network = Rectifying(not_a_relu, 2).eval()
    with pytest.raises(UsageError, match="'layer' does not end in a ReLU"):
        describe_layers(network, ("layer_pre_relu",), "all", TINY)


def test_a_module_of_that_name_is_itself():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv_pre_relu = nn.Conv2d(3, 2, 3)
            self.conv = nn.ReLU()

        def forward(self, x):
            return self.conv(self.conv_pre_relu(x))

    network = Named().eval()
    layers = describe_layers(network, ("conv_pre_relu",), "all", TINY)
    with torch.inference_mode():
        expected = network.conv_pre_relu(to_input(crops(), TINY)).amax(dim=(2, 3))
    found = PlainTrunk(network, layers, ("max",), TINY, CPU)(crops())
    assert torch.equal(found.activations["conv_pre_relu", "max"], expected)
