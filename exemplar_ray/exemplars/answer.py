"""The reduce of the job: merge the parts, gather the winners, write the tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pyarrow.parquet as pq

from exemplar_ray.executor.job import Context, Reduced
from exemplar_ray.executor.progress import ProgressDisplay, say
from exemplar_ray.exemplars.gather_job import NotAsScannedFoundError, gather_candidates
from exemplar_ray.exemplars.left_answers import LeftAnswers
from exemplar_ray.exemplars.merge import Folded, FoldTask, fold_all, groups
from exemplar_ray.exemplars.parts import Part
from exemplar_ray.exemplars.plan import (
    CHANNELS,
    CLASS_EXEMPLARS,
    CLASSES,
    EXEMPLARS,
    HISTOGRAMS,
    IMAGES,
    SPECTRUM,
    Plan,
)
from exemplar_ray.exemplars.rerank.candidates import Pair
from exemplar_ray.exemplars.rerank.selected import Selected
from exemplar_ray.exemplars.rerank.selection import Selection, rerank
from exemplar_ray.exemplars.spec import ExemplarsSpec
from exemplar_ray.exemplars.summary import Account, summarise
from exemplar_ray.exemplars.tables.channels import (
    channels_table,
    class_exemplars_table,
    histograms_table,
    percentiles,
    write_classes,
)
from exemplar_ray.exemplars.tables.exemplars import write_exemplars, write_images
from exemplar_ray.exemplars.tables.image_spool import ImageSpool

_FOLD_GROUP = "exemplar_ray.exemplars.merge:fold_group"


Rescan = Callable[[Context, Selection, list[Pair]], dict[str, str]]
"""Gives a selection better candidates for its doubtful pairs; returns {shard's name: reason} of failures."""


def answer(plan: Plan, context: Context, rescan: Rescan | None) -> Reduced:
    """Merge the parts, gather the candidates, write exemplars and tables.

    Args:
        rescan: scans once more, exactly, for the channels that screening leaves in doubt; None if that is not allowed.

    Raises:
        TornPartError: a part is not the one that was committed.
    """
    try:
        return _answer(plan, context, rescan)
    except NotAsScannedFoundError as found:
        return Reduced(again=found.reasons)


def _answer(plan: Plan, context: Context, rescan: Rescan | None) -> Reduced:
    merged, failed = merge_parts(plan.spec, context)
    if failed:
        return Reduced(failed)
    all_by_reference = all(scanned.by_reference for scanned in context.completed.values())
    # Their numbers are those of an exact scan, also where the run would have screened larger data.
    spec = plan.spec.unscreened() if all_by_reference else plan.spec
    selection = Selection(spec, merged, sum(scanned.scored for scanned in context.completed.values()))
    with ImageSpool() as images:
        gather = partial(gather_candidates, plan, context, images, LeftAnswers(spec, context.left))
        failed = rerank(selection, gather)
        doubtful: list[Pair] = []
        if rescan and spec.screened and not failed and (doubtful := selection.unsettled()):
            failed = rescan(context, selection, doubtful) or rerank(selection, gather)
        if failed:
            return Reduced(failed)
        say(context.console, "writing the result")
        selected = selection.result()
        _write_exemplars(plan, context, merged, selected, images)
        gathered = len(images)
    _write_tables(plan, context, merged, selected)
    account = Account(gathered, len(doubtful) if rescan else None, context.partial)
    summary = summarise(plan, context.completed, selected, account)
    return Reduced(summary=summary.to_json(), lines=summary.lines())


def merge_parts(spec: ExemplarsSpec, context: Context) -> tuple[Part, dict[str, str]]:
    """Fold the parts: groups of them by tasks, and here what the groups come to.

    Returns:
        The merged part, and {shard's name: reason} of failures; the part is not whole if there are any.

    Raises:
        TornPartError: a part is not the one that was committed.
    """
    shards = context.manifest.items
    by_group = groups(context.completed, len(shards))
    failed: dict[str, str] = {}
    task = FoldTask(spec, context.folder.full_uri, context.manifest.fingerprint)

    def in_order() -> Iterator[Folded]:
        """Yield what the groups come to as it comes, but in their order: what is early waits in Ray's object store."""
        waiting: dict[int, Folded] = {}
        following = 0
        for outcome in context.cluster.map(_FOLD_GROUP, enumerate(by_group), task):
            names = [shards[p].name for p in by_group[outcome.key]]
            title = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
            if outcome.error is not None:
                failed.update(dict.fromkeys(names, f"its part cannot be merged: {outcome.error}"))
                display.failed(title, outcome.error)
                return
            display.finished(title, sum(context.completed[p].scored for p in by_group[outcome.key]))
            waiting[outcome.key] = outcome.value
            while following in waiting:
                yield waiting.pop(following)
                following += 1

    with ProgressDisplay(context.console, "merge", len(by_group), "groups of shards") as display:
        return fold_all(in_order(), spec), failed


def _write_exemplars(plan: Plan, context: Context, merged: Part, selected: Selected, images: ImageSpool) -> None:
    below = percentiles(plan.spec, merged, selected.tails, selected.scores)
    with context.folder.writing(EXEMPLARS) as path:
        write_exemplars(path, plan, selected, below, images, context.partial)
    if len(plan.spec.shown_samples) > 1:
        with context.folder.writing(IMAGES) as path:
            write_images(path, plan, selected, images)


def _write_tables(plan: Plan, context: Context, merged: Part, selected: Selected) -> None:
    tables = {CHANNELS: channels_table(plan, merged, selected.certainty), HISTOGRAMS: histograms_table(plan, merged)}
    if plan.spec.class_top_k:
        tables[CLASS_EXEMPLARS] = class_exemplars_table(plan, merged)
    if merged.spectrum is not None and merged.spectrum.images:
        tables[SPECTRUM] = merged.spectrum.mean_table()
    for name, table in tables.items():
        with context.folder.writing(name) as path:
            pq.write_table(table, path, compression="zstd")
    with context.folder.writing(CLASSES) as path:
        write_classes(path, plan, merged)
