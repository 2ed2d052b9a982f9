"""Take the schema of a `ray.io/v1` RayJob from a checkout of KubeRay, given as the only argument."""

import gzip
import json
import sys
from pathlib import Path

import yaml

SCHEMA = Path(__file__).parent / "rayjobs-v1.json.gz"


def main(checkout):
    text = (Path(checkout) / "helm-chart/kuberay-operator/crds/ray.io_rayjobs.yaml").read_text()
    versions = yaml.safe_load(text)["spec"]["versions"]
    [schema] = [version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == "v1"]
    # Without a time stamp: the same schema is the same file.
    SCHEMA.write_bytes(gzip.compress(json.dumps(schema, separators=(",", ":")).encode(), mtime=0))


if __name__ == "__main__":
    main(sys.argv[1])
