"""`compress`: INT8 of what was decided for, kept where it holds at every plant and is faster, else float alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from cluster.registry import Bundles, Journal
from jobs import int8, int8_release, release, verdicts
from jobs.compare import SCORES, compare_fleet
from jobs.ladder import RUNGS
from jobs.package import publish_decision
from plants import bundle
from plants.certificate import Certificate
from plants.costs import Policy
from plants.errors import CheckFailed
from plants.variants import BRANCH_INT8, Pair, Speed
from serving.variants import variant_of
from serving.wiring import certify, open_service
from tests.fleets import Works, console

pytestmark = pytest.mark.slow
FAST = Speed(2.0, 1.0, 2.0)


@pytest.fixture(scope="session")
def compared_document(finished_works: Works) -> dict[str, Any]:
    done = [run.run_id for run in finished_works.plan.runs]
    exports = finished_works.exports()
    return compare_fleet(finished_works.fleet, plan=finished_works.plan, exports=exports, done=done, seed=0)


@pytest.fixture
def decided(works: Works, compared_document: dict[str, Any]) -> Works:
    """The trained fleet after `compare`: arden's own model, essen's ensemble of own and pooled."""
    document = {**compared_document, "decisions": {n: dict(row) for n, row in compared_document["decisions"].items()}}
    exports = works.exports()
    for name, decision in document["decisions"].items():
        runs = [f"own-{name}-s0"] + (["pooled-s0"] if name == "essen" else [])
        model = runs[0] if len(runs) == 1 else f"ensemble-{name}"
        decision |= {"model": model, "members": runs, "kind": "own", "weights": None, "rule": None}
        document["matrix"].setdefault(model, {}).setdefault(name, compared_document["matrix"][runs[0]][name])
        decision["bundle"], decision["policy_digest"] = publish_decision(
            name,
            document=document,
            plan=works.plan,
            exports=exports,
            finished=dict.fromkeys([run.run_id for run in works.plan.runs], "2026-03-01"),
        )
        scores = works.store.read(SCORES.format(plant=name))
        works.store.write(verdicts.BUNDLE_SCORES.format(bundle=decision["bundle"], plant=name), scores)
    works.store.write_json(verdicts.COMPARED, document)
    return works


def run(works: Works) -> tuple[dict[str, Any], str]:
    show, said = console()
    found = int8_release.compress(works.fleet, settings=works.settings, show=show)
    return found, said()


def decisions(works: Works) -> dict[str, Any]:
    return verdicts.compared(works.store)["decisions"]


def read(works: Works, digest: str, folder: Path) -> bundle.Manifest:
    return bundle.read(Bundles(works.store).fetch(digest, folder))[0]


def timed(monkeypatch: pytest.MonkeyPatch, speed: Speed) -> None:
    """On this machine INT8 is this fast; what a shared machine would measure decides nothing here."""
    monkeypatch.setattr(int8, "speed", lambda *works: speed)


def test_bundles_get_both_variants_whose_float_files_are_the_old_ones(decided, tmp_path, monkeypatch):
    timed(monkeypatch, FAST)
    before = decisions(decided)
    found, said = run(decided)
    assert found["kept"] == "int8 minmax", said
    assert [(row["name"], row["kept"]) for row in found["variants"]] == [("float", True), ("int8 minmax", True)]
    assert {"name", "bytes", "ms_per_image", "macro_f1", "kept"} <= set(found["variants"][1])
    assert found["variants"][0]["bytes"] > 2.5 * found["variants"][1]["bytes"]
    assert set(found["plants"]) == {"arden", "essen"}
    assert "kept int8 minmax: 2.00 x as fast as float" in said
    assert "These data are synthetic" in said
    after = decisions(decided)
    old, new = (read(decided, row["arden"]["bundle"], tmp_path) for row in (before, after))
    assert old.int8 is None
    assert new.int8.gate["arden"].n > 0
    same = {name for name in old.files if name != "card.md"}
    assert {name: new.files[name] for name in same} == {name: old.files[name] for name in same}
    assert "INT8 beside float (int8 minmax)" in (tmp_path / after["arden"]["bundle"] / "card.md").read_text()
    assert decided.store.exists(f"trunks/{new.int8.trunk}.onnx")
    policy = Policy.from_json(decided.store.read(f"policies/{after['arden']['policy_digest']}.json"))
    assert policy.bundle == after["arden"]["bundle"]
    assert policy.model_copy(update={"bundle": ""}) == Policy.model_validate(after["arden"]["policy"])
    kept = verdicts.BUNDLE_SCORES.format(bundle=after["arden"]["bundle"], plant="arden")
    assert decided.store.exists(kept)


def test_an_ensemble_and_its_members_have_both_variants_on_one_int8_trunk(decided, tmp_path, monkeypatch):
    timed(monkeypatch, FAST)
    run(decided)
    whole = read(decided, decisions(decided)["essen"]["bundle"], tmp_path)
    members = [read(decided, digest, tmp_path) for digest in whole.members]
    assert {one.int8.trunk for one in [whole, *members]} == {whole.int8.trunk}
    assert set(whole.int8.gate) == {"essen"}
    assert whole.int8.branch is None
    assert [one.int8.branch for one in members] == [BRANCH_INT8 if one.cut else None for one in members]
    assert all(one.int8.probe.n == 32 for one in members)


def test_compressing_again_gives_the_same_bundles(decided, monkeypatch):
    timed(monkeypatch, FAST)
    run(decided)
    first = decisions(decided)
    run(decided)
    assert decisions(decided) == first


def test_where_int8_is_not_faster_float_is_kept_and_said_and_an_earlier_int8_goes(decided, monkeypatch):
    before = decisions(decided)
    timed(monkeypatch, FAST)
    run(decided)
    timed(monkeypatch, Speed(1.0, 1.2, 0.8))
    found, said = run(decided)
    assert found["kept"] == "float"
    assert [row["kept"] for row in found["variants"]] == [True, False]
    assert "kept float: not faster here: 1.2 ms an image, float 1" in said
    after = decisions(decided)
    assert {n: (row["bundle"], row["policy_digest"]) for n, row in after.items()} == {
        n: (row["bundle"], row["policy_digest"]) for n, row in before.items()
    }


def test_one_plant_under_its_gate_keeps_the_fleet_in_float_after_every_rung(decided, monkeypatch):
    timed(monkeypatch, FAST)
    honest = int8.gate

    def at_essen(*scores: Any, plant: Any, **given: Any) -> Any:
        found = honest(*scores, plant=plant, **given)
        lost = Pair(float32=0.9, int8=0.8 if plant.name == "essen" else 0.9)
        return found.model_copy(update={"macro_f1": lost})

    monkeypatch.setattr(int8, "gate", at_essen)
    found, said = run(decided)
    assert found["kept"] == "float"
    assert [row["name"] for row in found["variants"]] == ["float", *(rung.name for rung in RUNGS)]
    assert "kept float: essen: macro-F1 loses 10.0 points, 2 are allowed" in said


def test_no_images_that_may_be_calibrated_on_leave_float(decided, monkeypatch):
    timed(monkeypatch, FAST)
    plants = tuple(plant.model_copy(update={"may_leave": False}) for plant in decided.fleet.plants)
    fleet = decided.fleet.model_copy(update={"plants": plants})
    show, said = console()
    found = int8_release.compress(fleet, settings=decided.settings, show=show)
    assert found["kept"] == "float"
    assert "there was nothing to quantise or to calibrate on" in said()


def test_what_is_published_afterwards_is_served_by_the_variant_that_holds_here(decided, monkeypatch):
    timed(monkeypatch, FAST)
    run(decided)
    show, said = console()
    stage = certify(decided.settings, store_uri=decided.fleet.store, fleet=decided.fleet.fleet)
    names = [plant.name for plant in decided.fleet.plants]
    for variant, speed in (("int8", FAST), ("float", Speed(1.0, 2.0, 0.5))):
        monkeypatch.setattr("serving.variants.speed", lambda *works, found=speed: found)
        shutil.rmtree(decided.settings.home / "serving", ignore_errors=True)
        stage = certify(decided.settings, store_uri=decided.fleet.store, fleet=decided.fleet.fleet)
        found = release.publish(decided.fleet, settings=decided.settings, names=names, show=show, certify=stage)
        assert found["uncertified"] == [], said()
        service = open_service(
            decided.settings, store_uri=decided.fleet.store, fleet=decided.fleet.fleet, replica="r", poll_s=60
        )
        try:
            live = service.router.table.live
            assert {name: variant_of(one.predictor.scorer) for name, one in live.items()} == dict.fromkeys(
                names, variant
            )
        finally:
            service.close()
    kept = [
        Certificate.model_validate_json(decided.store.read(entry.key)) for entry in decided.store.list("certificates")
    ]
    assert {(one.plant, one.variant) for one in kept} == {(n, v) for n in names for v in ("int8", "float")}
    by_int8 = next(one for one in kept if (one.plant, one.variant) == ("arden", "int8"))
    assert [stage.name for stage in by_int8.stages] == ["float", "int8", "live"]
    assert set(by_int8.recall) == set(decided.fleet.plant("arden").annotated)


def test_a_plant_without_certificate_is_not_published_and_the_others_are(decided):
    show, said = console()

    def stage(plant: str, bundle: str, policy: str) -> None:
        if plant == "arden":
            raise CheckFailed("plant arden: no certificate for float on a core: p99 of a part is 9 ms")

    names = [plant.name for plant in decided.fleet.plants]
    found = release.publish(decided.fleet, settings=decided.settings, names=names, show=show, certify=stage)
    assert found["uncertified"] == ["arden"]
    assert [row["plant"] for row in found["plants"]] == ["essen"]
    assert "plant arden: not published: plant arden: no certificate" in said()
    given = {"plant": "arden", "bundle": decisions(decided)["arden"]["bundle"], "policy": None, "certify": stage}
    with pytest.raises(CheckFailed, match="no certificate"):
        release.promote(decided.fleet, settings=decided.settings, show=show, **given)
    assert Journal(decided.settings.journal_url).route("arden") is None


def test_a_decision_that_the_sealed_test_withdrew_stays_withdrawn_when_compressed_afterwards(decided, monkeypatch):
    timed(monkeypatch, FAST)
    withdrawn = {"bundle": decisions(decided)["arden"]["bundle"], "withdrawn": True}
    decided.store.write_json(verdicts.EVALUATED, {"plants": {"arden": withdrawn}})
    run(decided)
    show, _ = console()
    found = release.publish(decided.fleet, settings=decided.settings, names=["arden"], show=show)
    assert found["withdrawn"] == ["arden"]


def test_int8_that_does_not_hold_on_the_sealed_test_is_published_in_float(decided, monkeypatch):
    timed(monkeypatch, FAST)
    run(decided)
    show, said = console()
    names = [plant.name for plant in decided.fleet.plants]
    found = verdicts.evaluate(decided.fleet, settings=decided.settings, names=names, show=show)
    assert {name: row["int8"]["faults"] for name, row in found["plants"].items()} == {"arden": [], "essen": []}
    assert found["plants"]["arden"]["int8"]["n"] == found["plants"]["arden"]["n"]
    sealed = decided.store.read_json(verdicts.EVALUATED)
    sealed["plants"]["arden"]["int8"]["faults"] = ["macro-F1 loses 3.0 points, 2 are allowed"]
    decided.store.write_json(verdicts.EVALUATED, sealed)
    rows = release.publish(decided.fleet, settings=decided.settings, names=names, show=show)["plants"]
    after = decisions(decided)
    assert {row["plant"]: row["bundle"] for row in rows} == {
        "arden": after["arden"]["float_bundle"],
        "essen": after["essen"]["bundle"],
    }
    assert "plant arden: INT8 does not hold on the sealed test: published in float" in said()
