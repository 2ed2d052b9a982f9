"""Networks that know eight colours, so that what `check` says of them is known beforehand."""

import torch
from torch import nn

CLASSES = ["black", "maroon", "red", "green", "olive", "navy", "purple", "grey"]
# Of images on 0..1. None is the darkest and none the brightest in everything, so that a wrong scale mixes them up.
COLOURS = torch.tensor(
    [
        *([0.25, 0.3, 0.2], [0.5, 0.3, 0.2], [0.75, 0.3, 0.2], [0.25, 0.6, 0.2]),
        *([0.5, 0.6, 0.2], [0.25, 0.3, 0.5], [0.5, 0.3, 0.5], [0.5, 0.6, 0.5]),
    ]
)
PREPROCESS = "{resize: 16, crop: 16, scale: 1, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}"


class Colours(nn.Module):
    """Logits: how near the mean colour, on -1..1, is to each of the eight. Sure of itself as networks are."""

    def __init__(self, order=(0, 1, 2), before=0, behind=0):
        super().__init__()
        self.colours = nn.Parameter((2 * COLOURS - 1)[:, order], requires_grad=False)
        self.before, self.behind = before, behind

    def forward(self, x):
        logits = -20 * torch.cdist(x.mean(dim=(2, 3)), self.colours) ** 2
        return nn.functional.pad(logits, (self.before, self.behind), value=-1000.0)


class Wrapped(nn.Module):
    """Colours, and what is made of its logits."""

    def __init__(self, wrap, network=None):
        super().__init__()
        self.network, self.wrap = network or Colours(), wrap

    def forward(self, x):
        return self.wrap(self.network(x))


def colours():
    return Colours()


def blue_first():
    """Trained on images whose channels are blue, green, red."""
    return Colours(order=(2, 1, 0))


def background_first():
    return Colours(before=1)


def background_last():
    return Colours(behind=1)


def eleven_outputs():
    return Colours(before=2, behind=1)


def softmaxed():
    return Wrapped(lambda logits: torch.softmax(logits, 1))


def of_transformers():
    """As models of transformers: a mapping with `logits`, and more that could be."""
    return Wrapped(lambda logits: {"logits": logits, "pooled": logits[:, :4]})


def two_heads():
    return Wrapped(lambda logits: (logits, logits[:, :4]))


def maps():
    return Wrapped(lambda logits: logits[:, :, None, None].expand(-1, -1, 2, 2))


def guessing():
    """The same for every image: no better than blind guessing."""
    return Wrapped(lambda logits: 0 * logits + torch.arange(8.0))


def not_finite():
    """NaN for the images of one colour."""
    return Wrapped(lambda logits: torch.where(logits.argmax(1, keepdim=True) == 3, torch.nan, logits))


def with_view():
    """Fails where channels are last in memory."""

    class View(nn.Module):
        def forward(self, x):
            return x.view(len(x), -1).view(x.shape)

    network = Colours()
    return nn.Sequential(View(), network)


def with_dropout():
    """Dropout that stays on in eval mode."""
    return Wrapped(lambda logits: nn.functional.dropout(logits, 0.5))


def of_the_batch():
    """Logits less their mean over the batch."""
    return Wrapped(lambda logits: logits - logits.mean(0))


def untrained():
    """Weights from torch's generator as it stands."""
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
