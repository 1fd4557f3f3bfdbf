"""The defect rate of a line moves, and thresholds follow it without learning: a new policy of the same bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cluster.registry import Journal
from cluster.settings import Settings
from cluster.storage import open_store
from jobs import release, resolve, verdicts
from plants.costs import decide_many, solve
from plants.errors import InputError
from plants.plant import Fleet, Plant
from plants.policy import OK, Policy
from plants.prevalence import LEAST_RATE
from tests.fleets import console
from tests.plants.test_prevalence import AUDIT, line

BUNDLE = "b" * 64
PRICES = {"miss": 2_000, "false_alarm": 100, "review": 60, "defect_rate": [0.005, 0.003, 0.01]}


class Line:
    """A plant with a live bundle whose scores were kept, as `compare` and `publish` leave it."""

    def __init__(self, folder: Path, *, is_published: bool = True, **changes: Any) -> None:
        raw = {"name": "mill", "images": "i", "classes": {"ok": "ok", "dent": "dent"}, "ok": ["ok"], "costs": PRICES}
        plant = Plant.model_validate({**raw, **changes})
        self.fleet = Fleet.model_validate({"fleet": "f", "store": str(folder / "store"), "plants": [plant]})
        self.settings, self.folder = Settings(home=folder / "home"), folder
        self.store, self.journal = open_store(self.fleet.store), Journal(self.settings.journal_url)
        scores = line(600, rate=0.3, rng=np.random.default_rng(7))
        self.store.write(verdicts.BUNDLE_SCORES.format(bundle=BUNDLE, plant="mill"), scores.to_parquet())
        self.first = solve(scores, costs=plant.costs, plant="mill", bundle=BUNDLE)
        self.store.write(f"policies/{self.first.digest}.json", self.first.to_json().encode())
        decision = {"bundle": BUNDLE, "policy_digest": self.first.digest}
        self.store.write_json(verdicts.COMPARED, {"decisions": {"mill": decision}})
        if is_published:
            self.journal.promote("mill", bundle=BUNDLE, policy=self.first.digest, who="test", challenger="c" * 64)

    @property
    def policy(self) -> Policy:
        """The live one."""
        route = self.journal.route("mill")
        return Policy.from_json(self.store.read(f"policies/{route.policy}.json"))

    def period(self, *, rate: float, seed: int, n: int = 20_000) -> Path:
        """A period's checked parts under the live policy: rejects, reviews, and the audit sample of what passed."""
        rng = np.random.default_rng(seed)
        made = line(n, rate=rate, rng=rng)
        passed = decide_many(made, self.policy).verdict == OK
        is_checked = ~passed | (rng.random(n) < AUDIT)
        table = {"part_id": made.part_ids, "class": made.truth, "sample_prob": np.where(passed, AUDIT, 1.0)}
        file = self.folder / f"{seed}.csv"
        pd.DataFrame(table)[is_checked].to_csv(file, index=False)
        return file

    def resolve(self, **given: Any) -> dict[str, Any]:
        defaults = {"name": "mill", "checked": None, "num_parts": None, "is_promoted": False, "show": console()[0]}
        return resolve.resolve(self.fleet, settings=self.settings, **{**defaults, **given})


@pytest.fixture
def promoted(monkeypatch) -> list[dict[str, Any]]:
    """Promotions without a bundle to load or a tracking server to mirror to."""
    monkeypatch.setattr(release, "_whole", lambda store, prefix, start, field: start)
    manifest = type("M", (), {"serves": {"mill": None}})
    monkeypatch.setattr(release, "Bundles", lambda store: type("B", (), {"fetch": lambda *_: ""})())
    monkeypatch.setattr(release, "read_bundle", lambda folder: (manifest, BUNDLE))
    monkeypatch.setattr(release, "_mirror", lambda route, **_: None)
    return []


def test_thresholds_follow_the_rate_up_and_down_through_the_verb_and_the_live_route(tmp_path, promoted):
    """0.5 %, then 2 %, then 0.2 % of a simulated line, each judged by the policy that the period before gave."""
    at, found = Line(tmp_path), []
    for seed, rate in enumerate((0.005, 0.02, 0.002)):
        file = at.period(rate=rate, seed=seed)
        document = json.loads(json.dumps(at.resolve(checked=file, num_parts=20_000, is_promoted=True), allow_nan=False))
        assert document["prevalence"]["low"] <= rate <= document["prevalence"]["high"]
        assert document["before"]["cost"] >= document["after"]["cost"] - 1e-9
        assert at.policy.digest == document["after"]["policy"]
        found.append(document)
    at_half, at_two, at_fifth = (document["after"]["pass_below"] for document in found)
    assert at_half > at_two < at_fifth
    assert [document["sequence"] for document in found] == [2, 3, 4]
    route = at.journal.route("mill")
    assert (route.bundle, route.challenger) == (BUNDLE, "c" * 64)


def test_a_policy_that_is_not_promoted_lies_in_the_store_and_changes_no_route(tmp_path):
    at = Line(tmp_path)
    show, said = console()
    document = at.resolve(checked=at.period(rate=0.02, seed=1), num_parts=20_000, show=show)
    kept = Policy.from_json(at.store.read(f"policies/{document['after']['policy']}.json"))
    assert (kept.plant, kept.bundle) == ("mill", BUNDLE)
    assert list(kept.costs.defect_rate) == document["after"]["defect_rate"]
    assert at.policy == at.first
    for words in (
        "stricter: fewer parts pass",
        "to judge by it: crossplant promote --plant mill --bundle bbbb",
        "write costs",
    ):
        assert words in said()


def test_parts_that_customers_sent_back_change_no_rate_and_are_said(tmp_path):
    at = Line(tmp_path)
    file = at.period(rate=0.02, seed=1)
    show, said = console()
    before = at.resolve(checked=file, num_parts=20_000)["prevalence"]
    table = pd.read_csv(file).assign(source="import")
    back = table.tail(5).assign(part_id=[f"back-{i}" for i in range(5)], source="return")
    pd.concat([table, back]).to_csv(file, index=False)
    assert at.resolve(checked=file, num_parts=20_000, show=show)["prevalence"] == before
    assert "5 returned parts are left out" in said()


def test_lots_of_checked_parts_widen_the_rate_and_a_file_without_them_is_told(tmp_path):
    at = Line(tmp_path)
    file = at.period(rate=0.02, seed=1)
    show, said = console()
    alone = at.resolve(checked=file, num_parts=20_000, show=show)["prevalence"]
    assert "no column `lot`" in said()
    table = pd.read_csv(file)
    is_bad = table["class"] != "ok" if "class" in table else table["is_defect"]
    pd.concat([table[is_bad], table[~is_bad]]).assign(lot=np.arange(len(table)) // 20).to_csv(file, index=False)
    show, said = console()
    found = at.resolve(checked=file, num_parts=20_000, show=show)["prevalence"]
    assert (found["value"], alone["num_lots"]) == (pytest.approx(alone["value"]), None)
    assert found["num_lots"] > 10
    assert found["high"] - found["low"] > 1.5 * (alone["high"] - alone["low"])
    assert "no column `lot`" not in said()


def test_without_checked_parts_the_prices_of_the_file_are_solved_for_again(tmp_path):
    at = Line(tmp_path)
    assert at.resolve()["after"]["policy"] == at.first.digest
    dear = at.fleet.plants[0].costs.model_copy(update={"miss": 20_000.0})
    at.fleet = at.fleet.model_copy(update={"plants": (at.fleet.plants[0].model_copy(update={"costs": dear}),)})
    document = at.resolve()
    assert document["prevalence"] is None
    assert document["after"]["pass_below"] < document["before"]["pass_below"]


def test_floors_and_capacity_that_cannot_be_held_are_said(tmp_path):
    costs = {**PRICES, "recall_floor": 0.999, "review_per_hour": 1, "parts_per_hour": 10_000}
    at = Line(tmp_path, is_published=False, costs=costs)
    show, said = console()
    document = at.resolve(show=show)
    assert document["review_capacity"] == pytest.approx(1e-4)
    assert "people can review 0.01% of the parts" in said()
    assert any("recall floor" in note for note in document["after"]["note"])


def test_a_line_on_which_no_defect_was_found_still_has_a_rate(tmp_path):
    at = Line(tmp_path)
    file = tmp_path / "clean.csv"
    file.write_text("part_id,is_defect,sample_prob\n" + "".join(f"{i},no,0.02\n" for i in range(400)))
    document = at.resolve(checked=file, num_parts=20_000)
    assert document["after"]["defect_rate"][:2] == [LEAST_RATE, LEAST_RATE]
    assert document["after"]["defect_rate"][2] > 0.005


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"num_parts": 100}, "field --checked: is missing"),
        ({"checked": Path("march.csv")}, "field --parts: is missing"),
        (
            {"checked": Path("nowhere.csv"), "num_parts": 9},
            "plant mill: file nowhere.csv: field --checked: no such file",
        ),
        ({"name": "press"}, "plant press: there is no such plant"),
    ],
)
def test_what_is_missing_is_named(tmp_path, given, words):
    with pytest.raises(InputError, match=words):
        Line(tmp_path).resolve(**given)


def test_what_cannot_be_solved_is_refused_with_what_to_do(tmp_path):
    at = Line(tmp_path, is_published=False)
    with pytest.raises(InputError, match=r"plant mill: has no route yet. Run `crossplant publish` first"):
        at.resolve(is_promoted=True)
    file = tmp_path / "few.csv"
    file.write_text("part_id,is_defect,sample_prob\n1,yes,1\n")
    with pytest.raises(InputError, match=r"plant mill: file .*few.csv: field sample_prob: 8 parts passed and none"):
        at.resolve(checked=file, num_parts=9)
    at.store.delete(verdicts.BUNDLE_SCORES.format(bundle=BUNDLE, plant="mill"))
    with pytest.raises(InputError, match=r"plant mill: file .*: the scores of its bundle were not kept"):
        at.resolve()
    renamed = Line(tmp_path / "b", is_published=False, classes={"gut": "ok", "dent": "dent"}, ok=["gut"])
    with pytest.raises(InputError, match="plant mill: field classes: its classes are not those of its bundle"):
        renamed.resolve()
    with pytest.raises(InputError, match="plant mill: field ok: no class is good here"):
        Line(tmp_path / "c", classes={"scratch": "scratch"}, ok=[], costs={}).resolve()
