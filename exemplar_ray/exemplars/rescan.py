"""A second scan, exact, for the channels that screening left in doubt.

It is a run of its own inside the run folder, so it too goes on where it was interrupted.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from exemplar_ray.executor.driver import map_items
from exemplar_ray.executor.job import Context
from exemplar_ray.executor.progress import say
from exemplar_ray.executor.repair import without_changed
from exemplar_ray.exemplars.answer import merge_parts
from exemplar_ray.exemplars.gather_job import NotAsScannedFoundError
from exemplar_ray.exemplars.parts import Part
from exemplar_ray.exemplars.plan import RESCAN, Plan
from exemplar_ray.exemplars.rerank.candidates import Pair
from exemplar_ray.exemplars.rerank.selection import Selection
from exemplar_ray.exemplars.scan_job import ScanJob
from exemplar_ray.exemplars.spec import ExemplarsSpec
from exemplar_ray.exemplars.topk import Scores
from exemplar_ray.runs.run_folder import RunFolder, TornPartError


def rescan_exactly(plan: Plan, context: Context, selection: Selection, doubtful: list[Pair]) -> dict[str, str]:
    """Scan once more and hand the selection what comes of it; return {shard's name: reason} of failures."""
    # All channels of the layers: the others cost nothing, and an exact run's compiled trunk serves here, too.
    names = {plan.spec.readouts[readout].layer.name for readout, _ in doubtful}
    layers = [layer for layer in plan.spec.layers if layer.name in names]
    exact = replace(plan, spec=plan.spec.settling(layers))
    job = ScanJob(exact, context.cluster, max(scanned.skipped for scanned in context.completed.values()))
    folder, manifest = RunFolder(f"{context.folder.uri.rstrip('/')}/{RESCAN}-{exact.fingerprint[:12]}"), job.manifest()
    state = folder.adopt(manifest, job.keep)
    state, failed = without_changed(job, Context(context.cluster, folder, manifest, {}, context.console), state)
    if failed:
        return failed
    say(context.console, f"{len(doubtful)} channels are in doubt: scanning once more, for them, in full precision")
    done = {p: scanned for p, scanned in state.completed.items() if p in context.completed}
    inner = Context(context.cluster, folder, manifest, done, context.console)
    mapped = map_items(job, inner, [p for p in context.completed if p not in done], RESCAN)
    if mapped.failed:
        return mapped.failed
    inner = replace(inner, completed=dict(sorted({**done, **mapped.completed}.items())))
    try:
        merged, failed = merge_parts(exact.spec, inner)
    except TornPartError as error:
        raise NotAsScannedFoundError({error.position: f"{RESCAN}: {error}"}) from error
    if not failed:
        selection.replace(*_of_doubtful(plan.spec, exact.spec, merged, doubtful))
    return failed


def _of_doubtful(
    spec: ExemplarsSpec, exact: ExemplarsSpec, merged: Part, doubtful: list[Pair]
) -> tuple[Scores, dict[Pair, int]]:
    """Return what the exact scan says of the doubtful pairs: candidates, and how many images gave a finite number.

    Args:
        spec: of the run, whose readouts the pairs name.
        exact: of the exact scan.
    """
    numbers = {readout.key: number for number, readout in enumerate(spec.readouts)}
    readout_of_run = np.array([numbers[readout.key] for readout in exact.readouts], np.int32)
    scores = merged.scores._replace(readout=readout_of_run[merged.scores.readout])
    wanted = set(doubtful)
    here = [pair in wanted for pair in zip(scores.readout.tolist(), scores.channel.tolist(), strict=True)]
    finite = {}
    for number, readout in enumerate(exact.readouts):
        images = merged.moments[number].images
        for channel, count in zip(readout.layer.channels, images.tolist(), strict=True):
            if (pair := (int(readout_of_run[number]), channel)) in wanted:
                finite[pair] = count
    return scores.take(np.array(here, bool)), finite
