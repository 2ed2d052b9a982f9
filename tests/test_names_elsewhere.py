"""Layers by the names that lucent and torchvision give them: what they mean here is said."""

import pytest
from conftest import TINY_NETWORK
from torchvision import models

from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.errors import UsageError
from exemplar_ray.exemplars.spec import RunSpec
from exemplar_ray.network.describe import question_network


@pytest.fixture(scope="module")
def resnet():
    return models.resnet18(weights=None).eval()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("layer1_0_conv1", "that is what lucent calls 'layer1.0.conv1'; name it so"),
        ("layer1_0_pre_relu", "that is what lucent calls 'layer1.0_pre_relu'; name it so"),
        ("layer1.0.relu_1", "a later run of 'layer1.0.relu', by the names of .*; 'layer1.0' ends in it: name that"),
        ("layer2.1.add", "a node of torchvision's create_feature_extractor within 'layer2.1', and a layer is a module"),
        ("flatten", "which is computed between modules, and a layer is a module here; name one before or after"),
        ("layer9", "unknown layer 'layer9'; did you mean 'layer4'"),
    ],
)
def test_other_libraries_names_are_explained(name, said, resnet):
    with pytest.raises(UsageError, match=f"unknown layer '{name}'; .*{said.removeprefix(f'unknown layer {name!r}; ')}"):
        question_network(resnet, [name], "all", Preprocess((0, 0, 0), resize=64, crop=64))


def test_what_cannot_be_traced_has_no_such_names():
    class Deciding(models.ResNet):
        def forward(self, x):
            return super().forward(x) if x.mean() > 0 else super().forward(-x)

    network = Deciding(models.resnet.BasicBlock, [1, 1, 1, 1]).eval()
    with pytest.raises(UsageError, match="unknown layer 'layer1.0.add'; did you mean"):
        question_network(network, ["layer1.0.add"], "all", Preprocess((0, 0, 0), resize=64, crop=64))


def test_channels_as_papers_cite_them():
    spec = RunSpec(model=TINY_NETWORK, layer="mixed4a:476")
    assert (spec.layer, spec.channels) == (("mixed4a",), "476")
