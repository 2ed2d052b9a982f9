"""The job, for `ray job submit -- python jobs/find_exemplars.py --config jobs/imagenet.yaml --out ...`.

Takes the arguments of `exemplar-ray run`.
"""

import sys

from exemplar_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]], script=sys.orig_argv))
