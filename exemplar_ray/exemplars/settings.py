"""How the tasks of the job work: what the driver hands them, and what a probe hands back. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from exemplar_ray.data.shard import ReadingCost
from exemplar_ray.exemplars.spec import ExemplarsSpec


@dataclass(frozen=True)
class ScanSettings:
    """What a scan task is handed. But for `spec`, none of it changes the result."""

    spec: ExemplarsSpec
    batch_size: int
    """Images a forward pass."""
    threads: int
    """How many decode at the same time, and how many the network computes with."""
    use_gpu: bool = False
    compile: str = "never"
    """See `Resources.compile_for`."""
    max_skipped: int = 0
    """Undecodable images that a shard may have before it fails."""
    sample_rate: float = 0.0
    """See `samples.sample_rate`; 0 where no sample is drawn."""
    by_reference: bool = False
    """Scan as gather recomputes, which `spec` then says, too, and leave what it asks for; see
    `scan_job.scan_settings`."""
    most_rows: int | None = None
    """Read only so many, to see how long that takes."""


@dataclass(frozen=True)
class Probed:
    """What the scan of a shard's first rows took."""

    images: int
    seconds: float
    loading_seconds: float
    decoding_seconds: float
    """To read, decode and crop one image on a CPU."""
    gathering_seconds: float
    """To recompute one image on a CPU, as gather does."""
    reading: ReadingCost
