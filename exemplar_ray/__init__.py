"""Find, for every channel of a vision network, the real images that excite it most.

The package is a map-reduce job: `scan` turns one parquet shard of images into one small
part, `merge` folds parts into the winners, `gather` fetches the winners' images and
recomputes their activations. `cluster` runs the three on Ray; `cli` is the command line.
"""

from exemplar_ray.open_run import open_run

__all__ = ["open_run"]
__version__ = "0.1.0"
