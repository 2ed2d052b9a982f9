"""Models of transformers: their own preprocessing, pixel for pixel, and what they are told from each other by."""

import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import PROJECT, encode, needs_shared, python_without, random_picture
from hub_server import Repository, hub_server
from library_models import save_tiny_model, tiny_model, transformers_own, write_images
from PIL import Image
from torch import nn

from exemplar_ray.data.decode import crop, decode_and_crop
from exemplar_ray.data.framing import Framing
from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.errors import UnlikeRunError, UsageError
from exemplar_ray.network import loading, machine_cache
from exemplar_ray.network.describe import describe_layers
from exemplar_ray.network.models import load_network
from exemplar_ray.network.resolve import NetworkRequest, build_network, resolve_network
from exemplar_ray.network.spec import whole_paths
from exemplar_ray.network.transformers_models import _preprocess
from exemplar_ray.network.trunk import to_input
from exemplar_ray.report.dataset_folder import public_model

transformers = pytest.importorskip("transformers")

KINDS = ("vit", "dinov2", "clip", "siglip", "resnet")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """{kind: the folder of a tiny model}"""
    folder = tmp_path_factory.mktemp("models")
    return {kind: save_tiny_model(kind, folder / kind) for kind in KINDS}


def prepared(data, preprocess):
    return to_input(torch.from_numpy(decode_and_crop(data, preprocess).copy())[None], preprocess)[0]


def named(folder):
    return f"transformers:{folder}"


# Preprocessing ---------------------------------------------------------------------------

PROCESSORS = {
    "ViTImageProcessor": {},
    "BitImageProcessor": {"size": {"shortest_edge": 256}},
    "CLIPImageProcessor": {},
    "SiglipImageProcessor": {},
    "ConvNextImageProcessor": {"size": {"shortest_edge": 224}, "crop_pct": 0.875},
    "DeiTImageProcessor": {"size": {"height": 255, "width": 255}},
    "EfficientNetImageProcessor": {"resample": 0},
    "LevitImageProcessor": {},
    "MobileViTImageProcessor": {"size": {"shortest_edge": 288}, "crop_size": {"height": 256, "width": 256}},
    "LlavaImageProcessor": {"do_rescale": False, "image_mean": [123.0, 117.0, 104.0], "image_std": [1.0, 1.0, 1.0]},
}


def save_processor(name, settings, folder):
    getattr(transformers, name)(**settings).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", PROCESSORS)
def test_images_are_prepared_as_transformers_prepares_them_by_pillow(name, tmp_path):
    folder = save_processor(name, PROCESSORS[name], tmp_path)
    preprocess, why_none = _preprocess(folder)
    assert why_none == ""
    theirs = transformers_own(folder)
    # The centre of some of them lies between two pixels.
    sizes = [(500, 375), (375, 500), (224, 224), (100, 400), (303, 224), (260, 359), (224, 231)]
    for seed, size in enumerate(sizes):
        data = encode(random_picture(seed, *size), "JPEG", quality=95)
        own = theirs(Image.open(io.BytesIO(data)).convert("RGB"))
        assert torch.allclose(prepared(data, preprocess), own, rtol=0, atol=1e-6 * float(own.abs().max()))


def test_where_the_centre_lies_between_two_pixels_it_is_the_lower_one():
    settings = {"mean": (0, 0, 0), "resize": 224, "crop": 224}
    rounded, floored = Preprocess(**settings), Preprocess(**settings, centre="floored")
    lefts = [[Framing.of(224 + over, 224, one).left for over in range(8)] for one in (rounded, floored)]
    assert lefts == [[0, 0, 1, 2, 2, 2, 3, 4], [0, 0, 1, 1, 2, 2, 3, 3]]
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (224, 227, 3), dtype=np.uint8))
    assert np.array_equal(crop(image, floored), np.asarray(image)[:, 1:225])
    assert np.array_equal(crop(image, rounded), np.asarray(image)[:, 2:226])
    assert Preprocess(**floored.to_json()) == floored
    assert "centre" not in rounded.to_json()
    assert ("centre (floored) 224" in floored.in_words(), "centre: floored" in floored.as_flag()) == (True, True)
    with pytest.raises(UsageError, match="centre is one of rounded, floored, not 'up'"):
        Preprocess(**settings, centre="up")


@needs_shared
def test_how_far_the_processors_for_tensors_are_from_those_for_pillow(tmp_path):
    """What docs/keys.md says of them."""
    images = write_images(tmp_path / "images.parquet")
    differences = {}
    for name in ("ViTImageProcessor", "CLIPImageProcessor", "DeiTImageProcessor", "SiglipImageProcessor"):
        folder = save_processor(name, {}, tmp_path / name)
        by_pillow, by_tensors = (transformers_own(folder, backend) for backend in ("pil", "torchvision"))
        std = torch.tensor(_preprocess(folder)[0].std).view(3, 1, 1)
        levels = torch.stack([(by_pillow(image) - by_tensors(image)).abs() * std * 255 for image in images])
        differences[name] = float((levels > 0.5).float().mean()), round(float(levels.max()))
    assert all(0.003 < share < 0.09 for share, _ in differences.values())
    assert differences["ViTImageProcessor"][1] == 1
    assert 2 < max(levels for _, levels in differences.values()) < 12
    assert type(transformers.AutoImageProcessor.from_pretrained(folder)).__name__ == "SiglipImageProcessor"


def test_all_of_transformers_processors_have_words_or_are_refused_with_the_reason(tmp_path):
    from transformers.models.auto import image_processing_auto as auto

    known, refused = {}, {}
    for kinds in auto.IMAGE_PROCESSOR_MAPPING_NAMES.values():
        name = kinds.get("torchvision") or kinds["pil"]
        if name in {*known, *refused}:
            continue
        try:
            folder = save_processor(name, {}, tmp_path / name)
        except Exception:
            # It wants another package, or settings that it has no defaults of.
            continue
        preprocess, why_none = _preprocess(folder)
        (refused if preprocess is None else known)[name] = preprocess or why_none
    assert len(known) > 20
    assert {"ViTImageProcessor", "CLIPImageProcessor", "BitImageProcessor", "SiglipImageProcessor"} <= known.keys()
    assert {"DetrImageProcessor", "DINOv3ViTImageProcessor", "PerceiverImageProcessor"} <= refused.keys()
    assert all(
        "in a way that has no words here (" in why or "has no image processor" in why for why in refused.values()
    )
    assert all("\n" not in why for why in refused.values())


def test_a_model_without_words_for_its_preprocessing_is_run_with_that_of_the_user(models, tmp_path):
    def request(preprocess):
        return NetworkRequest(named(tmp_path / "vit"), "random:0", ("vit.layers.1",), "all", preprocess)

    shutil.copytree(models["vit"], tmp_path / "vit")
    save_processor("DINOv3ViTImageProcessor", {}, tmp_path / "vit")
    with pytest.raises(UsageError, match="no words here .DINOv3ViTImageProcessor: it gives other.*; give it, for ex"):
        build_network(request({"resize": 256}))
    (tmp_path / "vit" / "preprocessor_config.json").unlink()
    with pytest.raises(
        UsageError, match="has no image processor that transformers can read .* give it, for example --p"
    ):
        build_network(request(None))
    found = resolve_network(request({"resize": 256, "mean": [0.5, 0.5, 0.5]})).spec
    assert (found.preprocess.resize, found.layers[0].written_layout) == (256, "tokens:1")


# Networks --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_the_folders_whichever_way_they_come(kind, models, tmp_path):
    whole, _ = tiny_model(kind)
    own = (whole.vision_model if kind in ("clip", "siglip") else whole).eval()
    torch.save(own.state_dict(), tmp_path / "own.pth")
    torch.save({f"module.{name}": value for name, value in own.state_dict().items()}, tmp_path / "parallel.pth")
    x = torch.rand(1, 3, 224, 224)
    hashes = set()
    files = (models[kind] / "model.safetensors", tmp_path / "own.pth", tmp_path / "parallel.pth")
    for weights in ("pretrained", *files):
        loaded = load_network(named(models[kind]), str(weights))
        assert loaded.trained
        hashes.add(loaded.weights_sha256)
        with torch.no_grad():
            assert all(torch.equal(a, b) for a, b in zip(loaded.module(x).to_tuple(), own(x).to_tuple(), strict=True))
    assert len(hashes) == 1
    assert load_network(named(models[kind]), "random:0").weights_sha256 not in hashes


def test_what_files_of_weights_do_not_hold_is_as_the_class_makes_it(models, monkeypatch):
    """transformers' loader makes networks without memory, and fills in what is left over only if all goes well."""

    def full(tensor, **how):
        return torch.full(tensor.shape, 7, dtype=tensor.dtype, device=how.get("device", tensor.device))

    monkeypatch.setattr(torch, "empty_like", full)
    monkeypatch.setattr(transformers.CLIPPreTrainedModel, "_init_weights", lambda *_: None)
    for weights in ("pretrained", str(models["clip"] / "model.safetensors")):
        places = load_network(named(models["clip"]), weights).module.embeddings.position_ids
        assert places.flatten().tolist() == list(range(50))


def test_weights_of_fewer_bits_are_widened(tmp_path):
    network, _ = tiny_model("vit")
    network.half().save_pretrained(tmp_path)
    loaded = load_network(named(tmp_path), "pretrained").module
    assert all(value.dtype == torch.float32 for value in loaded.state_dict().values())
    assert all(torch.equal(value, network.state_dict()[name].float()) for name, value in loaded.state_dict().items())


def changed_config(folder, copy, **values):
    shutil.copytree(folder, copy)
    config = {**json.loads((copy / "config.json").read_text()), **values}
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def test_a_network_is_what_it_is_made_of_and_not_what_its_folder_is_called(models, tmp_path):
    def spec(folder):
        return resolve_network(NetworkRequest(named(folder), "pretrained", ("vit.layers.1",), "all")).spec

    here = spec(models["vit"])
    shutil.copytree(models["vit"], tmp_path / "moved")
    moved = spec(changed_config(models["vit"], tmp_path / "again", transformers_version="5.99", dtype="float16"))
    other = spec(changed_config(models["vit"], tmp_path / "other", hidden_act="relu"))
    assert here.identity() == spec(tmp_path / "moved").identity() == moved.identity()
    assert here.weights_sha256 == other.weights_sha256
    assert here.identity() != other.identity()
    assert loading.network_of(replace(here, model=named(tmp_path / "moved"))).weights_sha256 == here.weights_sha256
    with pytest.raises(UnlikeRunError, match="the configuration of 'transformers:.*other' is not the run's on"):
        loading.network_of(replace(here, model=named(tmp_path / "other")))
    assert machine_cache.is_of_known_libraries(here)
    assert any(one.startswith("transformers ") for one in machine_cache._libraries(is_known=True))


def test_a_folder_goes_by_its_whole_path_and_is_published_by_its_name(models, monkeypatch):
    monkeypatch.chdir(models["vit"].parent)
    assert whole_paths("transformers:vit", "pretrained") == (named(models["vit"]), "pretrained")
    assert whole_paths("transformers:org/vit", "random:0") == ("transformers:org/vit", "random:0")
    assert whole_paths("timm:vit", "random:0") == ("timm:vit", "random:0")
    assert public_model(named(models["vit"])) == "transformers:vit"
    assert public_model("transformers:org/vit") == "transformers:org/vit"


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_of_a_folder_goes_on_where_the_folder_was_moved(models, tiny_data, tmp_path, cli, monkeypatch):
    shutil.copytree(models["vit"], tmp_path / "before" / "vit")
    monkeypatch.chdir(tmp_path / "before")
    command = ["run", "--data", tiny_data, "--out", tmp_path / "run", "--layer", "vit.layers.1", "--top-k", "3"]
    command += ["--compile", "never", "--model"]
    status, text = cli(*command, "transformers:vit")
    assert status == 0, text
    found = (tmp_path / "run" / "exemplars.parquet").read_bytes()
    (tmp_path / "before").rename(tmp_path / "after")
    monkeypatch.chdir(tmp_path)
    status, text = cli(*command, "transformers:after/vit")
    assert (status, (tmp_path / "run" / "exemplars.parquet").read_bytes() == found) == (0, True), text


def test_layers_that_give_one_tensor_in_a_tuple_or_a_mapping_are_layers(models):
    """Attention gives (tensor, None), an encoder a mapping with one tensor, the whole network several."""
    network = load_network(named(models["clip"]), "random:0")
    request = NetworkRequest(
        named(models["clip"]), "random:0", ("encoder.layers.1.self_attn", "encoder", "encoder.layers.3"), "all"
    )
    known = resolve_network(request)
    assert {layer.written_layout for layer in known.spec.layers} == {"tokens:1"}
    module = nn.Sequential(network.module)
    with pytest.raises(UsageError, match="layer '0' gives a BaseModelOutputWithPooling, not a tensor"):
        describe_layers(module, ["0"], "all", known.spec.preprocess)


# What there is not -----------------------------------------------------------------------


def test_what_transformers_has_not_is_one_line(models, tmp_path):
    text = transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    transformers.BertModel(text).save_pretrained(tmp_path / "text")
    vit = models["vit"]
    folders = {
        "remote": changed_config(vit, tmp_path / "remote", model_type="own", auto_map={"AutoConfig": "own.Config"}),
        "unknown": changed_config(vit, tmp_path / "unknown", architectures=["OwnViT"]),
        "headless": changed_config(vit, tmp_path / "headless", architectures=["ViTModel"]),
        "torn": changed_config(vit, tmp_path / "torn"),
        "empty": tmp_path / "empty",
    }
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn" / "model.safetensors").write_bytes(b"torn")
    for folder, weights, message in [
        (
            "org/none",
            "random:0",
            "transformers finds no model 'org/none' .We couldn't connect.* name a folder that has",
        ),
        (tmp_path / "none", "random:0", "model folder '.*none' does not exist on "),
        ("./none", "random:0", "model folder './none' does not exist on "),
        (folders["empty"], "random:0", "transformers finds no model '.*empty' "),
        (
            tmp_path / "text",
            "random:0",
            "'.*text' is no image model: BertModel takes input_ids, and has no image tower",
        ),
        (folders["remote"], "random:0", "brings code of its own .trust_remote_code., which is not run here; make the"),
        (folders["unknown"], "random:0", "is of the class OwnViT, which transformers has not"),
        (
            folders["headless"],
            "pretrained",
            "lacks weights of its ViTModel, .*: 2 missing .pooler.dense.bias, pooler.d",
        ),
        (folders["torn"], "pretrained", "weights of '.*torn' cannot be had .* give --weights FILE, or random:SEED"),
        (
            vit,
            str(models["resnet"] / "model.safetensors"),
            "do not fit 'transformers:.*vit': .* missing .*; .* unknown",
        ),
    ]:
        with pytest.raises(UsageError, match=message) as raised:
            load_network(named(folder), weights)
        assert "\n" not in str(raised.value)


def test_without_transformers_the_message_names_the_extra(models):
    program = (
        "import sys\nfrom exemplar_ray.network.models import find_architecture\n"
        "try:\n    find_architecture(sys.argv[1])\nexcept Exception as error:\n    print(error)\n"
    )
    said = python_without("transformers", program, named(models["vit"]))
    assert said.startswith("'transformers:...' needs one more package: pip install 'transformers>=")
    assert "the extra `transformers`" in said


ON_THE_HUB = """
import sys
from exemplar_ray.network.models import load_network
network = load_network("transformers:org/clip", "pretrained")
print(network.weights_sha256, network.architecture.source_sha256, network.architecture.title)
"""


def test_a_model_of_the_hub_is_downloaded_once_and_then_of_the_cache(models, tmp_path):
    here = load_network(named(models["clip"]), "pretrained")
    with hub_server() as hub:
        hub.repositories["org/clip"] = Repository()
        hub.repositories["org/clip"].upload(models["clip"])
        environment = {**hub.environment(tmp_path), "PYTHONPATH": str(PROJECT)}
        expected = f"{here.weights_sha256} {here.architecture.source_sha256} transformers org/clip, CLIPVisionModel\n"
        for offline in ("0", "1"):
            own = {**environment, "HF_HUB_OFFLINE": offline}
            done = subprocess.run([sys.executable, "-c", ON_THE_HUB], capture_output=True, text=True, env=own)
            assert (done.stdout, done.stderr) == (expected, "")
            kinds = [request.kind for request in hub.requests]
            assert kinds.count("content") == 1 - int(offline)
            assert (offline == "1") == (kinds == [])
            hub.requests.clear()
