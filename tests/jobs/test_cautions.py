"""What is odd about a recipe is said, and what a fleet cannot be trained by is refused."""

from __future__ import annotations

import pytest

from jobs.cautions import cautions, check_money
from jobs.recipe import Recipe, Stage, default_recipe
from plants.errors import InputError
from plants.plant import Plant


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(stages=()), default_recipe((0, 1, 2)), Recipe(loss="focal")])
def test_nothing_is_said_of_the_defaults(recipe):
    assert cautions(recipe) == []


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (Recipe(batch=4), "batch 4 is outside 8..256"),
        (Recipe(batch=512), "batch 512 is outside 8..256"),
        (Recipe(patience=11), "patience 11 is above 10"),
        (Recipe(dropout=0.6), "dropout 0.6 is above 0.5"),
        (Recipe(stages=(Stage(cut=1, lr_head=0.02),)), "stages.0.lr_head 0.02 is outside 0.001..0.01"),
        (Recipe(stages=(Stage(cut=1, lr_head=5e-4, lr_backbone=1e-4),)), "stages.0.lr_head 0.0005 is outside"),
        (
            Recipe(stages=(Stage(cut=1), Stage(cut=2, lr_head=1e-3))),
            "stages.1.lr_backbone 0.001 is only 1 times below lr_head (0.001)",
        ),
        (
            Recipe(stages=(Stage(cut=1, lr_head=1e-2, lr_backbone=1e-5),)),
            "stages.0.lr_backbone 1e-05 is 1,000 times below lr_head (0.01)",
        ),
        (Recipe(stages=(), loss="focal"), "loss focal has no effect without stages"),
    ],
)
def test_a_setting_outside_its_range_is_said_by_name_with_what_to_expect(recipe, words):
    [said] = cautions(recipe)
    assert said.startswith("recipe: ")
    assert words in said


@pytest.mark.parametrize("rate", [1e-3, 1e-4, 3e-5])
def test_a_backbone_3_to_100_times_slower_than_its_head_is_nothing_to_say(rate):
    assert cautions(Recipe(stages=(Stage(cut=1, lr_head=3e-3, lr_backbone=rate),))) == []


def plant(name: str, **more) -> Plant:
    classes = {"good": "ok", "crack": "crack", "pit": "pit"}
    return Plant.model_validate({"name": name, "images": "x", "classes": classes, "ok": ["good"], **more})


def test_a_loss_in_money_is_refused_where_there_is_none_naming_every_plant_and_another_loss():
    without = Plant.model_validate({"name": "mill", "images": "x", "classes": {"crack": "crack"}})
    free = plant("free", costs={"false_alarm": 0})
    with pytest.raises(InputError) as caught:
        check_money(Recipe(loss="cost"), plants=[plant("works"), without, free])
    assert [fault.split(":")[0] for fault in caught.value.faults] == ["plant mill", "plant free"]
    assert "field ok: loss cost needs a class that is good" in caught.value.faults[0]
    assert all("write loss: weighted or loss: focal" in fault for fault in caught.value.faults)
    for loss in ("weighted", "focal"):
        check_money(Recipe(loss=loss), plants=[without, free])


@pytest.mark.parametrize(
    "costs",
    [
        {"miss": 0},
        {"false_alarm": 0},
        {"miss_by_class": {"pit": 0}},
        {"defect_rate": [0, 0, 0]},
        {"defect_rate": [1, 1, 1]},
    ],
)
def test_money_in_which_a_mistake_is_free_is_refused(costs):
    with pytest.raises(InputError, match=r"plant works: field costs: .*cost something"):
        check_money(Recipe(loss="cost"), plants=[plant("works", costs=costs)])
