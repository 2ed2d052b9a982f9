"""What a worker does for the activations: find out what a network is, and store those of a shard.

Named by the driver as `module:function`; see `executor.cluster`. The network is kept between tasks.
"""

from __future__ import annotations

import os
import warnings
from functools import partial

import torch

from exemplar_ray.activations.asked import StoreSettings, ToResolve
from exemplar_ray.activations.store_shard import store_shard
from exemplar_ray.data.first_images import two_images
from exemplar_ray.data.shard import Shard
from exemplar_ray.executor.job import Made
from exemplar_ray.executor.machine import cpus
from exemplar_ray.network.loading import counts, device, import_library, trunk_of
from exemplar_ray.network.questions import KnownNetwork
from exemplar_ray.network.resolve import resolve_network
from exemplar_ray.network.statistics import refuse_missing_class_token

__all__ = ["import_library", "resolve", "store"]

# Broken EXIF, palettes with transparency, large images: images like any other, no news.
warnings.filterwarnings("ignore", module=r"PIL\.")

# With one thread a CPU computes the same numbers, to the last bit, however many a task is given.
_THREADS = 1


def resolve(given: ToResolve) -> KnownNetwork:
    """Build the network, question it with the first images, and see that its layers have what is to be stored.

    Raises:
        UsageError: see `network.resolve.resolve_network`; or a layer has no class token, which a pool wants.
    """
    torch.set_num_threads(cpus())
    known = resolve_network(given.request, partial(two_images, given.shards), given.known)
    refuse_missing_class_token(given.statistics, known.spec.layers)
    return known


def store(settings: StoreSettings, given: tuple[int, Shard]) -> Made:
    """Store the activations of one shard's images.

    Raises:
        ShardError: see `store_shard.store_shard`.
    """
    shard = given[1]
    torch.set_num_threads(_THREADS)
    trunk = trunk_of(settings.spec.trunk, device(settings.use_gpu))
    stored = store_shard(trunk, settings, shard)
    facts = {
        **stored.read.facts(),
        "unusual": stored.unusual,
        "device": str(trunk.device),
        # What this worker process has done so far.
        "worker": {"process": os.getpid(), **counts},
    }
    return Made(stored.files, facts)
