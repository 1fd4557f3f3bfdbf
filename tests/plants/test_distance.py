"""A plant moved by a known amount is as far as that; halves of one plant, and stations alike, are one apart."""

from __future__ import annotations

import re

import numpy as np
import pytest

from plants.distance import FAR, MAX_FRAMES, Look, distances, pretraining_findings, sister_findings
from plants.plant import Fleet, Plant


def look(name: str, seed: int, *, shift: float = 0.0, spread: float = 1.0, num: int = 400, per_lot: int = 4) -> Look:
    """Features of 40 directions, lots that differ a little; all moved by `shift` deviations in each direction."""
    rng = np.random.default_rng((seed, *map(ord, name)))
    lots = np.arange(num) // per_lot
    features = rng.normal(0, 1, (num, 40)) + rng.normal(0, 0.3, (num, 40))[lots]
    names = np.array([f"L{lot}" for lot in lots], dtype=object)
    return Look(name, (spread * features + shift).astype(np.float32), names)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num", [120, 400, 1200])
def test_plants_alike_are_one_apart_however_many_frames_they_have(num, seed):
    for value in distances([look("a", seed, num=num), look("b", seed, num=400)], seed=seed).values():
        assert value == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shift", [1.0, 2.0, 4.0])
def test_a_plant_moved_by_a_known_amount_is_as_far_as_that(shift, seed):
    table = distances([look("a", seed), look("b", seed, shift=shift)], seed=seed)
    per_direction = 1 + 0.3**2
    assert table["a", "b"] == pytest.approx(np.sqrt((per_direction + shift**2) / per_direction), rel=0.1)


def test_a_plant_that_varies_little_sees_others_farther_than_they_see_it():
    table = distances([look("steady", 0, spread=0.3), look("varied", 0)])
    assert table["steady", "varied"] > 2.5
    assert table["varied", "steady"] < 1


def test_few_lots_and_images_that_are_all_alike_have_no_distance():
    few = look("few", 0, num=36)
    same = Look("same", np.ones((200, 40), dtype=np.float32), look("x", 0, num=200).lots)
    table = distances([few, same, look("b", 0)])
    assert table["few", "b"] is None
    assert table["same", "b"] is None
    assert table["b", "few"] == pytest.approx(1, abs=0.15)


def test_many_frames_are_drawn_from_and_the_answer_is_the_same_each_time():
    many = look("many", 0, num=MAX_FRAMES + 800)
    first, again = (distances([many, look("b", 0)], seed=3) for _ in range(2))
    assert first == again
    assert first["many", "b"] == pytest.approx(1, abs=0.1)


# --- findings --------------------------------------------------------------------------------------------------------


def fleet(*names: str, alone: str | None = None) -> Fleet:
    classes = {"good": "ok", "crack": "crack"}
    plants = [Plant.model_validate({"name": n, "images": "x", "classes": classes, "ok": ["good"]}) for n in names]
    if alone:
        plants.append(Plant.model_validate({"name": alone, "images": "x", "classes": {"tear": "tear"}}))
    return Fleet(fleet="f", store="s", plants=tuple(plants))


@pytest.mark.parametrize("seed", range(3))
def test_only_the_plant_whose_nearest_sister_is_far_is_warned(seed):
    names = ["arden", "brno", "delft", "lone"]
    looks = [look("arden", seed), look("brno", seed), look("delft", seed, shift=4.0), look("lone", seed, shift=9.0)]
    found = {f.plant: f for f in sister_findings(fleet(*names[:3], alone="lone"), distances(looks), names=names)}
    assert {name: (f.level, f.kind) for name, f in found.items()} == {
        "arden": ("info", "near_sisters"),
        "brno": ("info", "near_sisters"),
        "delft": ("warning", "far_from_sisters"),
    }
    said = [float(value) for value in re.findall(r"(?:arden|brno) ([\d.]+)", found["delft"].detail)]
    assert said == pytest.approx([np.sqrt(1 + 4**2 / 1.09)] * 2, rel=0.05)
    assert "nearest is another world" in found["delft"].detail


def test_the_distance_from_the_pretraining_is_a_warning_when_far_and_said_to_be_unknown_when_it_is():
    found = pretraining_findings({"a": FAR, "b": 1.1, "c": None}, weights="hub")
    assert [(f.plant, f.level, f.kind) for f in found] == [
        ("a", "warning", "far_from_pretraining"),
        ("b", "info", "near_pretraining"),
        ("c", "info", "pretraining_unknown"),
    ]
    assert "not known: no images of it came with weights hub" in found[2].detail
