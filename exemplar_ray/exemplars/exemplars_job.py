"""The map and the reduce of the job: shards, each of them scanned, and the answer from their parts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from exemplar_ray.executor.cluster import Cluster
from exemplar_ray.executor.job import Context, Reduced
from exemplar_ray.exemplars.answer import answer
from exemplar_ray.exemplars.plan import Plan
from exemplar_ray.exemplars.rescan import rescan_exactly
from exemplar_ray.exemplars.scan_job import ScanJob
from exemplar_ray.exemplars.summary import labels_digest


class ExemplarsJob(ScanJob):
    """Scans shards, and answers from the parts."""

    def __init__(self, plan: Plan, cluster: Cluster, max_skipped: int = 0, settle: bool = True) -> None:
        super().__init__(plan, cluster, max_skipped)
        self._settle = settle

    def reduce(self, context: Context) -> Reduced:
        """Merge the parts, gather the candidates, write exemplars and tables."""
        return answer(self.plan, context, partial(rescan_exactly, self.plan) if self._settle else None)

    def is_answered(self, summary: Mapping[str, Any]) -> bool:
        """Whether a complete result has these class names, and no doubt that this run would settle."""
        in_doubt = self.plan.spec.screened and summary.get("unsettled") and summary.get("settled_anew") is None
        return summary.get("class_labels_sha256") == labels_digest(self.plan.class_labels) and not (
            self._settle and in_doubt
        )
