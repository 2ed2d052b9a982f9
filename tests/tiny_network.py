"""Networks small enough that a test's run takes no time; users' files for `file.py:factory`."""

import torch
from torch import nn


class TinyNetwork(nn.Module):
    """Two convolutions with names, two branches, logits; 32 x 32 input."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 5, stride=2, padding=2)
        self.wide = nn.Conv2d(8, 8, 3, padding=1)
        self.narrow = nn.Conv2d(8, 4, 1)
        self.mixed = nn.Identity()
        self.relu = nn.ReLU()
        self.unused = nn.Linear(3, 3)
        self.classifier = nn.Linear(12, 5)

    def forward(self, x):
        x = self.relu(self.conv1(x / 60))
        x = self.mixed(torch.cat([self.relu(self.wide(x)), self.relu(self.narrow(x))], dim=1))
        return self.classifier(x.mean(dim=(2, 3)))


def trained():
    """The same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return TinyNetwork()


def trained_otherwise():
    """Other weights than `trained`, the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        return TinyNetwork()


def untrained():
    """Weights from torch's generator as it stands."""
    return TinyNetwork()


def dividing():
    """Channel 1 of `conv1` gives NaN and infinity on some images."""

    class Dividing(nn.Module):
        def forward(self, x):
            y = x.clone()
            y[:, 1] = torch.sqrt(x[:, 1])
            return y

    network = trained()
    network.conv1 = nn.Sequential(network.conv1, Dividing())
    return network


def hardly_firing():
    """Channels of `mixed` that fire on few images of noise, on one or two, or on none: thresholds near their maxima."""
    network = trained()
    network.wide.bias.data -= torch.tensor([0.8, 0.67, 0.5, 0.9, 1.38, 0.56, 0.1, 0.5])
    network.narrow.bias.data -= torch.tensor([0.0, 1.3, 0.475, 1.0])
    return network


def no_network():
    """Not a network at all."""
    return "no network"


class PatchFinder(nn.Module):
    """One channel that answers to a magenta square of 8 x 8 input pixels, and one that is its negative."""

    def __init__(self):
        super().__init__()
        self.find = nn.Conv2d(3, 2, 8, stride=4, padding=2, bias=False)
        magenta = torch.tensor([1.0, -1.0, 1.0]).view(1, 3, 1, 1).expand(1, 3, 8, 8) / 192
        self.find.weight.data = torch.cat([magenta, -magenta])

    def forward(self, x):
        return self.find(x)


def deciding():
    """A forward pass that depends on what it sees, so that no one graph of it is right for all images.

    Both ways give the same, as an image must not depend on those beside it."""

    class Deciding(nn.Module):
        def forward(self, x):
            return x.clamp(min=0) if x.mean() > 0 else (x.abs() + x) / 2

    network = trained()
    network.relu = Deciding()
    return network


def _with_mixed(forward):
    """`trained`, with something done to what `mixed` gives."""

    class Mixed(nn.Module):
        def forward(self, x):
            return forward(x)

    network = trained()
    network.mixed = Mixed()
    return network


def cancelling():
    """What `mixed` gives is left of large numbers that cancel: rounding is a hundredth of it."""
    return _with_mixed(lambda x: (x + 65536.0) - 65536.0)


def cancelling_a_little():
    """The same, in half precision only."""
    return _with_mixed(lambda x: (x + 64.0) - 64.0)


def float32_only():
    """As `cancelling`, with tensors of its own: it does not compute in float64."""
    weight = torch.ones(12, 1, 1, 1)
    return _with_mixed(lambda x: nn.functional.conv2d((x + 65536.0) - 65536.0, weight, groups=12))


def rooting():
    """A root whose argument is 0 but for rounding: no number where that is below 0."""
    return _with_mixed(lambda x: x + torch.sqrt(((x + 65536.0) - 65536.0) - x + 1e-6))


def dropping():
    """Dropout that stays on."""
    return _with_mixed(lambda x: nn.functional.dropout(x, 0.3))


def counting():
    """Something that changes from one call to the next."""
    calls = iter(range(1, 1_000_000))
    return _with_mixed(lambda x: x * (1 + 0.01 * next(calls)))


def of_the_batch():
    """Batch statistics that stay on."""
    return _with_mixed(lambda x: x / (1 + x.mean(dim=0, keepdim=True)))


def of_the_batch_in_float32():
    """The same where nothing computes in float64."""
    weight = torch.ones(12, 1, 1, 1)
    return _with_mixed(lambda x: nn.functional.conv2d(x / (1 + x.mean(dim=0, keepdim=True)), weight, groups=12))


class Normalised(nn.Module):
    """Convolutions with normalisations that have seen data, of which the last gives `second`."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 32, 5, stride=2, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(32, 16, 3), nn.BatchNorm2d(16), nn.ReLU())
        for module in (self.first[1], self.second[1]):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.3, 3)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.constant_(module.bias, 0.5)

    def forward(self, x):
        return self.second(self.first(x / 60))


def normalised():
    """The same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        return Normalised()
