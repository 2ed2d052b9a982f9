"""Find, for every channel of a vision network, the real images that excite it most.

Every job is a map and a reduce: `executor` maps items to parts on Ray, the job's own folder says what a part is and
what the parts come to. `exemplars` is the main job. `cli` is the command line.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from exemplar_ray._version import __version__

if TYPE_CHECKING:
    from exemplar_ray.api import find_exemplars, visualize_channels
    from exemplar_ray.data.preprocess import Preprocess
    from exemplar_ray.errors import IncompleteError, UsageError
    from exemplar_ray.executor.resources import Resources
    from exemplar_ray.exemplars.spec import RunOptions, RunSpec
    from exemplar_ray.results.run import open_run
    from exemplar_ray.results.store import open_store

__all__ = [
    "IncompleteError",
    "Preprocess",
    "Resources",
    "RunOptions",
    "RunSpec",
    "UsageError",
    "__version__",
    "find_exemplars",
    "open_run",
    "open_store",
    "visualize_channels",
]

_WHERE = {
    "find_exemplars": "api",
    "Preprocess": "data.preprocess",
    "IncompleteError": "errors",
    "UsageError": "errors",
    "Resources": "executor.resources",
    "RunOptions": "exemplars.spec",
    "RunSpec": "exemplars.spec",
    "open_run": "results.run",
    "open_store": "results.store",
    "visualize_channels": "api",
}


def __getattr__(name: str) -> Any:
    # Only when it is asked for: the command line answers sooner without what reading results takes.
    if name not in _WHERE:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
