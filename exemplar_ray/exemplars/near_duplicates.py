"""Near-duplicates among exemplars: the same photograph again, recompressed, resized, slightly cropped.

Two images are near-duplicates if the perceptual hashes of what the network saw of them (the
DCT hash of the ImageHash package, 256 bits) differ in at most `MOST_DIFFERING_BITS` bits. Among 800 ImageNet
photographs, no two of which are duplicates, the closest pair differs in 90 bits; of 400 copies (JPEG quality
20-60, resized, brighter, darker, paler, up to 6 % of the border cut off) none by more than 60.
"""

from __future__ import annotations

from collections.abc import Sequence

import imagehash
import numpy as np
from PIL import Image

MOST_DIFFERING_BITS = 72

_SIDE = 16


def perceptual_hash(pixels: np.ndarray) -> bytes:
    """Return the 32 bytes of an image's perceptual hash.

    Args:
        pixels: uint8 [height, width, 3].
    """
    return np.packbits(imagehash.phash(Image.fromarray(pixels), hash_size=_SIDE).hash).tobytes()


def near_duplicates_of(hashes: Sequence[bytes]) -> list[int | None]:
    """Return for each image the first one before it that it is a near-duplicate of.

    >>> near_duplicates_of([bytes(32), b"\\xff" * 32, bytes(31) + b"\\x01"])
    [None, None, 0]
    """
    if not hashes:
        return []
    near = np.tril(_differing_bits(hashes) <= MOST_DIFFERING_BITS, k=-1)
    return [int(row.argmax()) if row.any() else None for row in near]


def pick_distinct(
    hashes: Sequence[bytes], labels: Sequence[int | None], count: int, most_of_a_class: int | None
) -> list[int]:
    """Go through images in order and pick those that are no near-duplicate of one picked before.

    Args:
        labels: class ids, None where an image has none.
        count: how many to pick.
        most_of_a_class: how many of a class to pick; None for any number. Images without a label count
            as of no class.

    Returns:
        Indices of the picked images, ascending; fewer than `count` if there are not so many.
    """
    if not hashes:
        return []
    near = _differing_bits(hashes) <= MOST_DIFFERING_BITS
    picked: list[int] = []
    of_class: dict[int, int] = {}
    for i, label in enumerate(labels):
        if len(picked) == count:
            break
        full = most_of_a_class is not None and label is not None and of_class.get(label, 0) >= most_of_a_class
        if full or near[i, picked].any():
            continue
        picked.append(i)
        if label is not None:
            of_class[label] = of_class.get(label, 0) + 1
    return picked


def _differing_bits(hashes: Sequence[bytes]) -> np.ndarray:
    words = np.frombuffer(b"".join(hashes), np.uint64).reshape(len(hashes), -1)
    return np.bitwise_count(words[:, None] ^ words[None]).sum(axis=2)
