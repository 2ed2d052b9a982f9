"""What the numbers of a comparison mean, for people."""

from typing import NamedTuple


class Number(NamedTuple):
    """A number of a layer, by its column in `layers.parquet`."""

    column: str
    name: str
    words: str
    in_overview: bool = True
    interval: tuple[str, str] | None = None
    """The columns of its interval."""


NUMBERS = (
    Number(
        "frechet",
        "Fréchet distance",
        "squared distance of the two sets as if each were normally distributed: means and covariances; 0 if both are "
        "the same. Too large for few images, so it compares only at the same numbers of images",
        interval=("frechet_low", "frechet_high"),
    ),
    Number(
        "frechet_at_infinity",
        "at infinity",
        "the Fréchet distance extrapolated to infinitely many images of B, along a line in 1/N; below 0 by chance",
    ),
    Number(
        "precision",
        "precision",
        "the share of B that lies among A: nearer to some image of A than its K-th nearest of A",
    ),
    Number("recall", "recall", "the share of A that lies among B, likewise"),
    Number(
        "density", "density", "how many balls about images of A hold an image of B, over K; 1 if B is like A", False
    ),
    Number("coverage", "coverage", "the share of A whose ball, up to its K-th nearest of A, holds an image of B"),
    Number(
        "clipped_density", "clipped density", "density that neither outliers nor crowds can raise, 1 at most", False
    ),
    Number("clipped_coverage", "clipped coverage", "read as the share of good images that would cover as much", False),
    Number("classes_covered", "classes covered", "the share of A's classes of which B comes near at least one image"),
    Number("fidelity", "fidelity", "the share of B whose class is that of most of its K nearest images of A"),
    Number(
        "ks_median",
        "median KS",
        "over channels, of the most that the two distributions of its activation are apart, 0 to 1",
    ),
    Number("ks_most", "largest KS", "the same of the channel that differs most", False),
)
"""Of two sets of images."""

OF_NETWORKS = (
    Number(
        "cka",
        "CKA",
        "how alike the two layers are, 1 if one is the other but for a turn and a scale; close to 1 for fewer images "
        "than channels, whatever the networks",
    ),
    Number("debiased", "debiased CKA", "the same without that bias: about 0 for layers that have nothing in common"),
    Number(
        "correlation_median",
        "median correlation",
        "over A's channels, Spearman's correlation with the channel of B that is most like it",
    ),
    Number("mutual", "mutual", "the share of A's channels whose most alike channel of B is most like them, too"),
    Number(
        "in_common_mean",
        "exemplars in common",
        "the share of exemplars that channels of one number have in common, on average",
    ),
)
"""Of two networks."""
