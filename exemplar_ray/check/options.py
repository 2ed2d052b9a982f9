"""What the user says of a check, beside network and data."""

from __future__ import annotations

from dataclasses import dataclass

from exemplar_ray.data.preprocess import is_whole
from exemplar_ray.errors import UsageError
from exemplar_ray.keys import key

_MOST_GUESSES = 100


@dataclass(frozen=True)
class CheckOptions:
    """What a check is told beside network and data. Every field is a key of the config file and a flag.

    Raises:
        UsageError: a value has the wrong type or an impossible value.
    """

    images: int = key(1000, "N", "how many images to look at, spread over all shards (default: 1000)")
    guesses: int = key(5, "N", "of how many of them to show the first guesses (default: 5)")
    outputs: str | None = key(
        None, "FILE", 'the class of each output, if that is not its label: ["background", "tench", null, ...]'
    )
    figure: str | None = key(None, "FILE", "draw what was found: a .pdf, .svg or .png")

    def __post_init__(self) -> None:
        if not is_whole(self.images) or self.images < 1:
            raise UsageError(f"images is a whole number from 1, not {self.images!r}")
        if not is_whole(self.guesses) or not 0 <= self.guesses <= _MOST_GUESSES:
            raise UsageError(f"guesses is a whole number from 0 to {_MOST_GUESSES}, not {self.guesses!r}")
        for name in ("outputs", "figure"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise UsageError(f"{name} is a file, not {value!r}")
