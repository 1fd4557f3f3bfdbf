from __future__ import annotations

import io
import socket
import struct
import threading
import time
import zlib
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pyarrow as pa
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from plants.errors import InputError
from plants.images import MAX_BYTES
from serving.app import Board, build_app, run
from serving.service import Service
from serving.wiring import open_service
from tests.serving.toys import BLUE, GREEN, RED, Works, plant_view, png

pytestmark = pytest.mark.slow

ANSWER_KEYS = {
    *("request_id", "plant", "environment", "part_id", "model", "verdict", "defect", "confidence", "probabilities"),
    *("novelty", "location", "severity", "frames", "latency_ms"),
}


def ask(
    http: TestClient, headers: dict[str, str], *images: bytes, plant: str = "mill", **fields: Any
) -> httpx.Response:
    files = [("image", (f"frame-{n}.png", image)) for n, image in enumerate(images)]
    data = {"environment": "cam-1"} | fields
    return http.post(f"/plants/{plant}/predict", headers=headers, files=files or None, data=data)


def test_a_green_part_passes_and_a_red_one_is_rejected_as_dented(http: TestClient, live: Works):
    headers = live.token()
    good, bad = ask(http, headers, png(GREEN)).json(), ask(http, headers, png(RED)).json()
    assert (good["verdict"], good["defect"]) == ("ok", None)
    assert (bad["verdict"], bad["defect"]) == ("reject", "dent")
    assert set(good) >= ANSWER_KEYS
    assert good["confidence"] > 0.9
    assert sum(bad["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_a_raw_body_gets_the_same_answer_as_a_form(http: TestClient, live: Works):
    headers = live.token()
    form = ask(http, headers, png(RED), part_id="7").json()
    raw = http.post("/plants/mill/predict?environment=cam-1&part_id=7", headers=headers, content=png(RED)).json()
    assert raw["frames"][0]["tensor_digest"] == form["frames"][0]["tensor_digest"]
    for key in ("probabilities", "verdict", "confidence", "part_id", "model"):
        assert raw[key] == form[key]


def test_one_bad_frame_of_three_decides_the_part_and_is_named(http: TestClient, live: Works):
    answer = ask(http, live.token(), png(GREEN), png(BLUE), png(GREEN), part_id="4711").json()
    assert (answer["part_id"], answer["verdict"], answer["defect"]) == ("4711", "reject", "scratch")
    assert [frame["image"] for frame in answer["frames"]] == ["frame-0.png", "frame-1.png", "frame-2.png"]
    scores = [frame["score"] for frame in answer["frames"]]
    assert max(scores) == scores[1] > 0.9 > 0.1 > scores[0]


def test_in_a_tiled_environment_the_box_of_the_defect_is_returned(http: TestClient, live: Works):
    frame = png(GREEN, size=(120, 96), patch=(RED, (92, 66, 118, 94)))
    answer = ask(http, live.token(), png(GREEN, size=(120, 96)), frame, environment="tiled").json()
    assert answer["verdict"] == "reject"
    assert answer["location"]["frame"] == 1
    x0, y0, x1, y1 = answer["location"]["box"]
    assert x0 <= 105 <= x1
    assert y0 <= 80 <= y1
    assert answer["frames"][1]["num_views"] == 5 * 4
    assert answer["frames"][1]["tiles"][0]["box"] == answer["location"]["box"]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_confidence_is_what_the_probabilities_say_of_the_verdict_at_every_temperature(
    works: Works, temperature: float
):
    classes = ("ok", "dent")
    view = plant_view(classes)
    bundle = works.bundle("soft", serves={"mill": view}, sharpness=3.0)
    policy = works.policy(classes=classes, temperature=temperature, impossible_above=1.0)
    works.promote(bundle=bundle, policy=policy)
    service = open_service(works.settings, store_uri=works.store.uri, fleet="toys", replica="r1")
    headers, verdicts = works.token(), set()
    with TestClient(build_app(service)) as http:
        for colour in [(20, 255, 20), (255, 20, 20), (120, 140, 20), (60, 60, 255), (90, 200, 60)]:
            answer = ask(http, headers, png(colour), png(colour)).json()
            said = "ok" if answer["verdict"] == "ok" else answer["defect"]
            assert answer["confidence"] == answer["probabilities"][said]
            assert sum(answer["probabilities"].values()) + answer["impossible"] == pytest.approx(1, abs=2e-6)
            assert answer["frames"][0]["probabilities"] == answer["probabilities"]
            verdicts.add(answer["verdict"])
    assert len(verdicts) > 1


def test_the_schema_says_that_confidence_and_probabilities_are_calibrated_alike(http: TestClient):
    fields = http.get("/openapi.json").json()["components"]["schemas"]["Answer"]["properties"]
    assert "Calibrated probability of what is said" in fields["confidence"]["description"]
    assert "calibrated by the policy's temperature as `confidence` is" in fields["probabilities"]["description"]


def test_a_request_without_a_token_is_told_how_to_send_one(http: TestClient, live: Works):
    for headers in (
        {},
        {"Authorization": "Basic abc"},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer nonsense"},
    ):
        response = ask(http, headers, png(GREEN))
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert "Bearer" in response.json()["remedy"]


def test_another_plants_token_learns_nothing_about_a_plant_that_exists(http: TestClient, live: Works):
    stranger = live.token(plant="foundry")
    for ask_for in (
        lambda p: ask(http, stranger, png(GREEN), plant=p),
        lambda p: http.get(f"/plants/{p}", headers=stranger),
    ):
        existing, invented = ask_for("mill"), ask_for("moon")
        assert existing.status_code == invented.status_code == 404
        assert existing.text.replace("mill", "X") == invented.text.replace("moon", "X")
        assert existing.headers.keys() == invented.headers.keys()


def test_a_plants_own_token_for_a_plant_without_a_route_gets_404(http: TestClient, live: Works):
    assert ask(http, live.token(plant="foundry"), png(GREEN), plant="foundry").status_code == 404


@pytest.mark.parametrize("plant", ["..", "%2e%2e", "a%2Fb", "mill%00", "MILL", " mill", "x" * 500, "%C3%BC"])
def test_an_odd_plant_name_is_not_found_whatever_it_is(http: TestClient, live: Works, plant: str):
    response = http.post(f"/plants/{plant}/predict", headers=live.token("lead", plant=None), content=png(GREEN))
    assert response.status_code in (403, 404)
    assert set(response.json()) == {"error", "plant", "field", "remedy"}


def bomb() -> bytes:
    """A PNG of 30,000 x 30,000 pixels in a few hundred bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def animated() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (20, 20), colour) for colour in (RED, GREEN)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("image", "words", "remedy"),
    [
        (b"<!DOCTYPE html><html><body>no image</body></html>", "not a readable image", "Hand in a JPEG"),
        (b"just text", "not a readable image", "Hand in a JPEG"),
        (b"", "empty", "Export it again"),
        (png(GREEN)[:60], "", "Send this frame as the camera wrote it"),
        (bomb(), "pixels", "Cut the frame"),
        (animated(), "several frames", "Export one image a frame"),
    ],
    ids=["html", "text", "empty", "truncated", "bomb", "animated"],
)
def test_what_is_no_image_is_refused_with_the_frame_named_and_the_next_request_is_served(
    http: TestClient, live: Works, image: bytes, words: str, remedy: str
):
    headers = live.token()
    response = ask(http, headers, png(GREEN), image)
    assert response.status_code == 422
    body = response.json()
    assert words in body["error"]
    assert (body["plant"], body["field"]) == ("mill", "image[1]")
    assert body["error"].count("frame-1.png") == 1
    assert body["remedy"].startswith(remedy)
    assert body["remedy"] not in body["error"]
    assert "Traceback" not in response.text
    assert "\n" not in body["error"]
    assert ask(http, headers, png(GREEN)).json()["verdict"] == "ok"


@pytest.mark.parametrize("kind", ["text/html", "application/json", "text/plain"])
def test_a_body_that_says_it_is_text_is_refused_as_such(http: TestClient, live: Works, kind: str):
    headers = live.token() | {"Content-Type": kind}
    response = http.post("/plants/mill/predict", headers=headers, content=b"<html></html>")
    assert (response.status_code, response.json()["field"]) == (415, "Content-Type")


def test_a_request_without_an_image_is_refused(http: TestClient, live: Works):
    response = http.post("/plants/mill/predict", headers=live.token(), data={"environment": "cam-1"})
    assert (response.status_code, response.json()["field"]) == (422, "image")
    response = http.post("/plants/mill/predict", headers=live.token())
    assert (response.status_code, response.json()["field"]) == (422, "image")


def test_fifty_megabytes_are_refused_before_they_are_read(http: TestClient, live: Works):
    headers = live.token()
    response = http.post("/plants/mill/predict", headers=headers, content=bytes(MAX_BYTES + 1))
    assert (response.status_code, response.json()["plant"]) == (413, "mill")
    read: list[int] = []

    def endless() -> Any:
        while len(read) < 100:
            read.append(1)
            yield bytes(1 << 20)

    response = http.post("/plants/mill/predict", headers=headers, content=endless())
    assert response.status_code == 413


def test_an_environment_must_be_named_where_there_are_two_and_must_exist(http: TestClient, live: Works):
    headers = live.token()
    for environment in ("", "cam-9"):
        body = ask(http, headers, png(GREEN), environment=environment).json()
        assert body["field"] == "environment"
        assert "cam-1, tiled" in body["remedy"]


def test_a_path_or_method_that_does_not_exist_is_refused_in_the_same_shape(http: TestClient):
    for response in (http.get("/nothing"), http.delete("/healthz")):
        assert response.status_code in (404, 405)
        assert set(response.json()) == {"error", "plant", "field", "remedy"}


def test_at_the_deadline_the_part_is_rejected_and_never_passed(http: TestClient, live: Works, service: Service):
    gate = threading.Event()
    handle = service.batcher._handle
    service.batcher._handle = lambda jobs: [gate.wait(5), handle(jobs)][1]  # type: ignore[list-item,return-value]
    headers = live.token()
    answer = ask(http, headers, png(GREEN), deadline_ms="80").json()
    gate.set()
    assert (answer["verdict"], answer["confidence"], answer["frames"]) == ("reject", 0.0, [])
    assert "80 ms" in answer["why"]
    assert ask(http, headers, png(GREEN), deadline_ms="5000").json()["verdict"] == "ok"


def test_when_too_many_wait_the_answer_says_when_to_come_back(http: TestClient, live: Works, service: Service):
    service.batcher._max_waiting = 0
    response = ask(http, live.token(), png(GREEN))
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1


def test_a_bug_is_told_without_a_traceback_and_counted(http: TestClient, live: Works, service: Service):
    def broken(jobs: Any) -> Any:
        raise ZeroDivisionError("secret detail")

    service.batcher._handle = broken
    response = ask(http, live.token(), png(GREEN))
    assert response.status_code == 500
    assert "secret" not in response.text
    assert set(response.json()) == {"error", "plant", "field", "remedy"}


def test_what_a_plant_serves_is_told_to_those_who_may_read(http: TestClient, live: Works):
    for headers in (live.token(), live.token("reviewer"), live.token("auditor", plant=None)):
        status = http.get("/plants/mill", headers=headers).json()
        assert (status["sequence"], status["model"]["arm"], status["kind"]) == (1, "champion", "own")
        assert status["classes"] == ["ok", "dent", "scratch"]
        assert status["environments"] == ["cam-1", "tiled"]
        assert status["problem"] is None


def test_counters_are_kept_by_environment_with_errors_beside_verdicts(http: TestClient, live: Works):
    headers = live.token()
    for colour in (GREEN, GREEN, RED):
        ask(http, headers, png(colour))
    ask(http, headers, png(GREEN, size=(64, 64)), environment="tiled")
    ask(http, headers, b"text")
    report = http.get("/plants/mill/metrics", headers=headers).json()
    assert report["environments"]["cam-1"]["verdicts"] == {"ok": 2, "reject": 1}
    assert report["environments"]["cam-1"]["defects"] == {"dent": 1}
    assert report["environments"]["cam-1"]["errors"] == {"422": 1}
    assert report["environments"]["tiled"]["requests"] == 1
    assert report["environments"]["cam-1"]["latency_ms"]["p99"] > 0


def test_prometheus_text_holds_every_plant_and_is_for_fleet_readers_alone(http: TestClient, live: Works):
    ask(http, live.token(), png(RED))
    ask(http, {}, png(RED), plant="moon")
    assert http.get("/metrics", headers=live.token()).status_code == 403
    assert http.get("/metrics").status_code == 401
    response = http.get("/metrics", headers=live.token("auditor", plant=None))
    assert response.headers["content-type"].startswith("text/plain")
    found = {
        (
            sample.name,
            sample.labels.get("plant"),
            sample.labels.get("verdict"),
            sample.labels.get("status"),
        ): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }
    assert found[("crossplant_verdicts_total", "mill", "reject", None)] == 1
    assert found[("crossplant_errors_total", "", None, "401")] == 1
    assert "moon" not in response.text


def test_every_verdict_is_in_the_prediction_log_in_the_store(http: TestClient, live: Works, service: Service):
    headers = live.token()
    answers = [ask(http, headers, png(colour), product="plate").json() for colour in (GREEN, RED)]
    ask(http, headers, b"text")
    service.log.flush()
    rows = [
        row
        for entry in live.store.list("log/mill")
        for row in pa.ipc.open_file(live.store.read(entry.key)).read_all().to_pylist()
    ]
    assert [row["request_id"] for row in rows] == [answer["request_id"] for answer in answers] == ["r1-1", "r1-2"]
    assert [row["verdict"] for row in rows] == ["ok", "reject"]
    assert rows[1]["frames"] == [answers[1]["frames"][0]["sha256"]]
    assert rows[1]["bundle"] == answers[1]["model"]["bundle"]
    assert {row["product"] for row in rows} == {"plate"}


def test_a_lead_promotes_and_rolls_back_and_the_next_request_feels_it(http: TestClient, live: Works):
    lead, plant = live.token("lead", plant=None), live.token()
    first = ask(http, plant, png(GREEN)).json()["model"]
    lenient = live.policy(pass_below=0.9, reject_above=0.95)
    change = {"bundle": first["bundle"], "policy": lenient, "expected": 1}
    done = http.post("/plants/mill/promote", headers=lead, json=change)
    assert (done.status_code, done.json()["sequence"]) == (200, 2)
    assert ask(http, plant, png(GREEN)).json()["model"]["policy"] == lenient
    back = http.post("/plants/mill/rollback", headers=lead)
    assert (back.json()["action"], back.json()["sequence"]) == ("rollback", 3)
    assert back.json()["who"].startswith("lead")
    assert ask(http, plant, png(GREEN)).json()["model"] == first
    nothing = http.post("/plants/mill/rollback", headers=lead)
    assert nothing.status_code == 409


def test_the_second_of_two_promoters_is_told_who_was_first(http: TestClient, live: Works):
    lead = live.token("lead", plant=None)
    change = {"bundle": live.bundle("next", cut=1), "policy": live.policy(), "expected": 1}
    assert http.post("/plants/mill/promote", headers=lead, json=change).status_code == 200
    late = http.post("/plants/mill/promote", headers=lead, json=change)
    assert late.status_code == 409
    assert "was first" in late.json()["error"]


def test_a_bundle_that_cannot_be_loaded_is_not_promoted(http: TestClient, live: Works):
    lead = live.token("lead", plant=None)
    response = http.post("/plants/mill/promote", headers=lead, json={"bundle": "0" * 64, "policy": live.policy()})
    assert (response.status_code, response.json()["field"]) == (422, "bundle")
    assert live.journal.current()["mill"].sequence == 1
    response = http.post("/plants/mill/promote", headers=lead, json={"bundle": "x"})
    assert (response.status_code, response.json()["field"]) == (422, "policy")


def test_a_plants_own_token_may_not_promote(http: TestClient, live: Works):
    response = http.post("/plants/mill/rollback", headers=live.token())
    assert response.status_code == 403


@pytest.mark.slow
def test_a_revoked_token_is_dead_within_ten_seconds(http: TestClient, live: Works, service: Service):
    token = live.access.issue("plant", plant="mill", ttl=timedelta(hours=1))
    headers = {"Authorization": f"Bearer {token}"}
    assert ask(http, headers, png(GREEN)).status_code == 200
    live.access.revoke(token)
    begun = time.monotonic()
    while ask(http, headers, png(GREEN)).status_code == 200:
        assert time.monotonic() - begun < 10
        time.sleep(0.05)


def test_an_expired_token_is_refused(http: TestClient, live: Works):
    past = datetime.now(UTC) - timedelta(hours=2)
    token = live.access.issue("plant", plant="mill", ttl=timedelta(hours=1), now=past)
    assert ask(http, {"Authorization": f"Bearer {token}"}, png(GREEN)).status_code == 401


def test_health_needs_no_token_and_names_no_plant(http: TestClient):
    health = http.get("/healthz")
    assert health.json() == {
        "status": "ok",
        "plants": 1,
        "plants_loading": 0,
        "plants_with_problems": 0,
        "problems": [],
    }


def test_a_board_keeps_what_a_dead_replica_counted_and_the_newest_of_each():
    board = Board()
    board.post("a", {"mill": {"cam-1": {"requests": 1}}})
    board.post("a", {"mill": {"cam-1": {"requests": 2}}})
    board.post("b", {})
    assert board.others("b") == [{"mill": {"cam-1": {"requests": 2}}}]
    assert board.others("c") == [{"mill": {"cam-1": {"requests": 2}}}, {}]


@pytest.mark.filterwarnings("error::pydantic.PydanticDeprecatedSince20")
def test_a_taken_port_is_refused_before_ray_starts(live: Works):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"127.0.0.1:{port} cannot be used"):
            run(live.settings, store_uri=live.store.uri, fleet="toys", port=port)
