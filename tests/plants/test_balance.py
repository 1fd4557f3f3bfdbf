"""How many labels there are, and what for."""

from __future__ import annotations

import pandas as pd
import pytest

from plants.balance import labelled_defects, may_unfreeze, median_class, strategy
from plants.plant import Plant


def test_labels_are_counted_by_fleet_class_of_annotated_defects_and_none_is_0():
    plant = Plant.model_validate(
        {
            "name": "mill",
            "images": "x",
            "classes": {
                "good": "ok",
                "plate": "scale",
                "heat": "scale",
                "pit": "pit",
                "red": {"fleet": "red", "state": "unannotated"},
            },
            "ok": ["good"],
        }
    )
    rows = pd.DataFrame({"class": ["good"] * 9 + ["plate"] * 3 + ["heat"] * 2 + ["red"] + [None] * 4})
    assert labelled_defects(plant, rows) == {"scale": 5, "pit": 0}


@pytest.mark.parametrize(
    ("counts", "median"),
    [
        ([], 0),
        ([{}], 0),
        ([{"a": 3, "b": 500, "c": 40}], 40),
        ([{"a": 100, "b": 300}], 200),
        ([{"a": 100, "b": 10}, {"a": 150, "c": 30}], 30),
        ([{"a": 0}, {"a": 0}], 0),
    ],
)
def test_the_median_class_is_of_all_plants_together(counts, median):
    assert median_class(counts) == median


@pytest.mark.parametrize(
    ("labelled", "words", "unfreezes"),
    [
        (0, "normality only", False),
        (19, "normality only", False),
        (20, "frozen features", False),
        (199.5, "frozen features", False),
        (200, "gradual unfreezing or LoRA", True),
        (999, "gradual unfreezing or LoRA", True),
        (1000, "full fine-tuning", True),
    ],
)
def test_what_a_number_of_labels_is_enough_for(labelled, words, unfreezes):
    assert strategy(labelled) == words
    assert may_unfreeze(labelled) is unfreezes
