"""Where a result comes from, in words. It stands on every page."""

from __future__ import annotations

import os.path
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import yaml

from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.data.shard import identity_of_columns
from exemplar_ray.exemplars.plan import Plan
from exemplar_ray.exemplars.spec import RunSpec, margin_of
from exemplar_ray.exemplars.summary import Summary
from exemplar_ray.network.layers import NCHW, VECTOR, Layer, format_channels
from exemplar_ray.network.statistics import STATISTICS
from exemplar_ray.results.run import Run

# More shards than these are given as one pattern.
_MOST_SHARDS_NAMED = 3
_MOST_UNSETTLED_NAMED = 100


@dataclass(frozen=True)
class Provenance:
    """Everything is plain text."""

    warnings: list[str]
    """What must be in plain sight: untrained, partial, not settled."""
    essentials: list[str]
    """What is always to be seen, beside the model's name."""
    facts: list[tuple[str, str]]
    """The rest: (what, which)."""
    command: str
    """See `command_of`."""


def words_of(statistic: str) -> str:
    """Say what a statistic is. Its name stands for one that this version does not know."""
    return STATISTICS[statistic].words if statistic in STATISTICS else statistic


def provenance_of(run: Run, run_folder: str) -> Provenance:
    """Put together what a run's pages say of where they come from. Their command calls the run folder `run_folder`."""
    spec, network, summary = run.plan.spec, run.plan.spec.network, run.summary
    searched = f"{summary.scored:,} images searched in {_count(len(summary.shards), 'shard')}"
    skipped = f"{summary.skipped:,} skipped" if summary.skipped else "none skipped"
    unsettled = _unsettled(summary)
    settled = f"{_count(len(unsettled), 'ranking')} NOT SETTLED" if unsettled else f"every top {spec.top_k} is settled"
    warnings = []
    if not network.trained:
        warnings.append("UNTRAINED NETWORK: random weights, these channels mean nothing")
    if summary.partial:
        warnings.append(f"PARTIAL RESULT: only {summary.partial}")
    if unsettled:
        warnings.append(f"NOT SETTLED: {_named(unsettled)}; the scan's error may hide an exemplar there")
    check = run.check
    if check is not None and check.better:
        warnings.append(f"PREPROCESSING IN DOUBT: {check.in_short()}")
    scan = f"computed in {spec.precision}, decoded by {spec.decode}"
    if spec.screened:
        scan += "; what is shown was recomputed exactly"
    facts = [
        ("model", network.model_words),
        (
            "weights",
            f"{network.weights_title}{'' if network.trained else ' — UNTRAINED'} ({without_secrets(network.weights)})",
        ),
        ("weights' SHA-256", network.weights_sha256),
        ("preprocessing", describe_preprocess(network.preprocess)),
        ("statistics", "; ".join(f"{name}: {words_of(name)}" for name in spec.statistics)),
        ("layers", "; ".join(map(_channels_of, spec.layers))),
        *(("labels", said) for said in network.said_of_labels()),
        ("the network's answers", "; ".join(_answers(run.plan))),
        ("data", ", ".join(_patterns(run.plan))),
        ("images", f"{searched}; {skipped}"),
        *([("part of the data", run.plan.subset.words)] if run.plan.subset else []),
        ("scan", scan),
        *([("check", f"{check.in_short()} ({check.checked[:10]})")] if check is not None else []),
        ("certainty", settled + (f": {_named(unsettled)}" if unsettled else "")),
        ("versions", _versions(run)),
        ("fingerprint", run.plan.fingerprint),
    ]
    essentials = [
        f"{network.weights_title} (sha256 {network.weights_sha256[:12]})",
        searched + (f", {skipped}" if summary.skipped else ""),
        *([f"A PART OF THE DATA: {run.plan.subset.words}"] if run.plan.subset else []),
        settled,
    ]
    return Provenance(warnings, essentials, facts, command_of(run.plan, run_folder))


def _versions(run: Run) -> str:
    """Say which versions computed the parts; where no record says so, which began the run."""
    if mixed := run.summary.mixed_versions():
        return f"computed by different versions: {mixed}"
    recorded = [one.versions for one in run.summary.computed_by if one.versions is not None]
    return ", ".join(f"{name} {version}" for name, version in (recorded or [run.plan.versions])[0].items())


def describe_preprocess(preprocess: Preprocess) -> str:
    """Say in words how an image becomes the network's input.

    >>> describe_preprocess(Preprocess(mean=(123, 117, 104)))
    'shorter side to 256 pixels (bilinear), centre 224 × 224, RGB 0..255 minus (123, 117, 104)'
    """
    return preprocess.in_words()


def without_secrets(uri: str) -> str:
    """Return a URI without user, password and query.

    >>> without_secrets("s3://key:sec/ret@bucket/train-0.parquet?token=abc"), without_secrets("s3://bucket/a@b/c")
    ('s3://bucket/train-0.parquet', 's3://bucket/a@b/c')
    >>> without_secrets("/data/what?/train-0.parquet")
    '/data/what?/train-0.parquet'
    """
    if "://" not in uri:
        return uri
    protocol, _, path = re.split(r"[?#]", uri, maxsplit=1)[0].partition("://")
    server = path.split("/")[0]
    # A secret may itself have slashes. Its end is the last @.
    if "@" in server or re.search(r":(?!\d*$)", server):
        path = path.rpartition("@")[2]
    return f"{protocol}://{path}"


def command_of(plan: Plan, out: str) -> str:
    """Return the command that makes such a run, for a shell, see `arguments_of`."""
    return shlex.join(["exemplar-ray", *arguments_of(plan, out)])


def arguments_of(plan: Plan, out: str) -> list[str]:
    """Return the arguments of `exemplar-ray` that make such a run, as far as `run.json` tells.

    It leaves out what is as by default. It leaves out what opens a storage: users, passwords and queries in URIs. It
    cannot tell what is not recorded: where class names came from, how many skipped images were allowed, and what
    changes the speed only. A pattern stands for many shards.
    """
    spec, subset = plan.spec, plan.subset
    channels = "all"
    if any(len(layer.channels) < layer.channel_count for layer in spec.layers):
        # The largest layer's text stands for all: it is not cut off at a smaller layer's last channel.
        channels = format_channels(max((layer.channels for layer in spec.layers), key=len))
    columns = identity_of_columns(plan.shards)
    asked = {
        "data": _patterns(plan),
        "out": out,
        "model": spec.network.model,
        "weights": without_secrets(spec.network.weights),
        "layer": [layer.name for layer in spec.layers],
        "channels": channels,
        "layout": flow(layouts) if (layouts := _layouts_to_name(plan)) else "auto",
        "statistic": list(spec.statistics),
        "top_k": spec.top_k,
        "sample": list(spec.samples),
        "distinct": spec.distinct,
        "max_per_class": spec.max_per_class,
        "class_top_k": spec.class_top_k,
        "seed": spec.seed,
        "images": subset.images if subset else None,
        "per_class": subset.per_class if subset else None,
        "classes": list(map(str, subset.classes)) if subset and subset.classes else None,
        **{key: value for key in ("image_column", "label_column") if isinstance(value := columns.get(key), str)},
        "preprocess": spec.network.preprocess.as_flag(),
        "precision": spec.precision,
        "decode": spec.decode,
        "margin": spec.margin,
    }
    # The command names these in any case: their defaults may change.
    usual = {**asdict(RunSpec()), "model": None, "weights": None, "layer": None}
    usual["margin"] = margin_of(RunSpec(top_k=spec.top_k, precision=spec.precision, decode=spec.decode))
    words = ["run"]
    for key, value in asked.items():
        default = usual.get(key)
        if value == (list(default) if isinstance(default, tuple) else default):
            continue
        flag = "--" + key.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag)
        elif isinstance(value, list):
            words += [flag, *value]
        else:
            words += [flag, str(value)]
    return words


def flags_of(options: Any) -> list[str]:
    """Return the flags that set a dataclass of keys, without those that are as by default.

    Args:
        options: such as `CompareOptions`; each of its fields has a default.
    """
    words: list[str] = []
    for one in fields(options):
        value = getattr(options, one.name)
        if value == one.default:
            continue
        flag = one.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, Mapping):
            words += [f"--{flag}", flow(value)]
        else:
            words += [f"--{flag}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return words


def flow(values: Mapping[str, Any]) -> str:
    """Write a mapping as a command has it: YAML in one line."""
    return yaml.safe_dump(dict(values), default_flow_style=True, sort_keys=False, width=10_000).strip()


def _patterns(plan: Plan) -> list[str]:
    """Name the data: the shards, and the folders of images that some are of."""
    uris: dict[str, list[str]] = {}
    for shard in plan.shards:
        uris.setdefault(shard.format, []).append(without_secrets(shard.uri))
    return [pattern for of_format in uris.values() for pattern in _pattern(list(dict.fromkeys(of_format)))]


def _pattern(uris: list[str]) -> list[str]:
    """Name shards: one by one if they are few, else by a pattern that all of them match.

    >>> _pattern([f"data/train-{i:03d}-of-004.parquet" for i in range(4)])
    ['data/train-00*-of-004.parquet']
    """
    if len(uris) <= _MOST_SHARDS_NAMED:
        return list(uris)
    # commonprefix compares letters, as is wanted here, not folders.
    start = os.path.commonprefix(uris)  # noqa: RUF071
    end = os.path.commonprefix([uri[len(start) :][::-1] for uri in uris])[::-1]  # noqa: RUF071
    return [f"{start}*{end}"]


def _channels_of(layer: Layer) -> str:
    other_layout = "" if layer.layout in (NCHW, VECTOR) else f", {layer.written_layout}"
    return f"{layer.name}: {len(layer.channels)} of {layer.channel_count} channels{other_layout}"


def _answers(plan: Plan) -> list[str]:
    """Say what the network answered when it was questioned."""
    return plan.answers.lines() if plan.answers else ["it was not questioned: the run began with an earlier version"]


def _layouts_to_name(plan: Plan) -> dict[str, str]:
    """Return the layouts that a command has to give, or had better: those that are not channels first."""
    given = plan.answers.given_layouts if plan.answers else ()
    layers = (layer for layer in plan.spec.layers if layer.layout not in (NCHW, VECTOR) or layer.name in given)
    return {layer.name: layer.written_layout for layer in layers}


def _unsettled(summary: Summary) -> list[str]:
    """Name the rankings that screening left in doubt."""
    several = len({ranking.statistic for ranking in summary.unsettled}) > 1
    return [
        f"{ranking.layer}:{ranking.channel} {ranking.statistic + ' ' if several else ''}{ranking.sample}"
        for ranking in summary.unsettled
    ]


def _named(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_UNSETTLED_NAMED} more" if len(names) > _MOST_UNSETTLED_NAMED else ""
    return ", ".join(names[:_MOST_UNSETTLED_NAMED]) + more


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
