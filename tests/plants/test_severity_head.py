"""How grave a defect is: fitted to labels where there are any, and shown to be worth asking or not served."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from plants.errors import InputError
from plants.severity import FEWEST, SeverityHead, figures, medians, trivial, words

NUM, WIDTH = 400, 12


def views(*, seed: int, num: int = NUM) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of which two tell the severity, severities, and a lot for every four."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(num, WIDTH))
    truth = np.clip(0.5 + 0.2 * features[:, 0] - 0.1 * features[:, 1] + rng.normal(0, 0.05, num), 0, 1)
    return features.astype(np.float32), truth, np.array([f"L{i // 4}" for i in range(num)], dtype=object)


def fitted(features: np.ndarray, truth: np.ndarray, lots: np.ndarray) -> SeverityHead:
    return SeverityHead.fit(features, truth, lots=lots, weights=np.ones(len(truth)))


def test_what_features_tell_of_severity_is_learned_and_shown_to_beat_the_median():
    head, (features, truth, lots) = fitted(*views(seed=0)), views(seed=1)
    known = medians(np.full(NUM, "dent"), truth)
    found = figures(truth, head.of(features), trivially=trivial(["dent"] * NUM, known), lots=lots, seed=0)
    assert found["is_shown"]
    assert found["mae"]["value"] < 0.07 < 0.15 < found["trivial_mae"]["value"]
    assert found["spearman"]["low"] > 0.9
    assert "not served" not in words(found)


@pytest.mark.parametrize("seed", range(5))
def test_labels_that_were_shuffled_are_not_shown_to_be_worth_asking(seed):
    features, truth, lots = views(seed=seed)
    rng = np.random.default_rng(seed)
    head = fitted(features, rng.permutation(truth), lots)
    features, truth, lots = views(seed=seed + 50)
    found = figures(
        rng.permutation(truth), head.of(features), trivially=np.full(NUM, np.median(truth)), lots=lots, seed=0
    )
    assert not found["is_shown"]
    assert "not served" in words(found)


def test_a_view_whose_severity_nobody_labelled_teaches_nothing():
    features, truth, lots = views(seed=0)
    known = np.random.default_rng(3).random(NUM) < 0.5
    alone = fitted(features[known], truth[known], lots[known])
    masked = fitted(features, np.where(known, truth, np.nan), lots)
    np.testing.assert_array_equal(alone.weight, masked.weight)
    assert alone.bias == masked.bias


def test_views_count_by_their_weight():
    features, truth, lots = views(seed=0)
    twice = fitted(*(np.concatenate([one, one[:200]]) for one in (features, truth, lots)))
    weighed = SeverityHead.fit(features, truth, lots=lots, weights=np.where(np.arange(NUM) < 200, 2.0, 1.0))
    np.testing.assert_allclose(twice.of(features), weighed.of(features), atol=1e-5)


def test_more_features_than_views_are_no_obstacle():
    features, truth, lots = views(seed=0, num=60)
    wide = np.concatenate([features, np.zeros((60, 200), np.float32)], axis=1)
    np.testing.assert_allclose(
        fitted(wide, truth, lots).of(wide), fitted(features, truth, lots).of(features), atol=1e-5
    )


def test_too_few_labels_are_refused():
    features, truth, lots = views(seed=0)
    truth[FEWEST - 1 :] = np.nan
    with pytest.raises(InputError, match=f"needs {FEWEST} labelled views, there are {FEWEST - 1}"):
        fitted(features, truth, lots)


def test_under_ten_lots_nothing_is_shown_however_good_it_is():
    truth = np.linspace(0, 1, 36)
    lots = np.array([f"L{i // 4}" for i in range(36)], dtype=object)
    found = figures(truth, truth, trivially=np.full(36, 0.5), lots=lots, seed=0)
    assert not found["is_shown"]
    assert "9 lots are too few" in words(found)


def test_the_trivial_answer_is_the_median_of_the_class_named_or_of_all():
    known = medians(np.array(["dent", "dent", "stain", "stain"]), np.array([0.2, 0.4, 0.9, np.nan]))
    assert trivial(["dent", "stain", "never seen"], known).tolist() == pytest.approx([0.3, 0.9, 0.4])


def test_it_answers_within_the_scale_and_only_for_its_plants(tmp_path: Path):
    head = SeverityHead(np.array([1, 0], np.float32), 0.25, frozenset({"mill"}))
    head.save(tmp_path / "severity.npz")
    read = SeverityHead.load(tmp_path / "severity.npz")
    features = np.array([[5, 1], [-5, 1], [0.5, 9], [0.5, 9]], np.float32)
    places = [("mill", "a"), ("mill", "b"), ("mill", "a"), ("foundry", "a")]
    np.testing.assert_array_equal(read.at(features, places), np.array([1, 0, 0.75, np.nan], np.float32))
    assert read.plants == head.plants


@pytest.mark.parametrize("data", [b"", b"no zip", b"PK\x03\x04"])
def test_a_file_of_anything_else_is_refused(tmp_path: Path, data: bytes):
    path = tmp_path / "severity.npz"
    path.write_bytes(data)
    with pytest.raises(InputError, match="holds no severity head"):
        SeverityHead.load(path)
