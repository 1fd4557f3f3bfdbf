"""The verdict on a part: passed, rejected with a name, or shown to a person; never passed in doubt."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pydantic import ValidationError

from plants.errors import InputError
from plants.limits import Limits
from plants.plant import Costs
from plants.policy import REASONS, VERDICTS, Policy, decide_many, decide_part
from plants.scores import PartScores

CLASSES = ("ok", "dent", "crack")


def policy(**changes) -> Policy:
    fields = {"plant": "a", "classes": CLASSES, "ok": ("ok",), "pass_below": 0.2, "reject_above": 0.8}
    return Policy(**(fields | changes))


@pytest.mark.parametrize(
    ("probs", "extras", "verdict", "defect", "why"),
    [
        ([0.9, 0.06, 0.04], {}, "ok", None, "below the pass"),
        ([0.5, 0.1, 0.4], {}, "review", "crack", "between"),
        ([0.1, 0.6, 0.3], {}, "reject", "dent", "above the reject"),
        ([0.19, 0.81, 0.0], {}, "reject", "dent", "above the reject"),
        ([0.9, 0.06, 0.04], {"novelty": 3.0}, "review", "dent", "far from"),
        ([0.1, 0.6, 0.3], {"novelty": 3.0}, "reject", "dent", "above the reject"),
        ([0.9, 0.06, 0.04], {"novelty": 1.0}, "ok", None, "below the pass"),
        ([0.9, 0.06, 0.04], {"novelty": math.nan}, "review", "dent", "far from"),
        ([0.3, 0.1, 0.0], {}, "review", "dent", "do not occur"),
        ([0.0, 0.3, 0.0], {"impossible": 0.7}, "review", "dent", "do not occur"),
        ([math.nan, 0.3, 0.0], {}, "review", None, "no number"),
    ],
)
def test_a_verdict_follows_from_mass_novelty_and_the_impossible(probs, extras, verdict, defect, why):
    decision = decide_part(probs, policy=policy(novelty_above=2.0), **extras)
    assert (decision.verdict, decision.defect) == (verdict, defect)
    assert why in decision.why


def test_confidence_is_the_calibrated_probability_of_what_is_said():
    cool = policy(temperature=0.5)
    assert decide_part([0.9, 0.06, 0.04], policy=cool).confidence == pytest.approx(0.81 / (0.81 + 0.0036 + 0.0016))
    assert decide_part([0.1, 0.6, 0.3], policy=policy()).confidence == pytest.approx(0.6)


def test_several_good_classes_are_good_together():
    two = policy(ok=("ok", "dent"))
    assert decide_part([0.45, 0.45, 0.1], policy=two).verdict == "ok"
    assert decide_part([0.45, 0.45, 0.1], policy=two).confidence == pytest.approx(0.9)
    assert decide_part([0.0, 0.1, 0.9], policy=two).defect == "crack"


@pytest.mark.parametrize("saturated", [0.0, 1.0])
def test_thresholds_of_zero_and_one_mean_never_even_for_saturated_scores(saturated):
    probs = [1 - saturated, saturated, 0.0]
    assert decide_part(probs, policy=policy(pass_below=0.0, reject_above=1.0)).verdict == "review"
    assert decide_part(probs, policy=policy(pass_below=1.0, reject_above=1.0)).verdict == "ok"
    assert decide_part(probs, policy=policy(pass_below=0.0, reject_above=0.0)).verdict == "reject"


@pytest.mark.parametrize(
    ("probs", "extras", "verdict"),
    [([0.7, 0.2, 0.1], {}, "reject"), ([0.4, 0.3, 0.3], {}, "review"), ([0.3, 0.1, 0.0], {}, "review"),
     ([0.7, 0.2, 0.1], {"novelty": 3.0}, "review"), ([math.nan, 0.2, 0.1], {}, "review")],
)  # fmt: skip
def test_without_a_good_class_nothing_passes_and_the_defect_is_named(probs, extras, verdict):
    none_good = policy(ok=(), pass_below=0.0, reject_above=0.0, novelty_above=2.0)
    decision = decide_part(probs, policy=none_good, **extras)
    assert decision.verdict == verdict
    assert (decision.defect in CLASSES) is (not math.isnan(probs[0]))


@pytest.mark.parametrize("seed", range(15))
def test_deciding_one_by_one_equals_deciding_all_at_once(seed):
    rng = np.random.default_rng(seed)
    n = 60
    probs = rng.dirichlet(np.ones(3) / 2, n) * rng.choice([1.0, 0.8, 0.3], n)[:, None]
    scores = PartScores(
        part_ids=np.arange(n).astype(str), lots=["l"] * n, environments=["e"] * n, truth=["ok"] * n, probs=probs,
        classes=CLASSES, ok=("ok",) if seed % 3 else (), novelty=rng.random(n) * 2 if seed % 2 else None,
        disagreement=rng.random(n) if seed % 5 else None,
    )  # fmt: skip
    low, high = sorted(rng.random(2))
    chosen = policy(
        ok=scores.ok, pass_below=low, reject_above=high, novelty_above=1.5, disagreement_above=0.7,
        temperature=float(np.exp(rng.normal())),
    )  # fmt: skip
    many = decide_many(scores, chosen)
    for i in range(n):
        novelty = None if scores.novelty is None else float(scores.novelty[i])
        far = {"novelty": novelty, "disagreement": None if scores.disagreement is None else scores.disagreement[i]}
        one = decide_part(probs[i], policy=chosen, impossible=float(scores.impossible[i]), **far)
        assert one == decide_part(probs[i], policy=chosen, **far)
        assert (one.verdict, one.why) == (VERDICTS[many.verdict[i]], REASONS[many.why[i]])
        assert one.defect == (CLASSES[many.defect[i]] if many.defect[i] >= 0 else None)
        assert one.confidence == pytest.approx(many.confidence[i], rel=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_more_defect_mass_never_makes_a_verdict_milder(seed):
    rng = np.random.default_rng(seed)
    low, high = sorted(rng.random(2))
    chosen = policy(pass_below=low, reject_above=high, temperature=float(np.exp(rng.normal())))
    order = {"ok": 0, "review": 1, "reject": 2}
    verdicts = [order[decide_part([1 - p, p, 0.0], policy=chosen).verdict] for p in np.linspace(0, 1, 200)]
    assert verdicts == sorted(verdicts)


def test_a_policy_survives_json_and_keeps_its_digest():
    chosen = policy(note=("größer",), floors={"crack": 0.9}, novelty_above=1.5)
    again = Policy.from_json(chosen.to_json())
    assert again == chosen
    assert again.digest == chosen.digest
    assert policy(pass_below=0.21).digest != policy().digest


@pytest.mark.parametrize("text", ["", "{}", '{"plant": 1}', "[]"])
def test_text_that_is_no_policy_is_refused(text):
    with pytest.raises(InputError, match="not a policy"):
        Policy.from_json(text)


def test_a_policy_that_passes_what_it_rejects_or_knows_no_good_class_is_refused():
    with pytest.raises(ValidationError, match="pass_below"):
        policy(pass_below=0.9)
    with pytest.raises(ValidationError, match="among classes"):
        policy(ok=("gut",))


def test_scores_of_other_classes_are_refused():
    with pytest.raises(InputError, match="classes"):
        decide_part([0.5, 0.5], policy=policy())
    scores = PartScores(["p"], ["l"], ["e"], ["ok"], np.ones((1, 1)), ("ok",))
    with pytest.raises(InputError, match="other classes"):
        decide_many(scores, policy())


def test_a_fault_of_a_policy_names_the_file_it_was_read_from():
    with pytest.raises(InputError, match=r"file my\.json: field plant: is not a policy.*crossplant compare"):
        Policy.from_json("{}", file="my.json")


def test_a_part_that_would_pass_is_reviewed_where_the_ensemble_is_divided_and_a_reject_stays_one():
    divided = policy(pass_below=0.2, reject_above=0.6, disagreement_above=0.3)
    said = decide_part([0.9, 0.1, 0.0], policy=divided, disagreement=0.31)
    assert (said.verdict, said.why) == ("review", "the models of the ensemble disagree")
    assert decide_part([0.9, 0.1, 0.0], policy=divided, disagreement=0.3).verdict == "ok"
    assert decide_part([0.9, 0.1, 0.0], policy=divided, disagreement=math.nan).verdict == "review"
    assert decide_part([0.1, 0.9, 0.0], policy=divided, disagreement=0.9).verdict == "reject"


def test_a_policy_without_disagreement_is_written_as_before_there_was_any():
    plain = policy(pass_below=0.2, reject_above=0.6)
    assert "disagreement" not in plain.to_json()
    with_it = plain.model_copy(update={"disagreement_above": 0.2})
    assert Policy.from_json(with_it.to_json()) == with_it
    assert with_it.digest != plain.digest


def test_limits_travel_with_the_policy_and_one_without_them_keeps_the_name_it_had():
    plain = Policy(plant="mill", classes=("ok", "dent"), ok=("ok",), pass_below=0.1, reject_above=0.9)
    assert "limits" not in plain.to_json()
    assert Policy.from_json(plain.to_json()) == plain
    limited = plain.model_copy(update={"costs": Costs(limits=Limits(requests_per_s=5))})
    assert limited.digest != plain.digest
    assert Policy.from_json(limited.to_json()).costs.limits == Limits(requests_per_s=5)
