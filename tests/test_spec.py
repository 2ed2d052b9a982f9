"""The user's words: what is accepted, what is refused, and with which sentence."""

import json
from dataclasses import fields, replace

import pytest
import yaml

from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.errors import UsageError
from exemplar_ray.exemplars.spec import ExemplarsSpec, RunOptions, RunSpec
from exemplar_ray.network.layers import Layer, format_channels, parse_channels
from exemplar_ray.network.spec import NetworkSpec
from exemplar_ray.runs.identity import fingerprint


def resolved(**changes):
    """A spec with some fields changed, its own or its network's."""
    values = {
        "model": "inceptionv1",
        "model_title": "InceptionV1",
        "model_source_sha256": None,
        "weights": "random:0",
        "weights_title": "random weights, seed 0",
        "weights_sha256": "a" * 64,
        "trained": False,
        "layers": (Layer("mixed4a", 508, (14, 14), tuple(range(508))),),
        "statistics": ("mean",),
        "top_k": 10,
        "samples": ("top",),
        "distinct": False,
        "max_per_class": None,
        "class_top_k": 0,
        "seed": 0,
        "preprocess": Preprocess(mean=(117, 117, 117)),
        "precision": "float32",
        "decode": "reference",
        "margin": 10,
    }
    values.update(changes)
    network = NetworkSpec(**{one.name: values.pop(one.name) for one in fields(NetworkSpec) if one.name in values})
    return ExemplarsSpec(network=network, **values)


@pytest.mark.parametrize(
    ("text", "channels"),
    [("all", (0, 1, 2, 3)), ("0-2", (0, 1, 2)), ("3,1", (1, 3)), ("0,0-1,1", (0, 1)), ("3", (3,))],
)
def test_channels(text, channels):
    assert parse_channels(text, 4) == channels
    assert parse_channels(format_channels(channels), 4) == channels


@pytest.mark.parametrize("text", ["", "x", "1-", "-1", "1,,2", "1-2-3", "0.5", "²"])
def test_what_is_no_channels(text):
    with pytest.raises(UsageError, match="channels are"):
        parse_channels(text, 4)


@pytest.mark.parametrize("text", ["4", "0-508", "99999999999"])
def test_channels_out_of_range_are_refused_with_the_valid_range(text):
    with pytest.raises(UsageError, match="valid channels are 0-3"):
        parse_channels(text, 4)


def test_a_backward_range_is_refused():
    with pytest.raises(UsageError, match="backwards"):
        parse_channels("3-1", 4)


def test_names_are_one_several_or_a_list_and_their_order_does_not_matter():
    assert RunSpec(layer="b,a").layer == RunSpec(layer=["a", "b"]).layer == RunSpec(layer=["b", "a,a"]).layer
    assert RunSpec(layer="mixed4a").layer == ("mixed4a",)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("top_k", 0, "top_k is a whole number from 1"),
        ("top_k", True, "top_k is a whole number from 1"),
        ("top_k", "ten", "top_k is a whole number from 1"),
        ("layer", [], "layer is empty"),
        ("layer", 3, "layer is one name or several"),
        ("model", None, "model is a name"),
        ("preprocess", "resize", "preprocess is a mapping"),
    ],
)
def test_impossible_values_are_refused(key, value, message):
    with pytest.raises(UsageError, match=message):
        RunSpec(**{key: value})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("class_labels", 3, "class_labels is a text"),
        ("max_skipped", -1, "max_skipped is a whole number from 0"),
        ("max_skipped", True, "max_skipped is a whole number from 0"),
        ("settle", "no", "settle is true or false"),
        ("log_level", "loud", "log_level is one of debug, info, warning, error"),
    ],
)
def test_impossible_options_are_refused(key, value, message):
    with pytest.raises(UsageError, match=message):
        RunOptions(**{key: value})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mean": [1, 2]}, "mean is three numbers"),
        ({"mean": "117"}, "mean is three numbers"),
        ({"mean": [117]}, r"mean is three numbers .*, not \[117\]; one is of a network that takes one channel"),
        ({"order": "grey"}, r"mean is one number of a grey image \(order: grey\), not \(117.0, 117.0, 117.0\)"),
        ({"order": "grey", "mean": 0, "std": [1, 2]}, "std is one number of a grey image"),
        ({"order": "grey", "mean": 0, "std": 0}, "std must not be 0"),
        ({"order": "gray"}, "order is one of rgb, bgr, grey, not 'gray'"),
        ({"std": [1, 0, 1]}, "std must not be 0"),
        ({"resize": 0}, "resize is a number of pixels"),
        ({"resize": [64, 0]}, r"resize is a number of pixels, or two: \[HEIGHT, WIDTH\]"),
        ({"resize": [64, 64, 3]}, "resize is a number of pixels, or two"),
        ({"resize": [64, 80]}, r"squashed to a square, resize: \[SIDE, SIDE\]"),
        ({"crop": None}, "without a crop images have to be squashed to a square"),
        ({"resize": [64, 80], "crop": 70}, "crop .70. must not be larger"),
        ({"crop": 300}, "crop .300. must not be larger"),
        ({"scale": -1}, "scale is a number above 0"),
        ({"interpolation": "bicubical"}, "did you mean 'bicubic'"),
        ({"rezise": 256}, "did you mean 'resize'"),
    ],
)
def test_impossible_preprocessing_is_refused(values, message):
    with pytest.raises(UsageError, match=message):
        Preprocess.of(Preprocess(mean=(117, 117, 117)), values)


def test_a_channel_may_be_named_as_papers_cite_it():
    cited = RunSpec(layer="mixed4a:476")
    assert (cited.layer, cited.channels) == (("mixed4a",), "476")
    assert RunSpec(layer="mixed4a:3-7") == RunSpec(layer="mixed4a", channels="3-7")
    for given in ({"layer": "mixed4a:476", "channels": "3"}, {"layer": ["mixed4a:476", "mixed4b"]}):
        with pytest.raises(UsageError, match="layer 'mixed4a:476' names channels; give layers without"):
            RunSpec(**given)


def test_the_users_keys_lie_over_the_models_own_preprocessing():
    own = Preprocess(mean=(1, 2, 3), std=(4, 5, 6), resize=300)
    assert Preprocess.of(own, {"resize": [64, 64]}) == replace(own, resize=(64, 64), crop=64)
    assert Preprocess.of(own, {"resize": [64, 80], "crop": 60}) == replace(own, resize=(64, 80), crop=60)
    squashed = Preprocess.of(own, {"resize": [64, 64], "interpolation": "lanczos"})
    assert Preprocess(**json.loads(json.dumps(squashed.to_json()))) == squashed
    assert squashed.in_words().startswith("squashed to 64 × 64 pixels (lanczos), centre 64 × 64, ")
    assert Preprocess.of(own, yaml.safe_load(squashed.as_flag())) == squashed
    grey = Preprocess.of(own, {"order": "grey", "mean": 0.13, "std": [0.31], "scale": 1})
    assert (grey.mean, grey.std, grey.crop_shape) == ((0.13,), (0.31,), (224, 224, 1))
    assert Preprocess.of(own, yaml.safe_load(grey.as_flag())) == Preprocess(**grey.to_json()) == grey
    assert Preprocess.of(None, {"order": "grey", "mean": [0]}).std == (1,)
    assert Preprocess.of(own, {"crop": 200}) == Preprocess(mean=(1, 2, 3), std=(4, 5, 6), resize=300, crop=200)


def test_a_model_without_preprocessing_needs_a_mean():
    with pytest.raises(UsageError, match="--preprocess"):
        Preprocess.of(None, {"resize": 256})
    assert Preprocess.of(None, {"mean": [123, 117, 104]}).scale == 255


def test_a_resolved_spec_survives_json():
    spec = resolved(layers=(Layer("a", 9, (3, 4), (0, 1, 5)), Layer("fc", 5, None, (2,))))
    assert ExemplarsSpec.from_json(spec.to_json()) == spec


def test_the_fingerprint_follows_what_decides_the_numbers_and_nothing_else():
    base = fingerprint(resolved().identity())
    same = [
        {"weights": "somewhere/else.pth", "weights_title": "weights else.pth"},
        {"model_title": "another title"},
    ]
    other = [
        {"model": "inceptionv1-tf"},
        {"weights_sha256": "b" * 64},
        {"model_source_sha256": "c" * 64},
        {"layers": (Layer("mixed4b", 508, (14, 14), tuple(range(508))),)},
        {"layers": (Layer("mixed4a", 508, (14, 14), (0,)),)},
        {"statistics": ("max",)},
        {"samples": ("top", "bottom")},
        {"distinct": True},
        {"max_per_class": 2},
        {"class_top_k": 3},
        {"seed": 1},
        {"top_k": 11},
        {"preprocess": Preprocess(mean=(117, 117, 118))},
    ]
    assert all(fingerprint(resolved(**changes).identity()) == base for changes in same)
    assert len({base, *(fingerprint(resolved(**changes).identity()) for changes in other)}) == len(other) + 1
