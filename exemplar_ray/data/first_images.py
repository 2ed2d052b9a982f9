"""Two different images of a data set, to question a network with."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import islice

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from exemplar_ray.data.decode import UndecodableImageError, decode_and_crop
from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.data.shards import Shard, ShardReader, to_question_with
from exemplar_ray.errors import ShardError

_MOST_ROWS = 20

_log = logging.getLogger(__name__)


def two_images(shards: Sequence[Shard], preprocess: Preprocess) -> tuple[Tensor | None, str]:
    """Return the first two images of a data set that can be decoded and differ.

    A shard that cannot be read is no news here: it fails when its turn comes.

    Returns:
        uint8 [2, crop, crop, 3] and which images they are; None, and why, if the first shards have no two.
    """
    found: list[np.ndarray] = []
    names: list[str] = []
    for shard in to_question_with(shards):
        try:
            with ShardReader(shard) as reader:
                for image in islice(reader.images(), _MOST_ROWS):
                    try:
                        pixels = decode_and_crop(image.data, preprocess)
                    except UndecodableImageError:
                        continue
                    if found and np.array_equal(found[0], pixels):
                        continue
                    found.append(pixels)
                    names.append(f"{shard.name} row {image.row}")
                    if len(found) == 2:
                        return torch.from_numpy(np.stack(found)), " and ".join(names)
        except (OSError, ShardError, pa.ArrowException) as error:
            _log.warning("no image of %s to question the network with: %s", shard.name, error)
    return None, "noise, as the first shards have no two images that can be decoded"
