"""Distance to good parts: the textbook's, robust to few parts and dead features, and safe to store."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf

from plants.errors import InputError
from plants.normality import ALL, ENOUGH_VIEWS, Normalities, Normality, evenly, goodness


def good_views(n: int, f: int, *, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, f)) @ rng.normal(size=(f, f)) + 5


@pytest.mark.parametrize(("n", "f"), [(50, 20), (30, 64), (500, 40)])
def test_the_distance_is_mahalanobis_with_ledoit_and_wolfs_covariance(n, f):
    views = good_views(n, f)
    strangers = np.random.default_rng(1).normal(size=(9, f)) * 3
    expected = np.sqrt(LedoitWolf().fit(views).mahalanobis(strangers) / f)
    np.testing.assert_allclose(Normality.fit(views).score(strangers), expected, rtol=1e-4)


def test_good_parts_not_seen_before_lie_near_one_and_strangers_beyond_all_of_them():
    views = good_views(400, 32)
    normality = Normality.fit(views[:300])
    unseen = normality.score(views[300:])
    strange = normality.score(views[300:] + 60 * np.eye(32)[3])
    assert 0.7 < np.median(unseen) < 1.4
    assert np.median(strange) > unseen.max()


def test_keeping_fewer_directions_hardly_changes_who_is_far():
    views = good_views(300, 64)
    strangers = np.vstack([views[:50], views[:50] + 20])
    whole, lean = Normality.fit(views), Normality.fit(views, max_components=16)
    assert lean.components.shape == (16, 64)
    assert lean.score(strangers[50:]).min() > np.quantile(lean.score(strangers[:50]), 0.9)
    assert np.corrcoef(whole.score(strangers), lean.score(strangers))[0, 1] > 0.8


def test_a_feature_that_was_constant_does_not_make_a_part_infinitely_far():
    views = good_views(100, 16)
    views[:, 3] = 0
    stranger = views[:1].copy()
    stranger[0, 3] = 0.1 * views.std()
    normality = Normality.fit(views)
    assert normality.score(stranger)[0] < normality.score(views[:1])[0] + 1


def test_of_two_blocks_of_features_the_louder_one_does_not_hide_the_other():
    views, rng = good_views(300, 8), np.random.default_rng(1)
    loud = np.hstack([views, 1000 * good_views(300, 8)[::-1]])
    far = loud[:20] + np.hstack([np.full((20, 8), 4 * views.std()), np.zeros((20, 8))])
    one, two = (Normality.fit(loud, num_blocks=num) for num in (1, 2))
    assert one.score(far).mean() == pytest.approx(one.score(loud[:20]).mean(), rel=0.05)
    assert two.score(far).mean() > 1.5 * two.score(loud[:20]).mean()
    quiet = np.hstack([views, rng.normal(size=(300, 8))]) * np.r_[np.ones(8), np.zeros(8)]
    assert np.isfinite(Normality.fit(quiet, num_blocks=2).score(quiet)).all()


def test_broken_features_are_nan_for_novelty_and_refused_for_fitting():
    normality = Normality.fit(good_views(20, 4))
    assert np.isnan(normality.score(np.full((1, 4), np.nan)))[0]
    for views in (np.full((5, 4), np.nan), np.zeros((1, 4)), np.zeros((5, 4)), np.zeros(4)):
        with pytest.raises(InputError):
            Normality.fit(views)


@pytest.mark.parametrize("num_lots", [4, 60])
def test_one_in_twenty_good_views_of_a_lot_not_seen_is_farther_than_one_however_few_were_seen(num_lots):
    """Views of a lot are alike, so a fit that has seen a lot's views would call the rest of it too near."""
    rng = np.random.default_rng(0)
    lots = np.repeat(np.arange(num_lots + 200), 5)
    views = 0.7 * rng.normal(size=(num_lots + 200, 24))[lots] + rng.normal(size=(len(lots), 24))
    seen = lots < num_lots
    normality = Normality.fit(views[seen], groups=[f"lot-{n}" for n in lots[seen]])
    assert normality.unit > 1
    assert (normality.score(views[~seen]) > 1).mean() == pytest.approx(0.05, abs=0.03)


def test_one_lot_alone_says_nothing_about_others_and_the_unit_stays_one():
    assert Normality.fit(good_views(30, 4), groups=["a"] * 30).unit == 1.0
    assert Normality.fit(good_views(3, 4), groups=["a", "b", "b"]).unit > 0


def two_cameras(num: int = ENOUGH_VIEWS, few: int = 3) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Views of two cameras with light of their own, and of a third that has seen few parts."""
    rng = np.random.default_rng(0)
    names = np.array(["left"] * num + ["right"] * num + ["new"] * few, dtype=object)
    views = rng.normal(size=(len(names), 12)) + np.where(names == "left", 8, 0)[:, None]
    return views, {"environments": names, "lots": np.arange(len(names)).astype(object)}


def test_an_environment_is_measured_by_its_own_good_parts_and_one_with_few_by_all_of_its_plants():
    views, columns = two_cameras()
    found = Normalities.fit("mill", views, **columns)
    assert set(found.by_place) == {("mill", ALL), ("mill", "left"), ("mill", "right")}
    assert found.borrowed("mill", ["left", "new", "right", "never"]) == ["never", "new"]
    at = {name: float(found.score(views[:1], [("mill", name)])[0]) for name in ("left", "right", "new", "never")}
    assert at["left"] < 1.5 < 4 < at["right"]
    assert at["new"] == at["never"] == found.by_place["mill", ALL].score(views[:1])[0]


def test_a_plant_of_one_environment_has_one_normality_and_borrows_nothing():
    views, columns = two_cameras()
    columns["environments"][:] = "line"
    found = Normalities.fit("mill", views, **columns)
    assert set(found.by_place) == {("mill", ALL)}
    assert found.borrowed("mill", ["line"]) == []


def test_views_of_many_places_are_each_measured_at_their_own_and_an_unknown_plant_has_no_novelty():
    views, columns = two_cameras()
    found = Normalities.fit("mill", views, **columns)
    places = [("mill", "left"), ("forge", "left"), ("mill", "right"), ("mill", "left")]
    together = found.score(views[:4], places)
    assert np.isnan(together[1])
    for i in (0, 2, 3):
        assert together[i] == pytest.approx(found.score(views[i : i + 1], places[i : i + 1])[0], rel=1e-6)
    assert (found.knows("mill"), found.knows("forge"), Normalities().knows("mill")) == (True, False, False)


def test_goodness_falls_with_distance_from_one_by_a_half_at_distance_one_and_is_shared_by_the_good_leaves():
    far = np.array([0, 0.5, 1, 3, np.nan], dtype=np.float32)
    good = goodness(far)
    assert good[[0, 2]] == pytest.approx([1.0, 0.5])
    assert (np.diff(good[:4]) < 0).all()
    assert np.isnan(good[4])
    assert evenly(good[:4], ("ok/a", "ok/b")).sum(axis=1) == pytest.approx(good[:4])


def test_what_is_saved_scores_the_same_after_loading_and_equal_ones_give_equal_bytes(tmp_path):
    views, columns = two_cameras()
    path = tmp_path / "normality.npz"
    for _ in range(2):
        found = Normalities.fit("größer", views, **columns, num_blocks=2)
        before = path.read_bytes() if path.exists() else None
        found.save(path)
        assert before in (None, path.read_bytes())
    places = [("größer", name) for name in columns["environments"]]
    np.testing.assert_array_equal(Normalities.load(path).score(views, places), found.score(views, places))


def test_a_file_that_is_no_normality_is_refused_by_name_and_nothing_is_unpickled(tmp_path):
    path = tmp_path / "normality.npz"
    pickled = np.array([{"a": 1}], dtype=object)
    one = {"places": '[["mill", ""]]', "mean.0": np.zeros(3), "rest.0": 1.0, "unit.0": 1.0}
    writers = [
        lambda: path.write_bytes(b"not a zip"),
        lambda: path.write_bytes(b""),
        lambda: np.savez(path, mean=np.zeros(3)),
        lambda: np.savez(path, places="no json"),
        lambda: np.savez(path, **one),
        lambda: np.savez(path, **one, **{"components.0": pickled, "variances.0": pickled}),
        lambda: np.savez(path, **one, **{"components.0": np.zeros((2, 4)), "variances.0": np.zeros(2)}),
        lambda: np.savez(
            path, **one, **{"components.0": np.zeros((2, 3)), "variances.0": np.zeros(2), "scale.0": np.ones(2)}
        ),
    ]
    for write in writers:
        write()
        with pytest.raises(InputError, match=r"normality\.npz"):
            Normalities.load(path)
    with pytest.raises(InputError, match=r"absent\.npz"):
        Normalities.load(tmp_path / "absent.npz")
