"""A network of torchvision is the one that torchvision's own loader gives, in everything."""

import copy
import functools
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models
from torchvision.models import _api

from exemplar_ray.errors import UsageError
from exemplar_ray.network.loading import _refuse_another_network
from exemplar_ray.network.models import find_architecture, load_network, weights_sha256
from exemplar_ray.network.resolve import NetworkRequest, resolve_network

NAMES = models.list_models(module=models)
# The smallest of each family, and the size of images that all its layers can do with.
FAMILIES = {
    "alexnet": 64,
    "convnext_tiny": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "googlenet": 64,
    "inception_v3": 96,
    "maxvit_t": 224,
    "mnasnet0_5": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "regnet_y_400mf": 64,
    "resnet18": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 64,
    "swin_t": 64,
    "vgg11_bn": 32,
    "vit_b_32": 224,
}


@pytest.fixture
def undrawn(monkeypatch):
    """Networks whose weights are left as memory has them: every one of them is to be loaded."""
    for function in [one for one in vars(nn.init) if one.endswith("_") and one[0] != "_"]:
        monkeypatch.setattr(nn.init, function, lambda tensor, *_, **__: tensor)


@pytest.fixture
def downloads(monkeypatch):
    """Put a state dict in place of every download of torchvision."""

    def put(state):
        monkeypatch.setattr(_api, "load_state_dict_from_url", lambda *_, **__: copy.copy(state))

    return put


def state_of(name):
    """Weights that keep the size of activations, with running statistics that are not the ones of a new network."""
    state = models.get_model(name, weights=None).state_dict()
    numbers = torch.randn(99_991, generator=torch.Generator().manual_seed(0))
    for key, value in state.items():
        of_normal = numbers.repeat(value.numel() // len(numbers) + 1)[: value.numel()].view(value.shape)
        if key.endswith("num_batches_tracked"):
            value.fill_(7)
        elif value.is_floating_point() and value.dim() > 1:
            value.copy_(of_normal * (value.shape[0] / value.numel()) ** 0.5)
        elif value.is_floating_point():
            value.copy_((0.1 * of_normal).clamp(-0.5, 0.5) + key.endswith(("weight", "running_var")))
    return state


def plain(value):
    """A switch as something that can be compared; None for what is none."""
    if isinstance(value, (bool, int, float, str, type(None))):
        return value
    if isinstance(value, (tuple, list)):
        return [plain(one) for one in value]
    if isinstance(value, functools.partial):
        return [value.func.__qualname__, repr(value.keywords)]
    return getattr(value, "__qualname__", type(value).__name__)


def switches(module):
    """{module: its class and all it is set to}, and the shapes of its state."""
    of_modules = {
        path: (type(part).__name__, {name: plain(value) for name, value in vars(part).items() if name[0] != "_"})
        for path, part in module.named_modules()
    }
    return of_modules, {name: tuple(value.shape) for name, value in module.state_dict().items()}


@pytest.mark.parametrize("name", NAMES)
def test_every_model_has_the_switches_of_its_loader(name, downloads, undrawn, monkeypatch):
    """On the device that has no memory, as some have 2 GB of weights. There is nothing to load there."""
    with torch.device("meta"):
        # torch notes once a process which functions make tensors: not those that are put in their place below.
        assert torch.tensor([]).is_meta
    # Some builders read widths and rates out of small tensors.
    for function in ("arange", "linspace", "tensor"):
        monkeypatch.setattr(torch, function, functools.partial(getattr(torch, function), device="cpu"))
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda *_, **__: None)
    downloads({})
    with torch.device("meta"):
        theirs = switches(models.get_model(name, weights="DEFAULT").eval())
        architecture = find_architecture(f"torchvision:{name}")
        assert switches(architecture.load({}).eval()) == theirs
        if name in ("googlenet", "inception_v3", "vit_h_14"):
            assert switches(architecture.build().eval()) == theirs


def outputs(module, size):
    """{module: the tensors that it gives}, of one image."""
    found = {}

    def keep(path, _module, _inputs, output):
        tensors = output if isinstance(output, (tuple, list)) else [output]
        found.setdefault(path, []).extend(one.clone() for one in tensors if isinstance(one, torch.Tensor))

    handles = [part.register_forward_hook(functools.partial(keep, path)) for path, part in module.named_modules()]
    with torch.inference_mode():
        module(torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1)))
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_every_module_gives_what_it_gives_in_the_loaders_network(name, downloads, undrawn):
    downloads(state_of(name))
    theirs = models.get_model(name, weights="DEFAULT").eval()
    network = load_network(f"torchvision:{name}", "pretrained")
    ours, expected = outputs(network.module, FAMILIES[name]), outputs(theirs, FAMILIES[name])
    assert ours.keys() == expected.keys()
    for path in expected:
        for one, other in zip(ours[path], expected[path], strict=True):
            assert torch.equal(one, other), path
            assert one.isfinite().all(), path


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_a_network_that_transforms_its_input_says_so_in_its_name(name, downloads, tmp_path, undrawn):
    """It is another one than the class alone gives, which the weights' hash could not tell."""
    state = state_of(name)
    downloads(state)
    torch.save(state, tmp_path / "weights.pth")
    model = f"torchvision:{name}"
    for weights in ("pretrained", str(tmp_path / "weights.pth"), "IMAGENET1K_V1"):
        network = load_network(model, weights)
        assert network.module.transform_input
        assert network.model == f"torchvision:{name}+transform_input"
        model = network.model


def test_it_stands_in_the_identity_and_a_run_of_the_other_network_is_refused(undrawn):
    spec = resolve_network(NetworkRequest("torchvision:googlenet", "random:0", ("conv1",), "all")).spec
    assert spec.identity()["model"] == "torchvision:googlenet+transform_input"
    before = replace(spec, model="torchvision:googlenet")
    with pytest.raises(UsageError, match="the run is of 'torchvision:googlenet', and torchvision's own loader gives"):
        _refuse_another_network(load_network(spec.model, "random:0"), before)


def test_the_names_of_other_models_stay(undrawn):
    assert load_network("torchvision:squeezenet1_1", "random:0").model == "torchvision:squeezenet1_1"


def test_a_random_network_has_the_weights_that_its_class_draws():
    """Also where a loader with weights leaves the drawing out."""
    for name, layer in (("squeezenet1_1", "features.0"), ("googlenet", "conv1.conv")):
        torch.manual_seed(3)
        drawn = models.get_model(name, weights=None)
        network = load_network(f"torchvision:{name}", "random:3")
        assert torch.equal(network.module.get_submodule(layer).weight, drawn.get_submodule(layer).weight)
        if name == "squeezenet1_1":
            assert network.weights_sha256 == weights_sha256(drawn)


def test_heads_that_the_loader_drops_may_be_in_a_file_or_not(tmp_path, undrawn):
    state = state_of("googlenet")
    torch.save(state, tmp_path / "with.pth")
    torch.save({name: value for name, value in state.items() if "aux" not in name}, tmp_path / "without.pth")
    save_file(state, tmp_path / "with.safetensors")
    hashes = {load_network("torchvision:googlenet", str(path)).weights_sha256 for path in tmp_path.iterdir()}
    assert len(hashes) == 1


@pytest.mark.parametrize("name", ["mnasnet0_5", "densenet121"])
def test_a_file_may_be_of_another_kind_than_the_download(name, tmp_path, undrawn):
    """MNASNet asks for its version, which `.safetensors` has no place for. DenseNet's download has older names."""
    state = state_of(name)
    save_file(state, tmp_path / "weights.safetensors")
    older = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key): value for key, value in state.items()}
    older = {key: value for key, value in older.items() if not key.endswith("num_batches_tracked")}
    torch.save(older if name == "densenet121" else state, tmp_path / "weights.pth")
    ours = [load_network(f"torchvision:{name}", str(path)).module.state_dict() for path in tmp_path.iterdir()]
    for module in ours:
        assert all(torch.equal(module[key], state[key]) for key in state if not key.endswith("num_batches_tracked"))


def test_weights_have_names_and_each_its_own_preprocessing(downloads, undrawn):
    downloads(state_of("resnet50"))
    model = "torchvision:resnet50"
    assert find_architecture(model).preprocess.resize == 232
    for weights in ("IMAGENET1K_V1", "ResNet50_Weights.IMAGENET1K_V1"):
        network = load_network(model, weights)
        assert (network.architecture.preprocess.resize, network.weights_title) == (256, f"weights {weights}")
        assert network.trained
    assert find_architecture("torchvision:vit_b_16", "IMAGENET1K_SWAG_E2E_V1").preprocess.crop == 384
    with pytest.raises(UsageError, match="IMAGENET1K_V9' cannot be read.*did you mean 'IMAGENET1K_V[12]'"):
        load_network(model, "IMAGENET1K_V9")
    with pytest.raises(UsageError, match="ResNet18_Weights.*cannot be read"):
        load_network(model, "ResNet18_Weights.IMAGENET1K_V1")


def test_weights_for_larger_images_come_with_a_larger_network(undrawn):
    with torch.device("meta"):
        large = find_architecture("torchvision:vit_b_16", "IMAGENET1K_SWAG_E2E_V1").build()
    assert large.image_size == 384


def test_a_file_that_does_not_fit_says_what_differs(tmp_path, undrawn):
    torch.save(state_of("resnet18"), tmp_path / "resnet18.pth")
    with pytest.raises(UsageError, match=r"do not fit 'torchvision:squeezenet1_1': \d+ missing.*unknown"):
        load_network("torchvision:squeezenet1_1", str(tmp_path / "resnet18.pth"))


def test_a_torn_download_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / models.ResNet18_Weights.DEFAULT.url.rsplit("/", 1)[-1]).write_bytes(b"torn")
    with pytest.raises(UsageError, match="resnet18 cannot be read from .*remove that file"):
        load_network("torchvision:resnet18", "pretrained")
