"""Maps of points: others are placed by themselves, bit for bit; clusters; scores that are scikit-learn's."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import PROJECT

from exemplar_ray.errors import UsageError
from exemplar_ray.maps import clusters, neighbours, scores
from exemplar_ray.maps.drawing import drawn
from exemplar_ray.maps.neighbours import nearest
from exemplar_ray.maps.placing import FittedMap, memberships
from exemplar_ray.maps.principal import components_of, reduced
from exemplar_ray.maps.projections import METHODS, fit

pytest.importorskip("umap")
pytest.importorskip("openTSNE")

FITTED = 400


@pytest.fixture(scope="module")
def digits():
    """1,797 handwritten digits of 8 x 8 pixels, and which they are; their bits are of no round numbers."""
    from sklearn.datasets import load_digits

    data = load_digits()
    noise = np.random.default_rng(0).normal(scale=0.3, size=data.data.shape)
    return (data.data + noise).astype(np.float32), data.target


@pytest.fixture(scope="module")
def maps(digits):
    """A map of the first few hundred by each method."""
    return {method: fit(digits[0][:FITTED], method) for method in METHODS}


@pytest.fixture(scope="module")
def blobs():
    """Three clusters of 3 numbers a point, and some points far from all."""
    generator = np.random.default_rng(0)
    centres = np.array([[0, 0, 0], [10, 0, 0], [0, 10, 0]])
    near = [generator.normal(centre, 0.5, (count, 3)) for centre, count in zip(centres, (60, 120, 90), strict=True)]
    far = generator.uniform(20, 60, (8, 3))
    labels = np.repeat([0, 1, 2, 3], [60, 120, 90, 8])
    return np.concatenate([*near, far]).astype(np.float32), labels


def spread_of(fitted):
    return np.sqrt(((fitted.places - fitted.places.mean(axis=0)) ** 2).sum(axis=1).mean())


@pytest.mark.parametrize("method", METHODS)
def test_where_a_point_lies_is_the_same_bits_in_any_company(maps, digits, method):
    from threadpoolctl import threadpool_limits

    points = digits[0]
    together = maps[method].place(points)
    generator = np.random.default_rng(1)
    for count in (1, 2, 7, 255, 256, 257, 1000):
        for _ in range(3):
            chosen = generator.permutation(len(points))[:count]
            assert maps[method].place(points[chosen]).tobytes() == together[chosen].tobytes()
    one_by_one = np.concatenate([maps[method].place(points[row : row + 1]) for row in range(380, 420)])
    assert one_by_one.tobytes() == together[380:420].tobytes()
    # Of another memory layout, among others that are far away, and by one thread.
    assert maps[method].place(np.asfortranarray(points)).tobytes() == together.tobytes()
    assert maps[method].place(points[::-1])[::-1].tobytes() == together.tobytes()
    among = np.stack([points, points * 1000], axis=1).reshape(-1, points.shape[1])
    assert maps[method].place(among)[::2].tobytes() == together.tobytes()
    with threadpool_limits(1):
        assert maps[method].place(points).tobytes() == together.tobytes()


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_bytes(maps, digits, method):
    again = fit(digits[0][:FITTED], method).to_arrays()
    assert {name: array.tobytes() for name, array in maps[method].to_arrays().items()} == {
        name: array.tobytes() for name, array in again.items()
    }
    if method != "pca":
        assert (fit(digits[0][:FITTED], method, seed=1).places != maps[method].places).any()


@pytest.mark.parametrize(("method", "near"), [("umap", 0.03), ("tsne", 0.05)])
def test_points_that_were_fitted_lie_where_they_lie(maps, digits, method, near):
    fitted, points = maps[method], digits[0][:FITTED]
    assert fitted.rows.tolist() == list(range(FITTED))
    assert fitted.place(points).tobytes() == fitted.places.tobytes()
    # What is nearly a landmark lies nearly there.
    copies = fitted.place(points * np.float32(1.0001))
    assert np.linalg.norm(copies - fitted.places, axis=1).max() < 0.01 * spread_of(fitted)
    # Placed as if it were new, a point lies near itself.
    error = scores.placing_error(fitted)
    assert error.value < near
    others = [fitted_without(fitted, row).place(points[row : row + 1])[0] for row in range(0, FITTED, 8)]
    apart = np.linalg.norm(np.array(others) - fitted.places[::8], axis=1)
    assert abs(np.median(apart) / spread_of(fitted) - error.value) < 0.3 * near


def fitted_without(fitted, row):
    rest = np.delete(np.arange(len(fitted.places)), row)
    arrays = fitted.to_arrays()
    return FittedMap.from_arrays(arrays | {name: arrays[name][rest] for name in ("landmarks", "places", "rows")})


@pytest.mark.parametrize("method", ["umap", "tsne"])
def test_new_points_lie_among_their_like(maps, digits, method):
    points, labels = digits
    places = maps[method].place(points)
    closest, _ = nearest(places[FITTED:], places[:FITTED], 1)
    assert (labels[closest[:, 0]] == labels[FITTED:]).mean() > 0.9


def test_a_point_between_two_clusters_joins_one():
    """The mean of places would lie where nothing does."""
    two = np.concatenate([np.zeros((16, 2)), np.full((16, 2), 10.0)])
    points = two + np.random.default_rng(0).normal(scale=0.1, size=two.shape)
    nothing = np.zeros((2, 0))
    fitted = FittedMap("tsne", np.zeros(2), nothing, points, 20 * points, np.arange(32), (1.0, 1.0), "")
    placed = fitted.place(np.array([[4.9, 5.0]]))
    assert np.linalg.norm(fitted.places - placed, axis=1).min() < 10


def test_memberships_are_umaps(digits):
    from umap.umap_ import compute_membership_strengths, smooth_knn_dist

    which, distances = nearest(digits[0][:300], digits[0][300:], 15)
    # UMAP leaves out the first, the point itself.
    with_itself = np.hstack([np.zeros((300, 1)), distances]).astype(np.float32)
    sigmas, rhos = smooth_knn_dist(with_itself, 15.0)
    names = np.hstack([np.zeros((300, 1)), which]).astype(np.int32)
    strengths = compute_membership_strengths(names, with_itself, sigmas, rhos, False, True)[2].reshape(300, 16)[:, 1:]
    assert np.abs(memberships(distances.T).T - strengths).max() < 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_a_map_is_read_back_without_pickles_and_places_without_its_library(maps, digits, method, tmp_path):
    points = digits[0][FITTED : FITTED + 300]
    np.savez(tmp_path / "map.npz", **maps[method].to_arrays())
    np.save(tmp_path / "points.npy", points)
    with np.load(tmp_path / "map.npz", allow_pickle=False) as arrays:
        read = FittedMap.from_arrays(arrays)
    assert (read.words, read.method, read.attraction) == (maps[method].words, method, maps[method].attraction)
    program = (
        "import sys; sys.modules.update(dict.fromkeys(['umap', 'openTSNE', 'sklearn', 'scipy', 'numba', 'torch']))\n"
        "import numpy as np; from exemplar_ray.maps.placing import FittedMap\n"
        "fitted = FittedMap.from_arrays(np.load('map.npz', allow_pickle=False))\n"
        "np.save('places.npy', fitted.place(np.load('points.npy')))"
    )
    subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={"PYTHONPATH": str(PROJECT), "PATH": ""}, check=True
    )
    assert np.load(tmp_path / "places.npy").tobytes() == maps[method].place(points).tobytes()
    with pytest.raises(UsageError, match="no map that this version knows"):
        FittedMap.from_arrays(maps[method].to_arrays() | {"form": np.array(0)})


def test_of_many_points_landmarks_are_fitted_and_points_reduced(digits):
    points, labels = digits
    fitted = fit(points, "umap", seed=3, landmarks=500, components=20)
    assert fitted.rows.tolist() == drawn(len(points), 500, 3).tolist()
    assert fitted.landmarks.shape == (500, 20)
    share = components_of(points, 20, 3).share
    assert (
        f"fitted to 500 of 1,797 points, drawn, reduced to 20 principal components that hold {share:.1%}"
        in fitted.words
    )
    places = fitted.place(points)
    assert places[fitted.rows].tobytes() == fitted.places.tobytes()
    assert scores.knn_accuracy(places, labels).value > 0.85
    assert "reduced" not in fit(points[:200], "tsne", components=None, neighbours=10).words


def test_rows_are_drawn_by_their_places():
    chosen = drawn(5000, 100, seed=4)
    assert len(set(chosen.tolist())) == 100
    assert abs(chosen.mean() - 2500) < 500
    # Where rows are added, those that stay are the same ones.
    more = drawn(6000, 100, seed=4)
    assert set(more[more < 5000].tolist()) <= set(chosen.tolist())
    # The hash is no library's: these are the ones for ever.
    assert drawn(1000, 5, seed=0).tolist() == [254, 366, 410, 503, 821]
    assert drawn(1000, 5, seed=1).tolist() == [429, 472, 730, 824, 913]


def exactly(queries, references, count, own):
    squared = np.zeros((len(queries), len(references)))
    for channel in range(queries.shape[1]):
        squared += (queries[:, channel, None].astype(np.float64) - references[:, channel]) ** 2
    if own is not None:
        squared[np.arange(len(queries)), own] = np.inf
    order = np.argsort(squared, axis=1, kind="stable")[:, :count]
    return order, np.sqrt(np.take_along_axis(squared, order, axis=1))


@pytest.mark.parametrize("block", [70, 16384])
@pytest.mark.parametrize("case", ["usual", "ties", "all the same", "far from 0", "half precision"])
def test_neighbours_are_exact_also_where_many_are_as_near(digits, monkeypatch, case, block):
    monkeypatch.setattr(neighbours, "_REFERENCES_AT_ONCE", block)
    generator = np.random.default_rng(0)
    points = {
        "usual": digits[0][:600],
        "ties": generator.integers(0, 3, (600, 4)).astype(np.float32),
        "all the same": np.ones((300, 3), np.float32),
        "far from 0": (generator.normal(size=(400, 20)) + 1e5).astype(np.float32),
        "half precision": digits[0][:400].astype(np.float16),
    }[case]
    for own in (None, np.arange(len(points))):
        which, distances = nearest(points, points, 15, own=own)
        expected, far = exactly(points, points, 15, own)
        assert which.tolist() == expected.tolist()
        assert distances.tobytes() == far.tobytes()
    few, among = points[:2], points[:5]
    assert nearest(few, among, 5)[0].tolist() == exactly(few, among, 5, None)[0].tolist()
    assert nearest(few, among, 4, own=np.array([0, 1]))[0].tolist() == exactly(few, among, 4, [0, 1])[0].tolist()


@pytest.mark.parametrize("channels", [64, 2100])
def test_principal_components_are_scikit_learns(digits, channels):
    from sklearn.decomposition import PCA

    points = digits[0][:500]
    if channels > 64:
        points = points @ np.random.default_rng(0).normal(size=(64, channels)).astype(np.float32)
    found = components_of(points, 5, seed=0)
    theirs = PCA(5, svd_solver="full").fit(points.astype(np.float64))
    assert found.share == pytest.approx(theirs.explained_variance_ratio_.sum(), rel=1e-6)
    signs = np.sign((found.directions * theirs.components_.T).sum(axis=0))
    assert np.abs(found.directions * signs - theirs.components_.T).max() < 1e-6
    assert (np.take_along_axis(found.directions, np.abs(found.directions).argmax(axis=0)[None], axis=0) > 0).all()
    along = reduced(points, found.mean, found.directions)
    assert np.abs(along * signs - theirs.transform(points.astype(np.float64))).max() < 1e-6 * np.abs(along).max()


def test_wide_points_are_drawn_for_their_components(monkeypatch, digits):
    monkeypatch.setattr("exemplar_ray.maps.principal.WIDEST", 60)
    assert fit(digits[0], "pca", seed=2).words.startswith(
        "The first two principal components of 60 of 1,797 points, drawn"
    )


def test_clusters_are_found_by_each_method(blobs):
    points, labels = blobs
    for method, size, said in (
        (
            "dbscan",
            None,
            "DBSCAN with min_samples 15 and eps 1.546, where the sorted distances to the 14th neighbour bend, on ",
        ),
        (
            "dbscan",
            2,
            "DBSCAN with min_samples 15 and eps 2, on the points: 3 clusters; 2.9% of the points are in none.",
        ),
        ("hdbscan", None, "HDBSCAN with min_cluster_size 5 (1% of the points, 5 at least)"),
        ("hdbscan", 20, "HDBSCAN with min_cluster_size 20 and min_samples 5, on the points: 3 clusters; "),
    ):
        found = clusters.cluster(points, method, "the points", size=size)
        assert found.words.startswith(said)
        if size:
            assert found.count == 3
            # The largest is the first; what is far away is in none.
            assert [set(found.of_points[labels == label].tolist()) - {-1} for label in range(4)] == [
                {2},
                {0},
                {1},
                set(),
            ]
    found = clusters.cluster(points[labels < 3], "kmeans", "the map")
    assert found.words == (
        "k-means with 3 clusters, the number from 2 to 20 with the highest silhouette, the best of 10 starts (seed 0), "
        "on the map: 3 clusters."
    )
    assert scores.agreement(found.of_points, labels[labels < 3])["adjusted_rand"].value == 1
    assert clusters.cluster(points, "kmeans", "the points", size=5).count == 5


def test_of_many_points_some_are_clustered_and_the_others_join(blobs, monkeypatch):
    points, labels = blobs
    whole = clusters.cluster(points, "dbscan", "the points", size=2)
    monkeypatch.setattr(clusters, "MOST_CLUSTERED", 150)
    found = clusters.cluster(points, "dbscan", "the points", size=2, seed=1)
    assert "3 clusters of 150 points drawn of 278 (seed 1), which the others join by the nearest" in found.words
    assert (found.of_points == whole.of_points)[labels < 3].mean() > 0.95


def test_scores_are_scikit_learns(digits, maps):
    from sklearn import metrics
    from sklearn.manifold import trustworthiness
    from sklearn.neighbors import KNeighborsClassifier

    points, labels = digits[0][:600], digits[1][:600]
    places = maps["tsne"].place(points)
    assert scores.trustworthiness(points, places).value == pytest.approx(
        trustworthiness(points, places, n_neighbors=15), rel=1e-12
    )
    assert scores.continuity(points, places, 7).value == pytest.approx(
        trustworthiness(places, points, n_neighbors=7), rel=1e-12
    )
    for of in (points, places):
        assert scores.silhouette(of, labels).value == pytest.approx(metrics.silhouette_score(of, labels), rel=1e-5)
        # Asked of nothing, it leaves out each point in turn.
        without = KNeighborsClassifier(15).fit(of, labels).predict(None)
        accuracy = scores.knn_accuracy(of, labels)
        assert accuracy.value == (without == labels).mean()
        assert accuracy.words == "of 600 points, 15 neighbours; the largest class has 10.5% of them"
    found = clusters.cluster(places, "hdbscan", "the map").of_points
    inside = found >= 0
    assert 0 < inside.sum() < 600
    agreement = scores.agreement(found, labels)
    rand, information = metrics.adjusted_rand_score, metrics.adjusted_mutual_info_score
    for name, function in (("adjusted_rand", rand), ("adjusted_mutual_information", information)):
        assert agreement[name].value == pytest.approx(function(labels, found))
        assert agreement[name].words == f"of 600 points; {600 - inside.sum():,} in no cluster count as one"
        clustered = agreement[f"{name}_clustered"]
        assert clustered.value == pytest.approx(function(labels[inside], found[inside]))
        assert clustered.words == f"of {inside.sum():,} points; {600 - inside.sum():,} in no cluster are left out"


def test_scores_of_drawn_points_are_near_those_of_all(digits, maps, monkeypatch):
    points, labels = digits
    places = maps["umap"].place(points)

    def all_scores():
        return {
            "trust": scores.trustworthiness(points, places),
            "silhouette": scores.silhouette(places, labels),
            "accuracy": scores.knn_accuracy(places, labels),
        }

    whole = all_scores()
    monkeypatch.setattr(scores, "MOST_RANKED", 700)
    monkeypatch.setattr(scores, "MOST_VOTED", 700)
    monkeypatch.setattr(neighbours, "_REFERENCES_AT_ONCE", 1000)
    drawn_ones = all_scores()
    for name, score in drawn_ones.items():
        assert score.value != whole[name].value
        assert abs(score.value - whole[name].value) < 0.03
        assert "of 700 points drawn of 1,797 (seed 0)" in score.words


def test_points_without_a_label_neither_vote_nor_count(digits):
    points, labels = digits[0][:500], digits[1][:500].copy()
    some = scores.knn_accuracy(points[:400], labels[:400])
    labels[400:] = -1
    assert scores.knn_accuracy(points, labels) == some
    assert scores.silhouette(points, labels).words == "of 400 points; 100 in no group are left out"
    found = np.arange(500) % 3
    agreed = scores.agreement(found, labels)["adjusted_rand"]
    assert (agreed.words, agreed.value) == (
        "of 400 points",
        scores.agreement(found[:400], labels[:400])["adjusted_rand"].value,
    )


def test_a_score_that_cannot_be_had_is_none_and_says_why(digits, maps):
    points, places = digits[0][:60], maps["pca"].place(digits[0][:60])
    one, none, noise = np.zeros(60, int), np.full(60, -1), np.full(60, -1)
    for score, said in (
        (scores.knn_accuracy(points, None), "no point has a label"),
        (scores.knn_accuracy(points, none), "no point has a label"),
        (scores.knn_accuracy(points, one), "all 60 points have the same label"),
        (scores.knn_accuracy(points[:15], np.arange(15)), "15 labelled points are not more than 15 neighbours"),
        (scores.silhouette(points, None), "no point is in a group"),
        (scores.silhouette(points, one), "of 60 points: 1 groups of 60 points have none"),
        (scores.silhouette(points, np.arange(60)), "of 60 points: 60 groups of 60 points have none"),
        (scores.trustworthiness(points[:30], places[:30]), "15 neighbours are not fewer than half of 30 points"),
        (scores.placing_error(maps["pca"]), "the map is linear: points lie where they were fitted to lie"),
        (scores.agreement(one, None)["adjusted_rand"], "no point has a label"),
        (scores.agreement(one, digits[1][:60])["adjusted_rand"], "all 60 points have the same cluster"),
        (
            scores.agreement(noise, digits[1][:60])["adjusted_rand_clustered"],
            "no point is left; 60 in no cluster are left out",
        ),
    ):
        assert score == scores.Score(None, said)


def test_scores_spread_over_seeds(digits):
    points = digits[0][:120]
    measured = []

    def measure(seed):
        fitted = fit(points, "umap", seed=seed, neighbours=5)
        trust = scores.trustworthiness(points, fitted.place(points))
        measured.append(trust.value)
        lacking = scores.Score(1.0, "") if seed == 2 else scores.Score(None, "one cluster")
        return {"trust": trust, "nothing": scores.silhouette(points, None), "some": lacking}

    spread = scores.over_seeds(measure, [0, 1, 2])
    low, middle, high = sorted(measured)
    assert low < high
    assert spread["trust"] == scores.Spread(middle, low, high, "over 3 seeds")
    assert spread["nothing"] == scores.Spread(None, None, None, "no point is in a group")
    assert spread["some"] == scores.Spread(1.0, 1.0, 1.0, "over 3 seeds; 2 of them have none")


def test_what_would_mean_nothing_is_refused(digits, maps):
    points = digits[0][:100]
    bad = points.copy()
    bad[7, 3] = np.nan
    for said, refused in (
        ("point 7 is not finite", lambda: fit(bad, "pca")),
        ("point 7 is not finite", lambda: maps["umap"].place(bad)),
        ("point 7 is not finite", lambda: clusters.cluster(bad, "kmeans", "the points")),
        ("all points are the same", lambda: fit(np.ones((50, 8), np.float32), "pca")),
        ("all points are the same", lambda: fit(np.ones((50, 8), np.float32), "umap")),
        (
            "a map of 15 points by umap with 15 neighbours would mean nothing: it takes 16",
            lambda: fit(points[:15], "umap"),
        ),
        ("with a perplexity (neighbours) of 30 would mean nothing: it takes 91", lambda: fit(points[:90], "tsne")),
        ("with 1 neighbours would mean nothing", lambda: fit(points, "umap", neighbours=1)),
        ("2 points of 64 numbers have no map", lambda: fit(points[:2], "pca")),
        ("100 points of 1 numbers have no map", lambda: fit(points[:, :1], "pca")),
        ("no method 'umpa' makes a map; did you mean 'umap', 'pca'?", lambda: fit(points, "umpa")),
        ("a seed is from 0", lambda: fit(points, "umap", seed=-1)),
        ("these are int64 [3]", lambda: fit(np.arange(3), "pca")),
        ("the map is of points of 64 numbers, these have 60", lambda: maps["tsne"].place(points[:, :60])),
        ("clusters of 30 points mean nothing", lambda: clusters.cluster(points[:30], "dbscan", "the points")),
        ("no method 'k-means' makes clusters", lambda: clusters.cluster(points, "k-means", "the points")),
        ("kmeans cannot take the size 0", lambda: clusters.cluster(points, "kmeans", "the points", size=0)),
        ("points lie on one another", lambda: clusters.cluster(np.ones((50, 2)), "dbscan", "the points")),
        ("fewer than 3 different points", lambda: clusters.cluster(np.ones((50, 2)), "kmeans", "the points")),
    ):
        with pytest.raises(UsageError) as error:
            refused()
        assert said in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("module", "package"), [("umap", "umap-learn"), ("openTSNE", "opentsne"), ("sklearn", "scikit-learn")]
)
def test_a_library_that_is_missing_is_named_in_one_line(digits, monkeypatch, module, package):
    for name in [name for name in sys.modules if name.split(".")[0] == module] + [module]:
        monkeypatch.setitem(sys.modules, name, None)
    wanted = {
        "umap": lambda: fit(digits[0][:100], "umap"),
        "openTSNE": lambda: fit(digits[0][:100], "tsne"),
        "sklearn": lambda: scores.silhouette(digits[0][:100], digits[1][:100]),
    }
    with pytest.raises(UsageError) as error:
        wanted[module]()
    assert f"need one more package: pip install '{package}>=" in str(error.value)
    assert "\n" not in str(error.value)
    # Principal components need none.
    assert fit(digits[0][:100], "pca").place(digits[0][:1]).shape == (1, 2)
