"""What a run folder says of its run, whichever job it is of. Needs no Ray and no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from exemplar_ray.check.findings import read_findings
from exemplar_ray.data.formats.registry import describe as describe_data
from exemplar_ray.data.shard import row_of_skipped
from exemplar_ray.exemplars.plan import EXEMPLARS, JOB, Plan
from exemplar_ray.runs.manifest import Manifest, job_of, read_manifest
from exemplar_ray.runs.records import CompletionRecord, State
from exemplar_ray.runs.run_folder import SUMMARY, RunFolder
from exemplar_ray.runs.versions import computed_by, in_words, kept

_MOST_LISTED = 20


def describe(run_folder: str) -> tuple[list[str], bool]:
    """Describe a run in lines of text, and say whether it is complete.

    Raises:
        UsageError: there is no run in the folder.
    """
    folder = RunFolder(run_folder)
    manifest, titles = _read(folder)
    state = folder.state(manifest, _counts)
    items = manifest.items
    lines = [
        *titles,
        f"{manifest.items_name}: {len(items)} in all, {len(state.completed)} done, {len(state.failed)} failed, "
        f"{len(state.pending)} pending",
        *_rows(state),
        *_versions(state, manifest),
    ]
    failures = (
        f"failed: {items[p].name}: {failed.reason} ({failed.attempts} attempts)" for p, failed in state.failed.items()
    )
    skips = (
        f"skipped: {items[p].name} {row_of_skipped(image)}: {image['reason']}"
        for p, facts in state.completed.items()
        for image in facts.get("skipped_images", ())
    )
    lines += _first(failures, len(state.failed), f"failed {manifest.items_name}")
    lines += _first(skips, _total(state, "skipped"), "skipped images")
    result, complete = _result(folder, manifest, state)
    return [*lines, *_check(folder, manifest), result], complete


def _read(folder: RunFolder) -> tuple[Manifest, list[str]]:
    """Return what the folder is for, and that in lines."""
    values = folder.read_run()
    if job_of(values) != JOB:
        manifest = read_manifest(values)
        identity = "; ".join(f"{key}: {value}" for key, value in manifest.identity.items() if key != "data")
        return manifest, [f"{manifest.job}: {identity}"]
    plan = Plan.of_run(values, folder.uri)
    spec = plan.spec
    layers = ", ".join(f"{layer.name} ({len(layer.channels)} channels)" for layer in spec.layers)
    title = (
        f"{spec.network.title}; {layers}; "
        f"{', '.join(spec.statistics)}; {', '.join(spec.shown_samples)}: {spec.top_k} each"
    )
    columns = describe_data(plan.shards)
    said = [*columns, *spec.network.said_of_labels()]
    return plan.manifest(), [title, *said, *(plan.answers.lines() if plan.answers else ())]


def _counts(record: CompletionRecord) -> Mapping[str, Any]:
    """Take from a record what is shown of it."""
    names = ("rows", "scored", "skipped", "skipped_images")
    facts = {name: record.facts[name] for name in names if record.facts.get(name)}
    return {**facts, "versions": kept(record.versions)}


def _total(state: State[Mapping[str, Any]], name: str) -> int:
    return sum(facts.get(name, 0) for facts in state.completed.values())


def _rows(state: State[Mapping[str, Any]]) -> list[str]:
    """Say how many rows were read, and what became of them; nothing where items have none."""
    rows = _total(state, "rows")
    if state.completed and not rows:
        return []
    return [f"rows: {rows} read = {_total(state, 'scored')} scored + {_total(state, 'skipped')} skipped"]


def _check(folder: RunFolder, manifest: Manifest) -> list[str]:
    """Say what the last check of it found; nothing if it was not checked."""
    findings = read_findings(folder, manifest.fingerprint)
    return [] if findings is None else [f"check of {findings.checked[:10]}: {findings.in_short()}"]


def _versions(state: State[Mapping[str, Any]], manifest: Manifest) -> list[str]:
    """Say which versions computed what, where they differ."""
    groups = computed_by(facts["versions"] for facts in state.completed.values())
    mixed = in_words(groups, manifest.items_name)
    return [f"computed by different versions: {mixed}"] if mixed else []


def _result(folder: RunFolder, manifest: Manifest, state: State) -> tuple[str, bool]:
    """Say where the result is, and whether it is complete."""
    summary = folder.read_json(SUMMARY) or {}
    # Earlier summaries do not say so.
    name = summary.get("result", EXEMPLARS)
    if summary.get("fingerprint") != manifest.fingerprint or not folder.exists(name):
        return "result: none yet; run the same command again to go on", False
    note = f" — PARTIAL: {summary['partial']}" if summary["partial"] else ""
    unsettled = f", {len(summary['unsettled'])} channels not settled" if summary.get("unsettled") else ""
    line = f"result: {folder.uri.rstrip('/')}/{name}{unsettled}{note}"
    return line, bool(summary["complete"] and not state.unfinished)


def _first(lines: Iterable[str], count: int, what: str) -> list[str]:
    """Return the first lines, and how many there are beyond."""
    more = [f"and {count - _MOST_LISTED} more {what}"] if count > _MOST_LISTED else []
    return [*islice(lines, _MOST_LISTED), *more]
