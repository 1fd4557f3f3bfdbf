"""First labels: a page over a real folder; verdicts are on disk before it is told, and import and audit read them."""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import yaml
from fastapi.testclient import TestClient
from PIL import Image

import crossplant
from cluster.catalog import Catalog
from cluster.imports import import_plant
from cluster.storage import PlantFiles, open_store
from plants.errors import InputError
from plants.plant import Fleet, Plant, load_fleet
from serving.desk import PAGE, Desk
from serving.labelling import build_page
from tests.browser import BrowserUnavailable, opened
from tests.fleets import NOW

pytestmark = pytest.mark.slow
TOKEN = "the-token"
CLASSES = ("good", "Riß, tief", '<img src=x onerror="throw 1">')
NUM = 70
BROKEN = 9


def write_plant(folder: Path, *, num: int = NUM, **fields: Any) -> Path:
    """A fleet of one plant without a label: frames in a flat folder, the tenth of which is broken."""
    (folder / "mill").mkdir(parents=True)
    for i in range(num):
        Image.new("RGB", (40 + 10 * i, 20), (i, 3 * i % 256, 90)).save(folder / "mill" / f"{i:03d}.png")
    if num > BROKEN:
        (folder / "mill" / f"{BROKEN:03d}.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    plant = {
        "name": "mill",
        "images": "mill",
        "labels": "labels.csv",
        "golden": "golden.csv",
        "classes": {
            CLASSES[0]: "ok",
            CLASSES[1]: "crack",
            CLASSES[2]: "stain",
            "rust": {"fleet": "r", "state": "absent"},
        },
        "ok": ["good"],
        **fields,
    }
    raw = {"fleet": "first", "store": "store", "plants": [{k: v for k, v in plant.items() if v is not None}]}
    (folder / "fleet.yaml").write_text(yaml.safe_dump(raw, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return folder / "fleet.yaml"


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return load_fleet(write_plant(tmp_path))


@pytest.fixture
def plant(fleet: Fleet) -> Plant:
    return fleet.plants[0]


@pytest.fixture
def http(plant: Plant) -> TestClient:
    """Ada's page."""
    return page_of(plant, "ada")


def page_of(plant: Plant, who: str) -> TestClient:
    desk = Desk(plant, annotator=who)
    return TestClient(
        build_page(desk, token=TOKEN), base_url=f"http://testserver/{TOKEN}/", raise_server_exceptions=False
    )


def rows(address: str | None) -> list[tuple[str, ...]]:
    """The table as it lies on disk: frame, class, annotator."""
    with Path(str(address)).open(encoding="utf-8", newline="") as file:
        return [tuple(row[:3]) for row in csv.reader(file)][1:]


def label(page: TestClient, frames: list[int], name: str | None) -> dict[str, Any]:
    answer = page.post("label", json={"frames": frames, "class": name})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def shown(page: TestClient, which: str = "todo", **query: int) -> list[int]:
    answer = page.get("frames", params={"which": which, **query})
    assert answer.status_code == 200, answer.text
    return [frame["number"] for frame in answer.json()["frames"]]


def test_frames_come_in_pages_both_ways_and_what_i_judged_is_no_longer_to_do(http):
    assert shown(http) == list(range(PAGE))
    assert shown(http, after=PAGE - 1) == list(range(PAGE, NUM))
    assert shown(http, before=PAGE) == list(range(PAGE))
    assert shown(http, after=NUM - 1) == []
    label(http, [0, 2], "good")
    assert shown(http, "mine") == [0, 2]
    assert shown(http)[:2] == [1, 3]
    assert shown(http, "open")[:2] == [1, 3]


def test_verdicts_on_many_frames_are_in_both_tables_when_the_page_is_told(http, plant):
    told = label(http, [4, 1, 0], CLASSES[1])
    expected = [(f"{i:03d}.png", CLASSES[1], "ada") for i in (4, 1, 0)]
    assert rows(plant.labels) == rows(plant.golden) == expected
    assert told == {
        "mine": {str(i): CLASSES[1] for i in (0, 1, 4)},
        **{"num_frames": NUM, "num_mine": 3, "num_labelled": 3, "num_apart": 0},
    }


def test_undo_takes_back_one_action_after_the_other_and_then_says_that_there_is_none(http, plant):
    label(http, [0, 1, 2], "good")
    label(http, [1], CLASSES[1])
    label(http, [2], None)
    assert http.post("undo").json()["mine"] == {"2": "good"}
    assert http.post("undo").json()["mine"] == {"1": "good"}
    assert rows(plant.labels) == [(f"{i:03d}.png", "good", "ada") for i in range(3)]
    assert http.post("undo").json()["mine"] == {"0": None, "1": None, "2": None}
    assert rows(plant.labels) == rows(plant.golden) == []
    refused = http.post("undo")
    assert (refused.status_code, refused.json()["error"]) == (409, "there is nothing to undo in this session")


def test_two_annotators_are_blind_to_each_other_but_in_the_list_of_what_they_differ_on(plant):
    ada, bob = page_of(plant, "ada"), page_of(plant, "bob")
    label(ada, [0, 1, 2], "good")
    everything = bob.get("frames").text + bob.get("frames", params={"which": "mine"}).text
    assert "good" not in everything
    assert '"said"' not in everything
    label(bob, [0, 1], "good")
    label(bob, [2], CLASSES[1])
    for page in (ada, bob):
        (frame,) = page.get("frames", params={"which": "apart"}).json()["frames"]
        assert frame["frame"] == "002.png"
        assert frame["said"] == {"ada": "good", "bob": CLASSES[1]}
    assert rows(plant.labels) == [("000.png", "good", "ada"), ("001.png", "good", "ada")]
    label(ada, [2], CLASSES[1])
    assert shown(bob, "apart") == []
    assert ("002.png", CLASSES[1], "ada") in rows(plant.labels)


def test_a_thumbnail_is_a_small_jpeg_the_picture_a_whole_one_and_a_broken_frame_is_said_to_be_broken(http):
    small, whole = http.get("thumbnails/60"), http.get("pictures/60")
    assert Image.open(io.BytesIO(small.content)).size == (256, 8)
    assert Image.open(io.BytesIO(whole.content)).size == (640, 20)
    assert small.headers["content-type"] == "image/jpeg"
    assert "no-store" not in small.headers["cache-control"]
    broken = http.get(f"thumbnails/{BROKEN}")
    assert broken.status_code == 422
    assert broken.json()["error"].startswith("009.png cannot be shown: not a readable image")


def test_frames_of_16_bit_are_shown_through_the_window_of_their_environment(tmp_path):
    geometry = {"geometry": {"bit_depth": 12, "window": [100, 300]}}
    path = write_plant(tmp_path, num=1, environments={"a": geometry, "b": {}}, environment_pattern="^([ab])_")
    (tmp_path / "mill/000.png").unlink()
    Image.new("I;16", (9, 9), 200).save(tmp_path / "mill/a_1.png")
    Image.new("I;16", (9, 9), 200).save(tmp_path / "mill/b_1.png")
    Image.new("L", (9, 9), 200).save(tmp_path / "mill/c_1.png")
    page = page_of(load_fleet(path).plants[0], "ada")
    assert Image.open(io.BytesIO(page.get("pictures/0").content)).getpixel((4, 4)) == (128, 128, 128)
    assert "holds 16-bit data" in page.get("pictures/1").json()["error"]
    assert "names no environment" in page.get("pictures/2").json()["error"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b'{"frames": [70], "class": "good"}', 422, "there is no frame 70"),
        (b'{"frames": [-1], "class": "good"}', 422, "there is no frame -1"),
        (b'{"frames": [0], "class": "gut"}', 422, "unknown class 'gut'; known: good, Riß"),
        (b'{"frames": [0], "class": "rust"}', 422, "unknown class 'rust'"),
        (b'{"frames": [], "class": "good"}', 422, "at least 1 item"),
        (b'{"frames": ["0"], "class": "good"}', 422, "valid integer"),
        (b'{"frames": [0]}', 422, "Field required"),
        (b'{"frames": [0], "class": "good", "annotator": "eve"}', 422, "not permitted"),
        (json.dumps({"frames": [0] * 61, "class": "good"}).encode(), 422, "at most 60 items"),
        (b'{"frames": [9], "class": "good"}', 422, "009.png cannot be shown"),
        (b"frames=0&class=good", 400, "the body is not JSON"),
        (b"\xff\xfe", 400, "the body is not JSON"),
        (b"", 400, "the body is not JSON"),
        (b" " * (1 << 20) + b"{}", 413, "the body is larger than 1 MB"),
    ],
)
def test_a_body_that_cannot_be_meant_is_refused_in_a_sentence_and_nothing_is_written(http, plant, body, status, words):
    answer = http.post("label", content=body)
    assert (answer.status_code, set(answer.json())) == (status, {"error", "plant", "field", "remedy"})
    assert words in answer.json()["error"]
    assert not Path(str(plant.labels)).exists()
    assert not Path(str(plant.golden)).exists()


@pytest.mark.parametrize(
    ("path", "status"),
    [("thumbnails/70", 404), ("pictures/-1", 404), ("thumbnails/x", 422), ("frames?which=theirs", 422),
     ("frames?after=x", 422), ("frames?after=-2", 422), ("../", 404), ("nothing", 404), ("label", 405)],
)  # fmt: skip
def test_an_address_that_leads_nowhere_is_refused_in_a_sentence(http, path, status):
    answer = http.get(path)
    assert (answer.status_code, bool(answer.json()["error"])) == (status, True)


@pytest.mark.parametrize("path", ["/", "/plant", "/frames", "/thumbnails/0", "/pictures/0", "/label", "/undo", "/docs"])
@pytest.mark.parametrize("token", ["", "/", "/wrong", "/the-toke", "/the-token2", "/the-töken"])
def test_without_the_token_there_is_nothing(plant, token, path):
    client = TestClient(build_page(Desk(plant, annotator="ada"), token=TOKEN), raise_server_exceptions=False)
    for answer in (client.get(token + path), client.post(token + path, json={"frames": [0], "class": "good"})):
        assert answer.status_code in (404, 405)
        assert "mill" not in answer.text
    assert not Path(str(plant.labels)).exists()


def test_the_page_holds_everything_it_needs_and_lets_nothing_else_run(http):
    one, two = http.get(""), http.get("")
    policy = one.headers["content-security-policy"]
    (nonce,) = set(re.findall(r"nonce-([\w-]+)", policy))
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert one.text.count(f'nonce="{nonce}"') == 2
    assert nonce not in two.text
    assert not re.search(r"(src|href)=[\"']?(https?:)?//|innerHTML|insertAdjacent|document\.write|\son\w+=", one.text)
    assert "mill" not in one.text


def test_a_table_that_cannot_be_read_or_written_is_said_and_can_be_tried_again(http, plant):
    Path(str(plant.golden)).write_bytes(b"\xff")
    refused = http.post("label", json={"frames": [0], "class": "good"})
    assert (refused.status_code, "is not UTF-8" in refused.json()["error"]) == (503, True)
    Path(str(plant.golden)).unlink()
    label(http, [0], "good")
    assert rows(plant.labels) == [("000.png", "good", "ada")]


def test_rows_that_a_customer_wrote_stay_as_they_are_and_count_as_labelled(plant):
    theirs = 'frame;class;lot\r\n"000.png";good;L1\r\n001.png;good;"L,2"\r\nelsewhere.png;good;L3\r\n'
    Path(str(plant.labels)).write_text(theirs, encoding="utf-8", newline="")
    page = page_of(plant, "ada")
    assert page.get("frames").json()["num_labelled"] == 2
    assert shown(page, "open")[0] == 2
    label(page, [1, 2], CLASSES[1])
    text = Path(str(plant.labels)).read_bytes().decode()
    assert text == theirs.replace('001.png;good;"L,2"', "001.png;;L,2") + f"002.png;{CLASSES[1]};\r\n"
    assert [frame["said"] for frame in page.get("frames?which=apart").json()["frames"]] == [
        {"labels": "good", "ada": CLASSES[1]}
    ]
    assert page_of(plant, "bob").get("frames?which=apart").json()["frames"] == [], "bob has not judged it yet"
    page.post("undo")
    assert Path(str(plant.labels)).read_bytes().decode() == theirs


def test_ten_thousand_frames_are_no_problem(tmp_path):
    path = write_plant(tmp_path, num=1)
    for i in range(10_000):
        (tmp_path / f"mill/n{i:05d}.png").touch()
    plant = load_fleet(path).plants[0]
    lines = [f"n{i:05d}.png,good,{who},s{i}" for i in range(10_000) for who in ("bob", "eve")]
    (tmp_path / "golden.csv").write_text("\n".join(["frame,class,annotator,sha256", *lines]), encoding="utf-8")
    page = page_of(plant, "ada")
    start = time.perf_counter()
    label(page, [0], "good")
    assert shown(page, after=9_000) == list(range(9_001, 9_061))
    assert time.perf_counter() - start < 5
    assert len(rows(plant.golden)) == 20_001


def test_what_cannot_be_labelled_here_is_refused_before_anything_is_served(tmp_path):
    several = {"environments": {"a": {}, "b": {}}}
    for i, (fields, words) in enumerate([
        ({"labels": None}, "field labels: the fleet file names no table"),
        ({"golden": None}, "field golden: the fleet file names no table"),
        (several, "field environment_pattern: several environments"),
        ({"images": "nowhere"}, "there is no such folder"),
    ]):  # fmt: skip
        plant = load_fleet(write_plant(tmp_path / str(i), num=1, **fields)).plants[0]
        with pytest.raises(InputError, match=words):
            Desk(plant, annotator="ada")
    plant = load_fleet(write_plant(tmp_path / "names", num=1)).plants[0]
    for name in ("", " ada", "a\nb", "x" * 65):
        with pytest.raises(InputError, match="field --annotator: is no annotator's name"):
            Desk(plant, annotator=name)


def test_frames_whose_names_no_table_can_hold_are_left_out_and_counted(tmp_path):
    path = write_plant(tmp_path, num=1)
    for name in ("back\\slash.png", "two\nlines.png", "notes.txt", "ä, ö.PNG"):
        (tmp_path / "mill" / name).write_bytes((tmp_path / "mill/000.png").read_bytes())
    desk = Desk(load_fleet(path).plants[0], annotator="ada")
    assert (desk.frames, desk.num_left_out) == (("000.png", "ä, ö.PNG"), 2)


# --- several writers -------------------------------------------------------------------------------------------------


def keep_labelling(fleet: str, who: str, frames: list[int], start: Any) -> None:
    """One annotator labels frame after frame, each at the same moment as the others."""
    desk = Desk(load_fleet(fleet).plants[0], annotator=who)
    for number in frames:
        desk.picture(number)
        start.wait(60)
        desk.label([number], "good")


def test_writers_in_three_processes_who_write_at_the_same_moments_lose_nothing(tmp_path, plant):
    context = multiprocessing.get_context("spawn")
    start, fleet = context.Barrier(3), str(tmp_path / "fleet.yaml")
    jobs = [("ada", list(range(10, 14))), ("bob", list(range(10, 14))), ("ada", list(range(40, 44)))]
    processes = [context.Process(target=keep_labelling, args=(fleet, *job, start)) for job in jobs]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    said = {(f"{number:03d}.png", who) for who, frames in jobs for number in frames}
    assert sorted((frame, who) for frame, _, who in rows(plant.golden)) == sorted(said)
    assert sorted(frame for frame, _, _ in rows(plant.labels)) == sorted({frame for frame, _ in said})


def test_requests_of_one_page_that_come_at_once_lose_nothing_and_are_all_undone(plant):
    desk = Desk(plant, annotator="ada")
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda i: desk.label([i], "good"), range(10, 22)))
        assert len(rows(plant.labels)) == 12
        list(pool.map(lambda _: desk.undo(), range(12)))
    assert rows(plant.labels) == rows(plant.golden) == []


def test_frames_and_tables_may_lie_in_a_bucket(tmp_path, bucket):
    write_plant(tmp_path, num=2)
    store = open_store(f"{bucket}/mill")
    store.upload_folder(tmp_path / "mill", "frames")
    plant = load_fleet(tmp_path / "fleet.yaml").plants[0].model_copy(
        update={"images": store.at("frames"), "labels": store.at("labels.csv"), "golden": store.at("golden.csv")}
    )  # fmt: skip
    ada, bob = page_of(plant, "ada"), page_of(plant, "bob")
    assert Image.open(io.BytesIO(ada.get("thumbnails/1").content)).size == (50, 20)
    label(ada, [0, 1], "good")
    label(bob, [0], CLASSES[1])
    assert store.read("labels.csv") == b"frame,class,annotator\n001.png,good,ada\n"
    bob.post("undo")
    assert len(store.read("labels.csv").splitlines()) == 3
    assert store.list(".crossplant") == []


# --- what comes afterwards -------------------------------------------------------------------------------------------


def test_import_and_audit_read_what_two_annotators_said_as_it_is(tmp_path, fleet, plant):
    from jobs.look import audit_tables
    from jobs.material import Material
    from jobs.recipe import Recipe

    (tmp_path / "mill/069.png").write_bytes((tmp_path / "mill/068.png").read_bytes())
    ada, bob = page_of(plant, "ada"), page_of(plant, "bob")
    numbers = [i for i in range(NUM) if i != BROKEN]
    half = len(numbers) // 2
    for page in (ada, bob):
        label(page, numbers[:half], "good")
        label(page, numbers[half:], CLASSES[1])
    label(bob, numbers[:3], CLASSES[2])
    catalog = Catalog.of(fleet)
    done = import_plant(catalog, fleet, plant, files=PlantFiles(), now=NOW)
    assert done.rows == len(numbers) - 3
    assert done.classes == {"good": half - 3, CLASSES[1]: len(numbers) - half}
    assert done.rejected == []
    material = Material(fleet, cache=tmp_path / "cache", recipe=Recipe(stages=(), views=1))
    found = {f.kind: f for f in audit_tables(fleet, names=["mill"], material=material)}
    detail = found["annotators_disagree"].detail
    assert re.search(r"2 annotators \(ada, bob\) on \d+ images: kappa 0\.\d\d \(", detail)
    assert "they differ on 3, first 000.png (ada 'good', bob '<img" in detail


# --- the command and the browser -------------------------------------------------------------------------------------


def test_a_plant_without_a_table_ends_the_command_with_2_and_the_remedy(tmp_path, monkeypatch, capsys):
    path = write_plant(tmp_path, num=1, golden=None)
    monkeypatch.setattr(sys, "argv", ["crossplant", "label", "--fleet", str(path), "--plant", "mill"])
    with pytest.raises(SystemExit) as ended:
        crossplant.main()
    assert ended.value.code == 2
    error = "error: plant mill: field golden: the fleet file names no table for the columns frame, class, annotator. "
    assert capsys.readouterr().err == error + (
        "Write `golden: mill-golden.csv` in the fleet file; the file need not exist yet\n"
    )


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_ended_and_then_says_what_was_done_without_ray_or_torch(tmp_path, end):
    """Nor is there what alone reads the seal, `cluster.catalog`: see `tests/test_layering.py`."""
    path = write_plant(tmp_path)
    program = (
        "import crossplant, sys\n"
        "ABSENT = 'ray', 'torch', 'onnxruntime', 'cluster.catalog'\n"
        "try: crossplant.main()\n"
        "finally: print('LOADED', *sorted({*ABSENT} & set(sys.modules)), file=sys.stderr)\n"
    )
    words = ["label", "--fleet", str(path), "--plant", "mill", "--annotator", "ada", "--json", "-"]
    running = subprocess.Popen(
        ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-c", program, *words],  # as in the background
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stderr
    first, address = running.stderr.readline(), running.stderr.readline().strip()
    assert first == "mill: 70 frames, annotator ada; Ctrl-C ends it\n"
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{43}/", address)
    body = json.dumps({"frames": [0, 1], "class": "good"}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{address}label", data=body)) as answer:
        assert answer.status == 200
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(address[:-2] + "/")
    running.send_signal(end)
    out, err = running.communicate(timeout=30)
    assert err == "2 frames labelled, 68 still have no label; 0 differ\nLOADED\n"
    assert running.returncode == 0
    document = json.loads(out)
    assert {key: document[key] for key in ("plant", "annotator", "labelled", "unlabelled", "disagreements")} == {
        **{"plant": "mill", "annotator": "ada"},
        **{"labelled": 2, "unlabelled": 68, "disagreements": 0},
    }
    assert rows(document["labels"]) == rows(document["golden"]) == [(f"00{i}.png", "good", "ada") for i in (0, 1)]


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A page that a browser can open: eight sound frames of ada's."""
    plant = load_fleet(write_plant(tmp_path, num=8)).plants[0]
    server = uvicorn.Server(
        uvicorn.Config(build_page(Desk(plant, annotator="ada"), token=TOKEN), port=0, log_level="warning")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/{TOKEN}/"
    server.should_exit = True
    thread.join(10)


@pytest.mark.browser
def test_in_a_browser_frames_are_labelled_by_keyboard_many_at_once_and_undone(tmp_path, address):
    labels = str(tmp_path / "labels.csv")

    def stands(page: Any, words: str) -> None:
        page.wait_for_function("words => document.querySelector('#status').textContent.startsWith(words)", arg=words)

    try:
        with opened(address) as page:
            stands(page, "1 to 8 of 8 unlabelled by me")
            assert page.locator("#classes button").all_inner_texts()[2] == f"3  {CLASSES[2]}"
            for key in ("1", "2", "3"):
                page.keyboard.press(key)
            stands(page, f"1 frame: {CLASSES[2]}")
            assert rows(labels) == [(f"00{i}.png", name, "ada") for i, name in enumerate(CLASSES)]
            assert page.locator(".cell .word").all_inner_texts()[:4] == [*CLASSES, ""]
            page.keyboard.press("u")
            stands(page, "undone: 1 frame")
            assert rows(labels) == [(f"00{i}.png", name, "ada") for i, name in enumerate(CLASSES[:2])]
            page.locator(".cell").nth(4).click()
            page.locator(".cell").nth(6).click(modifiers=["Shift"])
            page.locator(".cell").nth(5).click(modifiers=["Control"])
            page.keyboard.press("1")
            stands(page, "2 frames: good")
            assert [frame for frame, *_ in rows(labels)] == ["000.png", "001.png", "004.png", "006.png"]
            page.keyboard.press("a")
            page.keyboard.press("2")
            stands(page, f"8 frames: {CLASSES[1]}")
            page.keyboard.press("u")
            stands(page, "undone: 8 frames")
            assert len(rows(labels)) == 4
            assert page.locator("#progress").inner_text().startswith("4 of 8 judged by me")
            page.locator(".cell").nth(7).dblclick()
            page.wait_for_function("() => document.querySelector('#picture').naturalWidth === 110")
            page.keyboard.press("a")
            page.keyboard.press("1")
            stands(page, "1 frame: good")
            assert page.locator("#caption").inner_text() == "007.png: good"
            page.keyboard.press("ArrowLeft")
            page.wait_for_function("() => document.querySelector('#picture').naturalWidth === 100")
            assert page.locator("#caption").inner_text() == "006.png: good"
            page.keyboard.press("z")
            page.get_by_role("button", name="labelled by me", exact=True).click()
            stands(page, "1 to 5 of 5 labelled by me")
            assert page.locator(".cell").count() == 5
    except BrowserUnavailable as reason:
        pytest.skip(str(reason))
