"""A network of a known library is questioned once a machine; whatever may be another one is asked."""

from dataclasses import replace

import pytest
import torch
from conftest import TINY_NETWORK

from exemplar_ray.data.first_images import TwoImages
from exemplar_ray.network import machine_cache, resolve
from exemplar_ray.network.resolve import resolve_network
from exemplar_ray.network.spec import NetworkRequest

LAYERS = ("features.3", "features.4")
REQUEST = NetworkRequest("torchvision:squeezenet1_1", "random:0", LAYERS, "all", {"resize": 40, "crop": 32})
PREPROCESS = {"resize": 36, "crop": 32, "mean": [117, 117, 117]}
TINY = NetworkRequest(TINY_NETWORK, "pretrained", ("conv1",), "all", PREPROCESS)


def images(preprocess, labelled, words="row 0 and row 1"):
    shape = (2, *preprocess.crop_shape)
    return TwoImages(torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1)), words)


def noise_at_hand(preprocess, labelled):
    return images(preprocess, labelled, "noise, as the first shards have no two images that can be decoded")


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """The models that were questioned, in a cache of their own."""
    models = []
    question = resolve.question_network

    def questioned(module, *rest):
        models.append(type(module).__name__)
        return question(module, *rest)

    monkeypatch.setattr(resolve, "question_network", questioned)
    monkeypatch.setenv("EXEMPLAR_RAY_CACHE", str(tmp_path / "cache"))
    return models


def test_the_next_run_of_the_same_network_knows_its_answers(asked, tmp_path):
    first, again, third = (resolve_network(REQUEST, images) for _ in range(3))
    assert asked == ["SqueezeNet"]
    assert again.spec == first.spec
    assert first.answers.asked_with == "row 0 and row 1"
    assert again == third
    words = "row 0 and row 1, in an earlier run"
    assert {**again.answers.to_json(), "asked_with": 0} == {**first.answers.to_json(), "asked_with": 0}
    assert again.answers.asked_with == words
    [kept] = tmp_path.glob("cache/*")
    kept.write_text(kept.read_text().replace('"channels_last": true', '"channels_last": false'))
    assert not resolve_network(REQUEST, images).spec.channels_last
    # Channels are none of it.
    few = resolve_network(replace(REQUEST, channels="3-5"), images)
    assert [layer.channels for layer in few.spec.layers] == [(3, 4, 5)] * 2
    assert len(asked) == 1


def test_whatever_may_answer_otherwise_is_asked(asked, monkeypatch):
    resolve_network(REQUEST, images)
    for changed in (
        {"model": "torchvision:squeezenet1_0"},
        {"weights": "random:1"},
        {"layers": LAYERS[:1]},
        {"preprocess": {"resize": 40, "crop": 33}},
        {"layout": dict.fromkeys(LAYERS, "auto")},
    ):
        resolve_network(replace(REQUEST, **changed), images)
    assert len(asked) == 6
    version = machine_cache.metadata.version
    monkeypatch.setattr(machine_cache.metadata, "version", lambda name: "9" if name == "torchvision" else version(name))
    resolve_network(REQUEST, images)
    assert len(asked) == 7


def test_what_noise_told_is_not_taken_where_there_are_images(asked):
    resolve_network(REQUEST)
    resolve_network(REQUEST)
    assert len(asked) == 1
    resolve_network(REQUEST, noise_at_hand)
    resolve_network(REQUEST, images)
    assert len(asked) == 3
    assert resolve_network(REQUEST, images).answers.asked_with == "row 0 and row 1, in an earlier run"
    assert len(asked) == 3


def test_a_users_own_code_is_asked_each_time(asked, tmp_path):
    for _ in range(2):
        resolve_network(TINY, images)
    assert len(asked) == 2
    assert not list(tmp_path.glob("cache/*"))


def test_a_cache_that_is_of_no_use_is_no_news(asked, tmp_path, monkeypatch):
    resolve_network(REQUEST, images)
    [kept] = tmp_path.glob("cache/*")
    for text in ("", "{}", '{"answers": {}, "layers": []}', "[]"):
        kept.write_text(text)
        resolve_network(REQUEST, images)
    assert len(asked) == 5
    # A file stands where the folder would be.
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EXEMPLAR_RAY_CACHE", str(tmp_path / "file"))
    assert resolve_network(REQUEST, images).answers.asked_with == "row 0 and row 1"
