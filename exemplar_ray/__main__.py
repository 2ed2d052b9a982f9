"""`python -m exemplar_ray` is the same as the console script `exemplar-ray`."""

import sys

from exemplar_ray.cli import main

sys.exit(main())
