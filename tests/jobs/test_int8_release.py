"""`compress`: INT8 of what was decided for, kept where it holds at every plant and is faster, else float alone."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.registry import Bundles
from jobs import int8, int8_release, release
from jobs.compare import SCORES, compare_fleet
from jobs.package import publish_decision
from plants import bundle
from plants.costs import Policy
from plants.variants import Speed
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
        works.store.write(release.BUNDLE_SCORES.format(bundle=decision["bundle"], plant=name), scores)
    works.store.write_json(release.COMPARED, document)
    return works


def run(works: Works) -> tuple[dict[str, Any], str]:
    show, said = console()
    return int8_release.compress(works.fleet, settings=works.settings, show=show), said()


def test_bundles_get_both_variants_whose_float_files_are_the_old_ones(decided, tmp_path, monkeypatch):
    monkeypatch.setattr(int8, "speed", lambda *works: FAST)
    before = release.compared(decided.store)["decisions"]
    found, said = run(decided)
    assert found["kept"] != "float", said
    print(said)
    after = release.compared(decided.store)["decisions"]
    old, new = (
        bundle.read(Bundles(decided.store).fetch(row["arden"]["bundle"], tmp_path))[0] for row in (before, after)
    )
    assert old.int8 is None
    assert new.int8.gate["arden"].n > 0
    same = {name for name in old.files if name != "card.md"}
    assert {name: new.files[name] for name in same} == {name: old.files[name] for name in same}
    assert decided.store.exists(f"trunks/{new.int8.trunk}.onnx")
    policy = Policy.from_json(decided.store.read(f"policies/{after['arden']['policy_digest']}.json"))
    assert policy.bundle == after["arden"]["bundle"]
