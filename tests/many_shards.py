"""Very many shards: merge the parts of a run of 100,000, and hold what comes out against plain numpy.

    python tests/many_shards.py --shards 100000 --channels 508

Makes a run folder whose parts are synthetic: a few hundred different ones, written by the code that a scan writes
them with, stand under all positions as hard links, each with a completion record of its own. So they take little
room, but every one is read, checked and folded like any other, on a real local Ray. Half of them stand at one
position only; activations are whole multiples of 1/64, so that there are ties in shards and between them, and the
first channel never fires. Prints how long it took and the peak memory of the driver and of the tasks.
"""

import argparse
import hashlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil

from exemplar_ray.data.labels import ClassLabels
from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.data.shards import Shard
from exemplar_ray.exemplars import parts
from exemplar_ray.exemplars.parts import Part, candidates_kept
from exemplar_ray.exemplars.plan import Plan, ScannedShard
from exemplar_ray.exemplars.samples import SampledImages
from exemplar_ray.exemplars.spec import ExemplarsSpec
from exemplar_ray.exemplars.tallies.classes import ERROR
from exemplar_ray.exemplars.topk import NO_LABEL, TOP, Scores, merge
from exemplar_ray.network.layers import Layer
from exemplar_ray.network.spec import NetworkSpec
from exemplar_ray.runs.records import CompletionRecord
from exemplar_ray.runs.run_folder import RunFolder

# The merge's own number: how deep it looks in all shards together, in candidates of one.
_DEPTH = 4
_SAMPLED_IN_A_SINGLE = 3


class Synthetic:
    """What the synthetic shards hold: which of the different parts stands at which position.

    Args:
        channels: of each layer.
        different: how many different parts.
        rows: images a shard.
        classes: labels of the images.
    """

    def __init__(self, shards, channels, different=200, rows=100, classes=1000):
        self.rows, self.classes = rows, classes
        layers = tuple(Layer(f"mixed{i}", n, (14, 14), tuple(range(n))) for i, n in enumerate(channels))
        network = NetworkSpec(
            model="synthetic",
            model_title="no network",
            model_source_sha256=None,
            weights="random:0",
            weights_title="none",
            weights_sha256="0" * 64,
            trained=False,
            layers=layers,
            preprocess=Preprocess(mean=(0, 0, 0)),
        )
        self.spec = ExemplarsSpec(
            network=network,
            statistics=("mean",),
            top_k=10,
            samples=("top", "random"),
            distinct=False,
            max_per_class=None,
            class_top_k=0,
            seed=0,
            precision="float32",
            decode="reference",
            margin=10,
        )
        different = min(different, shards)
        self.singles = different // 2
        random = np.random.default_rng(0)
        often = random.integers(self.singles, different, shards - different)
        self.which = random.permutation(np.concatenate([np.arange(different), often]))
        """int [shards]: the part of each."""
        self.plan = Plan(self.spec, [self._shard(position) for position in range(shards)], ClassLabels(), {})

    def _shard(self, position):
        name = f"train-{position:06d}.parquet"
        footer = hashlib.sha256(name.encode()).hexdigest()
        return Shard(name, f"s3://bucket/data/{name}", 500_000_000 + position, self.rows, footer)

    def images(self, number):
        """Return the images of a part: labels, priorities and, for each layer, float32 [rows, channels]."""
        random = np.random.default_rng(number)
        activations = []
        for layer in self.spec.layers:
            # The parts that stand at one position only have the strongest images, and not they alone.
            values = random.normal(0, 1.2 if number < self.singles else 1.0, (self.rows, layer.channel_count))
            values = np.maximum(np.rint(values * 64) / 64, 0).astype(np.float32)
            values[:, 0] = 0
            activations.append(values)
        return random.integers(0, self.classes, self.rows), random.random(self.rows), activations

    def part(self, number):
        """Return the part that a scan would leave of them."""
        labels, priorities, activations = self.images(number)
        part = Part.empty(self.spec)
        scores = []
        for readout, values in enumerate(activations):
            for tallies in part.tallies.values():
                tallies[readout].update(values, labels)
            row, channel = np.indices(values.shape).reshape(2, -1)
            columns = Scores(readout, TOP, NO_LABEL, channel, values.reshape(-1), 0, row)
            types = Scores.empty()
            scores.append(
                Scores(*(np.broadcast_to(c, row.shape).astype(t.dtype) for c, t in zip(columns, types, strict=True)))
            )
        few = np.arange(_SAMPLED_IN_A_SINGLE if number < self.singles else 0)
        sampled = SampledImages(
            np.zeros(len(few), np.int32), few, priorities[few], [values[few] for values in activations]
        )
        return replace(part, scores=merge(scores, candidates_kept(self.spec)), sampled=sampled)

    def write(self, run):
        """Make the run folder, every shard scanned."""
        folder = RunFolder(str(run))
        folder.adopt(self.plan.manifest())
        fingerprint = self.plan.fingerprint
        first = {}
        for position, number in enumerate(self.which.tolist()):
            if number not in first:
                files = parts.to_files(self.part(number), self.spec)
                first[number] = position, folder.commit(position, files, self._record(position, fingerprint))
                continue
            # What commit does, without waiting for the disk five times a shard.
            original, record = first[number]
            for ending in record.files:
                os.link(run / f"parts/{original:06d}.{ending}", run / f"parts/{position:06d}.{ending}")
            record = replace(self._record(position, fingerprint), files=record.files)
            (run / f"parts/{position:06d}.json").write_text(json.dumps(record.to_json(), indent=1) + "\n")
        return run

    def _record(self, position, fingerprint):
        shard = self.plan.shards[position]
        facts = {
            "rows": self.rows,
            "scored": self.rows,
            "skipped": 0,
            "skipped_images": [],
            "not_finite": [],
            "device": "cuda",
            "compiled": False,
            "worker": {"process": 1234 + position % 16, "trunks_loaded": 1, "trunks_compiled": 0},
        }
        return CompletionRecord(
            fingerprint=fingerprint,
            item_kind=shard.kind,
            item=shard.to_json(),
            facts=facts,
            seconds=12.5 + position % 7,
            host=f"host-{position % 16}",
            finished="2026-11-22T12:00:00Z",
        )

    # What must come out ---------------------------------------------------------------------

    def check(self, merged):
        """Hold a merge of all shards against the images themselves.

        Raises:
            AssertionError: it is not what plain numpy says.
        """
        times = np.bincount(self.which)
        positions = [np.flatnonzero(self.which == number) for number in range(len(times))]
        labels, priorities, activations = zip(*(self.images(number) for number in range(len(times))), strict=True)
        labels = np.stack(labels)
        for readout, (layer, _) in enumerate(self.spec.readouts):
            values = np.stack([of_part[readout] for of_part in activations])
            self._check_tallies(values, labels, times, {n: t[readout] for n, t in merged.tallies.items()})
            found = merged.scores.take(merged.scores.readout == readout)
            ends = np.searchsorted(found.channel, np.arange(layer.channel_count + 1))
            for channel in range(layer.channel_count):
                here = slice(ends[channel], ends[channel + 1])
                expected = self._strongest(values[:, :, channel], positions)
                for ours, theirs in zip((found.activation, found.shard, found.row), expected, strict=True):
                    np.testing.assert_array_equal(ours[here], theirs)
        drawn = [
            (priorities[number][row], int(positions[number][0]), row)
            for number in range(self.singles)
            for row in range(_SAMPLED_IN_A_SINGLE)
        ]
        drawn = sorted((shard, row) for _, shard, row in sorted(drawn)[:2000])
        sampled = merged.sampled
        assert list(zip(sampled.shard.tolist(), sampled.row.tolist(), strict=True)) == drawn
        for image, (shard, row) in enumerate(drawn):
            for ours, theirs in zip(sampled.activations, activations[self.which[shard]], strict=True):
                np.testing.assert_array_equal(ours[image], theirs[row])

    def _strongest(self, values, positions):
        """Return activations, shards, rows of a channel's candidates, given float32 [parts, rows]: the strongest of
        all, as many as the merge keeps, but none below the first that is the last of what a shard kept."""
        kept = candidates_kept(self.spec)[TOP]
        depth = _DEPTH * kept
        level = np.sort(values, axis=None)[-depth]
        part, row = np.nonzero(values >= level)
        copies = [positions[number][:depth] for number in part]
        lengths = [len(shards) for shards in copies]
        columns = np.repeat(values[part, row], lengths), np.concatenate(copies), np.repeat(row, lengths)
        # Stronger first, then the lower shard, then the lower row.
        order = np.lexsort((columns[2], columns[1], -columns[0]))[:depth]
        activation, shard, row = (column[order] for column in columns)
        lasts = np.argsort(-values, axis=1, kind="stable")[:, kept - 1]
        is_last = row == lasts[self.which[shard]]
        end = np.argmax(is_last) + 1 if is_last.any() else depth
        return activation[:end], shard[:end], row[:end]

    def _check_tallies(self, values, labels, times, tallies):
        """Given float32 [parts, rows, channels], int [parts, rows], and how often there is each part."""
        moments, histogram, classes = (tallies[name] for name in ("moments", "histogram", "classes"))
        images, weights = times.sum() * self.rows, times[:, None, None]
        mean = (values.astype(np.float64) * weights).sum(axis=(0, 1)) / images
        variance = (((values - mean) ** 2) * weights).sum(axis=(0, 1)) / images
        np.testing.assert_array_equal(moments.images, images)
        np.testing.assert_allclose(moments.mean, mean, rtol=1e-10)
        np.testing.assert_allclose(moments.deviations / images, variance, rtol=1e-10)
        np.testing.assert_array_equal(moments.minimum, values.min(axis=(0, 1)))
        np.testing.assert_array_equal(moments.maximum, values.max(axis=(0, 1)))
        np.testing.assert_array_equal(moments.active, ((values > 0) * weights).sum(axis=(0, 1)))
        # A bin of the histogram is sign, exponent and the first 5 bits of a float32's fraction.
        bins = values.view(np.int32) >> 18
        channel = np.broadcast_to(np.arange(values.shape[2]), values.shape)
        counts = np.zeros((values.shape[2], bins.max() + 1), np.int64)
        np.add.at(counts, (channel, bins), np.broadcast_to(weights, values.shape))
        of_channel, of_bin = np.nonzero(counts)
        np.testing.assert_array_equal(histogram.channel, of_channel)
        np.testing.assert_array_equal(histogram.bin, of_bin)
        np.testing.assert_array_equal(histogram.count, counts[of_channel, of_bin])
        known, of_image = np.unique(labels, return_inverse=True)
        of_image = of_image.reshape(labels.shape)
        images, total, maximum = np.zeros((3, len(known), values.shape[2]))
        for number, (of_part, part) in enumerate(zip(of_image, values, strict=True)):
            np.add.at(images, of_part, times[number])
            np.add.at(total, of_part, times[number] * part.astype(np.float64))
            np.maximum.at(maximum, of_part, part)
        np.testing.assert_array_equal(classes.labels, known)
        np.testing.assert_array_equal(classes.images, images)
        # As stored in a part they are rounded, by so much of the channel's largest.
        most = ERROR * values.max(axis=(0, 1))
        assert (np.abs(classes.mean - total / images) <= most).all()
        assert (np.abs(classes.maximum - maximum) <= most).all()


# Measuring ---------------------------------------------------------------------------------


def memory(field, process="self"):
    """Return a field of a process's status in MB: VmHWM is the largest resident memory that it has had, shared memory
    that it touched included; RssAnon what it has for itself now. 0 if the process is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def watch(stop, peaks):
    """Until told to stop, keep the largest memory that the driver and any one task has for itself: {who: MB}."""
    driver = psutil.Process()
    while not stop.wait(0.1):
        peaks["driver"] = max(peaks["driver"], memory("RssAnon"))
        for process in driver.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if " ".join(process.cmdline()).startswith("ray::fold_group"):
                    peaks["task"] = max(peaks["task"], memory("RssAnon", process.pid))


def drive(run, out):
    """Do what the driver of a finished scan does but for gathering, and tell of its time and memory.

    Args:
        out: where to leave what the parts merge to.
    """
    from rich.console import Console

    from exemplar_ray.executor.cluster import Cluster
    from exemplar_ray.executor.job import Context
    from exemplar_ray.executor.resources import Resources
    from exemplar_ray.exemplars.answer import merge_parts
    from exemplar_ray.exemplars.gathered import MAPS_SCHEMA
    from exemplar_ray.exemplars.rerank.selected import Selected
    from exemplar_ray.exemplars.summary import Account, summarise

    told = {}
    started = time.monotonic()

    def tell(what):
        nonlocal started
        now = time.monotonic()
        told[what] = {"seconds": now - started, "peak": memory("VmHWM")}
        started = now

    tell("start")
    folder = RunFolder(str(run))
    plan = Plan.read(folder)
    tell("plan")
    manifest = plan.manifest()
    completed = folder.adopt(manifest, ScannedShard.of).completed
    tell("state")
    peaks, stop = {"driver": 0.0, "task": 0.0}, threading.Event()
    watcher = threading.Thread(target=watch, args=[stop, peaks])
    with Cluster(Resources()) as cluster:
        tell("Ray")
        watcher.start()
        context = Context(cluster, folder, manifest, completed, Console(stderr=True))
        merged, failed = merge_parts(plan.spec, context)
        stop.set()
        watcher.join()
        if failed:
            raise RuntimeError(f"not merged: {failed}")
        tell("merge")
    none = Scores.empty()
    nothing = Selected(none, [], none.shard, [], MAPS_SCHEMA.empty_table(), 0.0, [], [], {}, [])
    summary = summarise(plan, completed, nothing, Account(0, None, None))
    folder.write_json("summary.json", summary.to_json())
    tell("summary")
    Path(out).write_bytes(pickle.dumps(Part(merged.scores, merged.tallies, merged.sampled)))
    print(json.dumps({"driver": told, "merging": peaks}))


def measure(run):
    """Merge a run folder in a driver of its own; return (what it told, what the parts merge to)."""
    with tempfile.NamedTemporaryFile() as out:
        command = [sys.executable, __file__, "--drive", str(run), out.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        return json.loads(done.stdout.splitlines()[-1]), pickle.loads(Path(out.name).read_bytes())


def main():
    """Make the run, merge it, check it and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=100_000, metavar="N", help="(default: 100000)")
    parser.add_argument("--channels", type=int, nargs="+", default=[508], metavar="N", help="of each layer")
    parser.add_argument("--different", type=int, default=200, metavar="N", help="parts that differ (default: 200)")
    parser.add_argument("--rows", type=int, default=100, metavar="N", help="images a shard (default: 100)")
    parser.add_argument("--classes", type=int, default=1000, metavar="N", help="classes (default: 1000)")
    parser.add_argument("--drive", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        drive(*options.drive)
        return
    with tempfile.TemporaryDirectory(prefix="xr-many-") as work:
        started = time.monotonic()
        synthetic = Synthetic(options.shards, options.channels, options.different, options.rows, options.classes)
        run = synthetic.write(Path(work) / "run")
        channels = " + ".join(map(str, options.channels))
        print(f"{options.shards} shards x {channels} channels x {options.rows} images, {options.classes} classes:")
        print(f"  made in {time.monotonic() - started:.0f} s", flush=True)
        for _ in range(2):
            started = time.monotonic()
            status = subprocess.run(
                [sys.executable, "-m", "exemplar_ray", "status", str(run)], capture_output=True, text=True, check=False
            )
            assert f"{options.shards} in all, {options.shards} done" in status.stdout, status.stdout + status.stderr
            print(f"  status: {time.monotonic() - started:.1f} s", flush=True)
        told, merged = measure(run)
        for what, one in told["driver"].items():
            print(f"  driver, {what}: {one['seconds']:.1f} s, peak memory until then {one['peak']:.0f} MB")
        for who, peak in told["merging"].items():
            print(f"  {who}, while merging: {peak:.0f} MB of its own", flush=True)
        started = time.monotonic()
        synthetic.check(merged)
        print(f"  as plain numpy says: candidates, tallies, sampled images ({time.monotonic() - started:.0f} s)")


if __name__ == "__main__":
    main()
