"""Models of timm: its own preprocessing, pixel for pixel; `test_networks.py` holds its networks against plain timm."""

import io

import pytest
import torch
from conftest import encode, random_picture
from library_models import timms
from PIL import Image

from exemplar_ray.data.decode import decode_and_crop
from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.errors import UsageError
from exemplar_ray.network import machine_cache, models
from exemplar_ray.network.architecture import Architecture
from exemplar_ray.network.models import find_architecture, load_network
from exemplar_ray.network.spec import NetworkSpec
from exemplar_ray.network.timm_models import _preprocess
from exemplar_ray.network.trunk import to_input

timm = pytest.importorskip("timm")


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "deit_tiny_patch16_224",
        "convnext_atto",
        "mobilenetv3_small_050",
        "swin_tiny_patch4_window7_224",
        "resnet18",
        "resnet50.tv_in1k",
        "vit_base_patch16_siglip_224.webli",
        "tf_efficientnet_b0.in1k",
        "inception_v3.tf_in1k",
        "beit_base_patch16_224.in22k_ft_in22k",
    ],
)
def test_images_are_prepared_as_timm_prepares_them(name):
    preprocess, prepare = find_architecture(f"timm:{name}").preprocess, timms(name)
    for seed, size in enumerate([(500, 375), (375, 500), (224, 224), (100, 400), (355, 256)]):
        data = encode(random_picture(seed, *size), "JPEG", quality=95)
        ours = to_input(torch.from_numpy(decode_and_crop(data, preprocess).copy())[None], preprocess)[0]
        theirs = prepare(Image.open(io.BytesIO(data)).convert("RGB"))
        assert torch.equal(ours, theirs) or float((ours - theirs).abs().max()) < 1e-6


def test_preparations_of_all_of_timms_weights_have_words_or_are_refused():
    refused = []
    for name in timm.list_pretrained():
        config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
        try:
            preprocess = _preprocess(name, config)
        except UsageError as error:
            refused.append(str(error))
            continue
        assert (preprocess.crop, preprocess.mean) == (config["input_size"][1], tuple(config["mean"]))
    assert len(refused) < 40
    assert all("in a way that has no words here" in said for said in refused)


@pytest.mark.parametrize(
    ("model", "weights", "message"),
    [
        ("timm:vit_tiny_patch16_225", "random:0", "timm has no model 'vit_tiny_patch16_225'; did you mean"),
        (
            "timm:resnet18.a1_in2k",
            "random:0",
            r"Invalid pretrained tag \(a1_in2k\) for resnet18. did you mean 'a1_in1k'",
        ),
        ("timm:resnet18", "pretrained", "timm's weights of 'resnet18' cannot be had .* or give --weights FILE"),
        ("tim:resnet18", "random:0", "unknown model 'tim:resnet18'; known: .*'timm:NAME'"),
    ],
)
def test_what_timm_has_not_is_one_line(model, weights, message, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UsageError, match=message):
        load_network(model, weights)


def test_weights_in_a_file_are_loaded_into_timms_network(tmp_path):
    network = timm.create_model("mobilenetv3_small_050", pretrained=False).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    loaded = load_network("timm:mobilenetv3_small_050", str(tmp_path / "weights.pth"))
    x = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(loaded.module(x), network(x))
    assert loaded.trained


def test_another_package_brings_a_library_by_its_entry_point(tmp_path, monkeypatch):
    package = tmp_path / "toys-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[exemplar_ray.networks]\ntoys = toys_of_tests:look_up\n")
    (tmp_path / "toys_of_tests.py").write_text(
        "from torch import nn\n"
        "from exemplar_ray.data.preprocess import Preprocess\n"
        "from exemplar_ray.network.architecture import Architecture\n\n"
        "def look_up(name, weights):\n"
        "    if name == 'wrong':\n        return None\n"
        "    build = lambda: nn.Sequential(nn.Conv2d(3, int(name), 3))\n"
        "    return Architecture('toy', build, None, Preprocess((0, 0, 0), resize=36, crop=32))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    network = load_network("toys:5", "random:0")
    assert isinstance(network.architecture, Architecture)
    assert network.module[0].out_channels == 5
    assert network.architecture.preprocess == Preprocess((0, 0, 0), resize=36, crop=32)
    with pytest.raises(UsageError, match="'toys_of_tests:look_up', which stands for 'toys:...', gives no Architecture"):
        load_network("toys:wrong", "random:0")
    with pytest.raises(UsageError, match="unknown model 'toy:5'.*'toys:NAME'"):
        find_architecture("toy:5")
    assert models._sources().keys() >= {"toys", "timm", "torchvision"}


def test_a_compiled_network_of_another_package_goes_by_all_that_is_installed():
    """Its code may be of anywhere; a known library's is of packages whose versions count."""

    def network(model, source=None):
        return NetworkSpec(model, "", source, "random:0", "", "", False, (), Preprocess((0, 0, 0)))

    for model in ("inceptionv1", "torchvision:resnet18", "timm:resnet18.a1_in1k"):
        assert machine_cache.is_of_known_libraries(network(model))
    assert not machine_cache.is_of_known_libraries(network("toys:5"))
    assert not machine_cache.is_of_known_libraries(network("file.py:factory", source="abc"))
    assert any(one.startswith("timm ") for one in machine_cache._libraries(is_known=True))
    assert len(machine_cache._libraries(is_known=False)) > len(machine_cache._libraries(is_known=True))
