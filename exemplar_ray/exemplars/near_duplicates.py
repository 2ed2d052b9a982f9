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

from exemplar_ray.data.decode import picture_of

MOST_DIFFERING_BITS = 72

_SIDE = 16

# So many are compared with all others at a time: there may be many thousands of them.
_ROWS_PER_BLOCK = 256


def perceptual_hash(pixels: np.ndarray) -> bytes:
    """Return the 32 bytes of an image's perceptual hash.

    Args:
        pixels: uint8 [height, width, channels].
    """
    return np.packbits(imagehash.phash(picture_of(pixels), hash_size=_SIDE).hash).tobytes()


def near_duplicates_of(hashes: Sequence[bytes]) -> list[int | None]:
    """Return for each image the first one before it that it is a near-duplicate of.

    >>> near_duplicates_of([bytes(32), b"\\xff" * 32, bytes(31) + b"\\x01"])
    [None, None, 0]
    """
    words = _words(hashes)
    result: list[int | None] = []
    for start in range(0, len(hashes), _ROWS_PER_BLOCK):
        end = min(start + _ROWS_PER_BLOCK, len(hashes))
        near = np.tril(_near(words[start:end], words[:end]), k=start - 1)
        result += [int(row.argmax()) if row.any() else None for row in near]
    return result


def pick_distinct(
    hashes: Sequence[bytes], labels: Sequence[int | None], count: int, most_of_a_class: int | None
) -> list[int]:
    """Go through images in order and pick those that are no near-duplicate of one picked before.

    Args:
        labels: class ids; None, or a negative number, where an image has none.
        count: how many to pick.
        most_of_a_class: how many of a class to pick; None for any number. Images without a label count
            as of no class.

    Returns:
        Indices of the picked images, ascending; fewer than `count` if there are not so many.
    """
    words = _words(hashes)
    picked: list[int] = []
    of_class: dict[int, int] = {}
    for start in range(0, len(hashes), _ROWS_PER_BLOCK):
        end = min(start + _ROWS_PER_BLOCK, len(hashes))
        # Of the block to those picked before it, and then to one another.
        before = np.any(_near(words[start:end], words[picked]), axis=1)
        near = _near(words[start:end], words[start:end])
        first_here = len(picked)
        for i, label in enumerate(labels[start:end], start):
            if len(picked) == count:
                return picked
            of = None if label is None or label < 0 else label
            full = most_of_a_class is not None and of is not None and of_class.get(of, 0) >= most_of_a_class
            here = [one - start for one in picked[first_here:]]
            if full or before[i - start] or near[i - start, here].any():
                continue
            picked.append(i)
            if of is not None:
                of_class[of] = of_class.get(of, 0) + 1
    return picked


def _words(hashes: Sequence[bytes]) -> np.ndarray:
    """Return uint64 [images, words]."""
    return np.frombuffer(b"".join(hashes), np.uint64).reshape(len(hashes), _SIDE * _SIDE // 64)


def _near(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return bool [some, others]: whether their hashes differ in few bits."""
    return np.bitwise_count(some[:, None] ^ others[None]).sum(axis=2) <= MOST_DIFFERING_BITS
