"""Plans: what is trained from what."""

from __future__ import annotations

from functools import partial

import pytest

from jobs.plan import BASELINES, Plan, make_plan, nearest, pooling_groups, strategies
from jobs.recipe import Recipe, default_recipe
from jobs.scratch import scratch_recipe
from plants.errors import InputError
from plants.plant import Fleet
from tests.jobs.toys import toy_fleet


def fleet(**changes) -> Fleet:
    plants = [
        {"name": "neu", "images": "a", "classes": {"scratch": "scratch", "crazing": "crazing"}},
        {"name": "xsdd", "images": "b", "classes": {"scratches": "scratch", "red": "red"}},
        {"name": "tiles", "images": "c", "classes": {"free": "ok", "blowhole": "blowhole"}, "ok": ["free"]},
    ]
    for plant in plants:
        plant.update(changes.get(plant["name"], {}))
    return Fleet.model_validate({"fleet": "f", "store": "s", "plants": plants})


PARTS = {"neu": 10, "xsdd": 20, "tiles": 30}


def plan_of(f: Fleet, **more) -> Plan:
    given = {"train_parts": PARTS, "train_defects": {**PARTS, "tiles": 5}} | more
    return make_plan(f, recipe=Recipe(), data_digest="d", **given)


def test_plants_that_share_no_defect_are_not_pooled():
    groups = pooling_groups(fleet(), plants=fleet().plants)
    assert groups == [("neu", "xsdd")]
    kinds = {run.run_id: run.kind for run in plan_of(fleet()).runs}
    assert [k for k in kinds if "tiles" in k] == ["frozen-tiles-s0", "own-tiles-s0", "normality-tiles-s0"]


def test_every_plant_has_one_normality_whatever_the_seeds_and_one_without_defects_has_nothing_else():
    plan = plan_of(fleet(), seeds=(3, 1), train_defects={"neu": 10, "xsdd": 0, "tiles": 0})
    normal = [run for run in plan.runs if run.kind == "normality"]
    assert [(run.plants, run.target, run.seed) for run in normal] == [((n,), n, 3) for n in ("neu", "xsdd", "tiles")]
    assert {run.kind for run in plan.runs if "tiles" in run.plants} == {"normality"}
    bad_only = plan_of(fleet(), train_defects={**PARTS})
    assert {run.target for run in bad_only.runs if run.kind == "normality"} == {"neu", "xsdd"}


def test_every_parent_comes_with_the_plan():
    plan = plan_of(fleet(), seeds=(0, 1))
    names = {run.run_id for run in plan.runs}
    assert {run.parent for run in plan.runs if run.parent} <= names
    assert len(names) == len(plan.runs)


def test_a_pooled_run_is_fitted_by_all_lanes_where_it_is_more_than_one_lanes_share():
    plan = plan_of(fleet())
    work = sum(len(run.plants) for run in plan.runs if run.kind in ("pooled", "own", "warm", "sister"))
    assert work == 9
    assert [lanes for lanes in range(1, 8) if plan.shared(lanes=lanes)] == [5, 6, 7]
    assert plan.shared(lanes=100) == {"pooled-s0"}
    assert not plan_of(fleet(), seeds=(0, 1)).shared(lanes=5)


def test_heads_alone_are_no_work_for_all_lanes():
    heads = make_plan(
        fleet(), recipe=Recipe(stages=()), data_digest="d", train_parts=PARTS, train_defects={**PARTS, "tiles": 5}
    )
    assert "pooled-s0" in {run.run_id for run in heads.runs}
    assert not heads.shared(lanes=2)


def with_baselines(f: Fleet, **more) -> Plan:
    return plan_of(f, from_scratch=partial(scratch_recipe, Recipe(), cut=5), **more)


def test_baselines_come_beside_the_default_plan_and_change_no_run_of_it():
    default, more = plan_of(fleet(), seeds=(3, 1)), with_baselines(fleet(), seeds=(3, 1))
    assert [run for run in more.runs if run.kind not in BASELINES] == list(default.runs)
    added = [run.run_id for run in more.runs if run.kind in BASELINES and run.target == "neu"]
    assert added == ["classical-neu-s3", "scratch-neu-s3", "scratch-neu-s1"]
    assert {run.target for run in more.runs if run.kind == "scratch"} == {"neu", "xsdd", "tiles"}
    assert not [run for run in with_baselines(fleet(neu={"may_train": False})).runs if run.target == "neu"]
    assert [more.shared(lanes=n) for n in range(1, 20)] == [default.shared(lanes=n) for n in range(1, 20)]
    assert more.deepest == default.deepest == Recipe()


def test_a_run_from_scratch_has_no_parent_and_learns_from_its_plant_alone():
    for run in with_baselines(fleet()).runs:
        if run.kind in BASELINES:
            assert (run.parent, run.plants) == (None, (run.target,))


def test_a_plant_that_may_not_leave_is_trained_alone():
    plan = plan_of(fleet(neu={"may_leave": False}))
    assert not [run for run in plan.runs if run.kind in ("pooled", "warm", "sister")]


def test_no_run_of_another_plant_begins_with_what_a_plant_that_may_not_leave_has_taught():
    third = {"classes": {"free": "ok", "scratch": "scratch"}}
    runs = {run.run_id: run for run in plan_of(fleet(neu={"may_leave": False}, tiles=third)).runs}
    assert runs["pooled-s0"].plants == ("xsdd", "tiles")
    for run in runs.values():
        taught_by = set(run.plants) | set(runs[run.parent].plants if run.parent else ())
        assert taught_by == {"neu"} or "neu" not in taught_by


def test_a_plant_that_may_not_train_has_no_run():
    assert not [run for run in plan_of(fleet(neu={"may_train": False})).runs if "neu" in run.plants]


def test_an_auditor_finds_the_flags_of_every_plant_in_the_plan():
    stored = plan_of(fleet(neu={"may_train": False}, xsdd={"may_leave": False, "retention_days": 90})).to_json()
    assert stored["governance"]["neu"] == {"may_train": False, "may_leave": True, "retention_days": None}
    assert stored["governance"]["xsdd"] == {"may_train": True, "may_leave": False, "retention_days": 90}
    assert plan_of(fleet(xsdd={"retention_days": 9})).plan_id == plan_of(fleet()).plan_id


def test_the_plan_is_named_by_its_content():
    base = plan_of(fleet()).plan_id
    assert plan_of(fleet()).plan_id == base
    assert plan_of(fleet(), seeds=(1,)).plan_id != base
    counts = {"train_parts": PARTS, "train_defects": {**PARTS, "tiles": 5}}
    assert make_plan(fleet(), recipe=Recipe(dropout=0.1), data_digest="d", **counts).plan_id != base
    assert make_plan(fleet(), recipe=Recipe(), data_digest="e", **counts).plan_id != base


def test_a_plan_survives_storage():
    plan = plan_of(fleet())
    assert Plan.from_json(plan.to_json()) == plan


def test_the_sister_with_most_in_common_is_taken():
    f = fleet(tiles={"classes": {"free": "ok", "scratch": "scratch", "crazing": "crazing"}})
    assert nearest(f, plant=f.plant("neu"), among=["neu", "xsdd", "tiles"], train_parts=PARTS)[0] == "tiles"


def test_what_is_left_out_gets_a_run_that_does_not_see_it_and_is_judged_on_it():
    tiles = {"environments": {"cam1": {}, "cam2": {}}, "classes": {"free": "ok", "scratch": "scratch"}}
    outs = ("neu", "tiles/cam2", "tiles:product=B7")
    runs = [run for run in plan_of(fleet(tiles=tiles), leave_out=outs).runs if run.kind == "without"]
    assert [(run.plants, str(run.left_out)) for run in runs] == [
        (("xsdd", "tiles"), "neu"),
        (("tiles",), "tiles/cam2"),
        (("tiles",), "tiles:product=B7"),
    ]
    assert {run.left_out for run in plan_of(fleet()).runs} == {None}


def test_all_leaves_out_every_plant_that_is_pooled_with_two_others_once():
    tiles = {"classes": {"free": "ok", "scratch": "scratch"}}
    runs = [run for run in plan_of(fleet(tiles=tiles), leave_out=("xsdd", "all")).runs if run.kind == "without"]
    assert {run.target: run.plants for run in runs} == {
        "xsdd": ("neu", "tiles"),
        "neu": ("xsdd", "tiles"),
        "tiles": ("neu", "xsdd"),
    }
    assert len(runs) == 3
    with pytest.raises(InputError, match="--leave-out: no plant can be left out: none is pooled with two others"):
        plan_of(fleet(), leave_out=("all",))


@pytest.mark.parametrize(
    ("out", "changes", "words"),
    [
        ("tiles", {}, "plant tiles: .*no model without tiles can be fitted: it is not pooled with two others"),
        ("neu", {}, "plant neu: .*it is not pooled with two others"),
        ("tiles:product=B7", {"tiles": {"may_train": False}}, "plant tiles: .*no part may be learned from"),
    ],
)
def test_what_cannot_be_left_out_is_said(out, changes, words):
    with pytest.raises(InputError, match=words):
        plan_of(fleet(**changes), leave_out=[out])


def test_a_run_has_learned_from_what_its_parents_have_learned_from():
    plan = plan_of(fleet())
    assert plan.learned_from(["own-neu-s0"]) == ("neu",)
    assert plan.learned_from(["warm-neu-s0"]) == ("neu", "xsdd")
    assert plan.learned_from(["sister-xsdd-s0"]) == ("neu", "xsdd")
    assert plan.learned_from(["own-neu-s0", "own-xsdd-s0"]) == ("neu", "xsdd")
    assert plan.line("warm-neu-s0") == ["warm-neu-s0", "pooled-s0"]


LABELLED = {
    "neu": {"scratch": 150, "crazing": 190},
    "xsdd": {"scratch": 60, "red": 900},
    "tiles": {"blowhole": 1200},
}


@pytest.mark.parametrize(
    ("labelled", "trained"),
    [
        (LABELLED, {"neu": False, "xsdd": True, "tiles": True, "neu, xsdd": True}),
        (
            {**LABELLED, "neu": {"scratch": 0, "crazing": 0}},
            {"neu": False, "xsdd": True, "tiles": True, "neu, xsdd": False},
        ),
        ({**LABELLED, "tiles": {"blowhole": 199}}, {"neu": False, "xsdd": True, "tiles": False, "neu, xsdd": True}),
        ({**LABELLED, "tiles": {"blowhole": 200}}, {"neu": False, "xsdd": True, "tiles": True, "neu, xsdd": True}),
        ({name: {} for name in LABELLED}, {"neu": False, "xsdd": False, "tiles": False, "neu, xsdd": False}),
    ],
)
def test_by_data_stages_are_trained_from_200_labels_in_the_median_defect_class(labelled, trained):
    plan = plan_of(fleet(), labelled=labelled)
    found = {", ".join(r.plants): bool(r.recipe["stages"]) for r in plan.runs if r.kind in ("own", "pooled")}
    assert found == trained
    for run in plan.runs:
        if run.kind in ("warm", "sister"):
            assert bool(run.recipe["stages"]) == trained[run.plants[0]]


def test_the_strategy_of_every_plant_and_of_those_together_is_said_with_its_count():
    said = strategies(plan_of(fleet(), labelled=LABELLED), labelled=LABELLED)
    assert sorted(said) == [
        "plant neu: 170 labelled images in the median defect class (enough for: frozen features): heads only",
        "plant tiles: 1200 labelled images in the median defect class (enough for: full fine-tuning): "
        "stages are trained after the head",
        "plant xsdd: 480 labelled images in the median defect class (enough for: gradual unfreezing or LoRA): "
        "stages are trained after the head",
        "plants neu, xsdd together: 210 labelled images in the median defect class "
        "(enough for: gradual unfreezing or LoRA): stages are trained after the head",
    ]


def test_all_stages_are_trained_unless_told_otherwise_and_the_deepest_recipe_is_known():
    assert all(run.recipe["stages"] for run in plan_of(fleet()).runs if run.kind in ("own", "pooled", "warm", "sister"))
    assert plan_of(fleet()).deepest == Recipe()
    none = plan_of(fleet(), labelled={name: {} for name in LABELLED})
    assert none.deepest == Recipe(stages=())
    assert none.plan_id != plan_of(fleet()).plan_id


def test_averages_are_planned_only_when_asked_for_and_change_no_other_run():
    plain, more = plan_of(fleet(), seeds=(0, 1)), plan_of(fleet(), seeds=(0, 1), average=True)
    averages = {run.run_id: run.parents for run in more.runs if run.kind == "average"}
    assert [run for run in more.runs if run.kind != "average"] == list(plain.runs)
    assert averages["average-neu-s1"] == ("pooled-s1", "own-neu-s1", "warm-neu-s1")
    assert averages["average-own-neu-s0"] == ("own-neu-s0", "own-neu-s1")
    assert averages["average-own-tiles-s0"] == ("own-tiles-s0", "own-tiles-s1")
    assert "average-tiles-s0" not in averages
    assert Plan.from_json(more.to_json()) == more


def test_an_average_has_learned_from_what_its_parents_have_and_trains_no_stage():
    plan = plan_of(fleet(), average=True)
    run = plan.run("average-neu-s0")
    assert plan.learned_from([run.run_id]) == ("neu", "xsdd")
    assert run.recipe["stages"] == []


def test_what_may_not_leave_a_plant_is_averaged_with_its_own_alone():
    runs = plan_of(fleet(neu={"may_leave": False}), seeds=(0, 1), average=True).runs
    assert {run.parents for run in runs if run.kind == "average" and run.target == "neu"} == {
        ("own-neu-s0", "own-neu-s1")
    }


def test_by_data_leaves_baselines_from_random_weights_as_they_are():
    from_scratch = partial(scratch_recipe, Recipe(), cut=5)
    plan = plan_of(fleet(), labelled={name: {} for name in LABELLED}, from_scratch=from_scratch)
    assert all(Recipe.model_validate(run.recipe).stages for run in plan.runs if run.kind == "scratch")


def test_a_plant_starts_from_the_sister_that_was_measured_to_be_best_where_one_was():
    parts = {"north": 10, "south": 20, "west": 30}
    fleet = toy_fleet(*parts)
    given = {"recipe": default_recipe((0,)), "data_digest": "d", "train_parts": parts, "train_defects": parts}
    plain = make_plan(fleet, **given)
    told = make_plan(fleet, **given, donors={"north": "south", "south": "nobody"})
    assert [plan.run("sister-north-s0").parent for plan in (plain, told)] == ["own-west-s0", "own-south-s0"]
    assert plain.run("sister-south-s0") == told.run("sister-south-s0")
    assert plain.plan_id != told.plan_id
