"""From decisions to routes: what is published, challenged, withdrawn, promoted and taken back."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.ledger import RunLedger, RunRecord, fail
from cluster.registry import Journal
from cluster.settings import Settings
from cluster.storage import open_store
from jobs import release, verdicts
from jobs.compare import SCORES, compare_fleet
from jobs.package import publish_decision
from plants.costs import Policy, solve, solve_by_novelty
from plants.errors import InputError
from plants.plant import load_fleet
from plants.scores import PartScores
from tests.fleets import Works, console, drawn_fleet, imported

SHOW, _ = console()
NAMES = ["arden", "essen"]


def test_before_training_and_comparing_each_verb_names_the_one_to_run_first(tmp_path):
    fleet, settings = imported(drawn_fleet(tmp_path, "north")), Settings(home=tmp_path / "home")
    with pytest.raises(InputError, match=r"nothing has been trained.*crossplant train"):
        verdicts.compare(fleet, settings=settings, show=SHOW)
    with pytest.raises(InputError, match=r"nothing has been compared.*crossplant compare"):
        verdicts.evaluate(fleet, settings=settings, names=["north"], show=SHOW)
    with pytest.raises(InputError, match=r"nothing has been compared.*crossplant compare"):
        release.publish(fleet, settings=settings, names=["north"], show=SHOW)
    with pytest.raises(InputError, match="no published bundle begins with 'abc'"):
        release.promote(fleet, settings=settings, plant="north", bundle="abc", policy=None, show=SHOW)
    with pytest.raises(InputError, match="plant north: has no route yet"):
        release.rollback(fleet, settings=settings, plant="north", show=SHOW)
    with pytest.raises(InputError, match="plant nowhere"):
        release.rollback(fleet, settings=settings, plant="nowhere", show=SHOW)
    assert release.status(fleet, settings=settings, show=SHOW) == {
        "runs": [],
        "routes": [],
        "alarms": ["plant north has no route"],
    }


@pytest.fixture(scope="session")
def compared_document(finished_works: Works) -> dict[str, Any]:
    """What `compare` found, before anything is published."""
    done = [run.run_id for run in finished_works.plan.runs]
    exports = finished_works.exports()
    return compare_fleet(finished_works.fleet, plan=finished_works.plan, exports=exports, done=done, seed=0)


@pytest.mark.slow
def test_the_scores_that_a_policy_was_solved_on_are_kept_to_solve_it_again(finished_works, compared_document):
    for name, decision in compared_document["decisions"].items():
        kept = PartScores.from_parquet(finished_works.store.read(SCORES.format(plant=name)))
        solver = solve_by_novelty if decision["kind"] == "normality" else solve
        again = solver(kept, costs=finished_works.fleet.plant(name).costs, plant=name)
        assert again == Policy.model_validate(decision["policy"])
        assert compared_document["details"][name]["curve"]["defect_rate"] == decision["policy"]["costs"]["defect_rate"]


@pytest.fixture
def decided(works: Works, compared_document: dict[str, Any]) -> Works:
    """The trained fleet after `compare`, each plant's own model chosen."""
    choose(works, compared_document, kind="own")
    return works


def choose(works: Works, document: dict[str, Any], *, kind: str) -> dict[str, Any]:
    """Decide for this kind of run at both plants; bundles, policies and the document lie in the store."""
    document = {**document, "decisions": {name: dict(row) for name, row in document["decisions"].items()}}
    exports = works.exports()
    for name, decision in document["decisions"].items():
        run = f"{kind}-{name}-s0"
        decision |= {"model": run, "members": [run], "kind": kind, "weights": None, "rule": None}
        decision["bundle"], decision["policy_digest"] = publish_decision(
            name, document=document, plan=works.plan, exports=exports, finished={run: "2026-03-01"}
        )
    works.store.write_json(verdicts.COMPARED, document)
    return document


def publish(works: Works) -> dict[str, Any]:
    return release.publish(works.fleet, settings=works.settings, names=NAMES, show=SHOW)


@pytest.mark.slow
def test_a_plant_without_a_champion_gets_its_route_at_once_and_publishing_again_changes_nothing(decided):
    first = publish(decided)
    assert [(row["plant"], row["sequence"], row["challenger"]) for row in first["plants"]] == [
        ("arden", 1, None),
        ("essen", 1, None),
    ]
    decisions = verdicts.compared(decided.store)["decisions"]
    assert {row["plant"]: row["bundle"] for row in first["plants"]} == {n: d["bundle"] for n, d in decisions.items()}
    assert publish(decided)["plants"] == first["plants"]


@pytest.mark.slow
def test_another_decision_becomes_the_challenger_beside_the_champion(decided, compared_document):
    before = {row["plant"]: row for row in publish(decided)["plants"]}
    new = choose(decided, compared_document, kind="frozen")["decisions"]
    for row in publish(decided)["plants"]:
        old = before[row["plant"]]
        assert (row["bundle"], row["policy"]) == (old["bundle"], old["policy"])
        assert row["challenger"] == new[row["plant"]]["bundle"] != old["bundle"]


@pytest.mark.slow
def test_a_decision_that_the_sealed_test_withdrew_is_not_published_and_the_others_are(decided):
    bundle = verdicts.compared(decided.store)["decisions"]["arden"]["bundle"]
    row = {"withdrawn": True, "bundle": bundle}
    decided.store.write_json(verdicts.EVALUATED, {"plants": {"arden": row}})
    found = publish(decided)
    assert found["withdrawn"] == ["arden"]
    assert [row["plant"] for row in found["plants"]] == ["essen"]
    assert Journal(decided.settings.journal_url).route("arden") is None
    decided.store.write_json(verdicts.EVALUATED, {"plants": {"arden": {**row, "bundle": "f" * 64}}})
    assert publish(decided)["withdrawn"] == [], "another model's withdrawal is none of this one's"


@pytest.mark.slow
def test_a_live_model_that_the_sealed_test_withdrew_afterwards_is_said_wherever_one_looks(decided):
    publish(decided)
    digest = verdicts.compared(decided.store)["decisions"]["arden"]["bundle"]
    row = {"withdrawn": True, "bundle": "f" * 64, "float_bundle": digest}
    decided.store.write_json(verdicts.EVALUATED, {"plants": {"arden": row}})
    show, said = console()
    given = {"settings": decided.settings, "show": show}
    words = f"plant arden: the sealed test withdrew the decision for its bundle, {digest[:12]}"
    assert release.status(decided.fleet, **given)["alarms"] == [words]
    assert release.publish(decided.fleet, names=NAMES, **given)["withdrawn"] == ["arden"]
    assert "it is live: see `crossplant rollback`" in said()
    release.promote(decided.fleet, plant="arden", bundle=digest, policy=None, certify=lambda *_: None, **given)
    assert "alarm: plant arden: the sealed test withdrew the decision for this bundle" in said()


@pytest.mark.slow
def test_a_model_that_has_seen_the_sealed_test_is_published_as_unproven(decided):
    bundle = verdicts.compared(decided.store)["decisions"]["arden"]["bundle"]
    row = {"withdrawn": False, "contaminated": 3, "bundle": bundle}
    decided.store.write_json(verdicts.EVALUATED, {"plants": {"arden": row}})
    show, printed = console()
    given = {"settings": decided.settings, "names": NAMES}
    assert release.publish(decided.fleet, show=show, **given)["contaminated"] == ["arden"]
    assert "plant arden: published unproven: the model has learned from 3 of the sealed test's images" in printed()
    decided.store.write_json(verdicts.EVALUATED, {"plants": {"arden": {**row, "bundle": "f" * 64}}})
    assert publish(decided)["contaminated"] == [], "another model's test is none of this one's"


@pytest.mark.slow
def test_a_plant_without_a_decision_is_named(decided):
    with pytest.raises(InputError, match="plant brno: has no decision"):
        release.publish(decided.fleet, settings=decided.settings, names=["brno"], show=SHOW)


@pytest.mark.slow
def test_a_fleet_is_published_without_the_plants_that_have_no_decision(decided):
    show, printed = console()
    found = release.publish(decided.fleet, settings=decided.settings, names=["arden", "brno"], show=show)
    assert [row["plant"] for row in found["plants"]] == ["arden"]
    assert "left out, without a decision: brno" in printed()


@pytest.mark.slow
def test_what_is_already_the_challenger_is_not_written_again(decided, compared_document):
    publish(decided)
    choose(decided, compared_document, kind="frozen")
    assert publish(decided)["plants"] == publish(decided)["plants"]


@pytest.mark.slow
def test_a_bundle_or_policy_of_another_plant_is_not_promoted(decided, compared_document):
    given = {"settings": decided.settings, "show": SHOW}
    own = verdicts.compared(decided.store)["decisions"]
    with pytest.raises(InputError, match="plant essen: the bundle does not serve it"):
        release.promote(
            decided.fleet, plant="essen", bundle=own["arden"]["bundle"], policy=own["essen"]["policy_digest"], **given
        )
    with pytest.raises(InputError, match="field policy: the policy was solved for plant essen"):
        release.promote(
            decided.fleet, plant="arden", bundle=own["arden"]["bundle"], policy=own["essen"]["policy_digest"], **given
        )
    choose(decided, compared_document, kind="frozen")
    back = release.promote(decided.fleet, plant="arden", bundle=own["arden"]["bundle"], policy=None, **given)
    assert back["policy"] == own["arden"]["policy_digest"], "the only policy of a bundle is found without a comparison"


@pytest.mark.slow
def test_a_plant_whose_runs_failed_has_no_decision_and_the_others_have(finished_works):
    done = [run.run_id for run in finished_works.plan.runs if "essen" not in run.plants]
    said: list[str] = []
    document = compare_fleet(
        finished_works.fleet,
        plan=finished_works.plan,
        exports=finished_works.exports(),
        done=done,
        seed=0,
        say=said.append,
    )
    assert set(document["decisions"]) == {"arden"}
    assert "essen: no finished model may serve it: see `crossplant status` for runs that failed" in said
    without = [run.run_id for run in finished_works.plan.runs if "essen" in run.plants]
    assert document["not_judged"] == dict.fromkeys(without, "not finished")
    assert f"not judged, not finished: {', '.join(without)}" in said


@pytest.mark.slow
def test_a_bundle_is_promoted_by_the_beginning_of_its_digest_and_rolled_back(decided, compared_document):
    old = publish(decided)["plants"][0]
    decision = choose(decided, compared_document, kind="frozen")["decisions"]["arden"]
    given = {"settings": decided.settings, "plant": "arden", "show": SHOW}
    new = release.promote(decided.fleet, bundle=decision["bundle"][:12], policy=None, **given)
    assert (new["sequence"], new["bundle"], new["policy"]) == (2, decision["bundle"], decision["policy_digest"])
    back = release.rollback(decided.fleet, **given)
    assert (back["sequence"], back["bundle"], back["policy"]) == (3, old["bundle"], old["policy"])


@pytest.mark.slow
def test_a_beginning_that_fits_no_or_several_bundles_is_refused(decided):
    given = {"settings": decided.settings, "plant": "arden", "policy": None, "show": SHOW}
    with pytest.raises(InputError, match="no published bundle begins with 'xyz'"):
        release.promote(decided.fleet, bundle="xyz", **given)
    with pytest.raises(InputError, match="2 published bundle begins with ''"):
        release.promote(decided.fleet, bundle="", **given)
    old = verdicts.compared(decided.store)["decisions"]["essen"]["bundle"]
    with pytest.raises(InputError, match=r"no policy was solved for this bundle.*--policy"):
        release.promote(decided.fleet, bundle=old, **given)


@pytest.mark.slow
def test_status_shows_what_failed_and_who_has_no_route(decided):
    ledger = RunLedger(decided.store, decided.plan.plan_id)
    ledger.put(fail(RunRecord(run_id="own-arden-s0"), error="ValueError: rows have no label"))
    release.publish(decided.fleet, settings=decided.settings, names=["essen"], show=SHOW)
    found = release.status(decided.fleet, settings=decided.settings, show=SHOW)
    states = {run["name"]: run["state"] for run in found["runs"]}
    assert states["own-arden-s0"] == "failed"
    assert {state for name, state in states.items() if name != "own-arden-s0"} == {"done"}
    assert [route["plant"] for route in found["routes"]] == ["essen"]
    assert found["alarms"] == ["run own-arden-s0 failed: ValueError: rows have no label", "plant arden has no route"]


@pytest.mark.slow
def test_a_comparison_needs_one_finished_run(works):
    for entry in works.store.list(f"runs/{works.plan.plan_id}"):
        if entry.key.count("/") == 2 and not entry.key.endswith("plan.json"):
            works.store.delete(entry.key)
    with pytest.raises(InputError, match="no run has finished"):
        verdicts.compare(works.fleet, settings=works.settings, show=SHOW)


def test_the_latest_plan_is_the_one_that_was_trained_last(tmp_path):
    fleet = load_fleet(drawn_fleet(tmp_path, "north"))
    store = open_store(fleet.store)
    for name in ("one", "two"):
        plan = {"fleet": name, "data_digest": "d", "runs": [], "trunk": 0}
        store.write_json(f"runs/{name}/plan.json", plan)
        store.write_json("runs/latest.json", {"plan": name})
    assert verdicts.latest_plan(store).fleet == "two"
