"""Several models as one: what they say together, and the weights that are found for them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from plants.ensembles import (
    LEAST,
    MIN_WEIGHT,
    Mix,
    Parts,
    Rule,
    combined,
    described,
    disagreement,
    fit,
    fitted,
    from_json,
    to_json,
)
from plants.scores import softmax, speakers

LEAVES = ("ok", "crack", "dent")
OK = np.array([True, False, False])
RULES: tuple[Rule, ...] = ("mean", "log")


def probs(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


def lesson(*skills: float, num_parts: int = 150, per_part: int = 3, seed: int = 0) -> Any:
    """Members of these skills on parts of several views, of which one shows the defect; a part is its worst view."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, num_parts)
    of_part = np.repeat(np.arange(num_parts), per_part)
    shows = np.where(np.arange(len(of_part)) % per_part == 0, truth[of_part], 0)
    members = []
    for skill in skills:
        logits = rng.normal(0, 1, (len(of_part), 3))
        logits[np.arange(len(of_part)), shows] += skill
        members.append((softmax(logits).astype(np.float32), LEAVES))

    def pool(said: np.ndarray, leaves: tuple[str, ...]) -> Any:
        return speakers(said, of_part, ok=np.array([leaf == "ok" for leaf in leaves]))

    def loss(mix: Mix, *, chosen: Any = slice(None), members: Any = members) -> float:
        said, leaves = combined(members, mix=mix)
        parts = pool(said, leaves).mean(said)
        return float(-np.log(parts[np.arange(num_parts), truth][chosen]).sum())

    def parts_of(truth: np.ndarray) -> Parts:
        return Parts(pool, lambda leaves: np.array(LEAVES)[truth][:, None] == np.array(leaves))

    return SimpleNamespace(members=members, truth=truth, parts=parts_of(truth), parts_of=parts_of, loss=loss)


def test_one_member_speaks_for_itself():
    member = (probs((0.2, 0.8)), ("ok", "crack"))
    assert combined([member], mix=Mix.plain(1)) is member


def test_a_mean_goes_over_all_leaves_and_what_a_member_does_not_know_counts_as_nothing():
    a = (probs((0.2, 0.8)), ("ok", "crack"))
    b = (probs((0.5, 0.1, 0.4)), ("crack", "dent", "ok"))
    mean, leaves = combined([a, b], mix=Mix.plain(2))
    assert leaves == ("ok", "crack", "dent")
    assert mean[0] == pytest.approx([0.3, 0.65, 0.05])
    assert combined([a, b], mix=Mix((3.0, 1.0)))[0][0] == pytest.approx([0.25, 0.725, 0.025])


def test_a_log_linear_pool_is_a_product_of_powers_and_a_leaf_that_one_member_lacks_is_not_ruled_out_by_it_alone():
    a, b = (probs((0.2, 0.5, 0.3)), LEAVES), (probs((0.6, 0.3, 0.1)), LEAVES)
    found = combined([a, b], mix=Mix((0.5, 2.0), "log"))[0][0]
    product = np.array([0.2, 0.5, 0.3]) ** 0.5 * np.array([0.6, 0.3, 0.1]) ** 2
    assert found == pytest.approx(product / product.sum(), rel=1e-5)
    narrow, sure = (probs((0.5, 0.5)), ("ok", "crack")), (probs((LEAST**2, LEAST**2, 1.0)), LEAVES)
    found, leaves = combined([narrow, sure], mix=Mix((0.5, 1.0), "log"))
    assert leaves[int(found[0].argmax())] == "dent"


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_members_changes_no_probability(seed, rule):
    rng = np.random.default_rng(seed)
    known = [("ok", "a", "b"), ("ok", "b", "c"), ("d", "ok")]
    members = [(rng.dirichlet(np.ones(len(k)), size=6).astype(np.float32), k) for k in known]
    weights = tuple(rng.random(3))
    first, leaves = combined(members, mix=Mix(weights, rule))
    again, other = combined(members[::-1], mix=Mix(weights[::-1], rule))
    assert leaves == other == ("ok", "a", "b", "c", "d")
    assert first == pytest.approx(again, abs=1e-6)
    assert first.sum(axis=1) == pytest.approx(np.ones(6), abs=1e-6)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(4))
def test_no_other_weights_are_better_by_more_than_what_holds_them_near_the_plain_average(rule, seed):
    """The loss is counted through the pooling of views, which hangs on the weights."""
    case = lesson(3.0, 2.0, 1.0, seed=seed)
    found = fit(case.members, parts=case.parts, rule=rule)
    assert sum(found.weights) == pytest.approx(1, abs=1e-3) or rule == "log"
    rng = np.random.default_rng(seed)
    tried = [rng.dirichlet(np.ones(3)) * (rng.uniform(0.3, 3) if rule == "log" else 1) for _ in range(200)]
    best = min(case.loss(Mix(tuple(weights), rule)) for weights in tried)
    assert case.loss(found) < best + 2
    assert case.loss(found) < case.loss(Mix((1 / 3,) * 3, rule))


@pytest.mark.parametrize("rule", RULES)
def test_a_member_that_guesses_is_left_out_and_one_alone_is_no_ensemble(rule):
    kept, mix = fitted((case := lesson(3.0, 2.5, 0.0, num_parts=400)).members, parts=case.parts, rule=rule)
    assert kept == (0, 1)
    assert min(mix.weights) > MIN_WEIGHT
    kept, mix = fitted((case := lesson(3.0, 0.0, num_parts=400)).members, parts=case.parts, rule=rule)
    assert (kept, mix) == ((0,), Mix((1.0,)))


@pytest.mark.parametrize("rule", RULES)
def test_weights_do_not_know_the_parts_that_they_were_not_fitted_on(rule):
    case = lesson(3.0, 2.0, 1.0)
    chosen = np.arange(len(case.truth)) % 2 == 0
    other = case.parts_of(np.where(chosen, case.truth, (case.truth + 1) % 3))
    assert fit(case.members, parts=case.parts, rule=rule, chosen=chosen) == fit(
        case.members, parts=other, rule=rule, chosen=chosen
    )
    assert fit(case.members, parts=case.parts, rule=rule) != fit(case.members, parts=other, rule=rule)


def test_few_parts_move_weights_less_than_many():
    def away(num_parts: int) -> float:
        found = [
            fit((case := lesson(4.0, 1.0, num_parts=num_parts, seed=seed)).members, parts=case.parts, rule="mean")
            for seed in range(8)
        ]
        return float(np.mean([mix.weights[0] - 0.5 for mix in found]))

    assert 0 < away(3) < 0.6 * away(100)


def test_what_a_decision_holds_is_read_again_and_an_older_one_is_the_plain_average():
    mix = Mix((0.25, 1.5), "log")
    assert from_json(to_json(mix), num=2) == mix
    assert from_json(to_json(None), num=1) == from_json({}, num=1) == Mix.plain(1)
    assert from_json({"model": "ensemble-north"}, num=2) == Mix.plain(2)
    words = described({"members": ["a", "b"], **to_json(mix)})
    assert words == "the log-linear pool of a (0.25), b (1.50)"
    assert described({"members": ["a"], **to_json(None)}) == "a"
    with pytest.raises(ValueError, match="weight for each"):
        combined([(probs((1.0,)), ("ok",))] * 2, mix=Mix((1.0,)))


@pytest.mark.parametrize(
    ("said", "weights", "expected"),
    [
        ([[1, 0, 0], [1, 0, 0]], (1, 1), 0.0),
        ([[0.5, 0.5, 0], [0.5, 0.5, 0]], (1, 1), 0.0),
        ([[1, 0, 0], [0, 1, 0]], (1, 1), 1.0),
        ([[1, 0, 0], [0, 1, 0]], (3, 1), 1.0),
        ([[1, 0, 0], [0, 0, 0]], (1, 1), 1.0),
        ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], (1, 1, 1), 1.0),
        ([[1, 0, 0], [1, 0, 0], [0, 0, 1]], (1, 1, 1), 0.579),
        ([[0.9, 0.1, 0], [0.6, 0.4, 0]], (1, 1), 0.0909),
        ([[1, 0, 0]], (1,), 0.0),
    ],
)
def test_disagreement_is_nothing_where_all_say_the_same_and_all_where_each_is_sure_of_something_else(
    said, weights, expected
):
    """The sixth row lacks its whole mass: it is on what cannot occur here."""
    found = disagreement(np.array(said, dtype=np.float32)[:, None], weights)
    assert found == pytest.approx([expected], abs=2e-3)


@pytest.mark.parametrize("seed", range(10))
def test_disagreement_stays_between_0_and_1_and_does_not_hang_on_the_order_of_members(seed):
    rng = np.random.default_rng(seed)
    said, weights = rng.dirichlet(np.ones(4) / 3, (3, 50)), rng.dirichlet(np.ones(3))
    found = disagreement(said[..., :3], weights)
    assert ((found >= 0) & (found <= 1)).all()
    order = rng.permutation(3)
    assert disagreement(said[order][..., :3], weights[order]) == pytest.approx(found, abs=1e-12)
