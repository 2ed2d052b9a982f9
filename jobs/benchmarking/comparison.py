"""The notebook, the rivals, the job and the limits of the cores: interleaved, on the same images."""

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarking import rivals
from benchmarking.data import row_groups, shards_of_rows
from benchmarking.limits import KINDS, bound, decoding_alone, trunk_alone
from benchmarking.measuring import Rate, allowed_cores, in_own_process, print_table, ratios, reference_machine, spread
from benchmarking.own_job import EVERY_ANSWER, EXACT, SCREENED, first_runs, job
from benchmarking.stages import STAGES, median_of, stage_milliseconds, write_picture

NOTEBOOK, LOADER, RAY_DATA, CRP = "notebook", "dataloader", "ray_data", "zennit_crp"
OWN = {"exact": EXACT, "screened": SCREENED, "every answer": EVERY_ANSWER}


class Measured:
    """What the repetitions gave: figures by name, one a repetition."""

    def __init__(self) -> None:
        self.first_runs: dict[str, float] = {}
        self.rates: dict[str, list[Rate]] = {}
        self.in_doubt: dict[str, dict[str, Any]] = {}
        self.absent: dict[str, str] = {}
        self.bounds: dict[str, list[float]] = {}
        self.stages: dict[str, list[dict[str, float]]] = {}

    def add(self, name: str, rate: Rate) -> None:
        """Take in one figure, and say so: a repetition takes minutes."""
        self.rates.setdefault(name, []).append(rate)
        print(f"  {name}: {rate.per_second:.1f} images/s", flush=True)

    def per_second(self, name: str) -> list[float]:
        """Return images/s, one a repetition."""
        return [rate.per_second for rate in self.rates[name]]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        rates = {
            name: [{"images": r.images, "seconds": r.seconds, "images_per_second": r.per_second} for r in found]
            for name, found in self.rates.items()
        }
        return {
            "first_runs_seconds": self.first_runs,
            "rates": rates,
            "absent": self.absent,
            "in_doubt": self.in_doubt,
            "bounds": self.bounds,
            "stages_ms": self.stages,
        }


def compare(shards: Sequence[str], work: Path, options: Namespace) -> None:
    """Measure everything `--repeats` times, print the tables, write benchmark.json and stages.png."""
    machine = reference_machine(allowed_cores())
    print_table(("reference machine", ""), list(machine.items()))
    # As many shards as copies: of the size that data sets have, a last batch that is not full hardly counts.
    rows = sum(group.rows for group in row_groups(shards))
    data = shards_of_rows(shards, work / "data", rows, options.copies)
    measured = Measured()
    measured.first_runs = first_runs(shards, OWN)
    for number in range(options.repeats):
        print(f"repetition {number + 1} of {options.repeats}", flush=True)
        _measure_rivals(measured, shards, options)
        for name, flags in OWN.items():
            rates, summary = job(data, flags)
            for part, rate in rates.items():
                measured.add(f"{name}, {part}", rate)
            measured.in_doubt[name] = {key: summary[key] for key in ("settled_anew", "unsettled")}
        _measure_limits(measured, shards, options)
        if options.out:
            _write(measured, machine, options)
    print()
    _print_rates(measured)
    _print_comparison(measured)
    for name, doubts in measured.in_doubt.items():
        anew, unsettled = doubts["settled_anew"], len(doubts["unsettled"])
        print(f"{name}: {anew} channels scanned once more, {unsettled} not settled")
    print()
    _print_stages(measured)


def _write(measured: Measured, machine: dict[str, str], options: Namespace) -> None:
    """Write what there is so far: hours of measuring should survive what goes wrong in the last."""
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    contents = {"machine": machine, "options": vars(options), **measured.to_json()}
    (out / "benchmark.json").write_text(json.dumps(contents, indent=2) + "\n")
    write_picture(measured.stages, f"{machine['CPU']}, {machine['date']}", out / "stages.png")


def _measure_rivals(measured: Measured, shards: Sequence[str], options: Namespace) -> None:
    measured.add(NOTEBOOK, in_own_process(rivals.notebook, shards, options.notebook_images))
    measured.add(LOADER, in_own_process(rivals.dataloader, shards, options.loader_images))
    for part, rate in rivals.ray_data(shards, options.ray_data_images).items():
        measured.add(f"{RAY_DATA}, {part}", rate)
    if CRP in measured.absent:
        return
    try:
        measured.add(CRP, in_own_process(rivals.zennit_crp, shards, options.crp_images))
    except ImportError as error:
        missing = (error.name or "").split(".")[0]
        measured.absent[CRP] = "not installed" if missing in ("crp", "zennit") else f"does not run: {error}"
    except Exception as error:  # its versions are not this project's: whatever it raises is its answer
        measured.absent[CRP] = f"does not run: {type(error).__name__}: {' '.join(str(error).split())}"
        measured.rates.pop(CRP, None)


def _measure_limits(measured: Measured, shards: Sequence[str], options: Namespace) -> None:
    for kind, (precision, decode) in KINDS.items():
        decoding = decoding_alone(shards, decode, options.limit_seconds)
        trunk = trunk_alone(precision, options.limit_seconds)
        measured.add(f"limit: decoding alone, {decode}", decoding)
        measured.add(f"limit: trunk alone, {precision}", trunk)
        measured.bounds.setdefault(kind, []).append(bound(decoding.per_second, trunk.per_second))
        taken = in_own_process(stage_milliseconds, shards, options.stage_images, precision, decode)
        measured.stages.setdefault(kind, []).append(taken)


def _print_rates(measured: Measured) -> None:
    """Print images/s of everything: medians, and from the slowest to the fastest repetition."""
    base = measured.per_second(NOTEBOOK)
    rows = []
    for name, rates in measured.rates.items():
        figures = measured.per_second(name)
        images = f"{round(sum(rate.images for rate in rates) / len(rates)):,}"
        rows.append((name, images, spread(figures), spread(ratios(figures, base), 2)))
    for kind, figures in measured.bounds.items():
        precision, decode = KINDS[kind]
        name = f"limit: both together, {precision} and {decode}"
        rows.append((name, "", spread(figures), spread(ratios(figures, base), 2)))
    rows += [(name, "", reason, "") for name, reason in measured.absent.items()]
    print_table(("", "images", "images/s", f"x {NOTEBOOK}"), rows)


def _print_comparison(measured: Measured) -> None:
    """Print what the job reaches of the cores' limit, and what more, or less exact, answers cost."""
    rows = []
    for kind, figures in measured.bounds.items():
        for part in ("scan", "start to end"):
            shares = ratios(measured.per_second(f"{kind}, {part}"), figures)
            rows.append((f"{kind}, {part}, as share of the limit of its cores", spread(shares, 2)))
    for name in ("screened", "every answer"):
        for part in ("scan", "start to end"):
            times = ratios(measured.per_second(f"{name}, {part}"), measured.per_second(f"exact, {part}"))
            rows.append((f"{name}, {part}, x exact", spread(times, 2)))
    print_table(("", "ratio"), rows)


def _print_stages(measured: Measured) -> None:
    """Print where one core's time for an image goes, in ms."""
    medians = {kind: median_of(repetitions) for kind, repetitions in measured.stages.items()}
    rows = [(stage, *(f"{taken[stage]:.2f}" for taken in medians.values())) for stage in STAGES]
    rows.append(("together", *(f"{sum(taken.values()):.2f}" for taken in medians.values())))
    print_table(("ms an image, on one core", *medians), rows)
