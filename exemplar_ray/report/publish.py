"""A finished run as a data set on the Hugging Face Hub: its tables, its pages and a card, in one commit.

What is published is a folder first (`dataset_folder`, `dataset_card`), the same that `--dry-run` leaves. Needs no
torch, no Ray.

The commit is put together here. `HfApi.upload_folder` makes two of 251 files and five of 1,500, and only the first of
them fails where somebody else has committed meanwhile. Readers would see a run in pieces.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetCard, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from exemplar_ray.errors import UsageError
from exemplar_ray.exemplars.plan import IMAGES
from exemplar_ray.report.dataset_card import CARD, title_of, write_card
from exemplar_ray.report.dataset_folder import FOLDERS, REPORT, TABLES, write_folder
from exemplar_ray.results.run import Run, open_run
from exemplar_ray.runs.manifest import RUN

# The form that identifiers of licences have on the Hub. The Hub itself says which there are.
_LICENCE = r"[a-z0-9][a-z0-9.+-]*"


@dataclass(frozen=True)
class _Published:
    """What is on the Hub under a data set's name."""

    commit: str | None
    private: bool
    files: frozenset[str]


def publish(
    run: str,
    repository: str,
    images: bool = True,
    private: bool = False,
    licence: str | None = None,
    message: str | None = None,
) -> str:
    """Put a finished run on the Hub, in one commit.

    The commit removes what an earlier run put there and this one does not.

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
    with tempfile.TemporaryDirectory(prefix="exemplar_ray-publish-") as temporary:
        folder, finished = Path(temporary), open_run(run)
        with _explained(repository):
            earlier = _published(repository)
            _refuse_unless_ours(repository, earlier, images, private)
            _write(finished, repository, folder, images, licence)
            _validate(folder / CARD)
            return _commit(folder, repository, earlier, private, message or title_of(finished.plan))


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


def _write(run: Run, repository: str, folder: Path, images: bool, licence: str | None) -> None:
    """Write everything, the card last."""
    rows = write_folder(run, folder, images)
    write_card(folder, repository, rows, images, licence)


def _validate(card: Path) -> None:
    """Ask the Hub whether it takes the card, before there is anything."""
    try:
        DatasetCard.load(card).validate()
    except ValueError as error:
        said = " ".join(str(error).split())
        raise UsageError(f"the Hugging Face Hub does not take the card's head: {said}; see --licence") from error


def _published(repository: str) -> _Published | None:
    """Return what is on the Hub under this name; None if there is nothing, or nothing that we may know of."""
    api = HfApi()
    try:
        info = api.dataset_info(repository)
    except RepositoryNotFoundError as error:
        if error.response.status_code == 401:
            raise
        return None
    files = api.list_repo_files(repository, repo_type="dataset", revision=info.sha)
    return _Published(info.sha, bool(info.private), frozenset(files))


def _refuse_unless_ours(repository: str, earlier: _Published | None, images: bool, private: bool) -> None:
    """Write over nothing but an earlier run, and show nobody what they are not to see."""
    if earlier is None:
        return
    if RUN not in earlier.files and earlier.files - {".gitattributes", CARD}:
        raise UsageError(f"data set '{repository}' is there already, and is no published run; choose another name")
    if private and not earlier.private:
        raise UsageError(
            f"data set '{repository}' is there already, for everybody to see; make it private in its settings on the "
            "Hub first, or choose another name"
        )
    if not images and any(name == IMAGES or name.startswith(f"{REPORT}/images/") for name in earlier.files):
        raise UsageError(
            f"data set '{repository}' was published with images, which would stay in its history; delete it on the "
            "Hub first, or choose another name"
        )


def _commit(folder: Path, repository: str, earlier: _Published | None, private: bool, message: str) -> str:
    api = HfApi()
    if earlier is None:
        api.create_repo(repository, repo_type="dataset", private=private or None)
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    stale = sorted(
        name
        for name in (earlier.files if earlier else ())
        if name not in files and (name in TABLES or name.split("/")[0] in (REPORT, *FOLDERS))
    )
    commit = api.create_commit(
        repository,
        [CommitOperationAdd(name, path) for name, path in files.items()]
        + [CommitOperationDelete(name, is_folder=False) for name in stale],
        commit_message=message,
        repo_type="dataset",
        parent_commit=earlier.commit if earlier else None,
    )
    return commit.commit_url


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
