"""The report says what the document says, escapes what is the user's, and needs nothing but itself."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import colormaps

from jobs.alarms import WITHDRAWN
from jobs.cells import SYNTHETIC
from jobs.matrix import COLOURS, ink_on, luminance
from jobs.page import STYLE
from jobs.report import report_html, write_report
from plants.costs import solve
from plants.metrics import report
from plants.plant import Costs
from plants.scores import PartScores

PLANTS = {"panel": (("gut", "Kratzer groß", "<b>x</b> & 'y'"), ("gut",)), "mill": (("scale", "scratch"), ())}
VOID = {"meta", "br", "img", "path", "use", "image"}


def figures(plant: str, *, skill: float, lots: int) -> dict[str, Any]:
    classes, ok = PLANTS[plant]
    rng = np.random.default_rng(int(10 * skill))
    n = 120
    truth = rng.integers(0, len(classes), n)
    logits = rng.normal(size=(n, len(classes)))
    logits[np.arange(n), truth] += skill
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    scores = PartScores(
        part_ids=np.array([f"p{i}" for i in range(n)], dtype=object),
        lots=np.array([f"l{i % lots}" for i in range(n)], dtype=object),
        environments=np.array([f"cam<{i % 2}>" for i in range(n)], dtype=object),
        truth=np.array(classes, dtype=object)[truth],
        probs=probs,
        classes=classes,
        ok=ok,
    )
    policy = solve(scores, costs=Costs(), plant=plant) if ok else None
    return report(scores, policy=policy, n_boot=50)


def cell(found: dict[str, Any]) -> dict[str, Any]:
    f1, cost, auc = found["macro_f1"], found["cost"] or {}, found["auc"] or {}
    name, row = min(found["per_class"].items(), key=lambda item: item[1]["recall"]["value"])
    return {
        **{"macro_f1": f1["value"], "macro_f1_low": f1["low"], "macro_f1_high": f1["high"]},
        **{"cost": cost.get("value"), "cost_low": cost.get("low"), "cost_high": cost.get("high")},
        **{"recall": row["recall"]["value"], "recall_class": name, "auc": auc.get("value")},
        **{"n": found["n"], "n_lots": found["n_lots"]},
    }


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    details = {
        "panel": {"chosen": figures("panel", skill=2.5, lots=20), "frozen": figures("panel", skill=1.2, lots=20)},
        "mill": {"chosen": figures("mill", skill=3.1, lots=5), "frozen": None},
    }
    matrix = {
        "own-panel-s0": {
            "panel": cell(details["panel"]["chosen"]),
            "mill": dict.fromkeys(cell(details["mill"]["chosen"])),
        },
        "frozen-panel-s0": {"panel": cell(details["panel"]["frozen"])},
        "pooled-s0": {"mill": cell(details["mill"]["chosen"])},
    }
    interval = {"metric": "cost", "diff": -321.5, "low": -400.25, "high": -12.125, "words": None}
    no_interval = {"metric": "macro_f1", "diff": 0.0123, "low": None, "high": None, "words": "not enough lots"}
    decisions = {
        "panel": {"model": "own-panel-s0", "kind": "own", "why": "cheapest & <best>", "interval": interval},
        "mill": {"model": "pooled-s0", "kind": "pooled", "why": "only one", "interval": no_interval},
    }
    for decision in decisions.values():
        decision.update(against="frozen-panel-s0", bundle="b" * 64, policy_digest="c" * 64, members=["own-panel-s0"])
    decisions["panel"] |= {"answer": "better", "gain": {**interval, "diff": -777.25}}
    decisions["mill"]["answer"] = "not enough lots"
    decisions["panel"]["policy"] = {"pass_below": 0.0125, "reject_above": 0.75, "note": ["floors <b>met</b>"]}
    models = {run: {"kind": run.split("-")[0], "plants": [], "cut": 0, "tier": "head", "seed": 0} for run in matrix}
    found = {"fleet": "steel", "synthetic": True, "plan": "steel-abc", "seed": 0, "plants": ["panel", "mill"]}
    return json.loads(
        json.dumps({**found, "models": models, "matrix": matrix, "decisions": decisions, "details": details})
    )


class Page(HTMLParser):
    """What a reader's browser would make of a page; fails on tags that do not close."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.values: list[tuple[str, str]] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self._value: str | None = None
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.add(tag)
        self.links += [str(value) for key, value in attrs if key in ("src", "href", "xlink:href", "action")]
        self.ids += [str(found["id"])] if "id" in found else []
        self._value = found.get("value") if tag == "data" else None
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)
        if self._value is not None:
            self.values.append((self._value, data))
            self._value = None

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def page(document) -> Page:
    return Page(report_html(document))


def numbers(value: Any) -> set[str]:
    if isinstance(value, dict | list):
        return {n for item in (value.values() if isinstance(value, dict) else value) for n in numbers(item)}
    return {repr(value)} if isinstance(value, int | float) and not isinstance(value, bool) else set()


def test_every_figure_is_the_documents_own_and_rounded_from_it(page, document):
    assert len(page.values) > 100
    assert {value for value, _ in page.values} <= numbers(document)
    for value, shown in page.values:
        exact, seen = float(value), float(shown.replace(",", ""))
        assert any(abs(scale * exact - seen) <= step for scale, step in ((100, 0.0501), (1, 0.501)))


def test_what_the_reader_asks_of_the_document_is_on_the_page(page, document):
    shown = {value for value, _ in page.values}
    for name in ("panel", "mill"):
        chosen = document["details"][name]["chosen"]
        assert {repr(chosen["macro_f1"]["value"]), repr(chosen["n"]), repr(chosen["n_lots"])} <= shown
        assert {repr(row["recall"]["value"]) for row in chosen["per_class"].values()} <= shown
        assert {repr(row["macro_f1"]) for row in chosen["by_environment"].values()} <= shown
        assert {repr(n) for row in chosen["confusion"]["counts"] for n in row} <= shown
    panel = document["details"]["panel"]
    for side in (panel["chosen"], panel["frozen"]):
        assert {repr(side["cost"][end]) for end in ("value", "low", "high")} <= shown
        assert repr(side["verdicts"]["escapes"]["value"]) in shown
    assert {repr(document["decisions"]["panel"]["interval"][end]) for end in ("diff", "low", "high")} <= shown


def test_the_decision_names_its_thresholds_notes_digests_and_its_gain(page):
    shown = {value for value, _ in page.values}
    assert {"0.0125", "0.75", "-777.25"} <= shown
    for words in ("floors <b>met</b>.", "b" * 64, "c" * 64, "to the frozen baseline: -777"):
        assert words in page.text


def test_the_page_asks_nothing_of_the_network(page):
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert all(link.startswith("#") for link in page.links)
    assert not page.tags & {"script", "link", "iframe", "img", "object", "base"}


def test_names_of_classes_plants_and_reasons_cannot_become_markup(page):
    assert "b" not in page.tags
    assert "<b>x</b> & 'y'" in page.text
    assert "cheapest & <best>" in page.text
    assert "cam<0>" in page.text
    assert "Kratzer groß" in page.text


def test_synthetic_data_are_said_to_be_synthetic_and_real_ones_are_not(page, document):
    assert page.text.count(SYNTHETIC) == 2
    assert SYNTHETIC not in Page(report_html({**document, "synthetic": False})).text


def test_plants_come_in_the_documents_order_worst_first(page):
    assert [name for name in page.ids if name.startswith("plant-")] == ["plant-panel", "plant-mill"]


def test_environments_come_worst_first_whatever_the_order_of_the_json(document):
    changed = copy.deepcopy(document)
    found = {"cam-good": 0.99, "cam-unseen": None, "cam-bad": 0.11, "cam-fair": 0.55}
    changed["details"]["mill"]["chosen"]["by_environment"] = {
        name: {"macro_f1": value, "low": None, "high": None, "words": None, "n": 3, "n_lots": 2}
        for name, value in found.items()
    }
    text = Page(report_html(changed)).text
    at = [text.index(f" {name} ") for name in ("cam-bad", "cam-fair", "cam-good", "cam-unseen")]
    assert at == sorted(at)


def test_a_plant_without_good_parts_says_that_there_is_no_money(page):
    assert page.text.count("there is no money to count") == 1


def test_what_transfer_bought_stands_beside_what_it_is_better_than_and_nowhere_without_baselines(page, document):
    assert "What transfer bought here" not in page.text
    f1 = {"value": 0.8125, "low": 0.7, "high": 0.9, "words": None, "by_seed": [0.8, 0.825]}
    method = {"num_seeds": 2, "runs": {}, "macro_f1": f1, "cost": None, "seconds": 1234.5, "activation_seconds": 0.0}
    gap = {"value": 0.25, "low": 0.125, "high": 0.375, "words": "transfer is better", "by_seed": [0.25]}
    level = {"value": 12.5, "low": -3.0, "high": 28.0, "words": "no difference shown", "by_seed": [12.5]}
    row = {
        "plant": "panel",
        "model": "own-<panel>-s0",
        "methods": {"classical": None, "scratch": method, "frozen": method, "chosen": method},
        "against": {"scratch": {"num_seeds": 2, "macro_f1": gap, "cost": level}, "classical": None},
    }
    found = Page(report_html({**document, "transfer": [row]}))
    assert "What transfer bought here" in found.text
    assert "chosen: own-<panel>-s0" in found.text
    assert "81.2 ( 70.0 to 90.0 )" in found.text
    assert "25.0 ( 12.5 to 37.5 ) transfer is better" in found.text
    assert "12.50 ( -3.00 to 28.00 ) no difference shown" in found.text
    assert "1,234" in found.text


def test_without_an_interval_the_reason_stands_in_its_place(page):
    assert "1.2 not enough lots" in page.text


def test_the_picture_holds_the_judged_cells_as_text_and_frames_the_chosen(page, document):
    for row in document["matrix"].values():
        for values in row.values():
            if values["macro_f1"] is not None:
                assert f"{100 * values['macro_f1']:.1f}" in page.words
    assert {name for name in page.ids if name.startswith("chosen-")} == {
        f"chosen-{plant}-{edge}" for plant in ("panel", "mill") for edge in ("white", "black")
    }


def test_a_decision_for_a_model_outside_the_matrix_is_said_in_words(document):
    changed = copy.deepcopy(document)
    changed["decisions"]["mill"]["model"] = "average-mill"
    assert "not in the picture: mill: average-mill" in Page(report_html(changed)).text


def test_a_matrix_without_any_figure_is_still_a_page(document):
    changed = copy.deepcopy(document)
    for row in changed["matrix"].values():
        for values in row.values():
            values.update(dict.fromkeys(values))
    changed["details"] = {}
    assert "panel" in Page(report_html(changed)).text


def test_the_same_document_gives_the_same_bytes(document, tmp_path: Path):
    for name in ("a.html", "deep/b.html"):
        write_report(document, tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "deep/b.html").read_bytes()


def curve(*, capacity: float) -> dict[str, Any]:
    rates = np.linspace(0, 0.2, 5)
    lines = {"policy": 20 + 100 * rates, "pass_all": 2_000 * rates, "reject_all": 100 * (1 - rates)}
    shares = {"defect_rate": [0.02, 0.01, 0.1], "review_load": 0.06, "review_capacity": capacity}
    return {"rates": list(rates), "best_threshold": [0.0] * 5, **{k: list(v) for k, v in lines.items()}, **shares}


@pytest.mark.parametrize(
    ("capacity", "words"),
    [
        (0.05, "6.00% of the parts are reviewed, and people can review 5.00%: people cannot keep up."),
        (0.06, "6.00% of the parts are reviewed, and people can review 6.00%."),
        (1.0, "6.00% of the parts are reviewed, and people can review all of them."),
    ],
)
@pytest.mark.slow
def test_the_cost_curve_is_drawn_with_its_trivial_lines_and_its_load_said_in_words(document, capacity, words):
    changed = copy.deepcopy(document)
    changed["details"]["panel"]["curve"] = curve(capacity=capacity)
    found = Page(report_html(changed))
    assert words in found.text
    assert [text for text in found.words if text in ("pass all", "reject all", "this policy")] == [
        "this policy",
        "pass all",
        "reject all",
    ]
    assert "curve-panel" in found.ids
    assert "curve-mill" not in found.ids
    assert report_html(changed) == report_html(changed)


def learned(run_id: str = "own-panel-s0", *, cut: int = 1, nll: float | None = 0.4) -> dict[str, Any]:
    rows = [(1, 1, 0.9, 0.6), (1, 2, 0.5, 0.4), (1, 3, 0.3, 0.7), (2, 1, 0.6, 0.8)]
    history = [{"stage": s, "epoch": e, "loss": loss, "select": 0.5, "select_nll": v} for s, e, loss, v in rows]
    before = {"stage": 0, "epoch": 0, "select": 0.4, "select_nll": 0.5}
    notes = ["head fitted", "stage 1: overfitting from epoch 2: <select> loss up, training loss down"]
    told = {"run_id": run_id, "kind": "own", "cut": cut, "select_nll": nll, "notes": notes, "cuts": [1, 2]}
    return {**told, "history": [before, *history]}


def test_how_its_models_learned_is_drawn_and_said_of_each_plant(document):
    changed = copy.deepcopy(document)
    changed["details"]["panel"]["learning"] = [learned(), learned("warm-panel-s0", cut=0, nll=0.5)]
    html = report_html(changed)
    found = Page(html)
    assert "learning-panel" in found.ids
    assert "learning-mill" not in found.ids
    for word in ("training loss", "select loss", "before the first epoch", "kept", "cut 1", "cut 2"):
        assert word in found.words
    assert (
        "own-panel-s0: epoch 2 of stage 1 was kept; stage 1: overfitting from epoch 2: <select> loss up" in found.text
    )
    assert "warm-panel-s0: no stage was kept, the head stays; stage 1: overfitting" in found.text
    assert report_html(changed) == html


def test_of_many_plants_the_worst_have_pictures_and_all_have_words(document, monkeypatch):
    changed = copy.deepcopy(document)
    for name in changed["plants"]:
        changed["details"][name]["learning"] = [learned(f"own-{name}-s0")]
    monkeypatch.setattr("jobs.report_plant.NUM_DRAWN", 1)
    found = Page(report_html(changed))
    assert [name for name in found.ids if name.startswith("learning-")] == ["learning-panel"]
    for name in ("panel", "mill"):
        assert f"own-{name}-s0: epoch 2 of stage 1 was kept" in found.text


def test_floors_that_cannot_be_held_and_reviews_that_cannot_be_done_are_said_in_words(document):
    changed = copy.deepcopy(document)
    rng = np.random.default_rng(0)
    p = rng.random(400)
    scores = PartScores(
        part_ids=range(400),
        lots=range(400),
        environments=["e"] * 400,
        truth=np.where(rng.random(400) < 0.5, "ok", "dent"),
        probs=np.stack([1 - p, p], axis=1) * np.where(np.arange(400) < 2, 0.1, 1)[:, None],
        classes=("ok", "dent"),
        ok=("ok",),
    )
    few = Costs(review_per_hour=1, parts_per_hour=1_000)
    for costs, words in (
        (Costs(recall_floor=1.0, miss=0, false_alarm=100), "the recall floors are infeasible"),
        (few, "people can review 0.10% of parts"),
    ):
        note = solve(scores, costs=costs, plant="panel").note
        changed["decisions"]["panel"]["policy"]["note"] = note
        assert words in Page(report_html(changed)).text


def test_members_of_an_ensemble_are_named(document):
    changed = copy.deepcopy(document)
    changed["decisions"]["panel"]["members"] = ["own-panel-s0", "pooled-<s0>"]
    assert "It is the mean of own-panel-s0 (0.50), pooled-<s0> (0.50)." in Page(report_html(changed)).text


def opening(bundle: str, *, plant: str = "panel") -> dict[str, Any]:
    return {"plant": plant, "generation": 1, "who": "ada <a>", "bundles": [bundle], "at": "2026-03-01T00:00:00Z"}


def sealed(document: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """The document with the sealed test opened for the panel's decision, after it was opened for another bundle."""
    row = {"macro_f1": 0.4321, "cost": 99.5, "n": 77, "n_lots": 19, "bundle": "b" * 64, "standing": "confirmed"}
    row |= fields
    ledger = [opening("a" * 64), opening("b" * 64)]
    return {**document, "sealed": {"plants": {"panel": row}, "ledger": ledger}}


def test_openings_of_the_seal_say_who_looked_when_at_what_and_what_came_out(document):
    text = Page(report_html(sealed(document))).text
    assert "1 1 2026-03-01T00:00:00Z ada <a> aaaaaaaaaaaa another bundle than the one decided for now" in text
    assert "2 1 2026-03-01T00:00:00Z ada <a> bbbbbbbbbbbb confirmed: against the frozen baseline" in text
    assert "macro-F1 43.2" in text
    assert text.count("It is not known to have been opened for this plant.") == 1
    assert WITHDRAWN not in text


@pytest.mark.parametrize("tried", [{"bundle": "b" * 64}, {"bundle": "f" * 64, "float_bundle": "b" * 64}])
def test_an_outcome_stands_at_its_own_opening_in_float_or_int8(document, tried):
    found = sealed(document, **tried, opening=1)
    found["sealed"]["ledger"] = [opening(tried["bundle"]), opening(tried["bundle"])]
    changed = {**found, "decisions": {**found["decisions"]}}
    changed["decisions"]["panel"] = {**found["decisions"]["panel"], **tried}
    digest = tried["bundle"][:12]
    text = Page(report_html(changed)).text
    assert f"1 1 2026-03-01T00:00:00Z ada <a> {digest} confirmed: against the frozen baseline" in text
    assert f"2 1 2026-03-01T00:00:00Z ada <a> {digest} no result is kept" in text


def test_a_withdrawn_decision_is_marked_in_the_glance_and_at_its_plant_and_another_bundles_result_is_not(document):
    html = report_html(sealed(document, withdrawn=True, contaminated=3))
    for part in html.split('<section class="plant"')[:2]:
        assert WITHDRAWN in part
        assert "the model has learned from 3 of its images" in part
    assert "<s>" in html
    assert WITHDRAWN not in html.split('id="plant-mill"')[1]
    other = report_html(sealed(document, withdrawn=True, contaminated=3, bundle="a" * 64))
    assert WITHDRAWN not in other
    assert "<s>" not in other


def test_a_model_that_is_shown_to_be_worse_than_frozen_and_a_floor_that_cannot_be_held_are_alarms(document):
    assert 'class="alarm"' not in report_html(document)
    changed = copy.deepcopy(document)
    changed["decisions"]["panel"]["gain"] = {"metric": "cost", "diff": 20.0, "low": 5.0, "high": 35.0, "words": None}
    changed["decisions"]["panel"]["policy"]["note"] = ["the recall floors are infeasible: nothing holds them"]
    glance = report_html(changed).split("</main>")[0]
    assert "worse than the frozen baseline on decide" in glance
    assert "the recall floors are infeasible" in glance


def test_an_inspection_that_is_shown_to_be_cheaper_is_an_alarm_on_decide_and_on_the_sealed_test(document):
    gap = {"metric": "cost", "diff": 20.0, "low": 5.0, "high": 35.0}
    changed = sealed(document, against_incumbent=gap)
    changed["details"]["panel"]["against_incumbent"] = {**gap, "low": -5.0}
    glance = report_html(changed).split("</main>")[0]
    assert "dearer than the existing inspection on the sealed test: 20.00 a part more (5.00 to 35.00)" in glance
    assert "dearer than the existing inspection on decide" not in glance
    changed["details"]["panel"]["against_incumbent"] = gap
    assert "dearer than the existing inspection on decide" in report_html(changed)


def test_on_the_sealed_test_the_inspection_stands_beside_the_chosen_model_on_the_same_parts(document):
    rates = dict.fromkeys(("escapes", "false_alarms", "reviews_of_good", "reviews_of_bad"))
    cost = {"value": 8.25, "low": 4.0, "high": 12.0}
    chosen = {"cost": cost, "verdicts": rates, "n": 7, "n_lots": 3}
    figures = {**chosen, "cost": {**cost, "value": 9.75}, "per_class": {}}
    changed = sealed(document, incumbent={"cost": 9.75, "figures": figures, "chosen": chosen, "num_parts": 20})
    part = report_html(changed).split("The sealed test</h3>")[1]
    assert "judged in the sealed test" in part
    assert "It has judged 7 of 20 parts, in 3 lots." in part
    for value in (8.25, 9.75):
        assert f'<data value="{value}">' in part


def test_a_plant_without_a_decision_stands_in_the_glance_with_the_reason(document):
    text = Page(report_html({**document, "undecided": {"kiln": "no labelled part in <decide>"}})).text
    assert "kiln No model: no labelled part in <decide>. nothing is shown" in text


def test_the_tests_of_a_verdict_are_shown_with_their_level(document):
    changed = copy.deepcopy(document)
    row = {"model": "own-<p>", "against": "frozen", "metric": "cost", "diff": -12.5, "low": -30.25, "high": 5.25}
    changed["decisions"]["panel"] |= {"tests": [{**row, "words": "no difference shown"}], "level": 0.9912}
    text = Page(report_html(changed)).text
    assert "own-<p> frozen cost no difference shown -12.50 ( -30.25 to 5.25 )" in text
    assert "Each interval is at 99.1 %" in text
    assert "taken for its macro-F1" not in text
    by_f1 = {"metric": "macro_f1", "diff": 0.031, "low": 0.0105, "high": 0.052, "level": 0.9771, "words": "better"}
    changed["decisions"]["panel"] |= {"by_f1": by_f1, "against": "own-<p>"}
    text = Page(report_html(changed)).text
    assert "It was taken for its macro-F1, 3.1 ( 1.1 to 5.2 ) against own-<p> at 97.7 %: better." in text


def test_words_and_numbers_stand_out_from_what_is_behind_them():
    def contrast(one: float, other: float) -> float:
        return (max(one, other) + 0.05) / (min(one, other) + 0.05)

    inks = re.findall(r"[ ;{]color: #([0-9a-f]{6}|[0-9a-f]{3})", STYLE)
    assert len(inks) > 3
    for ink in inks:
        rgb = [int(ink[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        assert contrast(luminance(rgb), 1.0) >= 4.5
    for value in np.linspace(0, 1, 101):
        shade = colormaps[COLOURS](value)[:3]
        assert contrast(luminance(shade), {"black": 0.0, "white": 1.0}[ink_on(shade)]) >= 4.5


def test_shades_of_the_matrix_differ_in_lightness_alone_so_that_no_eye_confuses_them():
    light = [luminance(colormaps[COLOURS](value)[:3]) for value in np.linspace(0, 1, 101)]
    assert light == sorted(light)
    assert light[-1] / light[0] > 10


def test_with_a_hundred_plants_the_page_stays_small_and_the_matrix_shows_kinds(document, monkeypatch):
    monkeypatch.setattr("jobs.report_plant.NUM_DRAWN", 2)
    names = [f"panel-{i:03d}" for i in range(100)]
    models, matrix, decisions = {}, {}, {}
    for name in names:
        for kind in ("own", "frozen"):
            run = f"{kind}-{name}-s0"
            models[run] = {**document["models"]["own-panel-s0"], "kind": kind, "plants": [name]}
            matrix[run] = dict.fromkeys(names, document["matrix"][f"{kind}-panel-s0"]["panel"])
        decisions[name] = {**document["decisions"]["panel"], "model": f"own-{name}-s0"}
    details = dict.fromkeys(names, document["details"]["panel"])
    large = {**document, "plants": names, "models": models, "matrix": matrix, "decisions": decisions}
    html = report_html({**large, "details": details})
    found = Page(html)
    assert len(html) < 8_000_000
    assert [name for name in found.ids if name.startswith("plant-")] == [f"plant-{name}" for name in names]
    assert {name for name in found.ids if name.startswith("chosen-")} >= {f"chosen-{name}-black" for name in names}
    assert "each plant's best one of every kind is shown" in found.text
    assert "The chosen and the best of 200 models" in found.text
