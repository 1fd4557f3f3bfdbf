"""No certificate, no route: a bundle is staged on the host that loads it before the journal names it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from plants import bundle as bundles
from plants.certificate import Certificate, Host
from plants.errors import CheckFailed, InputError
from plants.geometry import Environment, Geometry
from plants.plant import Costs
from plants.variants import Shift
from serving.router import Target
from serving.service import Service
from serving.wiring import Shelf, certify, open_service
from tests.serving.int8 import GATE, add_int8, slow_float
from tests.serving.toys import TILES, Works, plant_view

HERE = Host(cpu="a core", flags=("avx2", "avx512_vnni"), runtime="onnxruntime 1")
ELSEWHERE = HERE.model_copy(update={"flags": ("avx2",)})


def staged(works: Works, *, bundle: str, policy: str, host: Host = HERE, home: str = "one") -> Any:
    """The predictor of a replica on this host."""
    shelf = Shelf(works.store, folder=works.root / home, host=host)
    return shelf.predictor("mill", Target(bundle, policy, 1))


def certificates(works: Works) -> list[Certificate]:
    entries = works.store.list("certificates")
    return [Certificate.model_validate_json(works.store.read(entry.key)) for entry in entries]


def with_torch(works: Works, digest: str, *, offset: float = 0.0) -> str:
    """The bundle whose probe holds torch's answers too, off by so much at the first leaf."""
    folder = works.root / "torch" / digest
    manifest, _ = bundles.read(works.bundles.fetch(digest, folder.parent))
    with np.load(folder / "probe.npz") as probe:
        given = {name: probe[name] for name in probe}
    given["torch"] = given["logits"] + offset * np.array([1.0, 0.0, 0.0], dtype=np.float32)
    np.savez(folder / "probe.npz", **given)
    bundles.write(folder, manifest.model_copy(update={"files": {}}))
    return works.bundles.publish(folder)


def test_a_route_that_is_live_has_a_certificate_from_torch_to_the_live_route(works: Works):
    slow_float(works)
    bundle, policy = add_int8(works, with_torch(works, works.bundle("own"))), works.policy()
    staged(works, bundle=bundle, policy=policy)
    (found,) = certificates(works)
    assert (found.plant, found.bundle, found.policy, found.variant) == ("mill", bundle, policy, "int8")
    assert [(stage.name, stage.found.n) for stage in found.stages] == [("float", 6), ("int8", 6), ("live", 6)]
    assert found.host == HERE
    assert found.recall == GATE.recall
    assert (found.p99_ms, found.takt_ms) == (None, None), "the line's takt is not known"
    assert not found.faults


def test_each_kind_of_host_has_its_own_and_makes_it_once(works: Works):
    bundle, policy = works.bundle("own"), works.policy()
    for host in (HERE, ELSEWHERE, HERE, ELSEWHERE):
        staged(works, bundle=bundle, policy=policy, host=host)
    first = {one.host.kind: one.made_at for one in certificates(works)}
    assert set(first) == {HERE.kind, ELSEWHERE.kind}
    staged(works, bundle=bundle, policy=policy, home="another replica of that kind")
    assert {one.host.kind: one.made_at for one in certificates(works)} == first


def test_another_policy_of_the_same_bundle_has_its_own(works: Works):
    bundle = works.bundle("own")
    policies = [works.policy(), works.policy(reject_above=0.7)]
    for policy in policies:
        staged(works, bundle=bundle, policy=policy)
    assert {one.policy for one in certificates(works)} == set(policies)


def test_float_files_that_are_not_what_torch_gave_get_none(works: Works):
    bundle, policy = with_torch(works, works.bundle("own"), offset=1.0), works.policy()
    with pytest.raises(InputError, match=r"plant mill: .*no certificate for float on a core: the float files: 2 of 6"):
        staged(works, bundle=bundle, policy=policy)
    (found,) = certificates(works)
    assert found.faults, "why there is none can be read"


def test_a_part_must_be_judged_within_the_lines_takt(works: Works):
    bundle = works.bundle("own")
    slow, fast = (works.policy(costs=Costs(parts_per_hour=rate)) for rate in (3600.0, 3.6e9))
    staged(works, bundle=bundle, policy=slow)
    (found,) = certificates(works)
    assert found.takt_ms == 1000
    assert found.p99_ms is not None
    assert 0 < found.p99_ms < 1000
    assert found.num_timed >= 10
    with pytest.raises(InputError, match=r"p99 of a part is .* ms, the line's takt is 0.001 ms"):
        staged(works, bundle=bundle, policy=fast)


def test_one_that_failed_is_made_again_when_asked_again(works: Works):
    bundle, policy = works.bundle("own"), works.policy()
    staged(works, bundle=bundle, policy=policy)
    (entry,) = works.store.list("certificates")
    found = Certificate.model_validate_json(works.store.read(entry.key))
    failed = found.model_copy(update={"p99_ms": 2.0, "takt_ms": 1.0})
    works.store.write(entry.key, failed.to_json().encode())
    staged(works, bundle=bundle, policy=policy, home="two")
    assert not certificates(works)[0].faults


def test_an_ensemble_and_a_bundle_without_a_probe_are_staged_too(works: Works):
    policy = works.policy()
    members = tuple(works.bundle(name, sharpness=s) for name, s in (("a", 20.0), ("b", 10.0)))
    staged(works, bundle=works.ensemble(members, (0.5, 0.5)), policy=policy)
    assert [stage.found.n for stage in certificates(works)[0].stages] == [12, 6]
    bare = works.bundle("bare", with_probe=False)
    staged(works, bundle=bare, policy=policy)
    (found,) = [one for one in certificates(works) if one.bundle == bare]
    assert [stage.found.n for stage in found.stages] == [0, 1]


def test_a_replica_starts_by_what_it_knows_with_the_store_away(works: Works, caplog: pytest.LogCaptureFixture):
    bundle, policy = works.bundle("own"), works.policy()
    staged(works, bundle=bundle, policy=policy)
    Path(works.store.uri).rename(works.root / "away")
    with caplog.at_level(logging.WARNING, logger="crossplant.serving"):
        assert staged(works, bundle=bundle, policy=policy).plant == "mill"
    assert not caplog.records
    assert staged(works, bundle=bundle, policy=policy, host=ELSEWHERE).plant == "mill", "it finds out for itself"


@pytest.fixture
def lead(live: Works) -> dict[str, str]:
    return live.token("lead", plant=None)


def test_over_http_a_promotion_is_refused_before_the_journal_names_it(
    lead: dict[str, str], http: TestClient, live: Works, service: Service
):
    before = live.journal.route("mill")
    bundle = with_torch(live, live.bundle("off"), offset=1.0)
    refused = http.post("/plants/mill/promote", headers=lead, json={"bundle": bundle, "policy": live.policy()})
    assert refused.status_code == 422
    assert "no certificate for float" in refused.json()["error"]
    assert live.journal.route("mill") == before
    good = {"bundle": live.bundle("better", sharpness=10.0), "policy": live.policy()}
    assert http.post("/plants/mill/promote", headers=lead, json=good).status_code == 200
    assert {one.bundle for one in certificates(live)} >= {good["bundle"]}


def test_a_route_without_certificate_isolates_its_plant_which_keeps_its_last_good_one(live: Works):
    live.promote("press", bundle=live.bundle("press", serves={"press": plant_view()}), policy=live.policy("press"))
    service = open_service(live.settings, store_uri=live.store.uri, fleet="toys", replica="r1", poll_s=60)
    try:
        before = service.router.table.live["mill"].target
        live.promote(bundle=with_torch(live, live.bundle("off"), offset=1.0), policy=live.policy())
        service.router.refresh()
        assert service.router.table.live["mill"].target == before
        assert "no certificate" in service.router.table.problems["mill"]
        assert "press" in service.router.table.live
        assert "press" not in service.router.table.problems
    finally:
        service.close()


def test_a_rollback_over_http_to_a_route_without_certificate_says_that_the_present_one_stays(
    http: TestClient, live: Works, service: Service
):
    live.promote(bundle=with_torch(live, live.bundle("off"), offset=1.0), policy=live.policy())
    good = live.bundle("good", sharpness=9.0)
    live.promote(bundle=good, policy=live.policy())
    service.router.refresh()
    assert service.router.table.live["mill"].target.bundle == good
    back = http.post("/plants/mill/rollback", headers=live.token("lead", plant=None)).json()
    assert back["sequence"] == 4
    assert "no certificate" in back["problem"]
    assert service.router.table.live["mill"].target.bundle == good
    again = http.post("/plants/mill/rollback", headers=live.token("lead", plant=None)).json()
    assert (again["sequence"], again["problem"]) == (5, None)


def test_a_verb_is_told_in_one_line_and_ends_with_a_check_that_said_no(works: Works):
    stage = certify(works.settings, store_uri=works.store.uri, fleet="toys")
    stage("mill", works.bundle("own"), policy := works.policy())
    with pytest.raises(CheckFailed, match=r"^plant mill: .*no certificate") as found:
        stage("mill", with_torch(works, works.bundle("off"), offset=1.0), policy)
    assert "\n" not in str(found.value)


def test_int8_that_flips_more_than_where_it_was_judged_is_served_in_float_with_a_certificate_of_float(works: Works):
    slow_float(works)
    bundle = add_int8(works, works.bundle("own"), scale=1 / 100, judged=Shift(n=6, flips=0, largest=0.01))
    staged(works, bundle=bundle, policy=works.policy())
    (found,) = certificates(works)
    assert found.variant == "float"
    assert [stage.name for stage in found.stages] == ["float", "live"]


@pytest.mark.parametrize(
    "geometry", [Geometry(), Geometry(roi=(4, 2, 50, 40)), TILES, Geometry(bit_depth=12), Geometry(bit_depth=16)]
)
def test_the_frame_that_is_timed_is_one_that_the_plants_camera_could_send(works: Works, geometry: Geometry):
    bundle = works.bundle("own", serves={"mill": plant_view(environments={"cam": Environment(geometry=geometry)})})
    staged(works, bundle=bundle, policy=works.policy(costs=Costs(parts_per_hour=60.0)))
    (found,) = certificates(works)
    assert found.num_timed >= 10
