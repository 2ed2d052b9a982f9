"""Commands about the activations of all images."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from rich.console import Console

from exemplar_ray.activations.export_names import EMBEDDING_ATLAS, FORMATS
from exemplar_ray.activations.spec import ActivationOptions
from exemplar_ray.cli.common import COMPLETE, add_command, finish
from exemplar_ray.config import ACTIVATIONS_KEYS, add_keys, pick, settings_of
from exemplar_ray.errors import UsageError
from exemplar_ray.executor.progress import say
from exemplar_ray.executor.resources import Resources
from exemplar_ray.exemplars.spec import RunOptions, RunSpec, columns_chosen
from exemplar_ray.keys import keys_of
from exemplar_ray.network.spec import NetworkRequest
from exemplar_ray.pictures import refuse_said_already

_OF_NETWORK_AND_IMAGES = (
    *("data", "model", "weights", "layer", "channels", "layout", "preprocess"),
    *("images", "per_class", "classes", "seed", "image_column", "label_column", "split", "class_labels"),
)
"""What a run says of itself."""
# Every image is computed in the same form, in batches of the same shape.
_UNUSED = ("batch_size", "compile")


def add_activations(commands: Any) -> None:
    """Add them."""
    text = "store what layers answer to every image, with the ids of its row; running it again is the rerun"
    sub = add_command(commands, "activations", _activations, text)
    sub.add_argument("run", metavar="RUN", nargs="?", help="a run, instead of --model, --layer, --data and --out")
    sub.add_argument("--config", metavar="FILE.yaml", help="a file with keys of a run, or of those below; a flag wins")
    keys = (*_OF_NETWORK_AND_IMAGES, "out", "decode", *keys_of(ActivationOptions), "max_skipped", "log_level")
    resources = [key for key in keys_of(Resources) if key not in _UNUSED]
    add_keys(sub, {key: ACTIVATIONS_KEYS[key] for key in (*keys, *resources)})

    text = "write a store's activations, or a map of them, into a folder, in the form of other programs"
    sub = add_command(commands, "export", _export, text)
    sub.add_argument("store", metavar="STORE", help="a finished store of activations; for embedding-atlas, a map")
    sub.add_argument("folder", metavar="DIR", help="a new local folder")
    forms = "; ".join(f"{name}: {what}" for name, what in FORMATS.items())
    sub.add_argument("--format", required=True, choices=tuple(FORMATS), help=forms)
    sub.add_argument("--layer", nargs="+", default=[], metavar="NAME", help="which (default: all)")
    sub.add_argument("--pool", metavar="NAME", help="which (default: the only one)")
    sub.add_argument("--batch-size", type=int, default=64, metavar="N", help="images a batch of npz (default: 64)")
    sub.add_argument("--without-images", action="store_true", help="leave the images of npz out")


def _export(options: argparse.Namespace, console: Console) -> int:
    if options.format == EMBEDDING_ATLAS:
        return _export_map(options, console)
    from exemplar_ray.results.export import export
    from exemplar_ray.results.store import open_store

    store = open_store(options.store)
    images = export(
        store,
        options.folder,
        options.format,
        options.layer,
        options.pool,
        options.batch_size,
        not options.without_images,
    )
    say(console, f"{store.network.title}: {images:,} images")
    say(console, f"exported: {options.folder}")
    return COMPLETE


def _export_map(options: argparse.Namespace, console: Console) -> int:
    from exemplar_ray.explore.export import export_map

    if options.layer or options.pool or options.without_images:
        raise UsageError("a map is of one layer and pool, with the pictures it was made with; leave these flags out")
    images, command = export_map(options.store, options.folder)
    say(console, f"{images:,} images; to look at them: {command}")
    say(console, f"exported: {options.folder}")
    return COMPLETE


def _activations(options: argparse.Namespace, console: Console) -> int:
    from exemplar_ray.activations import job
    from exemplar_ray.executor.cluster import Cluster
    from exemplar_ray.exemplars.plan import images_wanted

    settings = settings_of(options, required=() if options.run else ("data", "layer", "out"), keys=ACTIVATIONS_KEYS)
    asked, run_options = pick(RunSpec, settings), pick(RunOptions, settings)
    wanted = pick(ActivationOptions, settings)
    if options.run is not None:
        refuse_said_already(options.run, _OF_NETWORK_AND_IMAGES, settings)
        subject, out = job.of_run(options.run), settings.get("out", job.below(options.run))
        if "pool" not in settings and subject.statistics:
            wanted = pick(ActivationOptions, {**settings, "pool": subject.statistics})
    else:
        network = NetworkRequest(
            asked.model, asked.weights, asked.layer, asked.channels, asked.preprocess, asked.layout
        )
        out = settings["out"]
        subject = job.of_data(
            network, settings["data"], out, columns_chosen(asked), images_wanted(asked), run_options.class_labels
        )
    for line in subject.notes:
        say(console, line)
    with Cluster(pick(Resources, settings), run_options.log_level, partial(say, console)) as cluster:
        outcome = job.activations(subject, out, wanted, cluster, console, asked.decode, run_options.max_skipped)
    return finish(outcome, out, options.invocation.again, options.invocation, console)
