"""A finished run as a data set on the Hugging Face Hub: its tables, its pages and a card, in one commit.

What is published is a folder first, the same that `--dry-run` leaves: a run folder without parts, which
`open_run("hf://datasets/USER/NAME")` opens. What `run.json` says of the machine that made it stays at home: where
files lay on it, its name, and whatever opens a storage. Needs no torch, no Ray.
"""

from __future__ import annotations

import posixpath
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import jinja2
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetCard, DatasetCardData, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from exemplar_ray._version import __version__
from exemplar_ray.errors import UsageError
from exemplar_ray.exemplars.plan import CHANNELS, CLASS_EXEMPLARS, CLASSES, EXEMPLARS, HISTOGRAMS, IMAGES, Plan
from exemplar_ray.exemplars.spec import ExemplarsSpec
from exemplar_ray.exemplars.summary import Summary
from exemplar_ray.report.pages import INDEX, write_report
from exemplar_ray.report.provenance import provenance_of, without_secrets
from exemplar_ray.results.run import Run, open_run
from exemplar_ray.runs.manifest import RUN
from exemplar_ray.runs.run_folder import SUMMARY, RunFolder

CARD = "README.md"
REPORT = "report"
TABLES = {
    EXEMPLARS: "the images of every channel, by rank: activation, where the image is, its class, what the network saw",
    CHANNELS: "how every channel is distributed over all images searched",
    CLASSES: "how much every class excites every channel",
    CLASS_EXEMPLARS: "the strongest images of every class for every channel, numbers only",
    HISTOGRAMS: "the histogram of every channel over all images searched",
    IMAGES: "the images of all samples but `top`, each once, by `shard` and `row`",
}
"""What a result may consist of, and what it is; each is a subset of the data set under its name without ending."""

# What the Hub takes a licence to be called; which there are, it says itself.
_LICENCE = r"[a-z0-9][a-z0-9.+-]*"
_RUN_ON_PAGES = "RUN"


def publish(
    run: str,
    repository: str,
    images: bool = True,
    private: bool = False,
    licence: str | None = None,
    message: str | None = None,
) -> str:
    """Put a finished run on the Hub, in one commit; what an earlier one put there and this does not goes.

    Args:
        run: a run folder with a result.
        repository: the data set's name on the Hub, "user/name"; made if there is none.
        images: whether to publish the images, or paths, rows and numbers only.
        private: whether nobody else shall see it.
        licence: the Hub's identifier of a licence, for the card; left open if None.
        message: of the commit.

    Returns:
        The commit's address.

    Raises:
        UsageError: the run has no result; there is no token, or it may not write there; the repository holds
            something else, or what must not be seen.
        OSError: the Hub does not answer.
    """
    _check(repository, licence)
    if get_token() is None:
        raise UsageError(
            "there is no token for the Hugging Face Hub: set HF_TOKEN to one that may write, or log in with "
            "hf auth login"
        )
    with tempfile.TemporaryDirectory(prefix="exemplar_ray-publish-") as folder:
        opened = open_run(run)
        with _explained(repository):
            known = _known(repository)
            _refuse_unless_ours(repository, known, images, private)
            _write(opened, repository, Path(folder), images, licence)
            _validate(Path(folder) / CARD)
            return _commit(Path(folder), repository, known, private, message or _title(opened.plan))


def prepare(run: str, repository: str, out: str, images: bool = True, licence: str | None = None) -> tuple[int, int]:
    """Write the folder that `publish` would upload, without asking the Hub anything.

    Args:
        out: a local folder, new or empty.

    Returns:
        How many files it has, and how many bytes.

    Raises:
        UsageError: the run has no result, or the folder is not empty.
    """
    _check(repository, licence)
    folder = Path(out)
    if "://" in out:
        raise UsageError(f"'{out}' is no local folder")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"'{out}' is not an empty folder; choose a new one")
    _write(open_run(run), repository, folder, images, licence)
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return len(sizes), sum(sizes)


def _check(repository: str, licence: str | None) -> None:
    try:
        validate_repo_id(repository)
        if "/" not in repository:
            raise HFValidationError("it lacks the user or organisation")
    except HFValidationError as error:
        raise UsageError(f"a data set on the Hub is called user/name, not '{repository}': {error}") from error
    if licence is not None and not re.fullmatch(_LICENCE, licence):
        raise UsageError(f"a licence is an identifier of the Hub's, such as cc-by-4.0, not '{licence}'")


# The folder -------------------------------------------------------------------------------


def _write(run: Run, repository: str, folder: Path, images: bool, licence: str | None) -> None:
    """Write everything, the card last."""
    folder.mkdir(parents=True, exist_ok=True)
    source = RunFolder(run.uri)
    names = [name for name in TABLES if source.exists(name) and (images or name != IMAGES)]
    for name in names:
        with source.open(name) as file, open(folder / name, "wb") as copy:
            if name == EXEMPLARS and not images:
                _copy_without_images(file, copy)
            else:
                shutil.copyfileobj(file, copy)
    public = RunFolder(str(folder))
    public.write_json(RUN, public_plan(run.plan).manifest().to_json())
    public.write_json(SUMMARY, _public_summary(run).to_json())
    write_report(str(folder), str(folder / REPORT), images=images, run_folder=_RUN_ON_PAGES)
    rows = {name: pq.read_metadata(folder / name).num_rows for name in names}
    card = _card(open_run(str(folder)), repository, rows, images, licence)
    # What came from a command line may hold what is no text.
    (folder / CARD).write_bytes(card.encode(errors="replace"))


def _copy_without_images(source: Any, target: Any) -> None:
    """Copy `exemplars.parquet` with the same columns and metadata, and null for every image."""
    parquet = pq.ParquetFile(source)
    schema = parquet.schema_arrow
    place = schema.get_field_index("image")
    others = [name for name in schema.names if name != "image"]
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        for group in range(parquet.num_row_groups):
            table = parquet.read_row_group(group, columns=others)
            nothing = pa.nulls(len(table), schema.field("image").type)
            writer.write_table(table.add_column(place, schema.field("image"), nothing))


def public_plan(plan: Plan) -> Plan:
    """Return a plan that says nothing of the machine it was made on: local files go by the names that the result
    has for them, and what opens a storage is taken out of its URIs. The fingerprint stays what it is."""
    shards = [replace(shard, uri=public_uri(shard.uri, shard.name)) for shard in plan.shards]
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
    without = without_secrets(uri)
    protocol, separator, place = without.partition("://")
    # What is chained ("zip://a::file://b") may have a local path in it.
    if not separator or protocol in ("file", "local") or "::" in uri:
        return name or posixpath.basename(protocol if not separator else place)
    return without


def _public_spec(spec: ExemplarsSpec) -> ExemplarsSpec:
    network = spec.network
    path, _, factory = network.model.rpartition(":")
    model = f"{Path(path).name}:{factory}" if network.model_source_sha256 else network.model
    weights = network.weights
    if weights != "pretrained" and not weights.startswith("random:"):
        weights = public_uri(weights)
    # A title ends in the file's name as it was given, with everything that came after it.
    title = re.split(r"[?#]", network.weights_title, maxsplit=1)[0]
    return replace(spec, network=replace(network, model=model, weights=weights, weights_title=title))


def _public_summary(run: Run) -> Summary:
    shards = [replace(shard, host=None) for shard in run.summary.shards]
    return replace(run.summary, weights=_public_spec(run.plan.spec).network.weights_title, shards=shards)


# The card ---------------------------------------------------------------------------------


def _title(plan: Plan) -> str:
    layers = ", ".join(layer.name for layer in plan.spec.layers)
    return f"Exemplars of {plan.spec.network.model_title}: {layers}"


def _card(run: Run, repository: str, rows: dict[str, int], images: bool, licence: str | None) -> str:
    """Write the card of a folder that has everything else.

    Args:
        rows: how many there are in each table.
    """
    # The Hub's viewer cannot show a table without rows.
    shown = {posixpath.splitext(name)[0]: name for name, count in rows.items() if count}
    head = DatasetCardData(
        pretty_name=_title(run.plan),
        license=licence or "other",
        tags=["exemplar-ray", "interpretability", "feature-visualization", "computer-vision"],
        size_categories=[size_category(rows[EXEMPLARS])],
        configs=[
            {
                "config_name": config,
                "data_files": [{"split": "train", "path": name}],
                **({"default": True} if name == EXEMPLARS else {}),
            }
            for config, name in shown.items()
        ],
        **({} if licence else _OPEN_LICENCE),
    )
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("exemplar_ray.report"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        # Markdown, where nothing but code spans holds what came from outside.
        autoescape=False,
    )
    environment.filters["code"] = _code
    text = environment.get_template("dataset_card.md").render(
        repository=repository,
        name=repository.split("/")[1],
        plan=run.plan,
        summary=run.summary,
        provenance=provenance_of(run, _RUN_ON_PAGES),
        tables=[(config, name, rows[name], TABLES[name]) for config, name in shown.items()],
        with_images=images,
        licence=licence,
        index=f"{REPORT}/{INDEX}",
        version=__version__,
    )
    return f"---\n{head.to_yaml()}\n---\n\n{text}"


_OPEN_LICENCE: dict[str, Any] = {
    "license_name": "not-stated",
    "license_details": "that of the data set which the images come from, yet to be stated",
}


def size_category(rows: int) -> str:
    """Return how the Hub calls a data set of so many rows.

    >>> size_category(999), size_category(1000), size_category(50_800), size_category(2 * 10**12)
    ('n<1K', '1K<n<10K', '10K<n<100K', 'n>1T')
    """
    bounds = [f"{10**power}{unit}" for unit in "KMBT" for power in range(3)][:10]
    for exponent, bound in enumerate(bounds, start=3):
        if rows < 10**exponent:
            return f"n<{bound}" if exponent == 3 else f"{bounds[exponent - 4]}<n<{bound}"
    return f"n>{bounds[-1]}"


def _code(value: Any) -> str:
    """Write a value as a code span of Markdown, on one line, whatever is in it."""
    text = " ".join(str(value).split())
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {text} {fence}" if longest or not text else f"{fence}{text}{fence}"


# The Hub ----------------------------------------------------------------------------------


def _validate(card: Path) -> None:
    """Ask the Hub whether it takes the card, before there is anything."""
    try:
        DatasetCard.load(card).validate()
    except ValueError as error:
        said = " ".join(str(error).split())
        raise UsageError(f"the Hugging Face Hub does not take the card's head: {said}; see --licence") from error


def _known(repository: str) -> dict[str, Any] | None:
    """Return what is on the Hub under this name: `commit`, `private` and `files`; None if nothing is."""
    api = HfApi()
    try:
        info = api.dataset_info(repository)
    except RepositoryNotFoundError as error:
        if error.response.status_code == 401:
            raise
        return None  # nor may we know of one
    files = api.list_repo_files(repository, repo_type="dataset", revision=info.sha)
    return {"commit": info.sha, "private": bool(info.private), "files": set(files)}


def _refuse_unless_ours(repository: str, known: dict[str, Any] | None, images: bool, private: bool) -> None:
    """Write over nothing but an earlier run, and show nobody what they are not to see."""
    if known is None:
        return
    files = known["files"]
    if RUN not in files and files - {".gitattributes", CARD}:
        raise UsageError(f"data set '{repository}' is there already, and is no published run; choose another name")
    if private and not known["private"]:
        raise UsageError(
            f"data set '{repository}' is there already, for everybody to see; make it private in its settings on the "
            "Hub first, or choose another name"
        )
    if not images and any(name == IMAGES or name.startswith(f"{REPORT}/images/") for name in files):
        raise UsageError(
            f"data set '{repository}' was published with images, which would stay in its history; delete it on the "
            "Hub first, or choose another name"
        )


def _commit(folder: Path, repository: str, known: dict[str, Any] | None, private: bool, message: str) -> str:
    api = HfApi()
    parent = known["commit"] if known else None
    if known is None:
        api.create_repo(repository, repo_type="dataset", private=private or None)
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    stale = sorted(
        name
        for name in (known["files"] if known else ())
        if name not in files and (name in TABLES or name.startswith(f"{REPORT}/"))
    )
    done = api.create_commit(
        repository,
        [CommitOperationAdd(name, path) for name, path in files.items()]
        + [CommitOperationDelete(name, is_folder=False) for name in stale],
        commit_message=message,
        repo_type="dataset",
        parent_commit=parent,
    )
    return done.commit_url


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    """Turn huggingface_hub's errors into one line."""
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        said = " ".join((error.server_message or "").split()) or "it does not say why"
        if status >= 500 or status in (408, 429):
            raise ConnectionError(f"the Hugging Face Hub answered {status} ({said}); try again later") from error
        if status == 401:
            raise UsageError(
                f"the Hugging Face Hub does not know the token ({said}); set HF_TOKEN to a valid one, or log in anew "
                "with hf auth login"
            ) from error
        if status in (403, 404):
            raise UsageError(
                f"the token may not write to data set '{repository}' ({said}); use one with write permission, and a "
                "name of your own or of your organisation"
            ) from error
        if status in (409, 412):
            raise UsageError(f"data set '{repository}' has just been changed by somebody else; try again") from error
        raise UsageError(f"the Hugging Face Hub refuses data set '{repository}' with {status}: {said}") from error
    except OfflineModeIsEnabled as error:
        raise UsageError(" ".join(str(error).split())) from error
    except httpx2.HTTPError as error:
        raise ConnectionError(f"no answer from the Hugging Face Hub ({type(error).__name__}: {error})") from error
