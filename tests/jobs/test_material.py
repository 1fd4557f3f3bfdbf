"""What runs leave in the store, for exports and for the runs that start from them."""

from __future__ import annotations

import json

import pytest
import torch

from cluster.ledger import RunLedger, RunRecord, refuse
from cluster.registry import Bundles
from jobs.compare import compare_fleet
from jobs.fit import fit_run, known_plants
from jobs.fleet import planned
from jobs.material import Material
from jobs.package import publish_decision
from jobs.plan import Plan, RunSpec
from jobs.recipe import Recipe, Stage
from jobs.scoring import Exports
from jobs.train import fit
from plants import bundle
from tests.jobs.toys import toy_fleet


@pytest.mark.slow
def test_children_start_from_what_a_parent_has_left_which_is_not_what_it_serves(works, monkeypatch):
    recipe = Recipe(stages=(), views=1)
    material = Material(works.fleet, cache=works.settings.cache, recipe=recipe)
    plan = planned(works.fleet, material=material, recipe=recipe)
    pooled = fit_run(plan.run("pooled-s0"), material=material, plan=plan)
    fit_run(plan.run("frozen-arden-s0"), material=material, plan=plan)
    _, left, _ = material.load("pooled-s0", plan_id=plan.plan_id, what="start")
    _, served, _ = material.load("pooled-s0", plan_id=plan.plan_id)
    for key in ("head.weight", "head.bias"):
        assert torch.equal(left[key], pooled.start[key])
        assert torch.equal(served[key], pooled.state[key])
        assert not torch.allclose(left[key], served[key], atol=1e-4)
    assert works.store.exists(f"runs/{plan.plan_id}/frozen-arden-s0/start.safetensors")  # for a refresh
    seen = []
    monkeypatch.setattr(
        "jobs.fit.fit", lambda *args, parent, **more: seen.append(parent) or fit(*args, parent=parent, **more)
    )
    fit_run(plan.run("warm-arden-s0"), material=material, plan=plan)
    (parent,) = seen
    assert (parent.cut, parent.leaves) == (pooled.cut, pooled.leaves)
    assert all(torch.equal(parent.state[key], left[key]) for key in left)


@pytest.mark.slow
def test_runs_give_the_same_numbers_in_whatever_order_and_company_they_are_fitted(works):
    recipe = Recipe(stages=(Stage(cut=1, epochs=2),), views=2)
    runs = ["own-arden-s0", "frozen-essen-s0", "own-essen-s0"]
    states = []
    for order in (runs, runs[::-1]):
        material = Material(works.fleet, cache=works.settings.cache, recipe=recipe)
        plan = planned(works.fleet, material=material, recipe=recipe)
        states.append({run: fit_run(plan.run(run), material=material, plan=plan).state for run in order})
        torch.manual_seed(len(states))
    for run in runs:
        for key, value in states[0][run].items():
            torch.testing.assert_close(states[1][run][key], value, rtol=0, atol=1e-6)


FROZEN = Recipe(stages=(), views=1)
NEEDED = ("pooled-s0", "own-arden-s0", "warm-arden-s0", "average-arden-s0")


@pytest.mark.slow
def test_an_average_is_judged_and_published_as_any_other_model(works, tmp_path):
    material = Material(works.fleet, cache=works.settings.cache, recipe=FROZEN)
    plan = planned(works.fleet, material=material, recipe=FROZEN, average=True)
    for run_id in NEEDED:
        fitted = fit_run(plan.run(run_id), material=material, plan=plan)
        assert not fitted.is_refused
    assert fitted.notes[0] == "mean of pooled-s0, own-arden-s0, warm-arden-s0"
    assert (fitted.donor, fitted.forgetting) == (None, None)
    exports = Exports(material, plan=plan)
    found = compare_fleet(works.fleet, plan=plan, exports=exports, done=list(NEEDED), seed=0)
    assert found["matrix"]["average-arden-s0"]["arden"]["macro_f1"] is not None
    assert found["models"]["average-arden-s0"]["kind"] == "average"
    found["decisions"]["arden"] |= {"model": "average-arden-s0", "members": ["average-arden-s0"]}
    finished = dict.fromkeys(NEEDED, "2026-03-01T00:00:00+00:00")
    digest, _ = publish_decision("arden", document=found, plan=plan, exports=exports, finished=finished)
    manifest, _ = bundle.read(Bundles(works.store).fetch(digest, tmp_path / "bundle"))
    assert (manifest.kind, manifest.plants, set(manifest.serves)) == ("average", ("arden", "essen"), {"arden"})
    assert manifest.parent == "pooled-s0, own-arden-s0, warm-arden-s0"


@pytest.mark.slow
def test_a_refused_run_leaves_words_and_no_weights_and_a_mean_does_without_it(works, monkeypatch):
    material = Material(works.fleet, cache=works.settings.cache, recipe=FROZEN)
    plan = planned(works.fleet, material=material, recipe=FROZEN, average=True)
    for run_id in ("pooled-s0", "own-arden-s0"):
        fit_run(plan.run(run_id), material=material, plan=plan)
    with monkeypatch.context() as patch:
        harm = {"difference": -0.5, "low": -0.9, "high": -0.1, "n_lots": 40, "refused": True}
        patch.setattr("jobs.adapt.judged", lambda parent, **given: {"parent": parent, **harm})
        assert fit_run(plan.run("warm-arden-s0"), material=material, plan=plan).is_refused
    prefix = f"runs/{plan.plan_id}/warm-arden-s0"
    words = json.loads(works.store.read(f"{prefix}/model.json"))
    assert words["donor"]["refused"]
    assert words["notes"][-1].endswith("refused")
    assert {entry.key for entry in works.store.list(prefix)} == {f"{prefix}/model.json"}
    mean = fit_run(plan.run("average-arden-s0"), material=material, plan=plan)
    assert mean.notes[0] == "mean of pooled-s0, own-arden-s0"
    RunLedger(works.store, plan.plan_id).put(refuse(RunRecord(run_id="warm-arden-s0"), why=words["notes"][-1]))
    exports = Exports(material, plan=plan)
    done = ["pooled-s0", "own-arden-s0", "average-arden-s0"]
    found = compare_fleet(works.fleet, plan=plan, exports=exports, done=done, refused=["warm-arden-s0"], seed=0)
    assert "warm-arden-s0" not in found["matrix"]
    assert found["not_judged"]["warm-arden-s0"] == "its donor makes it worse than the pretrained start"


@pytest.mark.slow
def test_a_child_tells_what_it_forgot_and_replays_only_where_the_recipe_says_so(works):
    for recipe in (FROZEN, FROZEN.model_copy(update={"replay": 0.5})):
        material = Material(works.fleet, cache=works.settings.cache, recipe=recipe)
        plan = planned(works.fleet, material=material, recipe=recipe)
        fit_run(plan.run("pooled-s0"), material=material, plan=plan)
        fitted = fit_run(plan.run("warm-arden-s0"), material=material, plan=plan)
        words = json.loads(works.store.read(f"runs/{plan.plan_id}/warm-arden-s0/model.json"))
        assert words["forgetting"] == fitted.forgetting
        assert set(fitted.forgetting) == {"essen"}
        assert fitted.forgetting["essen"]["before"] > 0
        assert fitted.leaves == material.leaves(("arden", "essen") if recipe.replay else ("arden",))


def test_a_child_may_know_the_plants_of_its_parent_that_may_leave_and_of_many_the_next_ones():
    names = [f"p{i}" for i in range(10)]
    fleet = toy_fleet(*names)
    kept = [p.model_copy(update={"may_leave": p.name != "p7"}) for p in fleet.plants]
    fleet = fleet.model_copy(update={"plants": tuple(kept)})
    pooled = RunSpec("pooled", "pooled", tuple(names), 0, {})
    warm = RunSpec("warm", "warm", ("p3",), 0, {}, parent="pooled")
    plan = Plan("f", "d", (pooled, warm))
    assert known_plants(warm, fleet=fleet, plan=plan) == ("p4", "p5", "p6", "p8", "p9", "p0", "p1", "p2")
    assert known_plants(pooled, fleet=fleet, plan=plan) == ()
