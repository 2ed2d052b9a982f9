"""A network is questioned before it is believed: liars are refused, their honest twins are not."""

import dataclasses

import numpy as np
import pytest
import questionable_networks as networks
import torch
from torch import nn

from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.errors import UsageError
from exemplar_ray.network.describe import describe_layers, question_network
from exemplar_ray.network.layers import Axis, ReceptiveField
from exemplar_ray.network.layouts import check_layout
from exemplar_ray.network.questions import Answers
from exemplar_ray.network.trunk import ContiguousTrunk, Trunk

TINY = Preprocess(mean=(117, 117, 117), resize=36, crop=32)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def questioned(network, layer="layer", layout="auto"):
    return question_network(network.eval(), [layer], "all", TINY, layout=layout)


@pytest.mark.parametrize("network", networks.LIARS)
def test_a_network_that_is_no_function_of_the_image_is_refused_and_its_honest_twin_is_not(network):
    with pytest.raises(UsageError, match=r"no function of the image|depend on the other images") as refusal:
        questioned(network(honest=False))
    assert "'layer'" in str(refusal.value)
    answers = questioned(network(honest=True)).answers
    assert answers.repeated_difference == answers.batch_difference == 0


@pytest.mark.parametrize("network", networks.LIARS[:3])
def test_what_changes_from_call_to_call_is_told_from_what_goes_by_the_batch(network):
    with pytest.raises(UsageError, match="each time"):
        questioned(network(honest=False))


@pytest.mark.parametrize("network", networks.LIARS[3:])
def test_what_goes_by_the_batch_is_said_to(network):
    with pytest.raises(UsageError, match="depend on the other images of its batch"):
        questioned(network(honest=False))


@pytest.mark.parametrize("network", [networks.Windows, networks.SequenceFirst])
def test_a_first_axis_that_is_not_the_images_is_refused(network):
    with pytest.raises(UsageError, match="its first axis is not the images"):
        questioned(network(honest=False))
    assert questioned(network(honest=True)).layers[0].map_size is not None


def test_a_network_that_takes_one_image_at_a_time_is_refused():
    with pytest.raises(UsageError, match="fails on a batch of two images"):
        questioned(networks.OneAtATime(honest=False))
    questioned(networks.OneAtATime(honest=True))


def test_a_network_that_goes_by_memory_runs_without_channels_last():
    layers, answers = vars(questioned(networks.PlaceInMemory(honest=False))).values()
    assert answers.channels_last is False
    assert questioned(networks.PlaceInMemory(honest=True)).answers.channels_last is True
    # And gives then what it gives alone, called as it is.
    network = networks.PlaceInMemory(honest=False).eval()
    crops = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    found = ContiguousTrunk(network, layers, ("max",), TINY, CPU)(crops).activations["layer", "max"]
    with torch.no_grad():
        plain = network(crops.permute(0, 3, 1, 2).contiguous().float() - 117).amax(dim=(2, 3))
    assert torch.allclose(found, plain, atol=1e-5)


class Flattening(nn.Module):
    """As beginners' courses have it: maps are flattened by `view`."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.conv = nn.Conv2d(3, 6, 5)
        self.hidden = nn.Linear(6 * 28 * 28, 10)

    def forward(self, x):
        x = self.conv(x)
        return self.hidden(x.view(x.size(0), -1) if self.how == "view" else x.flatten(1))


class OfVolumes(nn.Module):
    """Has a weight of five axes, which cannot lie with the channels last as those of four do."""

    def __init__(self):
        super().__init__()
        self.deep = nn.Conv3d(1, 4, 3, padding=1)
        self.layer = nn.Conv2d(12, 5, 3)

    def forward(self, x):
        return self.layer(self.deep(x[:, None]).flatten(1, 2))


@pytest.mark.parametrize(
    ("network", "layer", "channels_last"),
    [(Flattening("view"), "hidden", False), (Flattening("flatten"), "hidden", True), (OfVolumes(), "layer", False)],
)
def test_a_network_runs_on_any_image_that_it_takes_when_called_as_it_is(network, layer, channels_last):
    found = questioned(network, layer)
    assert found.answers.channels_last is channels_last
    trunk = (Trunk if channels_last else ContiguousTrunk)(network, found.layers, ("max",), TINY, CPU)
    trunk(torch.zeros((4, 32, 32, 3), dtype=torch.uint8))


class Picky(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error = error
        self.layer = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        x = self.layer(x)
        if x.shape[-1] != 22:
            raise self.error
        return x


@pytest.mark.parametrize("error", [AssertionError("24 pixels!"), ValueError(), KeyError("size"), ZeroDivisionError()])
def test_a_network_that_refuses_a_size_is_refused_in_one_line_whatever_it_raises(error):
    with pytest.raises(UsageError, match=rf"the model fails on a 32 x 32 image: {type(error).__name__}"):
        questioned(Picky(error))


def test_that_other_sizes_are_refused_is_an_answer():
    assert "images are 32 x 32" in questioned(networks.ChannelsFirst(any_size=False)).answers.other_size
    assert questioned(networks.ChannelsFirst()).answers.other_size is None


def test_layers_that_give_no_activations_are_refused():
    class Deciding(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Identity()

        def forward(self, x):
            return self.layer(x.flatten(1).argmax(dim=1, keepdim=True))

    with pytest.raises(UsageError, match=r"numbers of type torch.int64"):
        questioned(Deciding())


def test_answers_survive_json_and_say_what_is_worth_saying():
    answers = questioned(networks.ChannelsLast(any_size=False)).answers
    assert Answers.from_json(answers.to_json()) == answers
    text = " ".join(answers.lines())
    assert "images of another size are refused: ValueError: images are 32 x 32" in text
    assert "layer layer: nhwc" in text
    assert answers.news() == ["the network was questioned with noise, as no image was at hand"]


# How layers lie ---------------------------------------------------------------------------

WAYS = [{"any_size": a, "traced": t} for a in (True, False) for t in (True, False)]


def maps_of(network, crops):
    """The maps by plain torch: [images, 12, 8, 8]."""
    with torch.no_grad():
        return network.conv((crops.permute(0, 3, 1, 2).float() - 117) / 60)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize(
    ("network", "layout"),
    [
        (networks.ChannelsFirst, "nchw"),
        (networks.ChannelsLast, "nhwc"),
        (networks.Tokens, "tokens:0"),
        (lambda **how: networks.Tokens(prefix=1, **how), "tokens:1"),
        (lambda **how: networks.Tokens(prefix=5, **how), "tokens:5"),
    ],
)
def test_a_layout_is_found_by_asking_and_read_right(network, layout, how):
    network = network(**how).eval()
    [layer] = describe_layers(network, ["layer"], "3,7-9", TINY)
    assert (layer.written_layout, layer.channel_count, layer.map_size) == (layout, 12, (8, 8))
    crops = torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8)
    pooled, outputs = Trunk(network, [layer], ("mean", "max", "center"), TINY, CPU).with_maps(crops)
    maps = maps_of(network, crops)[:, [3, 7, 8, 9]]
    assert torch.allclose(outputs["layer"], maps, atol=1e-5)
    expected = {"mean": maps.mean(dim=(2, 3)), "max": maps.amax(dim=(2, 3)), "center": maps[:, :, 4, 4]}
    for statistic, values in expected.items():
        assert torch.allclose(pooled.activations["layer", statistic], values, atol=1e-5), statistic


@pytest.mark.parametrize(
    "network", [networks.ChannelsFirst(), networks.ChannelsLast(), networks.Tokens(), networks.Tokens(traced=False)]
)
def test_receptive_fields_are_followed_into_every_layout(network):
    [layer] = describe_layers(network.eval(), ["layer"], "all", TINY)
    seven_every_4 = ReceptiveField(Axis(-3, 7, 4), Axis(-3, 7, 4))
    assert layer.field == (seven_every_4 if network.traced else None)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize(
    "network",
    [
        networks.WidthFirst,
        networks.WidthFirstChannelsLast,
        networks.ColumnsOfTokens,
        networks.ChannelsBeforeTokens,
        lambda **how: networks.TokensBeforePrefix(prefix=2, **how),
        networks.WindowsOfTokens,
    ],
)
def test_what_lies_otherwise_is_refused(network, how):
    with pytest.raises(UsageError, match=r"layer 'layer' gives a tensor of shape \["):
        questioned(network(**how))


def test_where_no_axis_answers_the_user_chooses():
    with pytest.raises(UsageError, match=r"cannot be told: no axis answers .* --layout \(nchw or nhwc\) if you know"):
        questioned(networks.Mixed())
    for layout in ("nchw", "nhwc"):
        found = questioned(networks.Mixed(), layout=layout)
        assert found.layers[0].layout == layout
        assert found.answers.given_layouts == ["layer"]


def test_what_the_user_chooses_against_the_network_s_answers_is_said():
    found = questioned(networks.ChannelsLast(), layout={"layer": "nchw"})
    assert (found.layers[0].channel_count, found.layers[0].map_size) == (8, (8, 12))
    assert any("as given; the operations that made it speaks for nhwc" in line for line in found.answers.news())


@pytest.mark.parametrize(
    ("network", "layout", "message"),
    [
        (networks.Tokens(prefix=1), "nhwc", "which is no nhwc: that has 4 axes"),
        (networks.ChannelsLast(), "tokens", "which is no tokens: that has 3 axes"),
        (networks.Tokens(prefix=1), "tokens:4", "65 tokens, which without 4 make up no square map"),
        (networks.Tokens(), {"other": "tokens"}, "'other' is none of the run's layers"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(network, layout, message):
    with pytest.raises(UsageError, match=message):
        questioned(network, layout=layout)


@pytest.mark.parametrize("layout", ["nhcw", 4, "nchw:1", "tokens:x", {"a": "b"}, None, ["nchw"]])
def test_what_is_no_layout_is_refused(layout):
    with pytest.raises(UsageError, match="unknown layout"):
        check_layout(layout)


class TwoLayers(nn.Module):
    """A linear layer that is given maps with the channels first, and works along their width."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 4, stride=4)
        self.layer = nn.Linear(8, 8)
        nn.init.eye_(self.layer.weight)

    def forward(self, x):
        return self.layer(self.conv(x / 60))


def test_what_the_layer_s_own_kind_says_otherwise_is_refused():
    with pytest.raises(UsageError, match="its axes look like nchw, but it is a Linear"):
        questioned(TwoLayers())


class OfTheClassToken(networks.Tokens):
    pass


def test_the_class_token_is_a_statistic_of_its_own():
    network = networks.Tokens(prefix=2).eval()
    [layer] = describe_layers(network, ["layer"], "0-4", TINY)
    crops = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    found = Trunk(network, [layer], ("cls", "max"), TINY, CPU, pre_relu=True)(crops)
    assert torch.equal(found.activations["layer", "cls"], network.prefix[0, 0, :5].detach().expand(3, -1))
    assert found.pre_relu["layer", "cls"].isnan().all()


# In place ---------------------------------------------------------------------------------


class Residual(nn.Module):
    """Adds to a layer's output in place, after the layer has run."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.block = nn.Conv2d(6, 6, 9, padding=4)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        x += self.block(x)
        return self.head(x)


class OverwritingView(nn.Module):
    """A layer gives a view, of memory that is overwritten later."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.stem = nn.Identity()
        self.head = nn.Conv2d(6, 4, 5, padding=2)

    def forward(self, x):
        whole = self.conv(x)
        self.stem(whole[:, :4])
        whole[:, 1:3] = whole[:, 1:3].flip(3)
        return self.head(whole)


@pytest.mark.parametrize("network", [Residual(), OverwritingView()])
def test_a_layer_is_what_it_was_when_it_ran_whatever_else_is_asked_for(network):
    alone = questioned(network, "stem").layers[0]
    both = question_network(network.eval(), ["stem", "head"], "all", TINY).layers
    assert alone == both[0]
    assert alone.field == (
        ReceptiveField(Axis(0, 1, 1), Axis(0, 1, 1)) if isinstance(network, Residual) else alone.field
    )
    crops = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    one = Trunk(network, [alone], ("max",), TINY, CPU)(crops).activations["stem", "max"]
    again = Trunk(network, list(both), ("max",), TINY, CPU)(crops).activations["stem", "max"]
    assert torch.equal(one, again)


def test_what_is_written_into_a_view_is_not_followed_past_it():
    [layer] = describe_layers(OverwritingView().eval(), ["head"], "all", TINY)
    # Some of its channels were turned round: a unit may see anything.
    assert layer.field == ReceptiveField(None, None)


def test_writing_into_fresh_memory_does_not_escape():
    class Pasting(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.layer = nn.Identity()

        def forward(self, x):
            canvas = torch.zeros(len(x), 4, 40, 40)
            canvas[:, :, 4:36, 4:36] = self.conv(x)
            return self.layer(canvas)

    [layer] = describe_layers(Pasting().eval(), ["layer"], "all", TINY)
    assert layer.field == ReceptiveField(None, None)
    assert np.prod(layer.map_size) == 1600


# Once a run -------------------------------------------------------------------------------


def test_a_network_that_is_known_is_not_questioned_again(monkeypatch):
    from conftest import TINY_NETWORK

    from exemplar_ray.network import resolve as resolving
    from exemplar_ray.network.resolve import NetworkRequest, resolve_network

    keys = {"resize": 36, "crop": 32, "mean": (117, 117, 117)}
    request = NetworkRequest(TINY_NETWORK, "pretrained", ("conv1", "mixed"), "0-3", keys)
    first = resolve_network(request)
    asked = []
    question = resolving.question_network
    monkeypatch.setattr(resolving, "question_network", lambda *given: asked.append(given) or question(*given))
    assert resolve_network(request, known=first) == first
    assert not asked
    # Other weights, another layer, or another layout than was found, and it is.
    for changes in (
        {"model": TINY_NETWORK.replace(":trained", ":trained_otherwise")},
        {"layers": ("mixed",)},
        {"preprocess": {**keys, "mean": (0, 0, 0)}},
        {"layout": "nhwc"},
    ):
        asked.clear()
        resolve_network(dataclasses.replace(request, **changes), known=first)
        assert len(asked) == 1, changes
