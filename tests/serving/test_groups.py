"""Plants that may not share a process do not, and which are served is chosen in one place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from plants.errors import InputError
from plants.plant import Fleet, Plant
from serving.app import build_app
from serving.verbs import chosen_plants
from serving.wiring import open_service
from tests.serving.toys import RED, Works, plant_view, png


def fleet(**groups: str | None) -> Fleet:
    plants = [
        Plant(name=name, images="frames", classes={"ok": "ok", "dent": "dent"}, ok=("ok",), group=group)
        for name, group in groups.items()
    ]
    return Fleet(fleet="toys", store="store", trunks=[{"backbone": "test_resnet"}], plants=plants)


def test_a_group_is_its_members_and_no_group_is_everybody():
    one = fleet(mill="eu", foundry="us", press="eu", kiln=None)
    assert chosen_plants(one, group="eu") == ["mill", "press"]
    assert chosen_plants(one) == ["mill", "foundry", "press", "kiln"]
    assert chosen_plants(one, group="eu", plants=["press"]) == ["press"]


def test_a_group_that_nobody_is_in_is_named_with_those_that_are_known():
    with pytest.raises(InputError, match=r"--group.*'asia'.*Known: eu, us"):
        chosen_plants(fleet(mill="eu", foundry="us"), group="asia")
    with pytest.raises(InputError, match="Give plants a `group`"):
        chosen_plants(fleet(mill=None), group="eu")


def test_a_plant_of_another_group_is_refused_by_name():
    with pytest.raises(InputError, match=r"foundry.*not in group 'eu'"):
        chosen_plants(fleet(mill="eu", foundry="us"), group="eu", plants=["foundry"])


def test_two_groups_on_one_machine_never_load_each_others_plants_even_without_the_database(works: Works):
    for plant in ("mill", "foundry"):
        bundle = works.bundle(plant, serves={plant: plant_view()}, sharpness=3.0 if plant == "mill" else 4.0)
        works.promote(plant, bundle=bundle, policy=works.policy(plant))

    def served(plant: str, replica: str) -> set[str]:
        one = open_service(
            works.settings, store_uri=works.store.uri, fleet="toys", plants=[plant], replica=replica, poll_s=60
        )
        found = set(one.router.table.live)
        one.close()
        return found

    assert served("mill", "r1") == {"mill"}
    assert served("foundry", "r2") == {"foundry"}
    states = (works.settings.home / "serving" / "toys").glob("routes-*.json")
    assert sorted(plant for state in states for plant in json.loads(state.read_text())) == ["foundry", "mill"]
    database: Path = works.settings.home / "routes.db"
    database.unlink()
    database.mkdir()
    assert served("mill", "r3") == {"mill"}


def test_two_fleets_that_share_a_home_do_not_follow_each_others_routes_but_new_plants_of_their_own(works: Works):
    digest = works.bundle("own", serves={name: plant_view() for name in ("mill", "foundry")})
    works.promote("mill", bundle=digest, policy=works.policy("mill"))
    works.promote("moon", bundle="a" * 64, policy="b" * 64)
    one = open_service(
        works.settings, store_uri=works.store.uri, fleet="toys", declared=["mill"], replica="r1", poll_s=60
    )
    assert set(one.router.table.live) == {"mill"}
    assert one.health()["status"] == "ok"
    works.promote("foundry", bundle=digest, policy=works.policy("foundry"))
    one.router.refresh()
    assert set(one.router.table.live) == {"mill", "foundry"}
    one.close()


def test_at_one_groups_address_another_groups_plant_is_a_404_to_those_who_may_know_and_a_403_to_others(works: Works):
    plants = {"mill": "eu", "foundry": "us"}
    for number, plant in enumerate(plants):
        bundle = works.bundle(plant, serves={plant: plant_view()}, sharpness=20.0 + number)
        works.promote(plant, bundle=bundle, policy=works.policy(plant))
    members = fleet(**plants)
    services = {
        group: open_service(
            works.settings,
            store_uri=works.store.uri,
            fleet="toys",
            plants=chosen_plants(members, group=group),
            declared=list(plants),
            replica=group,
        )
        for group in plants.values()
    }
    lead = works.token("lead", plant=None)
    with TestClient(build_app(services["eu"])) as eu, TestClient(build_app(services["us"])) as us:
        for here, there, plant, other in ((eu, us, "mill", "foundry"), (us, eu, "foundry", "mill")):
            token, image = works.token(plant=plant), png(RED)
            path = f"/plants/{plant}/predict?environment=cam-1"
            answer = here.post(path, content=image, headers=token).json()
            assert (answer["plant"], answer["defect"]) == (plant, "dent")
            elsewhere = there.post(path, content=image, headers=token)
            assert elsewhere.status_code == 404
            assert elsewhere.json()["error"] == "no such plant is served at this address"
            assert "group" in elsewhere.json()["remedy"]
            for path in (f"/plants/{plant}", f"/plants/{plant}/metrics"):
                assert there.get(path, headers=token).status_code == 404
            assert there.post(f"/plants/{plant}/rollback", headers=lead).status_code == 404
            # Whoever has another plant's token learns nothing: here, there, or nowhere.
            refusals = [
                (found.status_code, found.text)
                for client in (here, there)
                for name in (other, "nowhere")
                for found in (client.post(f"/plants/{name}/predict", content=image, headers=token),)
            ]
            assert len(set(refusals)) == 1
            assert refusals[0][0] == 403
            metrics = here.get("/metrics", headers=works.token("auditor", plant=None)).text
            assert f'plant="{plant}"' in metrics
            assert f'plant="{other}"' not in metrics
