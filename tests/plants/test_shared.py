"""Macro-F1 over the classes that all plants share."""

from __future__ import annotations

import numpy as np
import pytest

from plants.metrics import report
from plants.plant import Fleet
from plants.scores import PartScores
from plants.shared import shared_classes, shared_f1


def fleet(*plants: dict[str, object]) -> Fleet:
    named = [
        {"name": f"p{i}", "images": "i", "classes": classes, "ok": [n for n, to in classes.items() if to == "ok"]}
        for i, classes in enumerate(plants)
    ]
    return Fleet.model_validate({"fleet": "f", "store": "unused", "plants": named})


def scores(truth: list[str], said: list[str], *, classes: tuple[str, ...]) -> PartScores:
    n = len(truth)
    return PartScores(
        part_ids=np.arange(n),
        lots=np.array([f"L{i // 2}" for i in range(n)]),
        environments=np.full(n, "line"),
        truth=np.array(truth, dtype=object),
        probs=np.array([[float(name == one) for name in classes] for one in said]),
        classes=classes,
        ok=("good",),
    )


def test_what_occurs_at_the_plant_and_all_its_sisters_is_shared_and_good_parts_alone_are_not_enough():
    a = {"good": "ok", "crack": "crack", "dent": "dent"}
    b = {"gut": "ok", "Riss": "crack", "Delle": {"fleet": "dent", "state": "absent"}}
    found = fleet(a, b, {"bon": "ok", "trou": "hole"})
    assert [shared_classes(found, plant) for plant in found.plants] == [
        ("crack", "ok"),
        ("crack", "ok"),
        ("hole", "ok"),
    ]
    chain = fleet(a, {"good": "ok", "dent": "dent", "chip": "chip"}, {"good": "ok", "chip": "chip", "hole": "hole"})
    assert shared_classes(chain, chain.plants[0]) == ()
    good = fleet({"good": "ok"})
    assert shared_classes(good, good.plants[0]) == ()


def test_a_plant_that_shares_every_class_has_the_same_figure_over_shared_classes():
    classes = ("good", "crack", "dent")
    both = fleet({"good": "ok", "crack": "crack", "dent": "dent"}, {"good": "ok", "crack": "crack", "dent": "dent"})
    rng = np.random.default_rng(0)
    truth, said = rng.choice(classes, 60).tolist(), rng.choice(classes, 60, p=[0.6, 0.3, 0.1]).tolist()
    one = scores(truth, said, classes=classes)
    found = shared_f1(one, plant=both.plants[0], shared=shared_classes(both, both.plants[0]), seed=3)
    figure = report(one, seed=3)["macro_f1"]
    assert found is not None
    assert found["n"] == 60
    assert [found[key] for key in ("value", "low", "high")] == pytest.approx(
        [figure[key] for key in ("value", "low", "high")], abs=1e-5
    )


def test_a_divided_class_counts_as_one_and_a_class_of_its_own_only_where_it_is_taken_for_a_shared_one():
    classes = ("good", "oil", "rust", "hole")
    pair = fleet(
        {"good": "ok", "oil": "stain", "rust": "stain", "hole": "hole"}, {"good": "ok", "spot": "stain", "chip": "chip"}
    )
    shared = shared_classes(pair, pair.plants[0])
    assert shared == ("ok", "stain")
    truth = ["good"] * 4 + ["oil", "oil", "rust", "rust", "hole", "hole"]
    said = ["good"] * 4 + ["rust", "oil", "oil", "good", "hole", "oil"]
    found = shared_f1(scores(truth, said, classes=classes), plant=pair.plants[0], shared=shared)
    assert found is not None
    stain, good = 2 * 3 / (4 + 4), 2 * 4 / (4 + 5)
    assert found["value"] == pytest.approx((stain + good) / 2, abs=1e-6)
    assert (found["n"], found["words"]) == (8, "not enough lots")
    alone = scores(["hole"], ["hole"], classes=classes)
    assert shared_f1(alone, plant=pair.plants[0], shared=shared) is None
    assert shared_f1(alone, plant=pair.plants[0], shared=()) is None
