"""The folder that is published: a run folder without parts, and without what must not be seen.

`open_run("hf://datasets/USER/NAME")` opens it. It does not tell the name of the
machine that made it, nor where files lay there, nor what opens a storage.
"""

from __future__ import annotations

import posixpath
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from exemplar_ray.check.findings import CHECK
from exemplar_ray.circuits import job_names as circuits
from exemplar_ray.exemplars.plan import (
    CHANNELS,
    CLASS_EXEMPLARS,
    CLASSES,
    EXEMPLARS,
    HISTOGRAMS,
    IMAGES,
    SPECTRUM,
    Plan,
)
from exemplar_ray.exemplars.spec import ExemplarsSpec
from exemplar_ray.network.spec import NetworkSpec, split_model
from exemplar_ray.report.pages import write_report
from exemplar_ray.report.provenance import without_secrets
from exemplar_ray.results.run import Run
from exemplar_ray.runs.manifest import RUN
from exemplar_ray.runs.run_folder import SUMMARY, RunFolder
from exemplar_ray.visualize import job_names as visualizations

REPORT = "report"
VISUALIZATIONS = f"{visualizations.FOLDER}/{visualizations.RESULT}"
_CIRCUITS = {
    f"{circuits.FOLDER}/{circuits.RESULT}": "which channels every channel is made of, with their kernels",
    f"{circuits.FOLDER}/{circuits.CHANNELS}": "whether these inputs explain each channel, its factors and its twins",
    f"{circuits.FOLDER}/{circuits.EXEMPLARS}": "what every input contributes on each of a channel's exemplars",
    f"{circuits.FOLDER}/{circuits.USES_RESULT}": "which channels of the next layer are made of every channel",
}
FOLDERS = (visualizations.FOLDER, circuits.FOLDER)
"""Of the jobs whose results stand beside the exemplars, each a run folder of its own."""
TABLES = {
    EXEMPLARS: "the images of every channel, by rank: activation, where the image is, its class, what the network saw",
    CHANNELS: "how every channel is distributed over all images searched",
    CLASSES: "how much every class excites every channel",
    CLASS_EXEMPLARS: "the strongest images of every class for every channel, numbers only",
    HISTOGRAMS: "the histogram of every channel over all images searched",
    SPECTRUM: "the mean magnitude spectrum of all images searched, in decorrelated colours",
    IMAGES: "the images of all samples but `top`, each once, by `shard` and `row`",
    VISUALIZATIONS: "the picture that an optimiser made for every channel, with what it is worth beside the images",
    **_CIRCUITS,
}
"""The tables that a result may consist of, and what they are. Each is a subset of the data set, see `subset_of`."""
RUN_ON_PAGES = "RUN"
"""What commands on pages and card call the run folder."""


def subset_of(table: str) -> str:
    """Return what a table's subset of the data set is called.

    >>> subset_of("exemplars.parquet"), subset_of(VISUALIZATIONS)
    ('exemplars', 'visualizations')
    """
    return posixpath.splitext(posixpath.basename(table))[0]


def write_folder(run: Run, folder: Path, images: bool) -> dict[str, int]:
    """Write tables, plan, summary and pages.

    Args:
        images: whether to publish the images.

    Returns:
        {table: how many rows it has}.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source = RunFolder(run.uri)
    exist = {visualizations.FOLDER: run.visualizations.exist, circuits.FOLDER: run.circuits.exist}
    # Those of another result are none of this run's, and nobody would see them.
    left_out = [name for name, there in exist.items() if not there]
    tables = [
        table
        for table in TABLES
        if posixpath.dirname(table) not in left_out and (images or table != IMAGES) and source.exists(table)
    ]
    for table in tables:
        (folder / table).parent.mkdir(exist_ok=True)
        with source.open(table) as file, open(folder / table, "wb") as copy:
            if table in (EXEMPLARS, VISUALIZATIONS) and not images:
                _copy_without_images(file, copy)
            else:
                shutil.copyfileobj(file, copy)
    public = RunFolder(str(folder))
    public.write_json(RUN, public_plan(run.plan).manifest().to_json())
    public.write_json(SUMMARY, _public_summary(run))
    if (check := run.check) is not None:
        title = public_plan(run.plan).spec.network.weights_title
        # Reasons name machines and files.
        public.write_json(CHECK, replace(check, weights_title=title, failed={}).to_json())
    for name, there in exist.items():
        if there:
            _write_whose(RunFolder(f"{source.uri.rstrip('/')}/{name}"), RunFolder(str(folder / name)))
    write_report(str(folder), str(folder / REPORT), images=images, run_folder=RUN_ON_PAGES)
    return {table: pq.read_metadata(folder / table).num_rows for table in tables}


def _copy_without_images(source: Any, target: Any) -> None:
    """Copy a table with images. Columns and metadata stay the same; every image is null."""
    parquet = pq.ParquetFile(source)
    schema = parquet.schema_arrow
    index = schema.get_field_index("image")
    others = [name for name in schema.names if name != "image"]
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        for group in range(parquet.num_row_groups):
            table = parquet.read_row_group(group, columns=others)
            nothing = pa.nulls(len(table), schema.field("image").type)
            writer.write_table(table.add_column(index, schema.field("image"), nothing))


def _write_whose(source: RunFolder, public: RunFolder) -> None:
    """Write what says of which network and result visualisations or circuits are."""
    values = source.read_run()
    network = _public_network(NetworkSpec.from_json(values["spec"]))
    public.write_json(RUN, {**values, "spec": {**values["spec"], **network.to_json()}})
    public.write_json(SUMMARY, source.read_json(SUMMARY) or {})


def public_plan(plan: Plan) -> Plan:
    """Return a plan that says nothing of the machine it was made on.

    Local files go by the names that the result has for them. What opens a storage is taken out of its URIs. Of images
    that are no exemplars not even the names are there. The fingerprint stays what it is.
    """
    shards = [replace(shard, uri=public_uri(shard.uri, shard.name), files=None) for shard in plan.shards]
    return replace(plan, spec=_public_spec(plan.spec), shards=shards)


def public_uri(uri: str, name: str | None = None) -> str:
    """Return what others may see of a URI.

    Args:
        name: what a local file goes by; its own name if None.

    >>> public_uri("/home/me/data/train-0.parquet"), public_uri("file:///home/me/train-0.parquet", "a/train-0.parquet")
    ('train-0.parquet', 'a/train-0.parquet')
    >>> public_uri("s3://key:sec/ret@bucket/train-0.parquet?token=abc")
    's3://bucket/train-0.parquet'
    >>> public_uri("hf://datasets/user/name@main/train-0.parquet")
    'hf://datasets/user/name@main/train-0.parquet'
    """
    plain_uri = without_secrets(uri)
    protocol, separator, path = plain_uri.partition("://")
    # A chained URI ("zip://a::file://b") may have a local path in it.
    if not separator or protocol in ("file", "local") or "::" in uri:
        return name or posixpath.basename(path if separator else plain_uri)
    return plain_uri


def public_model(model: str) -> str:
    """Return what others may see of a model's name.

    >>> public_model("/home/me/nets.py:make"), public_model("transformers:/home/me/vit"), public_model("timm:resnet18")
    ('nets.py:make', 'transformers:vit', 'timm:resnet18')
    """
    before, path, behind = split_model(model)
    # Where it is not absolute, it is no folder but an ID on the Hub, in two parts.
    return f"{before}{posixpath.basename(path)}{behind}" if behind or path.startswith("/") else model


def _public_spec(spec: ExemplarsSpec) -> ExemplarsSpec:
    return replace(spec, network=_public_network(spec.network))


def _public_network(network: NetworkSpec) -> NetworkSpec:
    network = network.kept_in("")
    model, weights = public_model(network.model), network.weights
    if weights != "pretrained" and not weights.startswith("random:"):
        weights = public_uri(weights)
    # A title ends in the file's name as it was given, with everything that came after it.
    title = re.split(r"[?#]", network.weights_title, maxsplit=1)[0]
    return replace(network, model=model, weights=weights, weights_title=title)


def _public_summary(run: Run) -> dict[str, Any]:
    title = _public_spec(run.plan.spec).network.weights_title
    values = replace(run.summary, weights=title).to_json()
    for shard in values["shards"]:
        del shard["host"]
    return values
