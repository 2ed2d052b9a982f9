"""What a feature visualisation is worth, in words for people, and when it is not to be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Below or beyond these a picture is not to be trusted.
LEAST_RATIO = 1.0
"""Of its activation to that of the strongest real image."""
LEAST_ROBUST = 0.5
"""Of what is left of it, before the ReLU, once it is moved and turned a little."""
LAST_RANK = 1
"""Of its channel among those of the layer."""
LEAST_PATH = -0.5
"""Of the similarity of its path with that of the exemplars: 0 is that of random images, of which a quarter are below
-0.5, and noise. Pictures that show what exemplars show go down to -0.2: early layers tell them from photographs."""


def worth_of(row: Mapping[str, Any]) -> str:
    """Say in a line what a picture is worth beside real images; "" where there are none.

    Args:
        row: of `visualizations.parquet`.
    """
    if row["ratio_to_top"] is None:
        return ""
    if _is_negative(row):
        return f"of {row['percentile']:.0f} % of the images the channel makes less"
    best = row["ratio_to_top"]
    said = f"{best:.1f} times the strongest image" if best >= 1 else f"{100 * best:.0f} % of the strongest image"
    rank = row["target_rank"]
    return f"{said}; {'no channel answers more' if rank == LAST_RANK else f'{rank - 1} channels answer more'}"


def explained(row: Mapping[str, Any]) -> list[str]:
    """Say in sentences what else is known of a picture.

    Args:
        row: of `visualizations.parquet`.
    """
    said = []
    if not _is_negative(row) and row["activation_pre_relu"] > 0:
        left = 100 * row["robust_activation"] / row["activation_pre_relu"]
        said.append(f"Moved and turned a little: {left:.0f} % of it left.")
    if row.get("path_similarity") is not None:
        path = round(row["path_similarity"], 2) + 0.0
        said.append(f"Path through the layers before: {path:.2f} (1: as exemplars, 0: as any image).")
    if row.get("seed_agreement") is not None:
        said.append(f"Agreement of seeds: {row['seed_agreement']:.2f}.")
    if row.get("facet_ranks"):
        said.append(f"Of {'exemplar' if len(row['facet_ranks']) == 1 else 'exemplars'} {_listed(row['facet_ranks'])}.")
    if row.get("apart_rgb") is not None:
        colour, contrast = row["apart_rgb"], row["apart_contrast"]
        said.append(f"From the strongest exemplars, of 255: colour {colour:.0f}, contrast {contrast:+.0f}.")
    return said


def warning_of(row: Mapping[str, Any], trained: bool = True) -> str | None:
    """Say why a picture is not to be trusted; None if nothing speaks against it.

    Args:
        row: of `visualizations.parquet`.
        trained: whether the network is.
    """
    if row["grey"]:
        return "it stayed grey, from whatever start: nothing is known of what excites this channel"
    if not trained:
        return "the network is untrained: what its channels look for means nothing"
    if _is_negative(row):
        return None
    if row["ratio_to_top"] is not None and row["ratio_to_top"] < LEAST_RATIO:
        return "real images excite the channel more"
    if row["activation_pre_relu"] > 0 and row["robust_activation"] < LEAST_ROBUST * row["activation_pre_relu"]:
        return "little of it is left once it is moved or turned a little"
    if row["target_rank"] is not None and row["target_rank"] > LAST_RANK:
        return "other channels answer more to it than this one does"
    if row.get("path_similarity") is not None and row["path_similarity"] < LEAST_PATH:
        return "in the layers before it is less like the exemplars than most other images are"
    return None


def _is_negative(row: Mapping[str, Any]) -> bool:
    return row["objective"].endswith("-")


def _listed(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks))
