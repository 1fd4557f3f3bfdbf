"""Distance to good parts: the textbook's, robust to few parts and dead features, and safe to store."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf

from plants.errors import InputError
from plants.normality import Normality


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


def test_broken_features_are_nan_for_novelty_and_refused_for_fitting():
    normality = Normality.fit(good_views(20, 4))
    assert np.isnan(normality.score(np.full((1, 4), np.nan)))[0]
    for views in (np.full((5, 4), np.nan), np.zeros((1, 4)), np.zeros((5, 4)), np.zeros(4)):
        with pytest.raises(InputError):
            Normality.fit(views)


def test_what_is_saved_scores_the_same_after_loading(tmp_path):
    normality = Normality.fit(good_views(40, 8))
    normality.save(tmp_path / "normality.npz")
    views = good_views(5, 8, seed=2)
    np.testing.assert_array_equal(Normality.load(tmp_path / "normality.npz").score(views), normality.score(views))


def test_a_file_that_is_no_normality_is_refused_by_name_and_nothing_is_unpickled(tmp_path):
    path = tmp_path / "normality.npz"
    pickled = np.array([{"a": 1}], dtype=object)
    writers = [
        lambda: path.write_bytes(b"not a zip"),
        lambda: path.write_bytes(b""),
        lambda: np.savez(path, mean=np.zeros(3)),
        lambda: np.savez(path, mean=pickled, components=pickled, variances=pickled, rest=pickled),
        lambda: np.savez(path, mean=np.zeros(3), components=np.zeros((2, 4)), variances=np.zeros(2), rest=1.0),
    ]
    for write in writers:
        write()
        with pytest.raises(InputError, match=r"normality\.npz"):
            Normality.load(path)
    with pytest.raises(InputError, match=r"absent\.npz"):
        Normality.load(tmp_path / "absent.npz")
