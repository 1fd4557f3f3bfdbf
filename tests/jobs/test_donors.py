"""Who helps whom is measured as the guard measures it, and many arrows are not each taken at their word."""

from __future__ import annotations

import re

import numpy as np
import pytest

from jobs.donor_graph import donors_html
from jobs.donors import best_donors, donors_at, graph, holm

FOUND = {"refused": False, "n_lots": 30, "why": None}


def arrow(donor: str, plant: str, gain: float | None, half: float = 0.083, **more):
    ends = (None, None) if gain is None else (gain - half, gain + half)
    return {"donor": donor, "plant": plant, "gain": gain, "low": ends[0], "high": ends[1], **FOUND, **more}


@pytest.mark.slow
def test_the_graph_says_of_every_donor_what_the_guard_said_when_it_was_taken_up(works):
    exports = works.exports()
    done = [run.run_id for run in works.plan.runs]
    for name in ("arden", "essen"):
        (row,) = donors_at(name, plan=works.plan, material=exports.material, done=done, seed=0)
        run = works.plan.run(f"sister-{name}-s0")
        assert run.parent == f"own-{row['donor']}-s0"
        judged = works.store.read_json(f"runs/{works.plan.plan_id}/{run.run_id}/model.json")["donor"]
        told = {key: row[key] for key in ("gain", "low", "high", "refused")}
        assert told == pytest.approx(
            {**{key: judged[key] for key in told if key != "gain"}, "gain": judged["difference"]}
        )
        assert row["n_lots"] >= 1


def test_a_donor_that_is_not_finished_or_may_not_leave_is_named_with_why_and_one_that_shares_nothing_is_none(works):
    exports = works.exports()
    given = {"plan": works.plan, "material": exports.material, "seed": 0}
    (row,) = donors_at("arden", done=[], **given)
    assert (row["donor"], row["gain"], row["why"]) == ("essen", None, "it has no finished model of its own")
    done = [run.run_id for run in works.plan.runs]
    plants = {plant.name: plant for plant in works.fleet.plants}
    held = plants["essen"].model_copy(update={"may_leave": False})
    exports.material.fleet = works.fleet.model_copy(update={"plants": (plants["arden"], held)})
    (row,) = donors_at("arden", done=done, **given)
    assert (row["gain"], row["why"]) == (None, "its images may teach no other plant's model")
    assert graph([row])[0]["words"] == "cannot"
    strange = {name: value.model_copy(update={"fleet": f"x{name}"}) for name, value in held.classes.items()}
    other = plants["essen"].model_copy(update={"classes": {**strange, "gut": held.classes["gut"]}})
    exports.material.fleet = works.fleet.model_copy(update={"plants": (plants["arden"], other)})
    assert donors_at("arden", done=done, **given) == []


def test_help_is_claimed_over_the_whole_graph_and_harm_where_the_guard_refuses():
    clear, alone = arrow("a", "b", 1.0), arrow("b", "a", 0.11)
    assert [row["words"] for row in graph([alone])] == ["helps"]
    many = [clear, alone, *(arrow(f"n{i}", "c", 0.01) for i in range(10))]
    said = {(row["donor"], row["plant"]): row["words"] for row in graph(many)}
    assert said["a", "b"] == "helps"
    assert {said["b", "a"], said["n0", "c"]} == {"no difference shown"}
    harms, few = arrow("c", "a", -0.11, refused=True), arrow("d", "a", 0.5, low=None, high=None, n_lots=4)
    assert [row["words"] for row in graph([harms, few, *many])[:2]] == ["harms", "not enough lots"]


@pytest.mark.parametrize("seed", range(5))
def test_of_arrows_that_are_all_chance_hardly_any_fleet_claims_one(seed):
    rng = np.random.default_rng(seed)
    claimed = 0
    for _ in range(200):
        rows = [arrow(f"d{i}", "p", gain, half=1.699) for i, gain in enumerate(rng.normal(size=30))]
        claimed += any(row["words"] == "helps" for row in graph(rows))
    assert claimed / 200 < 0.08


def test_holms_p_values_are_those_of_a_table():
    assert holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]


def test_the_best_donor_gains_most_and_is_not_refused():
    rows = [arrow("a", "p", 0.2), arrow("b", "p", 0.3), arrow("c", "p", 0.9, refused=True), arrow("d", "p", None)]
    assert best_donors([*rows, arrow("a", "q", 0.1), arrow("b", "q", -0.1)]) == {"p": "b", "q": "a"}
    assert best_donors([arrow("a", "p", -0.2), arrow("d", "p", None)]) == {}


def test_the_section_shows_every_figure_and_escapes_names_and_says_what_was_not_measured():
    rows = graph(
        [
            arrow("a<b", "mill", 0.75),
            arrow("c", "mill", -0.5, refused=True),
            arrow("d", "mill", None, why="it is closed"),
        ]
    )
    html = donors_html({"donors": rows})
    assert "<h2>Who helps whom</h2>" in html
    assert "a&lt;b" in html
    assert "a<b" not in html
    values = {float(value) for value in re.findall(r'<data value="([^"]+)"', html)}
    assert {row[key] for row in rows[:2] for key in ("gain", "low", "high", "p_holm", "n_lots")} <= values
    assert "▲ +0.75" in html
    assert "▼ -0.50" in html
    assert "it is closed: d → mill" in html
    assert donors_html({}) == donors_html({"donors": rows[2:]}) == ""
