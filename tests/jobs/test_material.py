"""What runs leave in the store, for exports and for the runs that start from them."""

from __future__ import annotations

import pytest
import torch

from jobs.fleet import planned
from jobs.material import Material, fit_run
from jobs.recipe import Recipe, Stage
from jobs.train import fit


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
    assert not works.store.exists(f"runs/{plan.plan_id}/frozen-arden-s0/start.safetensors")
    seen = []
    monkeypatch.setattr(
        "jobs.material.fit", lambda *args, parent, **more: seen.append(parent) or fit(*args, parent=parent, **more)
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
