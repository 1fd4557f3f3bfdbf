"""Every plant is left out in turn, its labels arrive, and what happened stands beside what the others forecast."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from cluster.settings import Settings
from jobs.arrival import Newcomer, arrival
from jobs.compare import compare_fleet
from jobs.fit import fit_run
from jobs.fleet import planned
from jobs.forecast import METRICS, forecast
from jobs.leave_out import ALL
from jobs.material import Material
from jobs.outlook import forecast_html, forecast_words, show_forecast
from jobs.recipe import Recipe
from jobs.report import report_html
from jobs.scoring import role_inputs
from plants.plant import Fleet, load_fleet
from plants.synthetic import make_fleet
from tests.fleets import Works, console, imported

NAMES = ("arden", "brno", "delft", "essen")


@pytest.fixture(scope="module")
def works(tmp_path_factory) -> tuple[Works, list[str]]:
    """Four plants, heads only: own models, and one without each; the runs that are done."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("newcomers")
    path = make_fleet(folder, seed=1, scale=0.15, only=NAMES, processes=1)
    raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    raw["shares"] = {"train": 0.4, "select": 0.1, "decide": 0.45, "test": 0.05}
    for plant in raw["plants"]:
        plant.pop("shares", None)
    Path(path).write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")
    fleet, recipe = imported(path), Recipe(stages=(), views=1)
    settings = Settings(home=folder / "home", slots=1)
    material = Material(fleet, cache=settings.cache, recipe=recipe)
    plan = planned(fleet, material=material, recipe=recipe, leave_out=[ALL])
    done = [run for run in plan.runs if run.kind in ("own", "without")]
    for run in done:
        fit_run(run, material=material, plan=plan)
    return Works(load_fleet(path), settings, plan), [run.run_id for run in done]


@pytest.fixture(scope="module")
def judged(works) -> dict:
    """What `compare` says of them."""
    fleet, run_ids = works
    return compare_fleet(fleet.fleet, plan=fleet.plan, exports=fleet.exports(), done=run_ids, seed=0)


@pytest.mark.slow
def test_all_leaves_every_plant_out_in_turn(works):
    runs = [run for run in works[0].plan.runs if run.kind == "without"]
    assert {run.target: set(run.plants) for run in runs} == {name: set(NAMES) - {name} for name in NAMES}


@pytest.mark.slow
def test_every_plant_has_its_day_one_its_curve_and_what_the_other_three_forecast(judged):
    found = judged["forecast"]
    assert {row["plant"] for row in found["plants"]} == set(NAMES)
    for row in found["plants"]:
        name, first = row["plant"], row["day_one"]["macro_f1"]
        assert row["model"] == f"without-{name}-s0"
        assert first["found"]["value"] == pytest.approx(judged["matrix"][row["model"]][name]["macro_f1"], abs=1e-6)
        assert row["day_one"]["auc"]["found"]["value"] == judged["matrix"][row["model"]][name]["auc"]
        assert first["forecast"]["num_plants"] == 3
        assert first["holds"] == (first["forecast"]["low"] <= first["found"]["value"] <= first["forecast"]["high"])
        sizes = [point["labels"] for point in row["curve"]]
        assert sizes[:3] == [0, 5, 10]
        assert sizes == sorted(sizes)
        assert row["curve"][0]["macro_f1"]["value"] == first["found"]["value"]
        assert 0 <= row["labels"]["found"]["labels"] <= sizes[-1]
    assert found["next"]["day_one"]["macro_f1"]["num_plants"] == 4
    assert found["held"]["macro_f1"]["of"] == 4
    ends = [(row["curve"][0]["macro_f1"]["value"], row["curve"][-1]["macro_f1"]["value"]) for row in found["plants"]]
    assert np.mean([last - first for first, last in ends]) > 0.15


@pytest.mark.slow
def test_what_the_others_forecast_does_not_hang_on_the_plant_itself(judged, works):
    rows = judged["forecast"]["plants"]
    arrivals = [{**row, "day_one": {m: row["day_one"][m]["found"] for m in METRICS}} for row in rows]
    changed = [dict(one) for one in arrivals]
    changed[0]["day_one"] = {m: {**figure, "value": 0.5} for m, figure in arrivals[0]["day_one"].items()}
    again, other = (forecast(works[0].fleet, arrivals=given) for given in (arrivals, changed))
    told = {row["plant"]: row["day_one"]["macro_f1"]["forecast"] for row in again["plants"]}
    assert told == {row["plant"]: pytest.approx(row["day_one"]["macro_f1"]["forecast"]) for row in rows}
    after = {row["plant"]: row["day_one"]["macro_f1"]["forecast"] for row in other["plants"]}
    name = rows[0]["plant"]
    assert after[name] == pytest.approx(told[name])
    assert all(abs(after[key]["value"] - told[key]["value"]) > 1e-6 for key in after if key != name)


@pytest.mark.slow
def test_a_head_of_no_gain_is_not_taken_and_labels_of_a_plant_are_those_it_may_learn_from(works):
    fleet, _ = works
    exports = fleet.exports()
    inputs = role_inputs("delft", role="decide", exports=exports)
    new = Newcomer("delft", run=fleet.plan.run("without-delft-s0"), inputs=inputs)
    rows = exports.material.rows("delft")
    able = set(rows.loc[rows["role"].isin(["train", "select"]), "part_id"])
    assert {part for order in new.orders for part in order} == able
    days = rows.groupby("part_id")["captured_at"].min()
    assert list(days.loc[new.orders[0]]) == sorted(days.loc[list(able)])
    first = new.scores(new.orders[0][:1])  # one lot: nothing says that a head of it is better
    assert np.allclose(first.probs, new.day_one().probs, atol=1e-4)
    assert not np.allclose(new.scores(new.orders[0]).probs, first.probs, atol=1e-2)


@pytest.mark.slow
def test_without_such_a_run_there_is_no_arrival_and_two_plants_are_no_forecast(works, judged):
    fleet, _ = works
    inputs = role_inputs("delft", role="decide", exports=fleet.exports())
    assert arrival("delft", plan=fleet.plan, run_ids=["own-delft-s0"], inputs=inputs, seed=0) is None
    rows = judged["forecast"]["plants"]
    arrivals = [{**row, "day_one": {m: row["day_one"][m]["found"] for m in METRICS}} for row in rows]
    assert forecast(fleet.fleet, arrivals=arrivals[:2]) is None
    three = forecast(fleet.fleet, arrivals=arrivals[:3])
    assert three["plants"][0]["day_one"]["macro_f1"]["forecast"]["words"] == "not enough plants"
    assert three["next"]["day_one"]["macro_f1"]["value"] is not None
    assert three["held"]["macro_f1"] == {"hits": 0, "of": 0}


@pytest.mark.slow
def test_the_report_and_the_terminal_say_what_the_document_says(judged):
    found, (show, shown) = judged["forecast"], console()
    page = report_html(judged)
    assert "What a new plant can expect" in page
    assert forecast_html(found) in page
    values = set(map(float, re.findall(r'<data value="([^"]+)">', forecast_html(found))))
    for row in found["plants"]:
        for told in row["day_one"].values():
            assert {told["found"]["value"], told["forecast"]["low"], told["forecast"]["high"]} <= values
        assert row["labels"]["found"]["labels"] in values
    assert {found["next"]["labels"][key] for key in ("value", "high")} <= values
    assert page.count("<svg") >= 2
    show_forecast(found, show=show)
    assert "A new plant, by leaving each out" in shown()
    assert forecast_words(found) in shown().replace("\n", " ")


def test_where_nothing_was_left_out_nothing_is_shown():
    show, shown = console()
    show_forecast(None, show=show)
    assert (forecast_html(None), shown()) == ("", "")


# --- forecasts of plain figures


def plain_fleet(*names: str, **costs) -> Fleet:
    plants = [
        {
            "name": name,
            "images": "unused",
            "classes": {"good": "ok", "dent": "dent", "crack": "crack"},
            "ok": ["good"],
            "costs": costs,
        }
        for name in names
    ]
    return Fleet.model_validate({"fleet": "f", "store": "s", "plants": plants})


def plain_arrival(name: str, *levels: float, lots: bool = True, caught: float = 0.9) -> dict:
    def figure(value):
        ends = (max(value - 0.1, 0), min(value + 0.1, 1)) if lots and value is not None else (None, None)
        words = None if lots else "not enough lots"
        return {"value": value, "low": ends[0], "high": ends[1], "words": words, "n": 50}

    sizes = (0, 5, 10, 20, 50)[: len(levels)]
    curve = [
        {
            "labels": size,
            "macro_f1": figure(value),
            "defect_recall": figure(value),
            "caught": {"dent": min(1, caught + value / 10), "crack": 1.0},
        }
        for size, value in zip(sizes, levels, strict=True)
    ]
    day_one = {metric: figure(levels[0]) for metric in METRICS}
    words = None if len(levels) > 1 else "no label"
    given = {"model": "m", "n": 50, "n_lots": 20, "num_orders": 4, "words": words}
    return {"plant": name, "day_one": day_one, "curve": curve, **given}


def test_plants_that_are_all_without_fault_are_forecast_without_promising_it():
    fleet = plain_fleet(*"abcd")
    found = forecast(fleet, arrivals=[plain_arrival(name, 1.0, 1.0) for name in "abcd"])
    first = found["next"]["day_one"]["macro_f1"]
    assert first["low"] < 0.99 < first["value"] < 1
    assert {row["labels"]["found"]["labels"] for row in found["plants"]} == {0.0}
    assert found["held"]["labels_within_factor_2"] == {"hits": 4, "of": 4}
    assert found["held"]["macro_f1"] == {"hits": 4, "of": 4}


def test_a_plant_without_labels_has_its_day_one_and_words_in_place_of_the_rest():
    arrivals = [plain_arrival("a", 0.4), *(plain_arrival(name, 0.4, 0.6, 0.8) for name in "bcde")]
    found = forecast(plain_fleet(*"abcde"), arrivals=arrivals)
    (row,) = (row for row in found["plants"] if row["plant"] == "a")
    assert row["labels"]["found"] is None
    assert (row["labels"]["holds"], row["labels"]["is_near"]) == (None, None)
    assert row["labels"]["forecast"]["num_plants"] == 4
    assert row["day_one"]["macro_f1"]["holds"]
    page = forecast_html(found)
    assert "no label" in page
    show, shown = console()
    show_forecast(found, show=show)
    assert "no label" in shown()


def test_without_bad_parts_or_lots_what_is_not_counted_is_not_forecast():
    arrivals = [plain_arrival(name, 0.4, 0.6, lots=False) for name in "abcd"]
    for one in arrivals[:3]:
        one["day_one"]["auc"] = {"value": None, "low": None, "high": None, "words": "nothing counted", "n": 50}
    found = forecast(plain_fleet(*"abcd"), arrivals=arrivals)
    assert found["next"]["day_one"]["auc"]["words"] == "not enough plants"
    assert {row["day_one"]["auc"]["holds"] for row in found["plants"]} == {None}
    assert found["next"]["day_one"]["macro_f1"]["value"] == pytest.approx(0.4, abs=0.01)
    assert "not enough plants" in forecast_html(found)


def test_the_recall_floors_of_the_costs_are_the_floor_and_may_not_be_reached():
    fleet = plain_fleet(*"abcd", recall_floor=0.95)
    found = forecast(fleet, arrivals=[plain_arrival(name, 0.2, 0.6, 0.8, caught=0.86) for name in "abcd"])
    (row, *_) = found["plants"]
    assert row["labels"]["floor"] == "not taken for good: 95% of dent, 95% of crack"
    assert (row["labels"]["found"]["labels"], row["labels"]["found"]["words"]) == (None, "more than 10")
    assert found["next"]["labels"]["words"] == "4 of 4 plants did not get there"
    assert "more than 10" in forecast_html(found)
    held = forecast(fleet, arrivals=[plain_arrival(name, 0.2, 0.6, 0.8, caught=0.89) for name in "abcd"])
    assert 0 < held["plants"][0]["labels"]["found"]["labels"] <= 10


def test_a_wider_margin_is_reached_with_fewer_labels():
    fleet, arrivals = plain_fleet(*"abcd"), [plain_arrival(name, 0.2, 0.4, 0.6, 0.7, 0.75) for name in "abcd"]
    near, far = (forecast(fleet, arrivals=arrivals, margin=margin) for margin in (0.02, 0.3))
    assert far["next"]["labels"]["value"] < near["next"]["labels"]["value"]
    assert "30 points under that of all labels" in far["plants"][0]["labels"]["floor"]
