"""The jobs as functions, for a notebook or a program: a model by its name or in hand, and the open run back."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from exemplar_ray.config import RUN_KEYS, pick
from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.errors import IncompleteError, UsageError, near_matches
from exemplar_ray.executor.interruption import interruptible
from exemplar_ray.executor.progress import console_here
from exemplar_ray.executor.resources import Resources
from exemplar_ray.exemplars import job
from exemplar_ray.exemplars.spec import RunOptions, RunSpec
from exemplar_ray.pictures import PICTURE_KEYS, make_pictures, refuse_impossible
from exemplar_ray.results.run import Run, open_run
from exemplar_ray.results.visualization import Visualizations
from exemplar_ray.runs.run_folder import NETWORK, RunFolder
from exemplar_ray.storage.hub_uri import refuse_writing

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    from exemplar_ray.executor.driver import JobOutcome

_MOST_NAMED = 3
_OF_A_HASH = 16


def find_exemplars(
    model: str | nn.Module,
    *,
    data: str | Sequence[str],
    out: str,
    preprocess: Mapping[str, Any] | Preprocess | Any = None,
    console: Console | None = None,
    **keys: Any,
) -> Run:
    """Find, for every channel of a layer, the images that excite it most, and return the open run.

    It runs on the Ray that this process is connected to, else on that of `address` or RAY_ADDRESS, else on one of its
    own, which ends with it. Called again, in this process or another, it goes on where it stopped: what is finished
    is not done again. It is the same run if weights and structure of the model, settings and images are the same.

    Args:
        model: a name, as `--model` takes it, or a module, on any device, in any mode: it is left as it is. Workers get
            it from the run folder, where it is kept; they need none of the files that its classes are from, but the
            packages that are installed here.
        data: images: files, folders or globs, see `--data`.
        out: the run folder, on a disk that all machines see, or an object store.
        preprocess: how an image becomes the network's input: keys as of `--preprocess`, a `Preprocess`, or a transform
            of torchvision that these keys can express. None for a named model's own; a module in hand has none.
        console: where progress is shown; None for this notebook or terminal.
        keys: any other key of a run (`layer="mixed4a"`, `channels=range(10)`, `top_k=20`, `address="auto"`, ...), see
            `RunSpec`, `RunOptions` and `Resources`.

    Raises:
        UsageError: something that was asked for cannot be done; nothing was computed.
        IncompleteError: some shards failed. What is finished is kept; call it again to do only these.
    """
    unknown = next((key for key in keys if key not in RUN_KEYS), None)
    if unknown is not None:
        raise UsageError(f"find_exemplars has no argument '{unknown}'; {near_matches(unknown, RUN_KEYS)}")
    settings = {**keys, "preprocess": _keys_of(preprocess)}
    # All that can be refused is, before anything is written.
    pick(RunSpec, settings)
    resources, options = pick(Resources, settings), pick(RunOptions, settings)
    with interruptible():
        settings["model"] = name_of(model, out)
        outcome = job.run(
            pick(RunSpec, settings),
            [data] if isinstance(data, str) else list(data),
            out,
            resources,
            console or console_here(),
            options,
        )
    _refuse_incomplete(outcome)
    return open_run(out)


def visualize_channels(
    run: str | os.PathLike[str] | Run | None = None,
    *,
    model: str | nn.Module | None = None,
    out: str | None = None,
    preprocess: Mapping[str, Any] | Preprocess | Any = None,
    console: Console | None = None,
    **keys: Any,
) -> Visualizations:
    """Make, for every channel, the picture of what it looks for, and return the pictures with what they are worth.

    Either of a finished run, beside whose exemplars they stand then, or of a model that has none. Where it runs, and
    that it goes on where it stopped, is as of `find_exemplars`.

    Args:
        run: the run, or its folder. What it is of, also a module in hand, is in it.
        model: without a run: a name or a module in hand; with `layer`, `out` and whatever else there is to be said.
        out: where the pictures of a model go: a folder of their own, see `find_exemplars`.
        preprocess: of the model, see `find_exemplars`.
        console: where progress is shown; None for this notebook or terminal.
        keys: any other key of `exemplar-ray visualize` (`negative=True`, `steps=512`, `channels=range(10)`, ...), see
            `PictureOptions` and `Resources`.

    Raises:
        UsageError: something that was asked for cannot be done; nothing was computed.
        IncompleteError: some groups of pictures failed. What is finished is kept; call it again to do only these.
    """
    unknown = next((key for key in keys if key not in PICTURE_KEYS), None)
    if unknown is not None:
        raise UsageError(f"visualize_channels has no argument '{unknown}'; {near_matches(unknown, PICTURE_KEYS)}")
    settings = {**keys, **_given(out=out, preprocess=_keys_of(preprocess))}
    console = console or console_here()
    if run is not None:
        opened = run if isinstance(run, Run) else open_run(run)
        with interruptible():
            outcome, _ = make_pictures(opened.uri, {**settings, **_given(model=model)}, console)
        _refuse_incomplete(outcome)
        return opened.visualizations
    if model is None or out is None or "layer" not in keys:
        raise UsageError("visualize_channels takes a finished run, or model, layer and out")
    # All that can be refused is, before anything is written.
    refuse_impossible(None, settings)
    with interruptible():
        outcome, _ = make_pictures(None, {**settings, "model": name_of(model, out)}, console)
    _refuse_incomplete(outcome)
    return Visualizations(RunFolder(out))


def _given(**settings: Any) -> dict[str, Any]:
    """Return those that are set."""
    return {key: value for key, value in settings.items() if value is not None}


def _refuse_incomplete(outcome: JobOutcome) -> None:
    """Refuse a job that has no result.

    Raises:
        IncompleteError: some of its items failed.
    """
    if outcome.complete:
        return
    named = [f"{item}: {reason}" for item, reason in list(outcome.failed.items())[:_MOST_NAMED]]
    more = f"; and {len(outcome.failed) - _MOST_NAMED} more" if len(outcome.failed) > _MOST_NAMED else ""
    raise IncompleteError(
        f"{len(outcome.failed)} of {outcome.items} {outcome.items_name} have no result ({'; '.join(named)}{more}); "
        "call it again to do only these"
    )


def name_of(model: str | nn.Module, out: str) -> str:
    """Return the name by which workers find a model. A module in hand is kept in the run folder for them.

    Args:
        out: the run folder.

    Raises:
        UsageError: it is neither a name nor a module, or a module that cannot be handed to workers, or the folder is of
            a run of another network.
    """
    if isinstance(model, str):
        return model
    import torch

    from exemplar_ray.network.module_in_hand import written_down
    from exemplar_ray.network.spec import IN_HAND

    if not isinstance(model, torch.nn.Module):
        hint = "; call it, to give what it makes" if callable(model) else ""
        raise UsageError(f"model is a name or a torch.nn.Module, not {type(model).__name__} {model!r:.60}{hint}")
    refuse_writing(out)
    kept, folder = written_down(model), RunFolder(out)
    name = f"{NETWORK}{kept.sha256[:_OF_A_HASH]}.pt"
    folder.keep_network(name, kept.content)
    return f"{IN_HAND}{folder.full_uri.rstrip('/')}/{name}"


def _keys_of(preprocess: Any) -> Mapping[str, Any] | None:
    """Return a preprocessing as keys.

    Raises:
        UsageError: it is a transform that they cannot express.
    """
    if preprocess is None or isinstance(preprocess, Mapping):
        return preprocess
    if not isinstance(preprocess, Preprocess):
        from exemplar_ray.network.transforms import preprocess_of

        preprocess = preprocess_of(preprocess)
    return preprocess.to_json()
