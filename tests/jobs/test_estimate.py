"""What a plan costs, as arithmetic on tables of expected values; and what is refused for it."""

from __future__ import annotations

import math

import pytest

from jobs.estimate import (
    GB,
    HEAD_FITS,
    NOTHING,
    RUN_S,
    START_S,
    Inputs,
    Rates,
    Sizes,
    Work,
    check_caps,
    check_room,
    cost,
    epoch_images,
    epochs,
    model_bytes,
    num_steps,
    prepare_seconds,
    run_seconds,
    spread,
    wall_seconds,
    words,
)
from jobs.head import STRENGTHS
from jobs.recipe import Recipe, Stage
from plants.errors import InputError

RATES = Rates(trunk=100, augment=1000, steps={1: 50, 2: 10}, head=math.inf, decode=5)
SIZES = Sizes(activations={0: 10, 1: 90}, input=1000, branches={0: 0, 1: 4000, 2: 9000}, head=100)
TWO = Recipe(stages=(Stage(cut=1, epochs=8), Stage(cut=2, epochs=3)), views=4, batch=16, patience=5)
FROZEN = Recipe(stages=(), views=4)
MEAN = TWO.model_copy(update={"average_epochs": True})
REPLAY = FROZEN.model_copy(update={"replay": 0.6})


def work(run_id: str = "own", *, recipe: Recipe = TWO, train: int = 100, select: int = 0, **more) -> Work:
    return Work(run_id, recipe=recipe, train=train, select=select, num_leaves=3, **more)


@pytest.mark.parametrize(
    ("inputs", "seconds"),
    [
        (Inputs("mill", 100, 20, passes=420, augmented=300), 420 / 100 + 300 / 1000),
        (Inputs("mill", 100, 20, pack_inputs=120, pack_megapixels=30), 6.0),
        (Inputs("mill", 100, 20), 0.0),
    ],
)
def test_a_plant_takes_what_its_frames_its_augmentation_and_its_trunk_passes_take(inputs, seconds):
    assert prepare_seconds(inputs, rates=RATES) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("recipe", "low", "high"),
    [
        (TWO, [6], [8, 3]),
        (TWO.model_copy(update={"patience": 9}), [8], [8, 3]),
        (FROZEN, [], []),
    ],
)
def test_a_run_has_at_most_all_epochs_of_all_stages_and_at_least_its_patience_in_the_first(recipe, low, high):
    assert epochs(recipe, is_low=True) == low
    assert epochs(recipe, is_low=False) == high


def test_a_run_with_a_task_has_twice_the_steps():
    assert num_steps(work(has_task=True)) == 2 * num_steps(work())


def test_replay_adds_images_to_every_step_where_there_are_rows_to_replay():
    recipe = TWO.model_copy(update={"replay": 0.6})
    assert epoch_images(work(recipe=recipe)) == epoch_images(work(known_train=50)) == 112
    assert epoch_images(work(recipe=recipe, known_train=50)) == pytest.approx(112 / 0.4)


@pytest.mark.parametrize(("train", "steps"), [(100, 11 * 7), (96, 11 * 6), (1, 11), (0, 0)])
def test_the_last_step_of_an_epoch_is_a_whole_one(train, steps):
    assert num_steps(work(train=train)) == steps


@pytest.mark.parametrize(
    ("run", "low", "high"),
    [
        (work(recipe=FROZEN), 0, 0),
        (work(), 6 * 112 / 50, 8 * 112 / 50 + 3 * 112 / 10),
        (work(select=30), 6 * 122 / 50, 8 * 122 / 50 + 3 * 122 / 10),
        (work(parents=("pooled",), has_start=True), 400 / 30 + 6 * 112 / 50, 400 / 30 + 8 * 112 / 50 + 3 * 112 / 10),
        (work(has_start=True, is_judged=True), 800 / 30 + 6 * 112 / 50, 800 / 30 + 8 * 112 / 50 + 3 * 112 / 10),
        (
            work(parents=("pooled",), has_start=True, known_train=50, known_select=30),
            460 / 30 + 6 * 112 / 50,
            460 / 30 + 8 * 112 / 50 + 3 * 112 / 10,
        ),
        (work(recipe=MEAN, select=30), 6 * 132 / 50, 8 * 132 / 50 + 3 * 132 / 10),
        (work(has_task=True), 6 * 112 / 50, 2 * (8 * 112 / 50 + 3 * 112 / 10)),
        (work(is_normality=True), 0, 0),
    ],
)
def test_a_run_takes_its_images_at_the_rate_of_each_cut(run, low, high):
    assert run_seconds(run, rates=RATES, is_low=True) == pytest.approx(RUN_S + low)
    assert run_seconds(run, rates=RATES, is_low=False) == pytest.approx(RUN_S + high)


@pytest.mark.parametrize(
    ("given", "rows"),
    [
        ({}, HEAD_FITS * 400 + 4 * 30),  # every strength, and again with select out of fold
        ({"recipe": REPLAY, "known_train": 50}, HEAD_FITS * 450 + 4 * 30),
        ({"known_train": 50, "known_select": 20}, HEAD_FITS * 400 + 4 * 30),
        ({"is_judged": True}, HEAD_FITS * 400 + 4 * 30 + 2 * 4 * len(STRENGTHS) * 430),
    ],
)
def test_a_head_learns_replayed_rows_too_and_a_donor_is_judged_by_heads_of_four_folds_of_five_on_either_side(
    given, rows
):
    rates = Rates(trunk=1, augment=1, steps={}, head=1000)
    found = run_seconds(work(**{"recipe": FROZEN, "select": 30, **given}), rates=rates, is_low=True)
    assert found == pytest.approx(RUN_S + rows * 3 / 1000)


@pytest.mark.parametrize(
    ("seconds", "lanes", "wall"), [([4, 4, 4], 2, 6), ([10, 1, 1], 2, 10), ([], 2, 0), ([3], 1, 3)]
)
def test_tasks_take_their_share_of_the_lanes_or_as_long_as_the_longest(seconds, lanes, wall):
    assert spread(seconds, lanes=lanes) == wall


@pytest.mark.parametrize(
    ("works", "lanes", "wall"),
    [
        ([work("a"), work("b"), work("c")], 2, 9),
        ([work("a"), work("b", parents=("a",)), work("c", parents=("b",))], 2, 18),
        ([work("a"), work("b", parents=("done before",))], 2, 6),
        ([work("a", is_shared=True), work("b", parents=("a",))], 2, 9),
        ([], 2, 0),
    ],
)
def test_a_run_waits_for_its_parent_and_a_shared_one_has_all_lanes(works, lanes, wall):
    assert wall_seconds(works, seconds=dict.fromkeys("abc", 6.0), lanes=lanes) == wall


@pytest.mark.parametrize(
    ("run", "copies"),
    [
        (work(train=10), 2),
        (work(train=1000), 8),
        (work(is_normality=True), 0),
    ],
)
def test_a_run_stores_its_model_what_others_start_from_and_a_state_where_it_takes_long(run, copies):
    assert model_bytes(run, rates=RATES, sizes=SIZES) == copies * (9000 + 3 * 100)


def test_a_plan_is_the_sum_of_its_parts():
    inputs = [Inputs("mill", 100, 20, 420, 300, pack_inputs=120, pack_megapixels=30), Inputs("oven", 50, 5)]
    found = cost(
        [work(), work("frozen", recipe=FROZEN)], inputs=inputs, rates=RATES, sizes=SIZES, lanes=2, trunk_lanes=1
    )
    assert (found.runs, found.steps, found.images, found.trunk_passes) == (2, 77, 77 * 16, 420)
    assert (found.cache_bytes, found.pack_bytes) == (420 * 100, 120 * 1000)
    assert found.prepare_s == pytest.approx(6 + 4.5)
    assert found.seconds_low == pytest.approx(START_S + 10.5 + RUN_S + 6 * 112 / 50)
    assert found.seconds_high == pytest.approx(START_S + 10.5 + RUN_S + 8 * 112 / 50 + 3 * 112 / 10)
    document = found.to_json()
    assert {"hours", "seconds_low", "seconds_high", "cache_bytes", "store_bytes", "runs"} <= set(document)
    assert document["plants"][0] == {"name": "mill", "train": 100, "select": 20, "passes": 420}
    assert "420 trunk passes of 175 inputs; 2 runs, at most 77 steps on 1,232 images" in words(found)[0]


def test_a_plan_that_is_done_costs_nothing_and_is_within_every_cap():
    check_caps(NOTHING, max_hours=0, max_gb=0)
    assert (NOTHING.hours, NOTHING.gb) == (0, 0)
    assert words(NOTHING) == ["cost: nothing is left to do"]


def costly(**changes: float):
    numbers = {"seconds_high": 7200.0, "cache_bytes": 2 * GB, "pack_bytes": GB, "store_bytes": GB} | changes
    return type(NOTHING)(**{**vars(NOTHING), **numbers})


@pytest.mark.parametrize(
    ("caps", "said"),
    [
        ({"max_hours": 1.5}, "field --max-hours: the plan takes up to 2 hours, more than 1.5. Fewer plants"),
        ({"max_gb": 3.9}, "field --max-gb: the plan writes up to 4 GB, more than 3.9. Fewer plants"),
        ({"max_hours": 2, "max_gb": 4}, None),
        ({}, None),
    ],
)
def test_a_plan_above_a_cap_is_refused_with_the_figure_the_cap_and_what_to_do(caps, said):
    if said is None:
        check_caps(costly(), **caps)
        return
    with pytest.raises(InputError) as refused:
        check_caps(costly(), **caps)
    assert str(refused.value).startswith(said)
    assert len(refused.value.faults) == 1


def test_a_plan_that_the_disk_has_no_room_for_is_refused_and_one_that_just_fits_is_not():
    check_room(1000, free=1000, place="/cache")
    with pytest.raises(InputError, match=r"file /cache: the plan writes 2 GB there, and 1.5 GB are free. Free some"):
        check_room(2 * 10**9, free=15 * 10**8, place="/cache")
