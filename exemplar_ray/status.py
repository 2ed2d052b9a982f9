"""What a run folder says of its run. Needs no Ray and no torch."""

from __future__ import annotations

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
    records = state.completed.values()
    rows, scored, skipped = (sum(record[key] for record in records) for key in ("rows", "scored", "skipped"))
    lines = [
        f"{spec.model_title}, {spec.weights_title}{untrained}; {layers}; "
        f"{', '.join(spec.statistics)}; {', '.join(spec.shown_samples)}: {spec.top_k} each",
        f"shards: {len(plan.shards)} in all, {len(state.completed)} done, {len(state.failed)} failed, "
        f"{len(state.pending)} pending",
        f"rows: {rows} read = {scored} scored + {skipped} skipped",
    ]
    for record in list(state.failed.values())[:_MOST_LISTED]:
        lines.append(f"failed: {record['shard']['name']}: {record['reason']} ({record['attempts']} attempts)")
    for record in list(state.completed.values()):
        for image in record["skipped_images"]:
            lines.append(f"skipped: {record['shard']['name']} row {image['row']}: {image['reason']}")
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
