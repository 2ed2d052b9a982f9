"""The map of the job: shards, each of them scanned. What `executor.driver` needs to know of that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from exemplar_ray.data.contents import why_done_anew
from exemplar_ray.data.formats.registry import describe
from exemplar_ray.data.shard import Shard, pieces_to_share, small_pieces
from exemplar_ray.executor.cluster import Cluster
from exemplar_ray.executor.job import Context, Job, Reduced
from exemplar_ray.exemplars.gathered import bytes_of_answer
from exemplar_ray.exemplars.left_answers import MOST_BYTES
from exemplar_ray.exemplars.plan import EXEMPLARS, JOB, RESCAN, Plan, ScannedShard
from exemplar_ray.exemplars.samples import sample_rate
from exemplar_ray.exemplars.settings import ScanSettings
from exemplar_ray.exemplars.spec import ExemplarsSpec
from exemplar_ray.network.layers import NCHW, VECTOR
from exemplar_ray.runs.manifest import Manifest
from exemplar_ray.runs.records import CompletionRecord
from exemplar_ray.runs.run_folder import RunFolder
from exemplar_ray.storage.hub import is_on_disk

TASKS = "exemplar_ray.exemplars.tasks"

# Of 800 images, for 5,080 exemplars, seven in ten are recomputed after a scan.
_EXEMPLARS_AN_IMAGE = 4


def scan_settings(spec: ExemplarsSpec, shards: Sequence[Shard], cluster: Cluster, max_skipped: int) -> ScanSettings:
    """Return how the scan tasks of a data set work on a cluster.

    Args:
        shards: the whole data set.
        max_skipped: undecodable images that a shard may have before it fails.
    """
    rows = sum(shard.images for shard in shards)
    # Where rows are not counted before the scan, there may be fewer than expected.
    at_least = sum(shard.images // 2 if shard.rows is None else shard.images for shard in shards)
    use_gpu = cluster.demand.gpus > 0
    as_usual = use_gpu or cluster.resources.batch_size is not None or cluster.resources.compile != "auto"
    by_reference = not as_usual and _nearly_all_are_exemplars(spec, rows)
    return ScanSettings(
        spec=spec.unscreened() if by_reference else spec,
        batch_size=1 if by_reference else cluster.batch_size,
        threads=cluster.demand.cpus,
        use_gpu=use_gpu,
        compile="never" if by_reference else cluster.resources.compile_for(rows),
        by_reference=by_reference,
        max_skipped=max_skipped,
        sample_rate=sample_rate(at_least, spec.top_k),
    )


def pieces_of(shard: Shard, settings: ScanSettings) -> int:
    """Return how many pieces a shard is scanned in where several workers do so, see `data.pieces`: small ones where
    reading the whole shard for each takes little, beside the reference computation of its rows."""
    small = small_pieces(shard) if settings.by_reference and is_on_disk(shard.uri) else []
    return 1 + len(small) if small else pieces_to_share(shard)


def _nearly_all_are_exemplars(spec: ExemplarsSpec, images: int) -> bool:
    """Whether an image is so likely to be recomputed that it is scanned as gather would, and what the network says of
    it is kept for gather, if there is room for that."""
    exemplars = spec.top_k * sum(len(readout.layer.channels) for readout in spec.readouts)
    return 0 < _EXEMPLARS_AN_IMAGE * images <= exemplars and images * bytes_of_answer(spec) <= MOST_BYTES


class ScanJob(Job):
    """Scans shards; what comes of the parts is another's affair.

    Args:
        plan: what the run folder is for.
        cluster: where it is scanned.
        max_skipped: undecodable images that a shard may have before it fails.
    """

    name = JOB
    task = f"{TASKS}:scan"
    result = EXEMPLARS
    piece = f"{TASKS}:scan_a_piece"
    join = f"{TASKS}:join_pieces"
    compare = "exemplar_ray.data.contents:difference"
    verb = "scan"
    keep = staticmethod(ScannedShard.of)

    def __init__(self, plan: Plan, cluster: Cluster, max_skipped: int = 0) -> None:
        self.plan = plan
        self.items = plan.shards
        self.settings = scan_settings(plan.spec, plan.shards, cluster, max_skipped)
        self.leaves = self.settings.by_reference

    def pieces(self, item: Shard) -> int:
        """Return how many pieces a shard is scanned in where several workers do so, see `data.pieces`."""
        return pieces_of(item, self.settings)

    def identity(self) -> dict[str, Any]:
        """Return what decides the result."""
        return self.plan.identity()

    def manifest(self) -> Manifest:
        """Return what the run folder is for: the plan."""
        return self.plan.manifest()

    def reduce(self, context: Context) -> Reduced:
        """Leave the parts as they are."""
        return Reduced()

    def difference(self, before: CompletionRecord, after: CompletionRecord) -> str | None:
        """Say whether a shard that was scanned anew had changed, or had been scanned wrongly."""
        contents = (before.facts.get("contents"), after.facts.get("contents"))
        return why_done_anew(after.item.get("format"), *contents, f"{before.host} scanned it wrongly")

    def retract(self, folder: RunFolder, position: int) -> None:
        """Take a shard's part back, and that of exact scans for channels that screening left in doubt."""
        folder.retract(position)
        for name in [name for name in folder.names("") if name.startswith(f"{RESCAN}-")]:
            RunFolder(f"{folder.uri.rstrip('/')}/{name}").retract(position)

    def notes(self, record: CompletionRecord) -> Sequence[str]:
        """Say why a network that should have been compiled was not."""
        reason = record.facts.get("not_compiled")
        return [f"the network was not compiled, which takes longer: {reason}"] if reason else []

    def announce(self, cluster: Cluster) -> Sequence[str]:
        """Say what is computed."""
        lines = announcement(self.plan)
        if self.settings.by_reference:
            lines.append("so few images are nearly all exemplars: each is computed exactly, once")
        return lines


def announcement(plan: Plan) -> list[str]:
    """Say in lines what a plan computes."""
    spec = plan.spec
    lines = [spec.network.title]
    if spec.screened:
        lines.append(f"screening: {spec.precision}, decoding {spec.decode}; exemplars are recomputed exactly")
    for layer in spec.layers:
        size = f", maps {layer.map_size[0]}x{layer.map_size[1]}" if layer.map_size else ""
        size += f" ({layer.written_layout})" if layer.layout not in (NCHW, VECTOR) else ""
        chosen = f"{len(layer.channels)} of " if len(layer.channels) < layer.channel_count else ""
        lines.append(f"layer {layer.name}: {chosen}{layer.channel_count} channels{size}")
    lines += spec.network.said_of_labels()
    lines += plan.answers.news() if plan.answers else []
    lines += describe(plan.shards)
    lines += [f"{repository} is read at commit {commit}" for repository, commit in plan.revisions.items()]
    return lines
