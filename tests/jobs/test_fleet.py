"""The plan: named by all that a model is made from, and by nothing else; and a run that all lanes fit together."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cluster.settings import Settings
from jobs.fleet import planned, run_lanes
from jobs.lanes import ALL_LANES
from jobs.material import Material
from jobs.recipe import Recipe, Stage
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
