"""Outputs become probabilities, tiles become frames, frames become parts, and the table of parts refuses nonsense."""

from __future__ import annotations

import numpy as np
import pytest

from plants.scores import PartScores, calibrate, pool, pool_groups, softmax

OK_FIRST = np.array([True, False, False])
NO_OK = np.zeros(3, dtype=bool)


def probabilities(n: int, *, seed: int, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(3), n).astype(dtype)


def table(**changes) -> PartScores:
    fields = {
        "part_ids": ["a", "b"],
        "lots": ["l", "l"],
        "environments": ["e", "e"],
        "truth": ["ok", "dent"],
        "probs": [[0.5, 0.2], [0.1, 0.9]],
        "classes": ("ok", "dent"),
        "ok": ("ok",),
    }
    return PartScores(**(fields | changes))


def test_softmax_survives_large_logits_and_keeps_the_dtype():
    found = softmax(np.array([[1000.0, 1000.0, -1000.0]], dtype=np.float32))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[0.5, 0.5, 0.0]])


def test_the_most_suspicious_tile_speaks_for_the_frame():
    tiles = np.array([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.6, 0.4, 0.0]], dtype=np.float32)
    vector, index = pool(tiles, ok=OK_FIRST)
    np.testing.assert_array_equal(vector, tiles[1])
    assert index == 1


def test_top_k_averages_the_most_suspicious_tiles_and_no_more_than_there_are():
    tiles = np.array([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.6, 0.4, 0.0]], dtype=np.float32)
    np.testing.assert_allclose(pool(tiles, ok=OK_FIRST, top_k=2)[0], [0.4, 0.55, 0.05], rtol=1e-6)
    np.testing.assert_allclose(pool(tiles, ok=OK_FIRST, top_k=9)[0], tiles.mean(axis=0), rtol=1e-6)


def test_without_a_good_leaf_all_rows_are_averaged_and_the_most_confident_is_shown():
    tiles = np.array([[0.4, 0.3, 0.3], [0.1, 0.1, 0.8]], dtype=np.float32)
    vector, index = pool(tiles, ok=NO_OK)
    np.testing.assert_allclose(vector, [0.25, 0.2, 0.55], rtol=1e-6)
    assert index == 1


def test_of_equally_suspicious_rows_the_first_is_taken():
    assert pool(np.tile(probabilities(1, seed=0), (4, 1)), ok=OK_FIRST)[1] == 0


@pytest.mark.parametrize("seed", range(20))
def test_pooling_in_groups_equals_pooling_each_group(seed):
    rng = np.random.default_rng(seed)
    groups = np.concatenate([np.arange(7), rng.integers(0, 7, 40)])
    rng.shuffle(groups)
    probs = probabilities(len(groups), seed=seed)
    for ok, top_k in ((OK_FIRST, 1), (OK_FIRST, 3), (NO_OK, 1)):
        vectors, index = pool_groups(probs, groups, ok=ok, top_k=top_k)
        assert vectors.dtype == np.float32
        for group in range(7):
            rows = np.flatnonzero(groups == group)
            one, at = pool(probs[rows], ok=ok, top_k=top_k)
            np.testing.assert_array_equal(vectors[group], one)
            assert index[group] == rows[at]


def test_pooling_refuses_gaps_no_rows_and_a_top_k_of_nothing():
    probs = probabilities(2, seed=0)
    for groups in (np.array([0, 2]), np.array([0]), np.array([-1, 0])):
        with pytest.raises(ValueError, match="group"):
            pool_groups(probs, groups, ok=OK_FIRST)
    with pytest.raises(ValueError, match="top_k"):
        pool_groups(probs, np.array([0, 0]), ok=OK_FIRST, top_k=0)
    with pytest.raises(ValueError, match="nothing"):
        pool(probs[:0], ok=OK_FIRST)
    assert pool_groups(probs[:0], np.zeros(0, dtype=int), ok=OK_FIRST)[0].shape == (0, 3)


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 3.0, 50.0])
def test_a_temperature_keeps_the_sum_and_the_order_of_every_row(temperature):
    probs = probabilities(50, seed=1) * np.linspace(0, 1, 50, dtype=np.float32)[:, None]
    found = calibrate(probs, temperature)
    np.testing.assert_allclose(found.sum(axis=1), probs.sum(axis=1), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(found[1:].argmax(axis=1), probs[1:].argmax(axis=1))
    assert np.isfinite(found).all()


def test_a_high_temperature_flattens_and_a_low_one_sharpens():
    probs = np.array([[0.7, 0.2, 0.1]])
    assert calibrate(probs, 2.0).max() < 0.7 < calibrate(probs, 0.5).max()
    np.testing.assert_allclose(calibrate(probs, 0.5), [[0.49 / 0.54, 0.04 / 0.54, 0.01 / 0.54]])
    with pytest.raises(ValueError, match="positive"):
        calibrate(probs, 0.0)


def test_what_a_row_lacks_to_one_is_mass_on_the_impossible():
    scores = table()
    np.testing.assert_allclose(scores.impossible, [0.3, 0.0])
    np.testing.assert_allclose(scores.p_defect, [0.5, 0.9])
    assert scores.is_good.tolist() == [True, False]
    assert len(scores) == 2


def test_rows_can_be_taken_by_index_and_by_mask_with_all_their_columns():
    scores = table(novelty=[1.0, 2.0])
    for rows in ([1], np.array([False, True])):
        one = scores.take(rows)
        assert (one.part_ids.tolist(), one.truth.tolist(), one.novelty.tolist()) == (["b"], ["dent"], [2.0])
    assert len(scores.take([])) == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lots": ["l"]}, "one entry per part"),
        ({"truth": ["ok", "scratch"]}, "scratch"),
        ({"probs": [[np.nan, 0.2], [0.1, 0.9]]}, "finite"),
        ({"novelty": [1.0]}, "one entry per part"),
    ],
)
def test_a_table_that_does_not_fit_together_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        table(**changes)


@pytest.mark.parametrize("novelty", [None, [0.5, np.pi]])
def test_scores_survive_storage_to_the_bit(novelty):
    scores = PartScores(
        part_ids=["4711", "ß"],
        lots=["a", "b"],
        environments=["cam1", "cam1"],
        truth=["gut", "Kratzer groß"],
        probs=[[1 / 3, 0.1], [0.2, 0.7]],
        classes=("gut", "Kratzer groß"),
        ok=("gut",),
        novelty=novelty,
    )
    again = PartScores.from_parquet(scores.to_parquet())
    assert (again.classes, again.ok) == (scores.classes, scores.ok)
    for name in ("part_ids", "lots", "environments", "truth", "probs"):
        assert getattr(again, name).tolist() == getattr(scores, name).tolist()
    assert (again.novelty is None) if novelty is None else again.novelty.tolist() == novelty
