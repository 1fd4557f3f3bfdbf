"""The seal: counted before it is read, spent after five, and a test that contradicts a decision withdraws it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyarrow import ArrowInvalid
from safetensors.numpy import load, save

from cluster.catalog import ASSIGNMENTS, Catalog
from cluster.imports import import_plant
from cluster.settings import Settings
from cluster.storage import LocalStore, PlantFiles
from jobs import release, verbs, verdicts
from jobs.compare import compare_fleet
from jobs.evaluate import HEAD, LEDGER, contaminated, evaluate_fleet, open_test, openings
from jobs.fit import fit_run
from jobs.fleet import planned
from jobs.plan import Plan, RunSpec
from plants import splits
from plants.errors import InputError, SealError
from plants.plant import load_fleet
from tests.fleets import NOW, Works, console, drawn_fleet, imported

WHO = {"who": "ada", "bundles": ["b" * 64], "now": NOW}


class Diary(LocalStore):
    """A folder that remembers in which order it was read and written."""

    def __init__(self, root: Path | str) -> None:
        super().__init__(root)
        self.acts: list[tuple[str, str]] = []

    def read(self, key: str) -> bytes:
        self.acts.append(("read", key))
        return super().read(key)

    def write(self, key: str, data: bytes) -> str:
        self.acts.append(("write", key))
        return super().write(key, data)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    fleet = imported(drawn_fleet(tmp_path, "north", "south"))
    return Catalog(LocalStore(fleet.store), seal=Diary(f"{fleet.store}/sealed"))


def test_the_answers_are_read_after_the_ledger_has_counted_the_opening(catalog):
    rows = open_test("north", catalog=catalog, budget=5, **WHO)
    acts = catalog.seal.acts
    assert acts.index(("write", LEDGER)) < acts.index(("read", "north.parquet"))
    answered = rows[rows["role"] == "test"]
    assert len(answered) > 0
    assert answered["class"].isin(["good", "crack"]).all()


def test_every_opening_says_who_looked_when_and_at_what(catalog):
    open_test("north", catalog=catalog, budget=5, **WHO)
    (opening,) = openings(catalog.seal)
    assert (opening.plant, opening.generation, opening.who, opening.bundles) == ("north", 1, "ada", ("b" * 64,))
    assert opening.at == NOW


def test_where_the_ledger_cannot_be_written_nothing_is_read(catalog):
    (catalog.seal.root / LEDGER).mkdir()
    with pytest.raises(InputError):
        open_test("north", catalog=catalog, budget=5, **WHO)
    assert ("read", "north.parquet") not in catalog.seal.acts


def test_a_spent_budget_refuses_before_anything_is_read_and_counts_each_plant_alone(catalog):
    for _ in range(5):
        open_test("north", catalog=catalog, budget=5, **WHO)
    catalog.seal.acts.clear()
    with pytest.raises(SealError, match=r"plant north.*opened 5 times of 5"):
        open_test("north", catalog=catalog, budget=5, **WHO)
    assert not {("write", LEDGER), ("read", "north.parquet")} & set(catalog.seal.acts)
    assert len(openings(catalog.seal)) == 5
    open_test("south", catalog=catalog, budget=5, **WHO)


def test_a_new_generation_may_be_opened_again_and_shows_only_its_own_lots(tmp_path):
    fleet = imported(drawn_fleet(tmp_path, "north", num_lots=20))
    catalog = Catalog.of(fleet)
    first = open_test("north", catalog=catalog, budget=1, **WHO)
    drawn_fleet(tmp_path, "north", num_lots=40)
    import_plant(catalog, fleet, fleet.plant("north"), files=PlantFiles(), now=NOW, is_new_generation=True)
    second = open_test("north", catalog=catalog, budget=1, **WHO)
    assert set(second["lot"]).isdisjoint(first["lot"])
    assert set(second["lot"]) <= {f"L{n}" for n in range(20, 40)}
    assert [opening.generation for opening in openings(catalog.seal)] == [1, 2]
    with pytest.raises(SealError, match="generation 2 was opened 1 times of 1"):
        open_test("north", catalog=catalog, budget=1, **WHO)


def test_a_ledger_that_cannot_be_understood_opens_nothing(catalog):
    catalog.seal.write(LEDGER, b"not an opening\n")
    with pytest.raises(InputError, match="line 1 is not an opening"):
        open_test("north", catalog=catalog, budget=5, **WHO)
    assert ("read", "north.parquet") not in catalog.seal.acts


def test_a_ledger_that_is_gone_with_what_tells_its_end_opens_nothing(catalog):
    open_test("north", catalog=catalog, budget=3, **WHO)
    catalog.store.write_json(verdicts.EVALUATED, {"plants": {}})
    (catalog.seal.root / LEDGER).unlink()
    catalog.store.delete(HEAD)
    with pytest.raises(InputError, match="openings that were counted are missing"):
        open_test("north", catalog=catalog, budget=3, **WHO)


def test_a_record_of_roles_that_was_cut_opens_nothing(catalog):
    path = Path(catalog.store.at(ASSIGNMENTS))
    path.write_bytes(splits.to_parquet(pd.read_parquet(path).head(15)))
    with pytest.raises(InputError, match=r"its end was cut off or replaced|was never dealt"):
        open_test("north", catalog=catalog, budget=3, **WHO)
    assert openings(catalog.seal) == []


def test_lots_that_another_plant_dealt_in_a_later_generation_are_judged_too(tmp_path):
    fleet = imported(drawn_fleet(tmp_path, "north", num_lots=20))
    drawn_fleet(tmp_path, "north", num_lots=40)
    catalog = Catalog.of(fleet)
    import_plant(catalog, fleet, fleet.plant("north"), files=PlantFiles(), now=NOW, is_new_generation=True)
    both = load_fleet(drawn_fleet(tmp_path, "north", "south", num_lots=40))
    catalog = Catalog.of(both)
    import_plant(catalog, both, both.plant("south"), files=PlantFiles(), now=NOW)
    rows = catalog.rows("south")
    assert set(rows["generation"]) == {1, 2}
    opened = open_test("south", catalog=catalog, budget=1, **WHO)
    assert set(opened["frame"]) == set(rows.loc[rows["role"] == "test", "frame"])


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        (None, "openings that were counted are missing"),
        ([0, 1], "openings that were counted are missing"),
        ([1, 2], "line 1 does not go on from the line before"),
        ([0, 2], "line 2 does not go on from the line before"),
    ],
)
def test_a_ledger_that_has_lost_an_opening_opens_nothing(catalog, kept, words):
    for _ in range(3):
        open_test("north", catalog=catalog, budget=3, **WHO)
    ledger = catalog.seal.root / LEDGER
    lines = ledger.read_text().splitlines(keepends=True)
    ledger.unlink() if kept is None else ledger.write_text("".join(lines[i] for i in kept))
    with pytest.raises(InputError, match=words):
        open_test("north", catalog=catalog, budget=3, **WHO)


def test_a_plant_without_test_rows_opens_nothing(catalog):
    with pytest.raises(InputError, match="plant west"):
        open_test("west", catalog=catalog, budget=5, **WHO)
    assert openings(catalog.seal) == []


def choose(works: Works, *, model: str) -> dict:
    """A `compare` document that has decided for this run at `arden`."""
    done = [run.run_id for run in works.plan.runs]
    document = compare_fleet(works.fleet, plan=works.plan, exports=works.exports(), done=done, seed=0)
    decision = document["decisions"]["arden"]
    decision |= {"model": model, "members": [model], "weights": None, "rule": None, "bundle": "b" * 64}
    return document


@pytest.mark.slow
def test_an_ensemble_is_judged_on_the_test_by_the_weights_and_the_rule_that_were_decided_for(works):
    document, exports = choose(works, model="own-arden-s0"), works.exports()
    members = ["own-arden-s0", "warm-arden-s0", "pooled-s0"]
    found = {}
    for name, given in (
        ("plain", {}),
        ("own", {"weights": [1.0, 0.0, 0.0], "rule": "mean"}),
        ("log", {"weights": [1.0, 1.0, 2.0], "rule": "log"}),
    ):
        document["decisions"]["arden"] |= {"members": members, "kind": "stacked", **given}
        row = evaluate_fleet(
            works.fleet, names=["arden"], document=document, exports=exports, who="a", now=NOW, budget=5
        )
        found[name] = row["plants"]["arden"]["details"]["calibration"]
    document["decisions"]["arden"] |= {"members": members[:1], "kind": "own", "weights": None, "rule": None}
    row = evaluate_fleet(works.fleet, names=["arden"], document=document, exports=exports, who="a", now=NOW, budget=5)
    assert row["plants"]["arden"]["details"]["calibration"] == found["own"]
    assert found["plain"] != found["own"] != found["log"] != found["plain"]


@pytest.mark.slow
def test_the_chosen_model_and_the_frozen_baseline_are_judged_on_the_test_once(works):
    document = choose(works, model="own-arden-s0")
    given = {"document": document, "exports": works.exports(), "who": "ada", "now": NOW, "budget": 5}
    found = evaluate_fleet(works.fleet, names=["arden"], **given)
    row = found["plants"]["arden"]
    rows = Catalog.of(works.fleet).rows("arden")
    assert row["n"] == rows.loc[rows["role"] == "test", "part_id"].nunique()
    assert row["model"] == "own-arden-s0"
    assert row["frozen"]["n"] == row["n"]
    assert (row["withdrawn"], row["contaminated"]) == (False, 0)
    taught = rows[rows["role"] == "train"].head(3)
    assert contaminated(taught, name="arden", members=["own-arden-s0"], exports=works.exports()) == 3
    assert [opening["plant"] for opening in found["ledger"]] == ["arden"]
    assert row["opening"] == 1
    assert evaluate_fleet(works.fleet, names=["arden"], **given)["plants"]["arden"]["opening"] == 2
    with pytest.raises(InputError, match="plant brno: has no decision"):
        evaluate_fleet(works.fleet, names=["brno"], **given)


@pytest.mark.slow
def test_the_existing_inspection_is_judged_on_the_sealed_answers_at_the_plants_prices(works):
    document = choose(works, model="own-arden-s0")
    given = {"document": document, "exports": works.exports(), "who": "ada", "now": NOW, "budget": 5}
    row = evaluate_fleet(works.fleet, names=["arden"], **given)["plants"]["arden"]
    catalog, plant = Catalog.of(works.fleet), works.fleet.plant("arden")
    rows = splits.unseal(catalog.rows("arden"), catalog.sealed("arden"))
    parts = rows[rows["role"] == "test"].drop_duplicates("part_id")
    assert parts["incumbent"].notna().all()
    price = {"ok": (0.0, plant.costs.miss), "review": (plant.costs.review,) * 2}
    paid: dict[bool, list[float]] = {True: [], False: []}
    for said, truth in zip(parts["incumbent"], parts["class"], strict=True):
        is_good = truth in plant.ok
        paid[is_good].append(price.get(said, (plant.costs.false_alarm, 0.0))[not is_good])
    rate = plant.costs.defect_rate[2]
    cost = (1 - rate) * np.mean(paid[True]) + rate * np.mean(paid[False])
    assert row["incumbent"]["n"] == len(parts)
    assert row["incumbent"]["cost"] == pytest.approx(cost, rel=1e-6)
    assert row["against_incumbent"]["diff"] == pytest.approx(row["cost"] - cost, abs=1e-4)
    assert row["incumbent"]["chosen"]["cost"]["value"] == row["cost"]
    assert row["incumbent"]["figures"]["cost"]["value"] == row["incumbent"]["cost"]
    assert "incumbent" not in document["matrix"] or row["incumbent"] != document["matrix"]["incumbent"]["arden"]


def taught_by(tables: dict[str, pd.DataFrame], *, now: dict[str, pd.DataFrame] | None = None) -> Any:
    """Exports of a plan of `a` at arden and `b` at brno, which starts from it, with these rows learned from."""
    runs = (RunSpec("a", "own", ("arden",), 0, {}), RunSpec("b", "sister", ("brno",), 0, {}, parent="a"))
    plan = Plan("f", "d", runs, data={name: name for name in tables})
    catalog = SimpleNamespace(rows=(now or tables).__getitem__, learned=lambda name, digest: tables[digest])
    return SimpleNamespace(plan=plan, material=SimpleNamespace(catalog=catalog))


def frames(*names: str, lot: str | None = None, sha: str = "") -> pd.DataFrame:
    table = pd.DataFrame({"frame": names, "sha256": [f"{sha or name}" for name in names], "part_id": names})
    return table.assign(lot=lot or table["frame"], lot_known=lot is not None)


def test_what_a_parent_has_learned_from_contaminates_too():
    exports = taught_by({"arden": frames("a1", "a2"), "brno": frames("b1")})
    test = pd.concat([frames("copy", sha="a1"), frames("x")])
    assert [contaminated(test, name="brno", members=[run], exports=exports) for run in ("a", "b")] == [1, 1]


def test_a_lot_that_was_learned_from_contaminates_its_other_frames_also_when_it_became_known_later():
    learned = {"arden": frames("a1"), "brno": frames("b1")}
    test = pd.concat([frames("a7", lot="L1"), frames("a8", lot="L2"), frames("a1", sha="retaken")])
    given = {"name": "arden", "members": ["a"]}
    assert contaminated(test, **given, exports=taught_by(learned)) == 1, "a frame of that name"
    told = learned | {"arden": frames("a1", lot="L1")}
    assert contaminated(test, **given, exports=taught_by(learned, now=told)) == 2
    assert contaminated(test.assign(lot_known=False), **given, exports=taught_by(told)) == 1


@pytest.mark.slow
def test_a_plant_is_refused_by_the_budget_and_its_model_is_not_judged(works):
    given = {"document": choose(works, model="own-arden-s0"), "exports": works.exports(), "who": "ada", "now": NOW}
    with pytest.raises(SealError):
        evaluate_fleet(works.fleet, names=["arden"], budget=0, **given)
    assert openings(Catalog.of(works.fleet).seal) == []


@pytest.mark.slow
def test_what_could_not_be_judged_is_found_out_before_any_test_is_opened(works):
    """Of two plants the second one's model is gone, or its classes are others by now."""
    document = choose(works, model="own-arden-s0")
    given = {"exports": works.exports(), "who": "ada", "now": NOW, "budget": 5, "names": ["arden", "essen"]}
    missing = {**document["decisions"]["essen"], "members": ["own-essen-s7"], "bundle": "c" * 64}
    spoiled = {**document, "decisions": {**document["decisions"], "essen": missing}}
    with pytest.raises(InputError, match=r"plant essen: what was decided cannot be.*no test was opened.*compare"):
        evaluate_fleet(works.fleet, document=spoiled, **given)
    assert openings(Catalog.of(works.fleet).seal) == []
    document["decisions"]["essen"]["bundle"] = "c" * 64
    evaluate_fleet(works.fleet, document=document, **given)
    assert [opening.plant for opening in openings(Catalog.of(works.fleet).seal)] == ["arden", "essen"]


@pytest.mark.slow
def test_a_bad_model_stands_beside_the_frozen_baseline_it_loses_to(works, tmp_path):
    """The frozen model with its head turned round, in the place of `own`."""
    document = choose(works, model="own-arden-s0")
    folder = f"runs/{works.plan.plan_id}"
    weights = load(works.store.read(f"{folder}/frozen-arden-s0/model.safetensors"))
    turned = {name: np.negative(value) if name.startswith("head.") else value for name, value in weights.items()}
    works.store.write(f"{folder}/own-arden-s0/model.safetensors", save(turned))
    works.store.write(f"{folder}/own-arden-s0/model.json", works.store.read(f"{folder}/frozen-arden-s0/model.json"))
    elsewhere = Works(fleet=works.fleet, settings=Settings(home=tmp_path / "elsewhere"), plan=works.plan)
    given = {"document": document, "exports": elsewhere.exports(), "who": "ada", "now": NOW, "budget": 5}
    row = evaluate_fleet(works.fleet, names=["arden"], **given)["plants"]["arden"]
    assert row["macro_f1"] < row["frozen"]["macro_f1"]
    assert row["cost"] > row["frozen"]["cost"]
    assert row["withdrawn"] is False, "there are fewer than 10 lots, so nothing is shown"
    assert row["gain"]["low"] is None


@pytest.mark.slow
def test_every_step_but_evaluation_goes_on_where_the_answers_cannot_be_read(works):
    """What could be read is spoiled, so that whoever opened it would fall over it."""
    show, _ = console()
    names = [plant.name for plant in works.fleet.plants]
    for name in names:
        works.store.write(f"sealed/{name}.parquet", b"not to be read")
    assert verbs.audit_fleet(works.fleet, settings=works.settings, names=names, show=show)["findings"]
    material = works.exports().material
    plan = planned(works.fleet, material=material, recipe=material.recipe)
    assert fit_run(plan.run("frozen-arden-s0"), material=material, plan=plan).score.value is not None
    document = choose(works, model="own-arden-s0")
    document["decisions"]["arden"]["policy_digest"] = "c" * 64
    works.store.write_json(verdicts.COMPARED, document)
    assert release.publish(works.fleet, settings=works.settings, names=["arden"], show=show)["sequence"] == 1
    assert release.status(works.fleet, settings=works.settings, show=show)["routes"]
    with pytest.raises(ArrowInvalid):
        verdicts.evaluate(works.fleet, settings=works.settings, names=["arden"], show=show)
    assert len(openings(Catalog.of(works.fleet).seal)) == 1
