"""What a run folder says of its run. Needs no Ray and no torch."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from exemplar_ray.run_folder import EXEMPLARS, SUMMARY, RunFolder

_MOST_LISTED = 20


def describe(run_folder: str) -> tuple[list[str], bool]:
    """Describe a run in lines of text, and say whether it is complete.

    Raises:
        UsageError: there is no run in the folder.
    """
    folder = RunFolder(run_folder)
    plan = folder.read_plan()
    state = folder.state(plan)
    spec = plan.spec
    untrained = "" if spec.trained else " — UNTRAINED"
    layers = ", ".join(f"{layer.name} ({len(layer.channels)} channels)" for layer in spec.layers)
    finished = state.completed.values()
    rows, scored, skipped = (sum(getattr(one, name) for one in finished) for name in ("rows", "scored", "skipped"))
    lines = [
        f"{spec.model_title}, {spec.weights_title}{untrained}; {layers}; "
        f"{', '.join(spec.statistics)}; {', '.join(spec.shown_samples)}: {spec.top_k} each",
        f"shards: {len(plan.shards)} in all, {len(state.completed)} done, {len(state.failed)} failed, "
        f"{len(state.pending)} pending",
        f"rows: {rows} read = {scored} scored + {skipped} skipped",
    ]
    failures = (
        f"failed: {plan.shards[p].name}: {failed.reason} ({failed.attempts} attempts)"
        for p, failed in state.failed.items()
    )
    skips = (
        f"skipped: {plan.shards[p].name} row {image['row']}: {image['reason']}"
        for p, one in state.completed.items()
        for image in one.skipped_images
    )
    lines += _first(failures, len(state.failed), "failed shards")
    lines += _first(skips, skipped, "skipped images")
    summary = folder.read_json(SUMMARY) or {}
    answered = summary.get("fingerprint") == plan.fingerprint and folder.exists(EXEMPLARS)
    complete = answered and summary["complete"] and not state.unfinished
    if not answered:
        lines.append("result: none yet; run the same command again to go on")
    else:
        note = f" — PARTIAL: {summary['partial']}" if summary["partial"] else ""
        unsettled = f", {len(summary['unsettled'])} channels not settled" if summary["unsettled"] else ""
        lines.append(f"result: {run_folder.rstrip('/')}/{EXEMPLARS}{unsettled}{note}")
    return lines, complete


def _first(lines: Iterable[str], count: int, what: str) -> list[str]:
    """Return the first lines, and how many there are beyond."""
    more = [f"and {count - _MOST_LISTED} more {what}"] if count > _MOST_LISTED else []
    return [*islice(lines, _MOST_LISTED), *more]
