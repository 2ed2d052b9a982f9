"""What to compute: the request as the user states it, and the same once it is resolved.

`RunSpec` holds the user's words ("pretrained", "all"). `ExemplarsSpec` holds what they turned
out to mean (the hash of the weights, the channel count of each layer). Workers compute from it, and the fingerprint
covers it. Nothing here imports torch or Ray.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from exemplar_ray.data.chosen import NO_LABELS, Chosen
from exemplar_ray.data.preprocess import DECODERS, is_whole
from exemplar_ray.errors import UsageError, near_matches
from exemplar_ray.exemplars.sample_names import BOTTOM, DISTINCT, TOP, is_drawn, parse_samples, place_in_results
from exemplar_ray.keys import key
from exemplar_ray.network.layers import PRECISIONS, Layer
from exemplar_ray.network.layouts import AUTO, check_layout
from exemplar_ray.network.spec import NetworkSpec, TrunkSpec, whole_paths
from exemplar_ray.network.statistics import STATISTICS

# Counted up when the meaning of a part or of the result changes, so that a run folder written
# by an older version is refused instead of being continued with other numbers.
FORMAT_VERSION = 3


LOG_LEVELS = ("debug", "info", "warning", "error")

# The scan of a shard keeps K candidates a channel and a margin: so many, or so many times K, whichever is more. The
# margin is for rounding, and a larger one for a scan that is approximate.
_MARGIN, _MARGIN_A_RANK = 10, 1
_SCREENING_MARGIN, _SCREENING_MARGIN_A_RANK = 30, 3


@dataclass(frozen=True)
class RunSpec:
    """What the user asks for. Every field is a key of the config file and a flag.

    Raises:
        UsageError: a value has the wrong type or an impossible value.
    """

    model: str = key(
        "inceptionv1",
        "NAME",
        "inceptionv1 (default), inceptionv1-tf, efficientnet-lite0, torchvision:NAME, timm:NAME, open_clip:NAME, "
        "transformers:ID_OR_FOLDER, or file.py:factory",
    )
    weights: str = key(
        "pretrained",
        "WHICH",
        "pretrained (default), random:SEED, the path of a state dict, or torchvision's own name, such as IMAGENET1K_V1",
    )
    layer: tuple[str, ...] = key(("mixed4a",), "NAME", "one or several module names (default: mixed4a)")
    channels: str = key("all", "WHICH", "all (default), 0-9, or 0,3,7")
    layout: str | Mapping[str, str] = key(
        AUTO,
        "HOW",
        "how outputs lie: auto (default: the network is asked), nchw, nhwc, tokens:1 (with the number of tokens before "
        "the map's), or a mapping such as '{features.3: nhwc}'",
        flow=True,
    )
    statistic: tuple[str, ...] = key(("mean",), "NAME", f"one or several of {', '.join(STATISTICS)} (default: mean)")
    top_k: int = key(10, "K", "exemplars a channel (default: 10)")
    sample: tuple[str, ...] = key(
        (TOP,),
        "NAME",
        "beside top, the strongest: bottom, random, and percentiles: q99, q95, q90, q50, ...",
    )
    distinct: bool = key(False, "", "also a sample `distinct`: the strongest without near-duplicates")
    max_per_class: int | None = key(None, "N", "at most N of a class in the sample `distinct` (default: any number)")
    class_top_k: int = key(0, "K", "also the K strongest images of every class (default: 0)")
    seed: int = key(0, "N", "of the images that are drawn, by samples and of a part of the data (default: 0)")
    images: int | None = key(None, "N", "only N of the images, drawn at random (default: all)")
    per_class: int | None = key(None, "N", "only N images of each class, drawn at random (default: all)")
    classes: tuple[str, ...] | None = key(
        None, "CLASS", "only these classes: numbers, synset ids or names, such as 3 n01440764 tench (default: all)"
    )
    image_column: str | None = key(
        None, "NAME", "the shards' column of images, or the member of tars (default: image, or the one that must be it)"
    )
    label_column: str | None = key(
        None,
        "NAME",
        f"their column of labels (default: label, or the one that must be it); {NO_LABELS}: read none",
    )
    split: str | None = key(
        None, "NAME", "which split of a Hub data set that is given by its name (default: the only one)"
    )
    preprocess: Mapping[str, Any] | None = key(
        None, "MAP", "over the model's own, such as '{resize: 256, mean: [123, 117, 104]}'", flow=True
    )
    precision: str = key(
        PRECISIONS[0],
        "TYPE",
        f"of the scan: {PRECISIONS[0]} (default), {', '.join(PRECISIONS[1:])}; exemplars are exact all the same",
    )
    decode: str = key(
        DECODERS[0], "HOW", "in the scan: reference (default), fast: off by two levels of 255 at most, or gpu"
    )
    margin: int | None = key(
        None, "N", "candidates a channel that the scan keeps beyond K (default: as many as K; 3 K if screened)"
    )

    def __post_init__(self) -> None:
        for name in ("model", "weights"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise UsageError(f"{name} is a name or a path, not {getattr(self, name)!r}")
        for name in ("layer", "statistic"):
            object.__setattr__(self, name, _names(name, getattr(self, name)))
        object.__setattr__(self, "channels", _channels(self.channels))
        self._take_cited_channels()
        check_layout(self.layout)
        object.__setattr__(self, "sample", parse_samples(_names("sample", self.sample)))
        for name, choices in (("precision", PRECISIONS), ("decode", DECODERS)):
            if getattr(self, name) not in choices:
                raise UsageError(
                    f"unknown {name} '{getattr(self, name)}'; {near_matches(getattr(self, name), choices)}"
                )
        if self.classes is not None:
            object.__setattr__(self, "classes", _classes(self.classes))
        numbers = (("top_k", 1), ("class_top_k", 0), ("seed", 0))
        of_choice = (("max_per_class", 1), ("margin", 0), ("images", 1), ("per_class", 1))
        for name, least in (*numbers, *of_choice):
            value = getattr(self, name)
            if value is None and (name, least) in of_choice:
                continue
            if not is_whole(value) or value < least:
                raise UsageError(f"{name} is a whole number from {least}, not {value!r}")
        for name, what in (("image_column", "column"), ("label_column", "column"), ("split", "split")):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise UsageError(f"{name} is the name of a {what}, not {value!r}")
        if not isinstance(self.distinct, bool):
            raise UsageError(f"distinct is true or false, not {self.distinct!r}")
        if self.preprocess is not None and not isinstance(self.preprocess, Mapping):
            raise UsageError(f"preprocess is a mapping such as {{resize: 256, crop: 224}}, not {self.preprocess!r}")

    def _take_cited_channels(self) -> None:
        """Take `mixed4a:476`, as papers cite a channel, for the layer and its channel."""
        if not any(":" in name for name in self.layer):
            return
        if len(self.layer) > 1 or self.channels != "all":
            raise UsageError(
                f"layer '{next(name for name in self.layer if ':' in name)}' names channels; give layers without, and "
                "channels by themselves (--layer, --channels)"
            )
        layer, _, channels = self.layer[0].partition(":")
        object.__setattr__(self, "layer", (layer,))
        object.__setattr__(self, "channels", channels)

    def with_whole_paths(self) -> RunSpec:
        """Return the same for processes with another working folder: what is a file here, by its whole path."""
        model, weights = whole_paths(self.model, self.weights)
        return replace(self, model=model, weights=weights)


@dataclass(frozen=True)
class RunOptions:
    """What else a run is told. Every field is a key of the config file and a flag.

    Raises:
        UsageError: a value has the wrong type or an impossible value.
    """

    class_labels: str | None = key(None, "FILE", 'names of the classes: {"0": ["n01440764", "tench"], ...}')
    max_skipped: int = key(0, "N", "undecodable images a shard may have before it fails (default: 0)")
    settle: bool = key(True, "", "scan once more for channels that screening leaves in doubt (default: yes)")

    log_level: str = key(
        "warning",
        "LEVEL",
        f"what workers' log files hold: {', '.join(LOG_LEVELS)} (default: warning); what a failed shard's task logged "
        "is kept with its record in any case",
    )

    def __post_init__(self) -> None:
        if self.log_level not in LOG_LEVELS:
            raise UsageError(f"log_level is one of {', '.join(LOG_LEVELS)}, not {self.log_level!r}")
        if self.class_labels is not None and not isinstance(self.class_labels, str):
            raise UsageError(f"class_labels is a text, not {self.class_labels!r}")
        if not isinstance(self.settle, bool):
            raise UsageError(f"settle is true or false, not {self.settle!r}")
        if not is_whole(self.max_skipped) or self.max_skipped < 0:
            raise UsageError(f"max_skipped is a whole number from 0, not {self.max_skipped!r}")


class Readout(NamedTuple):
    """What channels are ranked by: a statistic of a layer."""

    layer: Layer
    statistic: str

    @property
    def key(self) -> tuple[str, str]:
        """Return the layer's name and the statistic's."""
        return self.layer.name, self.statistic


@dataclass(frozen=True)
class ExemplarsSpec:
    """A `RunSpec` whose model has been built and looked at. Small, and pickles to every worker."""

    network: NetworkSpec
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
    precision: str
    decode: str
    margin: int
    """How many candidates a channel the scan of a shard keeps beyond `top_k`."""

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Return the network's wanted layers."""
        return self.network.layers

    @property
    def readouts(self) -> list[Readout]:
        """Return what channels are ranked by, in the order of results."""
        return [Readout(layer, statistic) for layer in self.layers for statistic in self.statistics]

    @property
    def screened(self) -> bool:
        """Return whether the scan computes otherwise than the reference, so that only gather is exact."""
        return _is_screening(self.precision, self.decode)

    @property
    def scan_trunk(self) -> TrunkSpec:
        """Return what the scan computes."""
        return TrunkSpec(self.network, self.statistics, self.precision, pre_relu=self.screened)

    @property
    def reference_trunk(self) -> TrunkSpec:
        """Return what gather computes."""
        return replace(self.scan_trunk, precision=PRECISIONS[0])

    def unscreened(self) -> ExemplarsSpec:
        """Return the spec of an exact scan for the same."""
        return replace(self, precision=PRECISIONS[0], decode=DECODERS[0])

    def settling(self, layers: Sequence[Layer]) -> ExemplarsSpec:
        """Return the spec of an exact scan that looks for the strongest and weakest of some layers' channels."""
        samples = tuple(sample for sample in self.samples if not is_drawn(sample))
        network = replace(self.network, layers=tuple(layers))
        return replace(self.unscreened(), network=network, samples=samples, class_top_k=0)

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
        """Return plain JSON values, the network's among its own; `from_json` reads them back."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "network"}
        return {**self.network.to_json(), **json.loads(json.dumps(own))}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ExemplarsSpec:
        """Read back what `to_json` wrote."""
        network = NetworkSpec.from_json(values)
        own = {field.name: values[field.name] for field in fields(cls) if field.name != "network"}
        sequences = {name: tuple(own[name]) for name in ("statistics", "samples")}
        return cls(network=network, **{**own, **sequences})

    def identity(self) -> dict[str, Any]:
        """Return what decides the numbers, under the user's own key names."""
        # The command line answers sooner without.
        from exemplar_ray.exemplars.tallies import TALLIES

        identity = {
            "format": FORMAT_VERSION,
            **self.network.identity(),
            "statistic": list(self.statistics),
            "tallies": sorted(TALLIES),
            "top_k": self.top_k,
            "sample": list(self.samples),
            "distinct": self.distinct,
            "max_per_class": self.max_per_class,
            "class_top_k": self.class_top_k,
            "seed": self.seed,
            "precision": self.precision,
            "decode": self.decode,
            "margin": self.margin,
        }
        # As it reads back from a file, where tuples are lists.
        return json.loads(json.dumps(identity))


def columns_chosen(spec: RunSpec) -> Chosen:
    """Return what the user names of the data: columns, and the split."""
    return Chosen(spec.image_column, spec.label_column, spec.split)


def _is_screening(precision: str, decode: str) -> bool:
    return (precision, decode) != (PRECISIONS[0], DECODERS[0])


def margin_of(spec: RunSpec) -> int:
    """Return how many candidates a channel to keep beyond K: as asked for, or enough as a rule."""
    if spec.margin is not None:
        return spec.margin
    if _is_screening(spec.precision, spec.decode):
        return max(_SCREENING_MARGIN, _SCREENING_MARGIN_A_RANK * spec.top_k)
    return max(_MARGIN, _MARGIN_A_RANK * spec.top_k)


def _channels(value: Any) -> str:
    """Accept `all`, a text as of the flag, a number, or a list, range or array of numbers; return it as a text."""
    if not isinstance(value, str) and isinstance(value, Iterable):
        value = ",".join(map(str, value))
    return str(value).replace(" ", "")


def _classes(value: Any) -> tuple[str, ...]:
    """Accept one class or several, each a number or a text, which may have commas in it; each once, in order."""
    values = [value] if isinstance(value, (str, int)) else value
    if not isinstance(values, Sequence) or not all(isinstance(one, str) or is_whole(one) for one in values):
        raise UsageError(f"classes are numbers, synset ids or names, not {value!r}")
    return tuple(dict.fromkeys(str(one) for one in values))


def _names(key: str, value: Any) -> tuple[str, ...]:
    """Accept one name, a comma-separated list or a list; return them sorted, each once."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, Sequence) or not all(isinstance(v, str) for v in values):
        raise UsageError(f"{key} is one name or several, not {value!r}")
    names = sorted({name.strip() for v in values for name in v.split(",") if name.strip()})
    if not names:
        raise UsageError(f"{key} is empty; name at least one")
    return tuple(names)
