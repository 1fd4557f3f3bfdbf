from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from serving.router import Failure, Live, Router, Target, retry_at, to_load
from serving.service import Service
from serving.wiring import open_service
from tests.serving.toys import Works, plant_view, spoil

A, B, C = Target("a", "p", 1), Target("b", "p", 2), Target("c", "p", 3)


def live(**targets: Target) -> dict[str, Live]:
    return {plant: Live(target, None) for plant, target in targets.items()}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wanted", "have", "failed", "expected"),
    [
        ({"mill": A}, {}, {}, {"mill": A}),
        ({"mill": A}, {"mill": A}, {}, {}),
        ({"mill": B}, {"mill": A}, {}, {"mill": B}),
        ({}, {"mill": A}, {}, {}),
        ({"mill": B}, {"mill": A}, {"mill": Failure(B, "bad", 1, at=99.5)}, {}),
        ({"mill": B}, {"mill": A}, {"mill": Failure(B, "bad", 1, at=98.0)}, {"mill": B}),
        ({"mill": C}, {"mill": A}, {"mill": Failure(B, "bad", 9, at=99.9)}, {"mill": C}),
    ],
    ids=[
        "new",
        "same",
        "changed",
        "gone from the journal",
        "failed just now",
        "failed before",
        "failed, then replaced",
    ],
)
def test_what_a_poll_loads(
    wanted: dict[str, Target], have: dict[str, Target], failed: dict[str, Failure], expected: dict[str, Target]
):
    assert to_load(wanted, live=live(**have), failures=failed, now=100.0) == expected


def test_a_bad_route_is_tried_again_ever_more_rarely_up_to_a_minute():
    waits = [retry_at(Failure(A, "bad", attempts, at=0.0)) for attempts in range(1, 10)]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]


class Rig:
    """A router over a dictionary; a bundle named `bad` cannot be loaded."""

    def __init__(self, state: Path) -> None:
        self.routes: dict[str, Target] = {}
        self.is_away = False
        self.now = 0.0
        self.loads: list[str] = []
        self.router = Router(poll=self.poll, load=self.load, state=state, poll_s=0.01, clock=lambda: self.now)

    def poll(self) -> Mapping[str, Target]:
        if self.is_away:
            raise ConnectionError
        return dict(self.routes)

    def load(self, plant: str, target: Target) -> Any:
        self.loads.append(target.bundle)
        if target.bundle == "bad":
            raise ValueError("is not what\nthe manifest says")
        return f"{plant}:{target.bundle}"

    def served(self) -> dict[str, str]:
        return {plant: one.target.bundle for plant, one in self.router.table.live.items()}


def test_one_bad_bundle_isolates_its_plant_which_keeps_its_last_good_route(tmp_path: Path):
    rig = Rig(tmp_path / "routes.json")
    rig.routes = {"mill": A, "foundry": A}
    rig.router.refresh()
    rig.routes = {"mill": Target("bad", "p", 2), "foundry": B}
    rig.router.refresh()
    assert rig.served() == {"mill": "a", "foundry": "b"}
    assert rig.router.table.problems == {"mill": "is not what the manifest says"}
    rig.routes["mill"] = C
    rig.router.refresh()
    assert rig.served() == {"mill": "c", "foundry": "b"}
    assert rig.router.table.problems == {}


def test_a_route_rolled_back_from_a_bad_bundle_is_no_problem_any_more(tmp_path: Path):
    rig = Rig(tmp_path / "routes.json")
    rig.routes = {"mill": A}
    rig.router.refresh()
    rig.routes = {"mill": Target("bad", "p", 2)}
    rig.router.refresh()
    rig.routes = {"mill": Target("a", "p", 3)}
    rig.router.refresh()
    assert rig.router.table.problems == {}


def test_a_table_in_use_never_changes(tmp_path: Path):
    rig = Rig(tmp_path / "routes.json")
    rig.routes = {"mill": A}
    rig.router.refresh()
    before = rig.router.table
    rig.routes = {"mill": B}
    rig.router.refresh()
    assert before.live["mill"].target == A
    assert rig.router.table.live["mill"].target == B


def test_with_the_journal_away_a_replica_serves_on_and_says_so(tmp_path: Path):
    rig = Rig(tmp_path / "routes.json")
    rig.routes = {"mill": A}
    rig.router.refresh()
    rig.is_away = True
    rig.router.refresh()
    assert rig.served() == {"mill": "a"}
    assert "ConnectionError" in str(rig.router.table.journal_problem)
    rig.is_away = False
    rig.router.refresh()
    assert rig.router.table.journal_problem is None


def test_with_the_journal_away_a_replica_even_starts(tmp_path: Path):
    first = Rig(tmp_path / "routes.json")
    first.routes = {"mill": A, "foundry": B}
    first.router.refresh()
    second = Rig(tmp_path / "routes.json")
    second.is_away = True
    second.router.refresh()
    assert second.served() == {"mill": "a", "foundry": "b"}


def test_a_replica_that_starts_on_a_bad_route_serves_the_last_good_one(tmp_path: Path):
    first = Rig(tmp_path / "routes.json")
    first.routes = {"mill": A}
    first.router.refresh()
    second = Rig(tmp_path / "routes.json")
    second.routes = {"mill": Target("bad", "p", 2)}
    second.router.refresh()
    assert second.served() == {"mill": "a"}
    assert "mill" in second.router.table.problems


@pytest.mark.parametrize("text", ["", "[1]", '{"mill": 3}', '{"mill": {"bundle": "a"}}', "\x00"])
def test_a_damaged_file_of_last_good_routes_does_not_stop_a_replica(tmp_path: Path, text: str):
    (tmp_path / "routes.json").write_text(text)
    rig = Rig(tmp_path / "routes.json")
    rig.is_away = True
    rig.router.refresh()
    assert rig.served() == {}
    rig.is_away, rig.routes = False, {"mill": A}
    rig.router.refresh()
    assert json.loads((tmp_path / "routes.json").read_text()) == {"mill": {"bundle": "a", "policy": "p", "sequence": 1}}


def test_an_unchanged_route_is_loaded_once_however_often_it_is_polled(tmp_path: Path):
    rig = Rig(tmp_path / "routes.json")
    rig.routes = {"mill": A}
    rig.router.start()
    while rig.router.table.polls < 5:
        time.sleep(0.01)
    rig.router.close()
    assert rig.loads == ["a"]


def reopened(works: Works) -> Service:
    return open_service(works.settings, store_uri=works.store.uri, fleet="toys", replica="r2", poll_s=60)


def test_a_byte_changed_in_the_store_keeps_the_plant_on_its_last_bundle(live: Works, service: Service):
    good = service.router.table.live["mill"].target.bundle
    bad = live.bundle("next", cut=1)
    spoil(live.store.root / "bundles" / bad / "branch.onnx")
    live.promote(bundle=bad, policy=live.policy())
    live.promote("foundry", bundle=live.bundle("f", serves={"foundry": plant_view()}), policy=live.policy("foundry"))
    service.router.refresh()
    table = service.router.table
    assert table.live["mill"].target.bundle == good
    assert "branch.onnx" in table.problems["mill"]
    assert "foundry" in table.live


def test_a_replica_starts_without_store_and_database_from_what_it_fetched(
    live: Works, service: Service, tmp_path: Path
):
    live.store.root.rename(tmp_path / "away")
    database = live.settings.home / "routes.db"
    database.unlink()
    database.mkdir()  # a path that SQLite cannot open
    again = reopened(live)
    assert "mill" in again.router.table.live
    assert again.health()["status"] == "degraded"
    again.close()


def test_only_the_plants_named_are_served(live: Works):
    live.promote("foundry", bundle=live.bundle("f", serves={"foundry": plant_view()}), policy=live.policy("foundry"))
    one = open_service(
        live.settings, store_uri=live.store.uri, fleet="other", plants=["foundry"], replica="r3", poll_s=60
    )
    assert set(one.router.table.live) == {"foundry"}
    one.close()
