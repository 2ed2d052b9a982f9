"""Two different images, to question a network with: of a data set, or noise."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from exemplar_ray.data.decode import UndecodableImageError, decode_and_crop
from exemplar_ray.data.formats.registry import open_shard
from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.data.shard import Shard, to_question_with
from exemplar_ray.errors import ShardError

_MOST_ROWS = 20

_log = logging.getLogger(__name__)


class TwoImages(NamedTuple):
    """Two different images."""

    crops: Tensor
    """uint8 [2, crop, crop, channels]"""
    words: str
    """Which they are, for people."""
    labels: Tensor | None = None
    """int64 [2]; None for a network that is given none."""


def two_images(shards: Sequence[Shard], preprocess: Preprocess, labelled: bool = False) -> TwoImages:
    """Return the first two images of a data set that can be decoded and differ; noise if the first shards have no two.

    A shard that cannot be read is no news here: it fails when its turn comes.

    Args:
        labelled: only images that have a label, and the labels, too.
    """
    found: list[np.ndarray] = []
    labels: list[int] = []
    names: list[str] = []
    for shard in to_question_with(shards):
        try:
            with open_shard(shard) as reader:
                for image in islice(reader.images(), _MOST_ROWS):
                    if labelled and image.label is None:
                        continue
                    try:
                        pixels = decode_and_crop(image.data, preprocess)
                    except UndecodableImageError:
                        continue
                    if found and np.array_equal(found[0], pixels):
                        continue
                    found.append(pixels)
                    labels.append(image.label or 0)
                    names.append(f"{shard.name} row {image.row}" + (f" (label {image.label})" if labelled else ""))
                    if len(found) == 2:
                        crops = torch.from_numpy(np.stack(found))
                        return TwoImages(crops, " and ".join(names), torch.tensor(labels) if labelled else None)
        except (OSError, ShardError, pa.ArrowException) as error:
            _log.warning("no image of %s to question the network with: %s", shard.name, error)
    with_a_label = " and have a label" if labelled else ""
    words = f"noise, as the first shards have no two images that can be decoded{with_a_label}"
    return noise(preprocess, words, labelled)


def noise(preprocess: Preprocess, words: str, labelled: bool = False) -> TwoImages:
    """Return two images of coarse noise, of label 0: fine noise is all the same to a network."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((2, preprocess.channels, 8, 8), generator=generator) * 255
    size = (preprocess.crop, preprocess.crop)
    fine = nn.functional.interpolate(coarse, size, mode="bilinear").permute(0, 2, 3, 1)
    return TwoImages(fine.round().to(torch.uint8), words, torch.zeros(2, dtype=torch.int64) if labelled else None)
