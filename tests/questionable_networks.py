"""Networks that are no functions of the image, each beside an honest twin; and networks whose layers lie in every way.

Made for 32 x 32 images. `layer` is the layer to look at.
"""

import torch
from torch import nn
from torch.nn import functional


class Base(nn.Module):
    """A convolution, and a layer after whatever the network does with it."""

    def __init__(self, honest=True):
        super().__init__()
        self.honest = honest
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.layer = nn.Conv2d(6, 8, 3, padding=1)

    def forward(self, x):
        return self.layer(self.between(self.conv(x / 60)))

    def between(self, x):
        return x


class Dropout(Base):
    def between(self, x):
        return functional.dropout(x, 0.2, training=self.training if self.honest else True)


class Noise(Base):
    def between(self, x):
        return x + (0 if self.honest else 0.02 * torch.randn_like(x))


class GrowingState(Base):
    def __init__(self, honest=True):
        super().__init__(honest)
        self.register_buffer("calls", torch.zeros(()))

    def between(self, x):
        if not self.honest:
            self.calls += 1
        return x * (1 + 0.1 * self.calls)


class BatchStatistics(Base):
    def __init__(self, honest=True):
        super().__init__(honest)
        self.norm = nn.BatchNorm2d(6, track_running_stats=honest)

    def between(self, x):
        return self.norm(x)


class MeanOfBatch(Base):
    def between(self, x):
        return x - x.mean(dim=(2, 3) if self.honest else (0, 2, 3), keepdim=True)


class PlaceInBatch(Base):
    def between(self, x):
        places = torch.arange(len(x), dtype=x.dtype).view(-1, 1, 1, 1)
        return x if self.honest else x * (1 + 0.1 * places)


class SameSeedEachCall(Base):
    def between(self, x):
        if self.honest:
            return x
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return x * torch.rand_like(x)


class PlaceInMemory(Base):
    """Takes the numbers in the order in which they lie in memory."""

    def between(self, x):
        return x if self.honest else torch.as_strided(x, x.shape, (x[0].numel(), *x[0].contiguous().stride()))


LIARS = [Dropout, Noise, GrowingState, BatchStatistics, MeanOfBatch, PlaceInBatch, SameSeedEachCall]


class Windows(Base):
    """Sees each of 4 windows as an image of its own."""

    def forward(self, x):
        x = self.conv(x)
        if self.honest:
            return self.layer(x)
        b, c, h, w = x.shape
        x = x.reshape(b, c, 2, h // 2, 2, w // 2).permute(0, 2, 4, 1, 3, 5).reshape(b * 4, c, h // 2, w // 2)
        return self.layer(x)


class SequenceFirst(nn.Module):
    """Tokens before images, as attention has it by default."""

    def __init__(self, honest=True):
        super().__init__()
        self.honest = honest
        self.patches = nn.Conv2d(3, 8, 8, stride=8)
        self.layer = nn.Linear(8, 12)

    def forward(self, x):
        tokens = self.patches(x / 60).flatten(2)
        return self.layer(tokens.permute(0, 2, 1) if self.honest else tokens.permute(2, 0, 1))


class OneAtATime(Base):
    def between(self, x):
        return x.reshape(len(x) if self.honest else 1, 6, 32, 32)


# How layers lie ----------------------------------------------------------------------------


class Lying(nn.Module):
    """A map of 8 x 8 units with 12 channels; `arrange` says how `layer` gives it.

    Args:
        any_size: whether it takes images of other sizes than 32 x 32.
        traced: whether its operations can be followed.
    """

    def __init__(self, any_size=True, traced=True):
        super().__init__()
        self.any_size, self.traced = any_size, traced
        self.conv = nn.Conv2d(3, 12, 7, stride=4, padding=3)
        self.layer = nn.Identity()

    def forward(self, x):
        if not self.any_size and x.shape[-2:] != (32, 32):
            raise ValueError("images are 32 x 32")
        maps = self.conv(x / 60)
        if not self.traced:
            maps = torch.from_numpy(maps.detach().numpy().copy())
        return self.layer(self.arrange(maps))


class ChannelsFirst(Lying):
    def arrange(self, maps):
        return maps


class ChannelsLast(Lying):
    def arrange(self, maps):
        return maps.permute(0, 2, 3, 1)


class WidthFirst(Lying):
    def arrange(self, maps):
        return maps.transpose(2, 3)


class WidthFirstChannelsLast(Lying):
    def arrange(self, maps):
        return maps.permute(0, 3, 2, 1)


class Tokens(Lying):
    """Rows one after another, behind so many tokens that stand for no place."""

    def __init__(self, prefix=0, **how):
        super().__init__(**how)
        self.prefix = nn.Parameter(torch.randn(1, prefix, 12))

    def arrange(self, maps):
        tokens = maps.flatten(2).transpose(1, 2)
        if not self.prefix.numel():
            return tokens
        return torch.cat([self.prefix.expand(len(maps), -1, -1), tokens], dim=1)


class ColumnsOfTokens(Lying):
    def arrange(self, maps):
        return maps.transpose(2, 3).flatten(2).transpose(1, 2)


class ChannelsBeforeTokens(Lying):
    def arrange(self, maps):
        return maps.flatten(2)


class TokensBeforePrefix(Tokens):
    def arrange(self, maps):
        tokens = super().arrange(maps)
        return tokens.roll(-self.prefix.shape[1], 1)


class WindowsOfTokens(Lying):
    """[images, windows, units of a window, channels]"""

    def arrange(self, maps):
        cut = maps.unflatten(2, (-1, 4)).unflatten(4, (-1, 4))
        return cut.permute(0, 2, 4, 3, 5, 1).flatten(1, 2).flatten(2, 3)


class Mixed(nn.Module):
    """No axis of `layer` has anything to do with places."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3 * 32 * 32, 4 * 4 * 4)
        self.layer = nn.Identity()

    def forward(self, x):
        return self.layer(self.linear(x.flatten(1) / 60).unflatten(1, (4, 4, 4)))
