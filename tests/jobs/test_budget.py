"""What a plan costs here: what the label tables say before a frame is decoded is what is written later."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from cluster.settings import Settings
from cluster.storage import open_store
from jobs import budget, probe
from jobs.carry_out import Caps
from jobs.estimate import NOTHING, Rates
from jobs.fleet import planned, train_fleet
from jobs.leave_out import LeftOut
from jobs.material import Material
from jobs.plan import Plan, RunSpec
from jobs.recipe import Recipe, Stage
from plants.errors import InputError
from plants.plant import Fleet
from tests.fleets import console, drawn_fleet, imported, small_fleet

RECIPE = Recipe(stages=(Stage(cut=1, epochs=2),), views=2)
RATES = Rates(trunk=100, augment=1000, steps={1: 50}, head=1e6)
TILED = "fargo"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """A plant whose frames are cut into tiles, and one whose parts have several frames."""
    return imported(small_fleet(tmp_path_factory.mktemp("budget"), "essen", TILED, scale=0.08))


@pytest.fixture(scope="module")
def material(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Material:
    return Material(fleet, cache=tmp_path_factory.mktemp("home") / "cache", recipe=RECIPE)


@pytest.mark.slow
def test_what_is_said_of_the_inputs_before_is_what_is_written_and_then_nothing_is_left(material: Material):
    sizes = probe.sizes(material)
    for name in ("essen", TILED):
        before = budget.inputs_of(name, material=material)
        data = material.data(name)
        assert (before.train, before.train + before.select) == (data.num_train, len(data.rows))
        assert before.passes == len(data.rows) + data.num_train
        written = sum(np.load(path, mmap_mode="r").nbytes for path in data.folder.glob("*.npy"))
        assert before.passes * sum(sizes.activations.values()) == written
        pack = material.pack(data.plant, rows=material.learning_rows(name))
        assert before.pack_inputs == len(pack)
        after = budget.inputs_of(name, material=material)
        assert (after.train, after.select) == (before.train, before.select)
        assert (after.passes, after.augmented, after.pack_inputs, after.pack_megapixels) == (0, 0, 0, 0)
    more = Material(material.fleet, cache=material.cache, recipe=RECIPE.model_copy(update={"views": 3}))
    found = budget.inputs_of("essen", material=more)
    assert found.passes == found.augmented == found.train
    assert budget.decode_rate([TILED], material=material) > 0


def test_a_plan_on_a_cold_cache_costs_its_trunk_passes_and_one_that_is_done_nothing(fleet, tmp_path, monkeypatch):
    material = Material(fleet, cache=tmp_path, recipe=RECIPE)
    monkeypatch.setattr(probe, "rates", lambda *_, **__: RATES)
    monkeypatch.setattr(budget, "decode_rate", lambda *_, **__: math.inf)
    plan = planned(fleet, material=material, recipe=RECIPE)
    given = {"material": material, "settings": Settings(home=tmp_path), "lanes": 2}
    whole = budget.foreseen(plan, todo=plan.runs, **given)
    assert whole.runs == len(plan.runs)
    assert whole.trunk_passes == sum(item.passes for item in whole.inputs) > 0
    one = budget.foreseen(plan, todo=[plan.run("own-essen-s0")], **given)
    assert [item.name for item in one.inputs] == ["essen"]
    assert 0 < one.seconds_high < whole.seconds_high
    assert one.steps == 2 * math.ceil(one.inputs[0].train / RECIPE.batch)
    assert budget.foreseen(plan, todo=[], **given) is NOTHING


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (False, False, False, False)),
        ({"parent": "pooled"}, (True, True, True, False)),
        ({"parent": "alone"}, (True, True, False, False)),
        ({"start": "plan/own"}, (True, False, False, False)),
        ({"parents": ("alone", "pooled")}, (True, False, False, False)),
        ({"recipe": {"replay": 0.5, "tasks": {"severity": 0.3}}}, (False, False, False, True)),
        ({"recipe": {"tasks": {"severity": 0.3}, "stages": []}}, (False, False, False, False)),
    ],
)
def test_a_run_costs_what_its_start_its_donor_what_that_knew_and_its_task_take(material, given, expected):
    run = RunSpec("own", "own", (TILED,), 0, **{"recipe": {}, **given})
    donors = [RunSpec("pooled", "pooled", (TILED, "essen"), 0, {}), RunSpec("alone", "own", (TILED,), 0, {})]
    plan = Plan("f", "d", runs=(*donors, run), data={})
    inputs = {TILED: budget.inputs_of(TILED, material=material)}
    work = budget.work_of(run, plan=plan, material=material, inputs=inputs, is_shared=False)
    assert (work.has_start, work.is_judged, work.known_train > 0, work.has_task) == expected
    essen = budget.inputs_of("essen", material=material)
    assert (work.known_train, work.known_select) in {(0, 0), (essen.train, essen.select)}


def test_what_remains_of_a_plant_is_counted_apart_and_its_activations_are_not(
    material: Material, monkeypatch: pytest.MonkeyPatch
):
    rows = material.learning_rows(TILED)
    first = rows["lot"] == rows.loc[rows["role"] == "train", "lot"].iloc[0]
    rows = rows.assign(product=first.map({True: "B7", False: "B8"}))
    monkeypatch.setattr(material, "learning_rows", lambda name: rows)
    whole = budget.inputs_of(TILED, material=material)
    rest = budget.inputs_of(TILED, material=material, left_out=LeftOut(TILED, what="product", value="B7"))
    assert 0 < rest.train < whole.train
    assert rest.passes == 0
    assert rest.name == f"without {TILED}:product=B7"


def files(fleet: Fleet) -> list[str]:
    """What lies in the store, but for the rows as they were learned from, which have their digests as names."""
    return [entry.key for entry in open_store(fleet.store).list() if not entry.key.startswith("snapshots/")]


def test_an_estimate_is_said_and_trains_and_records_nothing(tmp_path, monkeypatch):
    """Without the mark `slow` a test that starts Ray fails."""
    from jobs import verbs

    monkeypatch.setattr(probe, "rates", lambda *_, **__: RATES)
    fleet = imported(drawn_fleet(tmp_path / "works", "mill", "oven"))
    settings, before, (show, said) = Settings(home=tmp_path / "home", slots=2), files(fleet), console()
    given = {"settings": settings, "recipe_file": None, "seeds": (0,), "leave_out": (), "retry_failed": False}
    document = verbs.train(fleet, **given, show=show, is_estimate=True)
    assert files(fleet) == before
    cost = document["cost"]
    assert cost["runs"] == len(document["runs"])
    assert {run["state"] for run in document["runs"]} == {"waiting"}
    assert cost["hours"] == round(cost["seconds_high"] / 3600, 4) > 0
    assert cost["cache_bytes"] > 0
    assert "took" not in cost
    assert f"cost: {cost['trunk_passes']:,} trunk passes" in said()
    for plant in cost["plants"]:
        assert f"{plant['name']}" in said().split("Inputs")[1]
    for caps, field in (({"max_hours": 0.0}, "--max-hours"), ({"max_gb": 1e-6}, "--max-gb")):
        with pytest.raises(InputError, match=f"field {field}"):
            train_fleet(fleet, settings=settings, recipe=RECIPE, caps=Caps(**caps), is_estimate=True)


def test_a_cache_that_the_disk_has_no_room_for_is_refused(tmp_path: Path, material: Material):
    costly = type(NOTHING)(**{**vars(NOTHING), "cache_bytes": 10**15})
    given = {"max_hours": None, "max_gb": None, "material": material}
    with pytest.raises(InputError, match=rf"file {material.cache}: the plan writes 1e\+06 GB there"):
        budget.check(costly, **given, settings=Settings(home=tmp_path))
    elsewhere = Settings(home=tmp_path, ray_address="head:6379")
    budget.check(costly, **given, settings=elsewhere)
