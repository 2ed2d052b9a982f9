"""The check from end to end: build the network, choose images, look at them in tasks, and say what was found.

A map and a reduce like every job, but small: counts of some images. Nothing is kept that a rerun could go on with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from rich.console import Console

from exemplar_ray._version import __version__
from exemplar_ray.check.counts import Count, worth_going_on
from exemplar_ray.check.findings import CHECK, Findings, Guess, Guesses, Tried
from exemplar_ray.check.images import Chosen, choose
from exemplar_ray.check.looking import AskedNetwork, Introduced, Looked, LookSettings, SeenGuesses, ToIntroduce
from exemplar_ray.check.options import CheckOptions
from exemplar_ray.check.outputs import Reading, Readings, read_outputs, readings, settled
from exemplar_ray.check.usual import IN_USE, usual_preprocessings
from exemplar_ray.data.columns import Chosen as Columns
from exemplar_ray.data.data_set import data_set, refuse_unlabelled
from exemplar_ray.data.formats.registry import describe
from exemplar_ray.data.labels import ClassLabels, read_class_labels
from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.data.shard import Shard, labels_are_texts, to_question_with
from exemplar_ray.errors import UsageError
from exemplar_ray.executor.cluster import Cluster
from exemplar_ray.executor.progress import ProgressDisplay, say
from exemplar_ray.network.spec import NetworkSpec, whole_paths
from exemplar_ray.runs.identity import fingerprint
from exemplar_ray.runs.records import now
from exemplar_ray.runs.run_folder import RunFolder
from exemplar_ray.storage.hub_uri import refuse_writing

TASKS = "exemplar_ray.check.tasks"

# With so many images all preprocessings are tried; with the others, those that may be the best.
_FIRST_IMAGES = 200


_NO_LOGITS = "the network gives no logits: "
_SAID_OF_IMAGES = (
    "so that labels tell neither how good it is nor whether another preprocessing suits it better; what it answered to "
    "the questions about these images is all that can be said"
)


@dataclass(frozen=True)
class Subject:
    """What is checked: a network, and images."""

    network: AskedNetwork | NetworkSpec
    shards: Sequence[Shard]
    class_labels: ClassLabels
    run: RunFolder | None = None
    """Whose network it is."""
    fingerprint: str | None = None
    notes: tuple[str, ...] = ()
    """What was noticed when the data were listed."""


@dataclass(frozen=True)
class Checked:
    """What came of it, and the pictures of the images whose guesses are shown."""

    findings: Findings
    pictures: list[np.ndarray] = field(default_factory=list)
    """uint8 [crop, crop, channels] each: what the network saw."""


def of_run(run: str) -> Subject:
    """Take network, data and class names from a run folder.

    Raises:
        UsageError: there is no run, or it is of a job without a network or without images.
    """
    folder = RunFolder(run)
    values = folder.read_run()
    spec, shards = values.get("spec"), values.get("shards")
    if not isinstance(spec, Mapping) or "weights_sha256" not in spec:
        raise UsageError(f"'{run}' names no network; give --model and --data instead of the run folder")
    if not shards:
        raise UsageError(f"'{run}' names no images; give --model and --data instead of the run folder")
    labels = ClassLabels.from_json(values.get("class_labels") or {"names": None, "table": {}})
    return Subject(
        network=replace(NetworkSpec.from_json(spec).kept_in(folder.full_uri), layers=()),
        shards=[Shard.from_json(shard, labels.names) for shard in shards],
        class_labels=labels,
        run=folder,
        fingerprint=fingerprint(values["identity"]),
    )


def of_model(network: AskedNetwork, data: Sequence[str], columns: Columns, class_labels: str | None) -> Subject:
    """Take what the user names, in the words of the keys of a run.

    Args:
        columns: of images and labels, as the user names them.

    Raises:
        UsageError: the data or the file of class names cannot be had.
    """
    table = read_class_labels(class_labels) if class_labels else {}
    shards, labels, notes = data_set(data, columns, table)
    return Subject(network, shards, labels, notes=tuple(notes))


def check(subject: Subject, cluster: Cluster, console: Console, options: CheckOptions) -> Checked:
    """Check a network; for a run, keep what was found as `check.json` in its folder.

    Raises:
        UsageError: the network cannot be built or fails, no shard can be read, or `options.outputs` does not fit.
    """
    names = read_outputs(options.outputs) if options.outputs else None
    if not any(shard.images for shard in subject.shards):
        raise UsageError("no shard can be read, or all are empty")
    introduced = _introduce(subject, cluster)
    possible = _readings(introduced, subject, names)
    for line in [*_heading(introduced), *subject.notes, *describe(subject.shards)]:
        say(console, line)
    findings, looked = _Look(subject, introduced, possible, cluster, console, options).look()
    for line in findings.lines():
        say(console, line)
    if subject.run is not None:
        _keep(findings, subject.run, console)
    return Checked(findings, [seen.crop for seen in looked.guesses])


def _heading(introduced: Introduced) -> list[str]:
    """Say which network it is, and what it answered to the questions that were put to it."""
    network = introduced.network
    return [
        network.title,
        f"preprocessing: {network.preprocess.in_words()}",
        *network.said_of_labels(),
        *introduced.answers,
    ]


def _introduce(subject: Subject, cluster: Cluster) -> Introduced:
    """Build and question the network in a task, where torch and the weights are."""
    asked = subject.network
    if isinstance(asked, AskedNetwork) and not cluster.brings_working_folder:
        model, weights = whole_paths(asked.model, asked.weights)
        asked = replace(asked, model=model, weights=weights)
    cluster.prepare(f"{TASKS}:import_library", (asked.model, asked.weights), len(subject.shards))
    given = ToIntroduce(asked, to_question_with(subject.shards))
    introduced = cluster.call(f"{TASKS}:introduce", given, "the model cannot be built")
    if introduced.network.takes_labels:
        refuse_unlabelled(subject.shards)
    return introduced


def _readings(introduced: Introduced, subject: Subject, names: Sequence[str | None] | None) -> Readings:
    if introduced.gives_images:
        return Readings(refusal=f"{_NO_LOGITS}{introduced.no_logits}, {_SAID_OF_IMAGES}")
    if introduced.outputs is None:
        return Readings(refusal=f"{_NO_LOGITS}{introduced.no_logits}")
    if introduced.network.takes_labels:
        return Readings(refusal="the network is given the images' labels, so that a right guess says nothing of it")
    found = readings(introduced.outputs, subject.class_labels, names)
    if not labels_are_texts(subject.shards) or names is not None:
        return found
    # Which is the order of image folders, too.
    ordered = (replace(one, words=f"{one.words}; labels are texts, in alphabetical order") for one in found.possible)
    return replace(found, possible=tuple(ordered))


def _keep(findings: Findings, run: RunFolder, console: Console) -> None:
    try:
        refuse_writing(run.uri)
        run.write_json(CHECK, findings.to_json())
    except (UsageError, OSError) as error:
        say(console, f"not kept, as the run folder cannot be written to: {' '.join(str(error).split())}")
        return
    say(console, f"kept: {run.uri.rstrip('/')}/{CHECK}")


class _Look:
    """Looks at the chosen images, and makes findings of what comes of it."""

    def __init__(
        self,
        subject: Subject,
        introduced: Introduced,
        possible: Readings,
        cluster: Cluster,
        console: Console,
        options: CheckOptions,
    ) -> None:
        self._subject, self._introduced, self._possible = subject, introduced, possible
        self._cluster, self._console, self._options = cluster, console, options
        network = introduced.network
        self._all = usual_preprocessings(network.preprocess, introduced.own)
        if not possible.possible or not network.trained:
            # Blind guesses are as good with one as with another.
            self._all = {IN_USE: network.preprocess}
        self._failed = {
            shard.name: f"it cannot be read as {shard.format}, or cannot be reached"
            for shard in subject.shards
            if shard.footer is None
        }
        self._shards: set[str] = set()

    def look(self) -> tuple[Findings, Looked]:
        """Look at the first images in all ways, at the others in those ways that may turn out the best."""
        options, counts = self._options, bool(self._possible.possible)
        if self._introduced.outputs is None:
            return self.findings(None, Looked(), []), Looked()
        in_data = sum(shard.images for shard in self._subject.shards)
        images = min(options.images if counts else options.guesses, in_data)
        first = min(images, _FIRST_IMAGES) if len(self._all) > 1 else images
        if images < 1.25 * first:
            first = images
        early, late = choose(self._subject.shards, images, first, options.guesses)
        looked = self._map(early, self._all, "try" if late else "look")
        number = settled_reading(self._possible.possible, looked)
        tried = _tried(self._all, looked.counts[number or 0]) if counts else []
        if late and any(one.count.images for one in tried):
            goes_on = worth_going_on([one.count for one in tried])
            names = [one.name for one, on in zip(tried, goes_on, strict=True) if on]
            more = self._map(late, {name: self._all[name] for name in names})
            whole = np.zeros_like(looked.counts)
            whole[:, [place for place, on in enumerate(goes_on) if on]] = more.counts
            looked = looked.plus(replace(more, counts=whole))
            number = settled_reading(self._possible.possible, looked)
            tried = _tried(self._all, looked.counts[number or 0])
        return self.findings(number, looked, tried), looked

    def _map(self, chosen: Sequence[Chosen], preprocessings: Mapping[str, Preprocess], verb: str = "look") -> Looked:
        """Look at images, a task a shard, and add up what comes of it.

        Args:
            verb: what to call that on the progress line.
        """
        cluster = self._cluster
        most = max((len(one.rows) for one in chosen), default=1)
        settings = LookSettings(
            network=self._introduced.network,
            preprocessings=tuple(preprocessings.values()),
            readings=self._possible.possible,
            # One shape for every forward pass, and not much of it empty where shards have few images each.
            batch_size=min(cluster.batch_size, most),
            threads=cluster.demand.cpus,
            use_gpu=cluster.demand.gpus > 0,
        )
        shape = (len(settings.readings), len(settings.preprocessings), len(Count._fields))
        found: dict[int, Looked] = {}
        with ProgressDisplay(self._console, verb, len(chosen)) as display:
            tasks = cluster.map(
                f"{TASKS}:look",
                enumerate(chosen),
                settings,
                demand=cluster.demand,
                named=lambda place: chosen[place].shard.name,
            )
            for outcome in tasks:
                name = chosen[outcome.key].shard.name
                if outcome.error:
                    self._failed[name] = outcome.error
                    display.failed(name, outcome.error)
                    continue
                self._shards.add(name)
                found[outcome.key] = outcome.value
                display.finished(name, outcome.value.images, host=outcome.host)
        looked = Looked(counts=np.zeros(shape, np.int64))
        for place in sorted(found):
            looked = looked.plus(found[place])
        return looked

    def findings(self, number: int | None, looked: Looked, tried: Sequence[Tried]) -> Findings:
        """Put together what was found.

        Args:
            number: the reading of the outputs that stands.
        """
        network, possible = self._introduced.network, self._possible.possible
        reading = possible[number] if number is not None and possible else None
        refusal = self._possible.refusal or _refusal(possible, number, looked)
        # Labels beyond the classes say that this reading is wrong.
        named = reading if reading and not (reading.whole and looked.foreign) else None
        return Findings(
            checked=now(),
            version=__version__,
            fingerprint=self._subject.fingerprint,
            model_title=network.model_title,
            weights_title=network.weights_title,
            weights_sha256=network.weights_sha256,
            trained=network.trained,
            preprocess=network.preprocess,
            answers=self._introduced.answers,
            outputs=self._introduced.outputs,
            reading=reading.words if reading else None,
            no_accuracy=refusal,
            images=looked.images,
            images_in_data=sum(shard.images for shard in self._subject.shards),
            shards=len(self._shards),
            shards_in_data=len(self._subject.shards),
            undecodable=looked.undecodable,
            unlabelled=looked.unlabelled,
            uncounted=looked.foreign,
            not_finite=looked.not_finite,
            probabilities=0 < looked.images == looked.probabilities,
            tried=() if refusal else tuple(tried),
            guesses=self._guesses(looked.guesses, named) if self._introduced.outputs else (),
            failed=self._failed,
        )

    def _guesses(self, seen: Sequence[SeenGuesses], reading: Reading | None) -> tuple[Guesses, ...]:
        labels = self._subject.class_labels

        def name_of(output: int) -> str:
            label = reading.classes[output] if reading else None
            return labels.class_name(label) or f"output {output}"

        return tuple(
            Guesses(
                one.shard,
                one.row,
                one.path,
                labels.class_name(one.label) or (None if one.label is None else f"label {one.label}"),
                tuple(map(Guess, map(name_of, one.outputs), one.probabilities)),
            )
            for one in seen
        )


def settled_reading(possible: Sequence[Reading], looked: Looked) -> int | None:
    """Return which reading of the outputs stands, by the preprocessing that speaks most clearly for one."""
    if not possible:
        return None
    top1 = looked.counts[:, :, Count._fields.index("top1")]
    return settled(top1[:, top1.sum(0).argmax()].tolist())


def _refusal(possible: Sequence[Reading], number: int | None, looked: Looked) -> str | None:
    """Say why nothing is counted although there is a way to read the outputs."""
    labelled = looked.images - looked.unlabelled
    if looked.images and not labelled:
        return "the images have no labels"
    if number is None and looked.images:
        words = "; or: ".join(reading.words for reading in possible)
        return f"these images do not tell which it is: {words}; --outputs FILE says which output is which class"
    if looked.foreign and number is not None and possible[number].whole:
        return (
            f"the data have labels up to {looked.foreign_label:,}, beyond the classes of the network's "
            f"{len(possible[number].classes):,} outputs; --outputs FILE says which output is which class"
        )
    return None if looked.images else "no image could be looked at"


def _tried(preprocessings: Mapping[str, Preprocess], counts: np.ndarray) -> list[Tried]:
    return [
        Tried(name, preprocess, Count(*map(int, count)))
        for (name, preprocess), count in zip(preprocessings.items(), counts, strict=True)
    ]
