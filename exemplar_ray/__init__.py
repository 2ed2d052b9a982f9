"""Find, for every channel of a vision network, the real images that excite it most.

Every job is a map and a reduce: `executor` maps items to parts on Ray, the job's own folder says what a part is and
what the parts come to. `exemplars` is the main job. `cli` is the command line.
"""

from typing import TYPE_CHECKING, Any

from exemplar_ray._version import __version__

if TYPE_CHECKING:
    from exemplar_ray.results.run import open_run

__all__ = ["__version__", "open_run"]


def __getattr__(name: str) -> Any:
    # Only when it is asked for: the command line answers sooner without what reading results takes.
    if name == "open_run":
        from exemplar_ray.results.run import open_run

        return open_run
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
