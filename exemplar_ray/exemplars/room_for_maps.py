"""Whether the exemplars' maps have room where the driver keeps them until the result is written."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable

from exemplar_ray.errors import UsageError
from exemplar_ray.exemplars.gathered import BYTES_OF_A_UNIT
from exemplar_ray.exemplars.plan import Plan


def refuse_more_maps_than_room(plan: Plan, is_written: Callable[[], bool] = lambda: False) -> None:
    """Refuse a run whose exemplars' maps are more than the driver's temporary folder has room for.

    Args:
        is_written: whether the maps lie in a result already; asked only if there are too many.

    Raises:
        UsageError: what they take, and what to lower.
    """
    spec = plan.spec
    a_channel = min(spec.top_k, sum(shard.images for shard in plan.shards)) * len(spec.shown_samples)
    maps = sum(
        a_channel * len(layer.channels) * layer.map_size[0] * layer.map_size[1]
        for layer, _ in spec.readouts
        if layer.map_size
    )
    folder = tempfile.gettempdir()
    needed, free = BYTES_OF_A_UNIT * maps, shutil.disk_usage(folder).free
    if needed > free and not is_written():
        raise UsageError(
            f"the exemplars' activation maps take {needed / 1e9:,.0f} GB, and the temporary folder '{folder}' has "
            f"{free / 1e9:,.0f} GB free; lower --top-k (now {spec.top_k}), name fewer --channels, or a layer with "
            "smaller maps, or set TMPDIR to a folder with more room"
        )
