"""The card of a published run: what the data set is, how to load it, how it was made."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import DatasetCardData

from exemplar_ray._version import __version__
from exemplar_ray.exemplars.plan import EXEMPLARS, Plan
from exemplar_ray.report.dataset_folder import REPORT, RUN_ON_PAGES, TABLES, VISUALIZATIONS, subset_of
from exemplar_ray.report.pages import INDEX
from exemplar_ray.report.provenance import provenance_of
from exemplar_ray.results.run import Run, open_run

CARD = "README.md"

_OPEN_LICENCE: dict[str, Any] = {
    "license_name": "not-stated",
    "license_details": "that of the data set which the images come from, yet to be stated",
}


def write_card(folder: Path, repository: str, rows: dict[str, int], images: bool, licence: str | None) -> None:
    """Write the card of a folder that has everything else.

    Args:
        rows: {table: how many rows it has}.
        images: whether the folder has the images.
        licence: the Hub's identifier of a licence; left open if None.
    """
    card = _card(open_run(str(folder)), repository, rows, images, licence)
    # What came from a command line may hold what is no text.
    (folder / CARD).write_bytes(card.encode(errors="replace"))


def title_of(plan: Plan) -> str:
    """Return what the data set is called, in words."""
    layers = ", ".join(layer.name for layer in plan.spec.layers)
    return f"Exemplars of {plan.spec.network.model_title}: {layers}"


def _card(run: Run, repository: str, rows: dict[str, int], images: bool, licence: str | None) -> str:
    # The Hub's viewer cannot show a table without rows.
    subsets = {subset_of(table): table for table, count in rows.items() if count}
    head = DatasetCardData(
        pretty_name=title_of(run.plan),
        license=licence or "other",
        tags=["exemplar-ray", "interpretability", "feature-visualization", "computer-vision"],
        size_categories=[size_category(rows[EXEMPLARS])],
        configs=[
            {
                "config_name": subset,
                "data_files": [{"split": "train", "path": table}],
                **({"default": True} if table == EXEMPLARS else {}),
            }
            for subset, table in subsets.items()
        ],
        **({} if licence else _OPEN_LICENCE),
    )
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("exemplar_ray.report"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        # In Markdown nothing but code spans holds what came from outside.
        autoescape=False,
    )
    environment.filters["code"] = _code
    text = environment.get_template("dataset_card.md").render(
        repository=repository,
        name=repository.split("/")[1],
        plan=run.plan,
        summary=run.summary,
        provenance=provenance_of(run, RUN_ON_PAGES),
        tables=[(subset, table, rows[table], TABLES[table]) for subset, table in subsets.items()],
        with_images=images,
        with_visualizations=VISUALIZATIONS in rows,
        licence=licence,
        index=f"{REPORT}/{INDEX}",
        version=__version__,
    )
    return f"---\n{head.to_yaml()}\n---\n\n{text}"


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
