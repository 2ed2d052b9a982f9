"""The whole wait, from the command to the exit, over a notebook's loop and Ray Data's pipeline, by size of the data."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarking import rivals
from benchmarking.data import copies_of
from benchmarking.measuring import (
    Rate,
    allowed_cores,
    in_own_process,
    print_table,
    ratios,
    reference_machine,
    spread,
    write_figures,
)
from benchmarking.own_job import KINDS, first_runs, job

NOTEBOOK, RAY_DATA = "notebook's loop", "Ray Data pipeline, start to end"


def whole(shards: Sequence[str], work: Path, options: Namespace) -> None:
    """Measure everything `--repeats` times, in turns; write whole.json."""
    machine = reference_machine(allowed_cores())
    print_table(("reference machine", ""), list(machine.items()))
    sizes = sorted({1, options.copies, 4 * options.copies})
    copies = copies_of(shards, work / "copies", sizes[-1])
    first_runs(shards, KINDS)
    rates: dict[str, list[Rate]] = {}
    gathered: dict[str, int] = {}

    def add(name: str, rate: Rate) -> None:
        rates.setdefault(name, []).append(rate)
        print(f"  {name}: {rate.per_second:.1f} images/s", flush=True)

    for number in range(options.repeats):
        print(f"repetition {number + 1} of {options.repeats}", flush=True)
        add(NOTEBOOK, in_own_process(rivals.notebook, shards, options.notebook_images))
        add(RAY_DATA, rivals.ray_data(shards, options.ray_data_images)["start to end"])
        for size in sizes:
            for kind, flags in KINDS.items():
                parts, summary = job(copies[:size], flags)
                name = f"{kind}, {summary['scored']:,} images"
                gathered[name] = summary["images_gathered"]
                for part, rate in parts.items():
                    add(f"{name}, {part}", rate)
    print()
    per_second = {name: [rate.per_second for rate in found] for name, found in rates.items()}
    _print(per_second, gathered)
    contents = {"machine": machine, "options": vars(options), "images_per_second": per_second, "gathered": gathered}
    write_figures(options.out, "whole", contents)


def _print(per_second: Mapping[str, list[float]], gathered: Mapping[str, int]) -> None:
    rows = []
    for name, images in gathered.items():
        start_to_end, scan = (per_second[f"{name}, {part}"] for part in ("start to end", "scan"))
        over = [spread(ratios(start_to_end, per_second[rival])) for rival in (NOTEBOOK, RAY_DATA)]
        rows.append((name, spread(start_to_end), *over, spread(ratios(start_to_end, scan), 2), str(images)))
    print_table(("start to end", "images/s", "x loop", "x Ray Data", "of its scan", "gathered"), rows)
    print(*(f"{name}: {spread(per_second[name])} images/s" for name in (NOTEBOOK, RAY_DATA)), sep="\n", flush=True)
