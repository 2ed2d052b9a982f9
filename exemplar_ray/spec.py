"""What to compute: the request as the user states it, and the same once it is resolved.

`RunSpec` holds the user's words ("pretrained", "all"). `ResolvedSpec` holds what they turned
out to mean (the hash of the weights, the channel count of each layer); it is what workers
compute from and what the fingerprint covers. Nothing here imports torch or Ray.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from exemplar_ray.errors import UsageError, near_matches
from exemplar_ray.samples import BOTTOM, DISTINCT, TOP, is_drawn, parse_samples, place_in_results
from exemplar_ray.tallies import TALLIES

# Counted up when the meaning of a part or of the result changes, so that a run folder written
# by an older version is refused instead of being continued with other numbers.
FORMAT_VERSION = 3

INTERPOLATIONS = ("bilinear", "bicubic")
# What a scan may compute in, and how it may decode: the first of each is the reference.
PRECISIONS = ("float32", "bfloat16", "float16")
GPU_DECODER = "gpu"
DECODERS = ("reference", "fast", GPU_DECODER)

# So many candidates a channel beyond K, or so many times K, are kept by the scan of each shard: for rounding,
# and where the scan is approximate.
_MARGIN, _MARGIN_A_RANK = 10, 1
_SCREENING_MARGIN, _SCREENING_MARGIN_A_RANK = 30, 3


@dataclass(frozen=True)
class Preprocess:
    """From a decoded RGB image to the network's input.

    The shorter side is resized to `resize` pixels (Pillow, antialiased), the centre
    `crop` x `crop` pixels are cut out, values are put on 0..`scale`, then `mean` (RGB) is
    subtracted and the rest divided by `std` (RGB).
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    resize: int = 256
    crop: int = 224
    scale: float = 255.0
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            value = getattr(self, name)
            numbers = isinstance(value, Sequence) and not isinstance(value, str)
            if not numbers or len(value) != 3 or not all(_is_number(v) for v in value):
                raise UsageError(f"preprocess: {name} is three numbers (red, green, blue), not {value!r}")
            object.__setattr__(self, name, tuple(float(v) for v in value))
        if 0.0 in self.std:
            raise UsageError("preprocess: std must not be 0")
        for name in ("resize", "crop"):
            if not _is_whole(getattr(self, name)) or getattr(self, name) < 1:
                raise UsageError(f"preprocess: {name} is a number of pixels, not {getattr(self, name)!r}")
        if self.crop > self.resize:
            raise UsageError(f"preprocess: crop ({self.crop}) must not be larger than resize ({self.resize})")
        if not _is_number(self.scale) or self.scale <= 0:
            raise UsageError(f"preprocess: scale is a number above 0, not {self.scale!r}")
        object.__setattr__(self, "scale", float(self.scale))
        if self.interpolation not in INTERPOLATIONS:
            hint = near_matches(str(self.interpolation), INTERPOLATIONS)
            raise UsageError(f"preprocess: unknown interpolation '{self.interpolation}'; {hint}")

    @classmethod
    def of(cls, own: Preprocess | None, overrides: Mapping[str, Any] | None) -> Preprocess:
        """Lay the user's keys over the model's own preprocessing.

        Raises:
            UsageError: a key is unknown, a value is impossible, or the model has no
                preprocessing of its own and the user gave no `mean`.
        """
        overrides = dict(overrides or {})
        known = [f.name for f in fields(cls)]
        for key in overrides:
            if key not in known:
                raise UsageError(f"preprocess: unknown key '{key}'; {near_matches(str(key), known)}")
        if own is None and "mean" not in overrides:
            raise UsageError(
                "this model brings no preprocessing of its own; give it, for example "
                "--preprocess '{resize: 256, crop: 224, scale: 255, mean: [123, 117, 104], std: [1, 1, 1]}'"
            )
        return cls(**({**asdict(own), **overrides} if own else overrides))


@dataclass(frozen=True)
class RunSpec:
    """What the user asks for. Every field is a key of the config file and a flag.

    Raises:
        UsageError: a value has the wrong type or an impossible value.
    """

    model: str = "inceptionv1"
    weights: str = "pretrained"
    layer: tuple[str, ...] = ("mixed4a",)
    channels: str = "all"
    statistic: tuple[str, ...] = ("mean",)
    top_k: int = 10
    sample: tuple[str, ...] = (TOP,)
    distinct: bool = False
    max_per_class: int | None = None
    class_top_k: int = 0
    seed: int = 0
    preprocess: Mapping[str, Any] | None = None
    precision: str = PRECISIONS[0]
    decode: str = DECODERS[0]
    margin: int | None = None

    def __post_init__(self) -> None:
        for name in ("model", "weights"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise UsageError(f"{name} is a name or a path, not {getattr(self, name)!r}")
        for name in ("layer", "statistic"):
            object.__setattr__(self, name, _names(name, getattr(self, name)))
        object.__setattr__(self, "channels", str(self.channels).replace(" ", ""))
        object.__setattr__(self, "sample", parse_samples(_names("sample", self.sample)))
        for name, known in (("precision", PRECISIONS), ("decode", DECODERS)):
            if getattr(self, name) not in known:
                raise UsageError(f"unknown {name} '{getattr(self, name)}'; {near_matches(getattr(self, name), known)}")
        numbers = (("top_k", 1), ("class_top_k", 0), ("seed", 0), ("max_per_class", 1), ("margin", 0))
        for name, least in numbers:
            value = getattr(self, name)
            if name in ("max_per_class", "margin") and value is None:
                continue
            if not _is_whole(value) or value < least:
                raise UsageError(f"{name} is a whole number from {least}, not {value!r}")
        if not isinstance(self.distinct, bool):
            raise UsageError(f"distinct is true or false, not {self.distinct!r}")
        if self.preprocess is not None and not isinstance(self.preprocess, Mapping):
            raise UsageError(f"preprocess is a mapping such as {{resize: 256, crop: 224}}, not {self.preprocess!r}")

    def with_whole_paths(self) -> RunSpec:
        """Return the same for processes with another working folder: what is a file here, by its whole path."""
        file, _, factory = self.model.rpartition(":")
        model = f"{os.path.abspath(file)}:{factory}" if file.endswith(".py") and os.path.isfile(file) else self.model
        # Whatever lies about under the name of a choice.
        chosen = self.weights == "pretrained" or self.weights.startswith("random:")
        is_file = not chosen and os.path.isfile(self.weights)
        return replace(self, model=model, weights=os.path.abspath(self.weights) if is_file else self.weights)


@dataclass(frozen=True)
class Axis:
    """What a layer's units see along one axis, in pixels of the network's input.

    Unit i sees from `first + i * stride` up to, but not including, `first + i * stride + size`.
    Pixels outside the input are padding.
    """

    first: int
    size: int
    stride: int


@dataclass(frozen=True)
class ReceptiveField:
    """What a layer's units see; an axis is None where every unit may see the whole image."""

    y: Axis | None
    x: Axis | None


@dataclass(frozen=True)
class Layer:
    """One wanted layer: its output's channel count, map size, wanted channels, receptive field.

    `map_size` is (height, width), or None where the layer's output has no map (logits).
    `field` is None where there is no map, or where the network's arithmetic is not known.
    """

    name: str
    channel_count: int
    map_size: tuple[int, int] | None
    channels: tuple[int, ...]
    field: ReceptiveField | None = None


@dataclass(frozen=True)
class ResolvedSpec:
    """A `RunSpec` whose model has been built and looked at. Small, and pickles to every worker."""

    model: str
    model_title: str
    model_source_sha256: str | None
    weights: str
    weights_title: str
    weights_sha256: str
    trained: bool
    layers: tuple[Layer, ...]
    statistics: tuple[str, ...]
    top_k: int
    samples: tuple[str, ...]
    """In the order of results: `top` first; without `distinct`, which `distinct` adds."""
    distinct: bool
    """Whether to pick exemplars again without near-duplicates, and `max_per_class` of a class."""
    max_per_class: int | None
    class_top_k: int
    """How many images of every class to keep for every channel."""
    seed: int
    preprocess: Preprocess
    precision: str
    decode: str
    margin: int
    """How many candidates a channel the scan of a shard keeps beyond `top_k`."""

    @property
    def screened(self) -> bool:
        """Return whether the scan computes otherwise than the reference, so that only gather is exact."""
        return _is_screening(self.precision, self.decode)

    def unscreened(self, layers: Sequence[Layer]) -> ResolvedSpec:
        """Return the spec of an exact scan that looks for the strongest and weakest of some channels."""
        samples = tuple(sample for sample in self.samples if not is_drawn(sample))
        return replace(
            self, layers=tuple(layers), precision=PRECISIONS[0], decode=DECODERS[0], samples=samples, class_top_k=0
        )

    @property
    def shown_samples(self) -> tuple[str, ...]:
        """Return the samples of the result, in its order."""
        distinct = (DISTINCT,) if self.distinct else ()
        return tuple(sorted((*self.samples, *distinct), key=place_in_results))

    @property
    def drawn_samples(self) -> tuple[str, ...]:
        """Return the samples that are drawn by priority."""
        return tuple(sample for sample in self.samples if is_drawn(sample))

    @property
    def wants_bottom(self) -> bool:
        """Return whether the weakest images are asked for."""
        return BOTTOM in self.samples

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; `from_json` reads them back."""
        spec = asdict(self)
        for layer in spec["layers"]:
            layer["channels"] = format_channels(layer["channels"])
        return json.loads(json.dumps(spec))

    @classmethod
    def from_json(cls, spec: Mapping[str, Any]) -> ResolvedSpec:
        """Read back what `to_json` wrote."""
        layers = tuple(
            Layer(
                name=layer["name"],
                channel_count=layer["channel_count"],
                map_size=tuple(layer["map_size"]) if layer["map_size"] else None,
                channels=parse_channels(layer["channels"], layer["channel_count"]),
                field=_field_from_json(layer["field"]),
            )
            for layer in spec["layers"]
        )
        rest = {**spec, "layers": layers, "statistics": tuple(spec["statistics"]), "samples": tuple(spec["samples"])}
        return cls(**{**rest, "preprocess": Preprocess(**spec["preprocess"])})

    def identity(self) -> dict[str, Any]:
        """Return what decides the numbers, under the user's own key names.

        Weights count by their hash, a model's file by its contents: what they are called on
        this machine does not matter.
        """
        identity = {
            "format": FORMAT_VERSION,
            "model": self.model_source_sha256 or self.model,
            "weights": self.weights_sha256,
            "layer": [layer.name for layer in self.layers],
            "channels": {layer.name: format_channels(layer.channels) for layer in self.layers},
            "statistic": list(self.statistics),
            "tallies": sorted(TALLIES),
            "top_k": self.top_k,
            "sample": list(self.samples),
            "distinct": self.distinct,
            "max_per_class": self.max_per_class,
            "class_top_k": self.class_top_k,
            "seed": self.seed,
            "preprocess": asdict(self.preprocess),
            "precision": self.precision,
            "decode": self.decode,
            "margin": self.margin,
        }
        # As it reads back from a file, where tuples are lists.
        return json.loads(json.dumps(identity))


def fingerprint(identity: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) of an identity's canonical JSON.

    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    True
    """
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def parse_channels(text: str, channel_count: int) -> tuple[int, ...]:
    """Turn "all", "0-9" or "0,3,7-9" into sorted channel numbers.

    >>> parse_channels("0,3,7-9", 16)
    (0, 3, 7, 8, 9)

    Raises:
        UsageError: the text is none of these, or a channel is not in 0..channel_count-1.
    """
    if text == "all":
        return tuple(range(channel_count))
    wanted: set[int] = set()
    for piece in text.split(","):
        first, _, last = piece.partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()) or piece.endswith("-"):
            raise UsageError(f"channels are 'all', '0-9' or '0,3,7', not '{text}'")
        low, high = int(first), int(last or first)
        if low > high:
            raise UsageError(f"channels: the range '{piece}' runs backwards")
        if high >= channel_count:
            raise UsageError(f"channel {high} is out of range; valid channels are 0-{channel_count - 1}")
        wanted.update(range(low, high + 1))
    return tuple(sorted(wanted))


def format_channels(channels: Sequence[int]) -> str:
    """Write channel numbers as ranges, the inverse of `parse_channels`.

    >>> format_channels([0, 1, 2, 7, 9, 10])
    '0-2,7,9-10'
    """
    runs: list[list[int]] = []
    for channel in channels:
        if runs and channel == runs[-1][1] + 1:
            runs[-1][1] = channel
        else:
            runs.append([channel, channel])
    return ",".join(f"{low}" if low == high else f"{low}-{high}" for low, high in runs)


def _is_screening(precision: str, decode: str) -> bool:
    return (precision, decode) != (PRECISIONS[0], DECODERS[0])


def margin_of(spec: RunSpec) -> int:
    """Return how many candidates a channel to keep beyond K: as asked for, or enough as a rule."""
    if spec.margin is not None:
        return spec.margin
    if _is_screening(spec.precision, spec.decode):
        return max(_SCREENING_MARGIN, _SCREENING_MARGIN_A_RANK * spec.top_k)
    return max(_MARGIN, _MARGIN_A_RANK * spec.top_k)


def _field_from_json(field: Mapping[str, Any] | None) -> ReceptiveField | None:
    if field is None:
        return None
    return ReceptiveField(*(Axis(**field[axis]) if field[axis] else None for axis in ("y", "x")))


def _names(key: str, value: Any) -> tuple[str, ...]:
    """Accept one name, a comma-separated list or a list; return them sorted, each once."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, Sequence) or not all(isinstance(v, str) for v in values):
        raise UsageError(f"{key} is one name or several, not {value!r}")
    names = sorted({name.strip() for v in values for name in v.split(",") if name.strip()})
    if not names:
        raise UsageError(f"{key} is empty; name at least one")
    return tuple(names)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
