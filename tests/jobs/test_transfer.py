"""What transfer bought: judged on the same parts, over seeds, with the time it took; and never chosen."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import yaml

import jobs.scratch
from cluster.ledger import RunLedger, RunRecord
from jobs.compare import compare_fleet
from jobs.plan import BASELINES, Plan, RunSpec
from jobs.transfer import METHODS, transfer, with_seconds
from plants.verdict import Candidate
from tests.fleets import small_fleet, trained
from tests.plants.candidates import candidate

STAGES = {"stages": [1]}
NO_STAGES: dict[str, Any] = {"stages": []}


def plan_of(*, seeds: tuple[int, ...] = (0, 1)) -> Plan:
    runs = [RunSpec(f"pooled-s{s}", "pooled", ("north", "south"), s, STAGES) for s in seeds]
    runs.append(RunSpec("classical-north-s0", "classical", ("north",), 0, NO_STAGES, target="north"))
    for s in seeds:
        given: dict[str, Any] = {"plants": ("north",), "seed": s, "target": "north"}
        runs.append(RunSpec(f"warm-north-s{s}", "warm", recipe=STAGES, parent=f"pooled-s{s}", **given))
        runs.append(RunSpec(f"frozen-north-s{s}", "frozen", recipe=NO_STAGES, **given))
        runs.append(RunSpec(f"scratch-north-s{s}", "scratch", recipe=STAGES, **given))
    return Plan("toys", "d", tuple(runs))


SKILLS = {"warm": 2.5, "frozen": 2.0, "scratch": 0.3, "classical": 2.5}


def model(name: str, *, num_lots: int = 100) -> Candidate:
    """A model as skilled as its kind, with mistakes of its seed."""
    kind, seed = name.split("-")[0], int(name.rpartition("s")[2])
    noise = 0 if kind in ("warm", "classical") else seed
    found = candidate(name, skill=SKILLS[kind] + 0.1 * seed * (kind == "scratch"), noise=noise, num_lots=num_lots)
    return replace(found, kind=kind)


def row_of(plan: Plan, *, done: set[str] | None = None, num_lots: int = 100, chosen: str = "warm-north-s0") -> Any:
    done = {run.run_id for run in plan.runs} if done is None else done
    first = [model(name, num_lots=num_lots) for name in sorted(done) if name.endswith("s0") and "pooled" not in name]

    def judge(name: str, kind: str, members: tuple[str, ...]) -> Candidate:
        assert members == (name,)
        assert not name.endswith("s0"), "what was judged is not judged again"
        return model(name, num_lots=num_lots)

    best = next(one for one in first if one.name == chosen)
    return transfer("north", chosen=best, candidates=first, plan=plan, done=done, judge=judge, seed=0)


def test_every_method_is_judged_over_every_seed_that_was_trained():
    row = row_of(plan_of(seeds=(0, 1, 2)))
    assert (row["plant"], row["model"], tuple(row["methods"])) == ("north", "warm-north-s0", METHODS)
    assert {name: found["num_seeds"] for name, found in row["methods"].items()} == {
        "classical": 1,
        "scratch": 3,
        "frozen": 3,
        "chosen": 3,
    }
    found = row["methods"]["scratch"]["macro_f1"]
    assert len(set(found["by_seed"])) == 3
    assert found["value"] == pytest.approx(sum(found["by_seed"]) / 3, abs=1e-6)
    assert found["low"] < found["value"] < found["high"]


def test_what_is_better_than_nothing_is_told_from_what_is_not_shown_to_be():
    against = row_of(plan_of())["against"]
    assert against["scratch"]["macro_f1"]["low"] > 0
    assert against["scratch"]["cost"]["high"] < 0
    assert [against["scratch"][metric]["words"] for metric in ("macro_f1", "cost")] == ["transfer is better"] * 2
    assert against["classical"]["num_seeds"] == 2, "the classical model is every seed's"
    equal = against["classical"]["macro_f1"]
    assert equal["low"] <= 0 <= equal["high"]
    assert equal["words"] == "no difference shown"


def test_a_chosen_model_that_lost_to_random_weights_is_said_to_have(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(SKILLS, "warm", 0.3)
    monkeypatch.setitem(SKILLS, "scratch", 2.5)
    against = row_of(plan_of())["against"]["scratch"]
    assert against["macro_f1"]["words"] == against["cost"]["words"] == "transfer is WORSE"


def test_seeds_that_only_one_of_the_two_has_finished_are_not_compared():
    plan = plan_of(seeds=(0, 1, 2))
    done = {run.run_id for run in plan.runs} - {"scratch-north-s0", "warm-north-s2"}
    row = row_of(plan, done=done)
    assert list(row["methods"]["scratch"]["runs"]) == ["1", "2"]
    assert list(row["methods"]["chosen"]["runs"]) == ["0", "1"]
    assert row["against"]["scratch"]["num_seeds"] == 1
    none = row_of(plan, done=done - {"scratch-north-s1", "scratch-north-s2"})
    assert none["methods"]["scratch"] is None
    assert none["against"]["scratch"] is None


def test_few_lots_give_no_interval_and_no_verdict():
    gap = row_of(plan_of(), num_lots=9)["against"]["scratch"]["macro_f1"]
    assert (gap["low"], gap["words"]) == (None, "not enough lots")
    assert gap["value"] > 0


def test_without_baselines_there_is_no_row():
    plan = plan_of()
    done = {run.run_id for run in plan.runs if run.kind not in BASELINES}
    assert row_of(plan, done=done) is None


def test_time_counts_what_a_model_started_from_and_its_share_of_the_activations():
    plan = plan_of(seeds=(0, 1))
    seconds = {"pooled": 100, "warm": 10, "frozen": 1, "scratch": 1000, "classical": 7}
    records = {run.run_id: RunRecord(run_id=run.run_id, seconds=seconds[run.kind] + 2 * run.seed) for run in plan.runs}
    rows = [row_of(plan)]
    (row,) = with_seconds(rows, plan=plan, records=records, prepared={"north": 60.0, "south": 8.0})
    found = {name: (one["seconds"], one["activation_seconds"]) for name, one in row["methods"].items()}
    assert found == {
        "classical": (7, 0),
        "scratch": (1001, 0),
        "frozen": (1 + 1 + 10, 10),
        "chosen": (100 + 1 + 10 + 1 + 2 * 10 + 4, 2 * 10 + 4),
    }
    (cold,) = with_seconds(rows, plan=plan, records=records, prepared={"south": 8.0})
    assert cold["methods"]["frozen"]["seconds"] == 2
    assert cold["methods"]["frozen"]["activation_seconds"] is None


def test_preparation_is_added_up_over_drivers_and_is_no_run(tmp_path):
    from cluster.storage import open_store

    ledger = RunLedger(open_store(str(tmp_path)), "plan")
    assert ledger.preparations() == {}
    for spent in (3.0, 0.5):
        ledger.add_preparation("north", seconds=spent)
    ledger.put(RunRecord(run_id="a"))
    assert ledger.preparations() == {"north": 3.5}
    assert set(ledger.load()) == {"a"}


@pytest.mark.slow
def test_baselines_are_in_the_matrix_of_their_plant_and_decided_for_nowhere(tmp_path, monkeypatch):
    """From the label table to the document, two plants, two seeds; random weights and all."""
    monkeypatch.setattr(jobs.scratch, "EPOCHS", 2)
    monkeypatch.setattr(jobs.scratch, "STEPS", 1)
    path = small_fleet(tmp_path / "fleet", "arden", "essen", scale=0.1)
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    raw["trunks"][0] |= {"cuts": [0, 1, 5], "size_px": 64}
    path.write_text(yaml.safe_dump(raw, sort_keys=False, allow_unicode=True), encoding="utf-8")
    works = trained(path, home=tmp_path / "home", kinds=("frozen", *BASELINES), seeds=(0, 1), baselines=True)
    done = [run.run_id for run in works.plan.runs if run.kind in ("frozen", *BASELINES)]
    document = compare_fleet(works.fleet, plan=works.plan, exports=works.exports(), done=done, seed=0)
    for name in ("arden", "essen"):
        judged = {run for run, cells in document["matrix"].items() if name in cells}
        assert {f"scratch-{name}-s0", f"classical-{name}-s0"} <= judged
        assert document["decisions"][name]["kind"] == "frozen"
        (row,) = (row for row in document["transfer"] if row["plant"] == name)
        assert {method: found["num_seeds"] for method, found in row["methods"].items()} == {
            "classical": 1,
            "scratch": 2,
            "frozen": 2,
            "chosen": 2,
        }
        first = document["matrix"][f"scratch-{name}-s0"][name]["macro_f1"]
        assert row["methods"]["scratch"]["macro_f1"]["by_seed"][0] == first
    sister = {"arden": "essen", "essen": "arden"}
    assert not [name for name in sister if f"scratch-{name}-s0" in document["matrix"].get(sister[name], {})]
    assert {document["models"][f"{kind}-arden-s0"]["tier"] for kind in BASELINES} == {None}
    assert [row["plant"] for row in document["transfer"]] == document["plants"]
    assert "transfer" not in document["details"]["arden"]
    json.dumps(document)
