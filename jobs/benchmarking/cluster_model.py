"""What `exemplar-ray plan` foresees for one worker and for two, held against what they then do."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from benchmarking.data import row_groups, shards_of_rows
from benchmarking.limits import MODEL, WEIGHTS, decoding_alone
from benchmarking.measuring import (
    allowed_cores,
    in_own_process,
    only_on,
    print_table,
    reference_machine,
    spread,
    write_figures,
)
from benchmarking.own_job import EXACT, SCREENED, first_runs, job
from exemplar_ray.executor.resources import Resources
from exemplar_ray.exemplars.forecast import Forecast, measure
from exemplar_ray.exemplars.spec import RunSpec

KINDS = {
    "exact": (EXACT, RunSpec(model=MODEL, weights=WEIGHTS)),
    "screened": (SCREENED, RunSpec(model=MODEL, weights=WEIGHTS, precision="bfloat16", decode="fast")),
}
# What jobs/imagenet.yaml gives a GPU, and ImageNet-1k.
CPUS_A_GPU, GPUS, IMAGES, SHARDS = 7, (1, 8, 64), 1_281_167, 294


def cluster_model(shards: Sequence[str], work: Path, options: Namespace) -> None:
    """Foresee and measure the scan of one worker and of two, `--repeats` times; write cluster_model.json."""
    cores = allowed_cores()
    machine = reference_machine(cores)
    print_table(("reference machine", ""), list(machine.items()))
    rows = sum(group.rows for group in row_groups(shards)) // 2
    data = shards_of_rows(shards, work / "data", rows, 2 * options.copies)
    first_runs(shards, {name: flags for name, (flags, _) in KINDS.items()})
    shares: dict[str, list[float]] = {}
    for number in range(options.repeats):
        print(f"repetition {number + 1} of {options.repeats}", flush=True)
        for name, (flags, spec) in KINDS.items():
            for workers in (1, 2):
                with only_on(cores[:workers]):
                    # Two workers share memory and caches: each number of them is tried by itself.
                    found: Forecast = in_own_process(measure, spec, data, Resources(compile="always"))
                    rates, _ = job(data, flags)
                scan, foreseen = rates["scan"], found.seconds(workers)
                shares.setdefault(f"{name}, {workers}", []).append(scan.seconds / foreseen)
                print(f"  {name}, {workers}: {foreseen:.0f} s foreseen, {scan.seconds:.0f} s; {found.limit} limits")
    print()
    print_table(("scan, workers", "measured / foreseen"), [(name, spread(s, 2)) for name, s in shares.items()])
    with only_on(cores[:1]):
        a_core = {how: decoding_alone(shards, how, options.limit_seconds).per_second for how in ("reference", "fast")}
    print(
        f"One core decodes {a_core['reference']:.0f} images/s, fast {a_core['fast']:.0f}. No GPU was measured: if one"
    )
    print(f"does more than {CPUS_A_GPU} cores decode, these are what ImageNet takes, without loading and gathering:")
    print()
    lines = []
    for gpus in GPUS:
        for how, per_core in a_core.items():
            seconds = -(-SHARDS // gpus) * IMAGES / SHARDS / (CPUS_A_GPU * per_core)
            cells = f"{gpus * CPUS_A_GPU * per_core:,.0f}", f"{seconds / 60:.1f}", f"{gpus * seconds / 3600:.2f}"
            lines.append((f"{gpus}, decoding {how}", *cells, "decoding"))
    print_table(("GPUs", "images/s", "minutes", "GPU hours", "limited by"), lines)
    contents = {"machine": machine, "options": vars(options), "measured / foreseen": shares, "a core": a_core}
    write_figures(options.out, "cluster_model", contents)
