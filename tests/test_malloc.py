"""Freed memory is kept for the next batch."""

import ctypes
import subprocess
import sys

import pytest

# Ten batches of 200 MB, in pieces as large as a layer's activations; prints the pages that the last nine took.
BATCHES = """
import resource, sys
import numpy as np
from exemplar_ray.executor.malloc import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
for batch in range(10):
    pieces = [np.ones(20_000_000, np.uint8) for _ in range(10)]
    del pieces
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    first = faults if batch == 0 else first
print(faults - first)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc's allocator")
def test_pages_of_the_batch_before_are_used_again():
    pages = {
        way: int(subprocess.run([sys.executable, "-c", BATCHES, way], capture_output=True, check=True).stdout)
        for way in ("kept", "usual")
    }
    assert pages["kept"] < pages["usual"] / 10
