"""The plan: named by all that a model is made from, and by nothing else; and a run that all lanes fit together."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cluster.settings import Settings
from cluster.storage import open_store
from jobs.carry_out import Caps
from jobs.fleet import planned, run_lanes, train_fleet
from jobs.lanes import ALL_LANES
from jobs.material import Material
from jobs.recipe import Recipe, Stage
from plants.balance import labelled_defects
from plants.errors import InputError
from plants.geometry import Environment, Geometry
from plants.plant import Costs, Fleet, PlantClass
from tests.fleets import drawn_fleet, imported

RECIPE = Recipe(stages=())


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    return imported(drawn_fleet(tmp_path_factory.mktemp("drawn"), "mill", "oven"))


def plan_id(fleet: Fleet, folder: Path) -> str:
    return planned(fleet, material=Material(fleet, cache=folder, recipe=RECIPE), recipe=RECIPE).plan_id


def changed(fleet: Fleet, **update: object) -> Fleet:
    first, *others = fleet.plants
    return fleet.model_copy(update={"plants": (first.model_copy(update=update), *others)})


@pytest.mark.slow
def test_another_geometry_class_map_or_seed_is_another_plan_and_other_costs_are_not(fleet: Fleet, tmp_path: Path):
    mill = fleet.plant("mill")
    tiles = {name: Environment(geometry=Geometry(fit="whole")) for name in mill.environments}
    others = [
        changed(fleet, environments=tiles),
        changed(fleet, classes={**mill.classes, "crack": PlantClass(fleet="pit")}),
        fleet.model_copy(update={"seed": 1}),
    ]
    at = plan_id(fleet, tmp_path)
    assert at == plan_id(fleet, tmp_path)
    assert len({at, *(plan_id(other, tmp_path) for other in others)}) == 4
    assert plan_id(changed(fleet, costs=Costs(miss=1.0)), tmp_path) == at


@pytest.mark.slow
def test_other_prices_are_another_plan_only_where_models_learn_by_money(fleet: Fleet, tmp_path: Path):
    recipe = RECIPE.model_copy(update={"loss": "cost"})

    def named(fleet: Fleet) -> str:
        return planned(fleet, material=Material(fleet, cache=tmp_path, recipe=recipe), recipe=recipe).plan_id

    assert named(changed(fleet, costs=Costs(miss=1.0))) != named(fleet)
    assert named(changed(fleet, costs=Costs(miss_by_class={"crack": 1.0}))) != named(fleet)
    assert named(changed(fleet, costs=Costs(review=1.0))) == named(fleet) != plan_id(fleet, tmp_path)


def test_a_loss_in_money_is_refused_before_anything_is_trained(fleet: Fleet, tmp_path: Path):
    without = changed(fleet, ok=(), classes={"crack": PlantClass(fleet="crack")})
    with pytest.raises(InputError, match=r"plant mill: field ok: loss cost .* write loss: weighted"):
        train_fleet(without, settings=Settings(home=tmp_path), recipe=Recipe(loss="cost"))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_by_data_plants_with_few_labels_train_heads_alone_and_the_plan_says_so(fleet: Fleet, ray_local: Settings):
    events: list[Any] = []
    given = {"settings": ray_local, "recipe": Recipe(batch=4), "is_by_data": True}
    plan = train_fleet(fleet, **given, is_estimate=True, say=events.append).plan
    (said,) = [event["notes"] for event in events if event["kind"] == "plan"]
    assert "recipe: batch 4 is outside 8..256: expect noisy or slow learning" in said
    count = labelled_defects(fleet.plant("mill"), Material(fleet, cache=ray_local.cache, recipe=RECIPE).rows("mill"))
    assert 0 < count["crack"] < 20
    words = "labelled images in the median defect class (enough for: normality only): heads only"
    assert f"plant mill: {count['crack']} {words}" in said
    assert not any(run.recipe["stages"] for run in plan.runs)


def test_the_plant_whose_frames_make_most_inputs_comes_first_and_one_whose_roi_leaves_them_last(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rows = {"mill": [(64, 64)] * 5, "oven": [(256, 256)]}
    tables = {
        name: pd.DataFrame(sizes, columns=["width_px", "height_px"]).assign(environment="default")
        for name, sizes in rows.items()
    }
    monkeypatch.setattr(Material, "rows", lambda self, name: tables[name])

    def order(oven: Geometry, mill: Geometry = Geometry()) -> list[str]:
        shapes = {"oven": oven, "mill": mill}
        plants = tuple(
            p.model_copy(update={"environments": {"default": Environment(geometry=shapes[p.name])}})
            for p in fleet.plants
        )
        other = fleet.model_copy(update={"plants": plants})
        return Material(other, cache=tmp_path, recipe=RECIPE).largest_first(["mill", "oven"])

    assert order(Geometry()) == ["mill", "oven"]
    assert order(Geometry(fit="tiles", tile_px=64, overlap_px=0)) == ["oven", "mill"]
    assert order(Geometry(), mill=Geometry(roi=(0, 0, 4096, 4096))) == ["oven", "mill"]


@pytest.mark.slow
def test_a_plan_above_its_cap_is_refused_before_anything_of_it_is_recorded(fleet: Fleet, ray_local: Settings):
    store = open_store(fleet.store)
    with pytest.raises(InputError, match=r"field --max-hours: the plan takes up to .* hours, more than 1e-05"):
        train_fleet(fleet, settings=ray_local, recipe=RECIPE, caps=Caps(max_hours=1e-5))
    assert store.list("runs") == []


@pytest.mark.slow
def test_a_run_that_is_too_long_for_one_lane_is_fitted_by_all_of_them(fleet: Fleet, ray_local: Settings):
    recipe = Recipe(stages=(Stage(cut=1, epochs=2),), views=1)
    material = Material(fleet, cache=ray_local.cache, recipe=recipe)
    whole = planned(fleet, material=material, recipe=recipe)
    plan = replace(whole, runs=(whole.run("pooled-s0"), whole.run("frozen-mill-s0")))
    material.export_trunk_once()
    events: list[dict[str, Any]] = []
    before = {name: value for name, value in os.environ.items() if name.startswith("RAY_TRAIN_")}
    run_lanes(plan, material=material, settings=ray_local, say=lambda event: events.append(dict(event)))
    assert {name: value for name, value in os.environ.items() if name.startswith("RAY_TRAIN_")} == before
    started = {e["run_id"]: e["lane"] for e in events if e["kind"] == "started"}
    assert started["pooled-s0"] == ALL_LANES
    assert started["frozen-mill-s0"] in ("0", "1")
    epochs = [(e["stage"], e["epoch"]) for e in events if e["kind"] == "epoch" and e["run_id"] == "pooled-s0"]
    assert epochs == [(0, 0), (1, 1), (1, 2)]
    words, _, _ = material.load("pooled-s0", plan_id=plan.plan_id)
    assert set(words["leaves"]) == {"ok", "crack"}
