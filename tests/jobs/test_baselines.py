"""The frozen floor: what it says of each plant, which setting it takes, and whom it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.activations import RunData
from jobs.baselines import CLASS_WEIGHTS, best_weight, floor, frozen, heads
from jobs.head import STRENGTHS, HeadFit, Lesson
from jobs.material import Material
from jobs.recipe import Recipe, load_recipe
from jobs.supervision import Supervision
from plants.errors import InputError
from plants.plant import load_fleet
from tests.fleets import Works, console, small_fleet


def row(plant: str, weight: float, value: float, *, l2: float = 1.0) -> dict[str, Any]:
    return {"plant": plant, "config": {"max_class_weight": weight, "l2": l2}, "value": value, "worth": None}


def test_a_plants_floor_is_its_likeliest_head_and_of_equals_the_first():
    trials = [row("a", 1, -0.5), row("a", 2, -0.3, l2=0.1), row("a", 5, -0.3), row("b", 1, -0.1)]
    assert floor(trials, plant="a") == trials[1]


def test_plants_count_alike_in_the_weight_that_is_best_over_all():
    trials = [row("a", 1, -1.0), row("a", 1, -9.0), row("b", 1, -0.1), row("a", 2, -0.6), row("b", 2, -0.6)]
    trials += [row(plant, 5, -0.7) for plant in ("a", "b")]
    assert best_weight(trials) == 1


def test_a_plant_that_may_not_train_is_refused_before_anything_starts(tmp_path):
    fleet = load_fleet(small_fleet(tmp_path, "arden"))
    (plant,) = fleet.plants
    fleet = fleet.model_copy(update={"plants": (plant.model_copy(update={"may_train": False}),)})
    given: dict[str, Any] = {"settings": None, "out": tmp_path / "r.yaml", "show": console()[0]}
    with pytest.raises(InputError, match=r"plant arden.*may_train"):
        frozen(fleet, named=["arden"], **given)
    with pytest.raises(InputError, match="no plant may train"):
        frozen(fleet, named=[], **given)


@pytest.fixture(scope="module")
def material(finished_works: Works) -> Material:
    recipe = Recipe(stages=(), views=1)
    return Material(finished_works.fleet, cache=finished_works.settings.cache, recipe=recipe)


@pytest.mark.slow
def test_every_setting_is_the_head_that_training_fits_to_the_plain_view(material):
    found = heads((material.to_config(), "arden"))
    settings = [(one["config"]["max_class_weight"], one["config"]["l2"]) for one in found]
    assert settings == [(weight, strength) for weight in CLASS_WEIGHTS for strength in STRENGTHS]
    data = RunData((material.data("arden"),))
    taught = Supervision(
        data, leaf_sets=material.leaf_sets(["arden"]), leaves=material.leaves(["arden"]), max_class_weight=5
    )
    at = torch.from_numpy(taught.train_ids)
    lesson = Lesson(data.fetch(0, ids=taught.train_ids), taught.targets[at], taught.mask[at], taught.weights[at])
    select = data.fetch(0, ids=data.select_ids(0))
    _, score, strength, _ = HeadFit(lesson).best(lambda head: taught.judge_rows(head.logits(select)))
    best = floor([one for one in found if one["config"]["max_class_weight"] == 5], plant="arden")
    assert best["config"]["l2"] == strength
    np.testing.assert_allclose(best["value"], -(score.nll or np.nan))


@pytest.mark.slow
def test_a_fleet_is_told_its_floors_worst_first_and_the_recipe_is_one_that_train_takes(finished_works, tmp_path):
    show, text = console()
    out: Path = tmp_path / "recipe.yaml"
    fleet, settings = finished_works.fleet, finished_works.settings
    document = frozen(fleet, settings=settings, named=[], out=out, show=show)
    names = [plant.name for plant in fleet.plants]
    assert [one["plant"] for one in document["finalists"]] == names
    assert len(document["trials"]) == len(names) * len(CLASS_WEIGHTS) * len(STRENGTHS)
    assert load_recipe(out).max_class_weight == document["best"]["recipe"]["max_class_weight"]
    told = text().partition("worst plant first")[2]
    worst_first = sorted(names, key=lambda name: floor(document["trials"], plant=name)["value"])
    assert [told.index(f" {name} ") for name in worst_first] == sorted(told.index(f" {name} ") for name in names)
