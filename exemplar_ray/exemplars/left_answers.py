"""What tasks have left in Ray's memory: what the network said of images, for those that ask again. Knows no torch.

A later round of gather asks of the same images about other channels, and of copies of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exemplar_ray.exemplars.gather_tasks import Task
from exemplar_ray.exemplars.gathered import bytes_of_answer
from exemplar_ray.exemplars.spec import ExemplarsSpec
from exemplar_ray.exemplars.topk import Scores, concatenate

MOST_BYTES = 512 << 20
"""Of Ray's memory, for what the network says of images."""


class LeftAnswers:
    """Where it is, image by image.

    `scanned` are the candidates that have been recomputed, as the scan saw them.

    Args:
        of_shards: {position: what the scan of a shard left of all its images}, see `job.Context`.
    """

    def __init__(self, spec: ExemplarsSpec, of_shards: Mapping[int, Any]) -> None:
        # Where the scan's order is the exact one, one round does; but for near-duplicates.
        self._more_rounds = spec.screened or spec.distinct
        self._bytes_of_answer = bytes_of_answer(spec)
        self._of_shards = of_shards
        self._of_images: dict[int, Any] = {}
        self._bytes = 0
        self.scanned = Scores.empty()

    @property
    def wants_more(self) -> bool:
        """Whether tasks are to leave what they hear, as it will be asked for and there is room."""
        return self._more_rounds and not self._of_shards and self._bytes < MOST_BYTES

    def of(self, task: Task) -> list[Any]:
        """Return what there is of a task's images, each once, as `cluster.Order` takes it."""
        of_shards = [self._of_shards[position] for position in task.candidates if position in self._of_shards]
        images = [*task.images.tolist(), *task.originals.tolist()]
        of_images = [self._of_images[number] for number in images if number in self._of_images]
        return list(dict.fromkeys(of_shards + of_images))

    def add(self, task: Task, left: Any) -> None:
        """Take what a task has left of its images."""
        if self.wants_more:
            new = [number for number in task.originals.tolist() if number not in self._of_images]
            self._bytes += self._bytes_of_answer * len(new)
            for number in task.images.tolist():
                self._of_images.setdefault(number, left)

    def note(self, wanted: Mapping[int, Scores]) -> None:
        """Note candidates that have been recomputed, if anything was left of their images."""
        if self._of_images:
            self.scanned = concatenate([self.scanned, *(wanted[position] for position in sorted(wanted))])
