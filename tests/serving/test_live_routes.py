"""Routes that change while a replica serves: side by side, without a failed request, also where plants are many."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from serving.app import build_app
from serving.router import NUM_LOADERS, Router, Target
from serving.service import Service
from serving.wiring import Tiers, open_service
from tests.serving.toys import BLUE, GREEN, RED, Works, plant_view, png, spoil


class Slow:
    """A router over a dictionary whose bundles load when they are let go."""

    def __init__(self, state: Path, *, start_wait_s: float = 0.1) -> None:
        self.routes: dict[str, Target] = {}
        self.gates: dict[str, threading.Event] = {}
        self.router = Router(
            poll=lambda: dict(self.routes), load=self.load, state=state, poll_s=0.02, start_wait_s=start_wait_s
        )

    def load(self, plant: str, target: Target) -> Any:
        if target.bundle in self.gates:
            assert self.gates[target.bundle].wait(timeout=30)
        return f"{plant}:{target.bundle}"

    def served(self) -> dict[str, str]:
        return {plant: one.target.bundle for plant, one in self.router.table.live.items()}


def until(is_so: Callable[[], bool], *, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_plant_that_loads_slowly_delays_no_other_plants_promotion(tmp_path: Path):
    rig = Slow(tmp_path / "routes.json")
    rig.routes = {"mill": Target("a", "p", 1), "foundry": Target("a", "p", 1)}
    rig.router.start()
    rig.gates["slow"] = threading.Event()
    rig.routes["mill"] = Target("slow", "p", 2)
    until(lambda: "mill" in rig.router.table.loading)
    rig.routes["foundry"] = Target("b", "p", 2)
    until(lambda: rig.served() == {"mill": "a", "foundry": "b"}, seconds=2)
    rig.gates["slow"].set()
    until(lambda: rig.served() == {"mill": "slow", "foundry": "b"})
    assert rig.router.table.loading == {}
    rig.router.close()


def test_a_replica_that_starts_serves_what_is_loaded_and_says_what_is_not(tmp_path: Path):
    rig = Slow(tmp_path / "routes.json")
    rig.gates["slow"] = threading.Event()
    rig.routes = {"mill": Target("a", "p", 1), "foundry": Target("slow", "p", 1)}
    rig.router.start()
    assert rig.served() == {"mill": "a"}
    assert set(rig.router.table.loading) == {"foundry"}
    rig.gates["slow"].set()
    until(lambda: rig.served() == {"mill": "a", "foundry": "slow"})
    rig.router.close()


def test_a_route_that_was_overtaken_while_it_loaded_never_becomes_live(tmp_path: Path):
    rig = Slow(tmp_path / "routes.json")
    rig.routes = {"mill": Target("a", "p", 1)}
    rig.router.start()
    rig.gates["slow"] = threading.Event()
    rig.routes["mill"] = Target("slow", "p", 2)
    until(lambda: "mill" in rig.router.table.loading)
    rig.routes["mill"] = Target("a", "p", 3)
    until(lambda: rig.router.table.live["mill"].target.sequence == 3)
    rig.gates["slow"].set()
    polls = rig.router.table.polls
    until(lambda: rig.router.table.polls > polls + 3)
    assert rig.router.table.live["mill"].target == Target("a", "p", 3)
    rig.router.close()


def test_the_last_good_route_of_a_plant_that_still_loads_is_not_forgotten(tmp_path: Path):
    first = Slow(tmp_path / "routes.json")
    first.routes = {"mill": Target("a", "p", 1), "foundry": Target("a", "p", 1)}
    first.router.refresh()
    second = Slow(tmp_path / "routes.json")
    second.gates["slow"] = threading.Event()
    second.routes = {"mill": Target("slow", "p", 2), "foundry": Target("b", "p", 2)}
    second.router.refresh(wait_s=0.1)
    third = Slow(tmp_path / "routes.json")
    third.router._poll = lambda: (_ for _ in ()).throw(ConnectionError())  # type: ignore[assignment]
    third.router.refresh()
    assert third.served() == {"mill": "a", "foundry": "b"}
    second.gates["slow"].set()


def test_as_many_slow_bundles_as_there_are_loaders_hold_the_rest_up_and_one_less_does_not(tmp_path: Path):
    rig = Slow(tmp_path / "routes.json")
    rig.router.start()
    for number in range(NUM_LOADERS - 1):
        rig.gates[f"slow{number}"] = threading.Event()
        rig.routes[f"plant{number}"] = Target(f"slow{number}", "p", 1)
    until(lambda: len(rig.router.table.loading) == NUM_LOADERS - 1)
    rig.routes["mill"] = Target("a", "p", 1)
    until(lambda: rig.served() == {"mill": "a"}, seconds=2)
    rig.gates["last"] = threading.Event()
    rig.routes["last"] = Target("last", "p", 1)
    until(lambda: len(rig.router.table.loading) == NUM_LOADERS)
    rig.routes["foundry"] = Target("b", "p", 1)
    until(lambda: "foundry" in rig.router.table.loading)
    polls = rig.router.table.polls
    until(lambda: rig.router.table.polls > polls + 3)
    assert rig.served() == {"mill": "a"}
    rig.gates["last"].set()
    until(lambda: rig.served() == {"mill": "a", "last": "last", "foundry": "b"}, seconds=2)
    for gate in rig.gates.values():
        gate.set()
    until(lambda: len(rig.served()) == NUM_LOADERS + 2)
    rig.router.close()


def opened(works: Works, **kwargs: Any) -> Service:
    return open_service(works.settings, store_uri=works.store.uri, fleet="toys", replica="r9", poll_s=0.05, **kwargs)


def test_a_new_plant_is_served_without_a_restart_and_says_who_decided_it(live: Works, http: TestClient):
    token = live.token(plant="foundry")
    assert http.get("/plants/foundry", headers=token).status_code == 404
    live.promote("foundry", bundle=live.bundle("f", serves={"foundry": plant_view()}), policy=live.policy("foundry"))
    until(lambda: http.get("/plants/foundry", headers=token).status_code == 200, seconds=2)
    status = http.get("/plants/foundry", headers=token).json()
    assert (status["tier"], status["is_loading"]) == ("head", False)
    assert (status["route"]["sequence"], status["route"]["action"], status["route"]["who"]) == (1, "promote", "test")
    assert status["route"]["at"].startswith("20")
    assert status["cost"]["memory_mb"] == pytest.approx(3 * 4 * 4 / 1e6)
    assert status["cost"]["own_ms"] is None
    query = {"environment": "cam-1"}
    answer = http.post("/plants/foundry/predict", params=query, content=png(RED), headers=token)
    assert answer.json()["defect"] == "dent"
    cost = http.get("/plants/foundry", headers=token).json()["cost"]
    assert 0 < cost["own_ms"] < 1000
    assert 0 < cost["trunk_ms"] < 1000


def test_a_plant_whose_model_still_loads_is_told_to_come_back_and_the_health_says_loading(
    live: Works, monkeypatch: pytest.MonkeyPatch
):
    from serving.wiring import Shelf

    gate, load = threading.Event(), Shelf.predictor

    def slow(self: Shelf, plant: str, target: Target) -> Any:
        assert plant != "foundry" or gate.wait(timeout=30)
        return load(self, plant, target)

    monkeypatch.setattr(Shelf, "predictor", slow)
    token = live.token(plant="foundry")
    live.promote("foundry", bundle=live.bundle("f", serves={"foundry": plant_view()}), policy=live.policy("foundry"))
    service = opened(live, start_wait_s=0.2)
    with TestClient(build_app(service)) as http:
        query = {"environment": "cam-1"}
        ok = http.post("/plants/mill/predict", params=query, content=png(GREEN), headers=live.token())
        assert ok.json()["verdict"] == "ok"
        waits = http.post("/plants/foundry/predict", params=query, content=png(GREEN), headers=token)
        assert (waits.status_code, waits.headers["retry-after"]) == (503, "1")
        health = http.get("/healthz").json()
        assert (health["status"], health["plants"], health["plants_loading"]) == ("loading", 1, 1)
        gate.set()
        until(lambda: http.get("/healthz").json()["status"] == "ok")


def test_a_branch_that_was_let_go_is_loaded_for_the_next_request_and_a_pinned_one_stays(live: Works):
    plants = ("mill", "mint", "foundry")
    for number, plant in enumerate(plants):
        digest = live.bundle(plant, cut=1, sharpness=20.0 + number, serves={plant: plant_view()})
        live.promote(plant, bundle=digest, policy=live.policy(plant))
    service = opened(live, tiers=Tiers(branch_mb=0.0, pinned=("foundry",)))
    tokens = {plant: live.token(plant=plant) for plant in plants}
    with TestClient(build_app(service)) as http:
        for colour, defect in ((RED, "dent"), (BLUE, "scratch")) * 3:
            for plant, token in tokens.items():
                url = f"/plants/{plant}/predict?environment=cam-1"
                assert http.post(url, content=png(colour), headers=token).json()["defect"] == defect
        states = {plant: http.get(f"/plants/{plant}", headers=token).json() for plant, token in tokens.items()}
    assert {state["tier"] for state in states.values()} == {"branch"}
    assert {plant: state["cost"]["is_loaded"] for plant, state in states.items()} == {
        "mill": False,
        "mint": True,
        "foundry": True,
    }
    assert service.branches().reloads >= 6


def test_whoever_looks_at_a_plant_does_not_keep_its_branch_from_being_let_go(live: Works):
    plants = ("mill", "mint", "foundry")
    for number, plant in enumerate(plants):
        digest = live.bundle(plant, cut=1, sharpness=20.0 + number, serves={plant: plant_view()})
        live.promote(plant, bundle=digest, policy=live.policy(plant))
    service = opened(live, tiers=Tiers(branch_mb=1024.0))
    size_mb = service.branches().open_mb / len(plants)
    service.close()
    service = opened(live, tiers=Tiers(branch_mb=2.5 * size_mb))
    tokens = {plant: live.token(plant=plant) for plant in plants}
    with TestClient(build_app(service)) as http:

        def ask(plant: str) -> None:
            url = f"/plants/{plant}/predict?environment=cam-1"
            assert http.post(url, content=png(RED), headers=tokens[plant]).status_code == 200

        def is_loaded(plant: str) -> bool:
            found: bool = http.get(f"/plants/{plant}", headers=tokens[plant]).json()["cost"]["is_loaded"]
            return found

        ask("mill")
        ask("mint")
        assert is_loaded("mill")
        ask("foundry")
        assert {plant: is_loaded(plant) for plant in plants} == {"mill": False, "mint": True, "foundry": True}


def test_a_branch_that_is_gone_from_disk_and_store_is_a_503_at_its_plant_and_no_others_business(live: Works):
    plants = ("mill", "mint")
    bundles = {
        plant: live.bundle(plant, cut=1, sharpness=20.0 + number, serves={plant: plant_view()})
        for number, plant in enumerate(plants)
    }
    for plant in plants:
        live.promote(plant, bundle=bundles[plant], policy=live.policy(plant))
    service = opened(live, tiers=Tiers(branch_mb=0.0))
    tokens = {plant: live.token(plant=plant) for plant in plants}
    with TestClient(build_app(service)) as http:

        def ask(plant: str) -> Any:
            return http.post(f"/plants/{plant}/predict?environment=cam-1", content=png(RED), headers=tokens[plant])

        assert [ask(plant).status_code for plant in plants] == [200, 200]
        here = live.settings.home / "serving" / "toys" / "bundles" / bundles["mill"]
        for folder in (here, live.store.root / "bundles" / bundles["mill"]):
            folder.rename(folder.with_name("gone"))
        gone = ask("mill")
        assert (gone.status_code, gone.headers["retry-after"], gone.json()["field"]) == (503, "5", "bundle")
        assert ask("mint").status_code == 200
        here.with_name("gone").rename(here)
        assert ask("mill").json()["defect"] == "dent"


@pytest.mark.slow
def test_among_a_thousand_plants_one_bad_bundle_isolates_its_plant_and_no_other(works: Works):
    num, bad = 1000, 617
    for number in range(num):
        plant = f"plant-{number}"
        bundle = works.bundle(plant, serves={plant: plant_view()}, with_probe=False)
        works.promote(plant, bundle=bundle, policy=works.policy(plant))
        if number == bad:
            spoil(works.store.root / "bundles" / bundle / "branch.onnx")
    begun = time.monotonic()
    service = opened(works)
    table = service.router.table
    assert set(table.problems) == {f"plant-{bad}"}
    assert len(table.live) == num - 1
    assert service.branches().num_open == 0
    assert time.monotonic() - begun < 60
    service.close()
