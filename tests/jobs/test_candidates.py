"""Which models are candidates at a plant, and what is said of each."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.candidates import candidate_of, candidates_at, cell, figures_of, may_serve, normality_at, runs_for
from jobs.plan import Plan, RunSpec
from jobs.scoring import role_inputs
from plants.costs import lot_folds, solve
from plants.ensembles import MIN_WEIGHT
from plants.metrics import report
from plants.plant import Fleet
from plants.verdict import Candidate
from tests.jobs.toys import toy_fleet
from tests.plants.candidates import candidate, near_good


def test_the_distance_to_good_parts_is_judged_by_what_it_finds_and_not_by_classes_it_does_not_name():
    model = near_good(good_only=False)
    fleet = toy_fleet("north")
    given = {"plant": fleet.plant("north"), "fleet": fleet}
    figures = figures_of(model.scores, kind=model.kind, policy=model.judged_by, **given)
    found = cell(figures=figures)
    assert (found["macro_f1"], found["recall"], found["shared_f1"]) == (None, None, None)
    assert found["auc"] > 0.99
    assert figures["verdicts"]["caught"]["crack"]["value"] > 0.95
    assert figures["verdicts"]["false_alarms"]["value"] == 0
    assert figures["verdicts"]["reviews_of_good"]["value"] == pytest.approx(0.05, abs=0.04)


def test_a_plant_is_judged_by_its_normality_too_and_served_by_it_only_where_few_defects_are_labelled():
    plant = toy_fleet("north").plant("north")
    runs = [RunSpec("n", "normality", ("north",), 1, {}, target="north"), RunSpec("o", "own", ("north",), 0, {})]
    plan = Plan("toys", "d", tuple(runs))
    given = {"plan": plan, "plant": plant, "done": ["n", "o"]}
    assert normality_at(**given) == ["n"]
    assert normality_at(**{**given, "done": ["o"]}) == []
    assert normality_at(**{**given, "plant": plant.model_copy(update={"ok": ()})}) == []
    found = Candidate(**{**vars(near_good(good_only=False)), "members": ("n",)})
    served = {"plant": plant, "plan": plan, "fleet": toy_fleet("north")}
    assert [may_serve(found, **served, num_defects=num) for num in (0, 19, 20)] == [True, True, False]
    assert runs_for(plan, fleet=toy_fleet("north"), plant=plant, done=["n", "o"], seed=0) == ["o"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["weighted", "stacked"])
def test_neither_weights_nor_thresholds_of_a_fitted_ensemble_know_the_lots_that_judge_it(works, kind):
    """What the parts of one fold are is turned round: how these are judged does not change."""
    exports, plant = works.exports(), works.fleet.plant("arden")
    runs = ("own-arden-s0", "pooled-s0", "sister-arden-s0")

    def judged(truth: np.ndarray | None = None) -> tuple[Candidate, np.ndarray]:
        inputs = role_inputs("arden", role="decide", exports=exports)
        assert inputs is not None
        if truth is not None:
            inputs.__dict__["truth"] = truth
        found = candidate_of(f"{kind}-arden", kind, runs, plant=plant, inputs=inputs, exports=exports)
        return found, inputs.truth

    before, truth = judged()
    _, at = lot_folds(before.scores.lots)
    turned = np.where(at == 0, np.where(truth == "ok", "dent", "ok"), truth).astype(object)
    after, _ = judged(turned)
    assert np.array_equal(before.scores.probs[at == 0], after.scores.probs[at == 0])
    assert before.judged_by.policies[0] == after.judged_by.policies[0]
    assert before.policy != after.policy, "what is published knows all lots"
    inputs = role_inputs("arden", role="decide", exports=exports)
    assert inputs is not None
    said = inputs.scores(
        [inputs.probabilities(run) for run in before.members], leaf_sets=works.fleet.leaf_sets(plant), mix=before.mix
    )
    assert np.array_equal(said.probs, before.published.probs)
    assert before.policy == solve(before.published, costs=plant.costs, plant="arden")


@pytest.mark.slow
def test_no_ensemble_is_offered_that_is_one_model_or_the_plain_average_by_another_name(works):
    exports, plant = works.exports(), works.fleet.plant("essen")
    inputs = role_inputs("essen", role="decide", exports=exports)
    assert inputs is not None
    runs = ["own-essen-s0", "warm-essen-s0", "pooled-s0", "sister-essen-s0"]
    found = {one.name: one for one in candidates_at(plant, inputs=inputs, exports=exports, run_ids=runs)}
    assert list(found)[:5] == [*runs, "ensemble-essen"]
    assert found["ensemble-essen"].members == tuple(runs[:3]), "a sister's model is no part of it"
    for name, one in list(found.items())[5:]:
        assert name in ("weighted-essen", "stacked-essen")
        assert one.mix is not None
        assert len(one.members) == len(one.mix.weights) > 1
        assert min(one.mix.weights) >= MIN_WEIGHT * sum(one.mix.weights)
        assert one.serving_cost == sum(exports.words(run)["cut"] for run in one.members)
    twice = candidates_at(plant, inputs=inputs, exports=exports, run_ids=["own-essen-s0", "own-essen-s0"])
    assert not [one for one in twice if one.kind == "weighted"], "equal models are weighed alike"


def test_a_cell_names_the_class_that_is_missed_most_and_counts_nothing_as_zero():
    model = candidate("m", skill=0.5)
    figures = report(model.scores, policy=model.policy)
    found = cell(figures=figures)
    recalls = {name: row["recall"]["value"] for name, row in figures["per_class"].items()}
    assert found["recall"] == min(recalls.values()) == recalls[found["recall_class"]]
    assert {name: row["value"] for name, row in found["recall_by_class"].items()} == recalls
    assert (found["n"], found["n_lots"]) == (200, 100)
    nothing = cell(figures=report(model.scores.take([]), policy=model.policy))
    assert (nothing["macro_f1"], nothing["recall"], nothing["cost"], nothing["n"]) == (None, None, None, 0)


def test_a_plant_is_judged_by_finished_runs_of_its_sisters_only():
    fleet = Fleet.model_validate(
        {
            "fleet": "f",
            "store": "unused",
            "plants": [
                {"name": "mill", "images": "i", "classes": {"crack": "crack"}},
                {"name": "forge", "images": "i", "classes": {"riss": "crack"}},
                {"name": "tiles", "images": "i", "classes": {"blob": "blob"}},
            ],
        }
    )
    runs = [("m", ("mill",), 0), ("f", ("forge",), 0), ("t", ("tiles",), 0), ("p", ("mill", "forge"), 0)]
    plan = Plan("f", "d", tuple(RunSpec(n, "own", p, s, {}) for n, p, s in [*runs, ("m1", ("mill",), 1)]))
    done = ["m", "t", "p", "m1"]
    assert runs_for(plan, fleet=fleet, plant=fleet.plant("mill"), done=done, seed=0) == ["m", "p"]
    assert runs_for(plan, fleet=fleet, plant=fleet.plant("tiles"), done=done, seed=0) == ["t"]


@pytest.mark.parametrize(
    ("forge", "mill", "eligible"),
    [
        ({}, {}, ["m", "p", "w"]),
        ({}, {"may_train": False}, ["f"]),
        ({"may_leave": False}, {"may_train": False}, []),
        ({"may_leave": False}, {}, ["m"]),
        ({"may_train": False}, {}, ["m"]),
    ],
)
def test_a_plant_that_may_not_train_is_served_by_its_sisters_and_nobody_by_what_may_not_leave(forge, mill, eligible):
    """At the mill, after training: a flag that changed since is held as well."""
    fleet = toy_fleet("mill", "forge")
    plants = [p.model_copy(update=changes) for p, changes in zip(fleet.plants, (mill, forge), strict=True)]
    fleet = fleet.model_copy(update={"plants": tuple(plants)})
    runs = [("m", "own", ("mill",)), ("f", "own", ("forge",)), ("p", "pooled", ("mill", "forge"))]
    runs += [("w", "warm", ("mill",))]
    plan = Plan("f", "d", tuple(RunSpec(n, kind, p, 0, {}, parent="p" if n == "w" else None) for n, kind, p in runs))
    model = candidate("m", skill=1, num_lots=10)
    found = [Candidate(**{**vars(model), "name": name, "members": (name,)}) for name, _, _ in runs]
    at = fleet.plant("mill")
    assert [c.name for c in found if may_serve(c, plant=at, plan=plan, fleet=fleet, num_defects=50)] == eligible
