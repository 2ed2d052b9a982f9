"""Find, for every channel of a vision network, the real images that excite it most.

The package is a map-reduce job: `scan` turns one parquet shard of images into one small
part, `merge` folds parts into the winners, `gather` fetches the winners' images and
recomputes their activations. `cluster` runs the three on Ray; `cli` is the command line.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exemplar_ray.finished_run import open_run

__all__ = ["open_run"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Only when it is asked for: the command line answers sooner without what reading results takes.
    if name == "open_run":
        from exemplar_ray.finished_run import open_run

        return open_run
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
