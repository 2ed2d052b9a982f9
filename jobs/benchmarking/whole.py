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
    """Measure everything `--repeats` times, in turns; write whole.json. A job is held against what the notebook's loop
    made before and after it, on average."""
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

    def loop() -> float:
        rate = in_own_process(rivals.notebook, shards, options.notebook_images)
        add(NOTEBOOK, rate)
        return rate.per_second

    over_loop: dict[str, list[float]] = {}
    for number in range(options.repeats):
        print(f"repetition {number + 1} of {options.repeats}", flush=True)
        add(RAY_DATA, rivals.ray_data(shards, options.ray_data_images)["start to end"])
        # A machine gets faster and slower within a repetition, which takes minutes.
        before = loop()
        for size in sizes:
            for kind, flags in KINDS.items():
                parts, summary = job(copies[:size], flags)
                name = f"{kind}, {summary['scored']:,} images"
                gathered[name] = summary["images_gathered"]
                for part, rate in parts.items():
                    add(f"{name}, {part}", rate)
                after = loop()
                over_loop.setdefault(name, []).append(2 * parts["start to end"].per_second / (before + after))
                before = after
    print()
    per_second = {name: [rate.per_second for rate in found] for name, found in rates.items()}
    _print(per_second, over_loop, gathered)
    contents = {
        "machine": machine,
        "options": vars(options),
        "images_per_second": per_second,
        "over_loop": over_loop,
        "gathered": gathered,
    }
    write_figures(options.out, "whole", contents)


def _print(
    per_second: Mapping[str, list[float]], over_loop: Mapping[str, list[float]], gathered: Mapping[str, int]
) -> None:
    rows = []
    for name, images in gathered.items():
        start_to_end, scan = (per_second[f"{name}, {part}"] for part in ("start to end", "scan"))
        over_ray_data = spread(ratios(start_to_end, per_second[RAY_DATA]))
        of_scan = spread(ratios(start_to_end, scan), 2)
        rows.append((name, spread(start_to_end), spread(over_loop[name]), over_ray_data, of_scan, str(images)))
    print_table(("start to end", "images/s", "x loop", "x Ray Data", "of its scan", "gathered"), rows)
    print(*(f"{name}: {spread(per_second[name])} images/s" for name in (NOTEBOOK, RAY_DATA)), sep="\n", flush=True)
