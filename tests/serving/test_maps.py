"""A defect planted at a known place is found there: by box and by picture, whatever the frame went through."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from plants.geometry import Environment, Geometry
from serving.app import build_app
from serving.intake import Frame, PartRequest
from serving.local import local_predictor
from serving.predictor import Judgement, Predictor
from serving.verbs import predict_files
from serving.wiring import open_service
from tests.serving.int8 import add_int8
from tests.serving.mapped import Box, overlap, planted, use_bundle
from tests.serving.toys import BLUE, GREEN, Works, plant_view, png

SIZE = (200, 120)
GEOMETRIES = {
    "whole": Geometry(fit="whole"),
    "letterbox": Geometry(fit="letterbox"),
    "whole-roi": Geometry(fit="whole", roi=(60, 10, 190, 110)),
    "letterbox-roi": Geometry(fit="letterbox", roi=(70, 5, 120, 115)),
    "tiles": Geometry(fit="tiles", tile_px=64, overlap_px=24),
    "tiles-roi": Geometry(fit="tiles", tile_px=64, overlap_px=24, roi=(30, 20, 190, 110)),
    "narrow-tiles": Geometry(fit="tiles", tile_px=64, overlap_px=24, roi=(30, 40, 190, 90)),
}
PLACES: dict[str, tuple[Box, ...]] = {
    "whole": ((0, 0, 30, 24), (150, 80, 186, 108), (90, 40, 120, 60)),
    "letterbox": ((0, 0, 30, 26), (160, 90, 200, 120), (80, 30, 130, 80)),
    "whole-roi": ((60, 10, 90, 36), (150, 80, 190, 110), (100, 50, 130, 74)),
    "letterbox-roi": ((70, 5, 92, 30), (98, 85, 120, 115), (80, 50, 104, 76)),
    "tiles": ((0, 0, 20, 18), (182, 100, 200, 120), (96, 50, 116, 70)),
    "tiles-roi": ((30, 20, 50, 40), (168, 92, 190, 110), (100, 60, 120, 78)),
    "narrow-tiles": ((30, 40, 50, 60), (170, 70, 190, 90), (100, 56, 120, 78)),
}
CASES = [(name, box) for name, boxes in PLACES.items() for box in boxes]
VIEW = plant_view(environments={name: Environment(geometry=one) for name, one in GEOMETRIES.items()})
POLICY = {"pass_below": 0.02, "reject_above": 0.6}
DULL = 3.0
"""How sharp a toy is that is never sure of a part, so that a small defect is looked at."""


def predictor(works: Works, **kwargs: Any) -> Predictor:
    digest = use_bundle(works, view=VIEW, **kwargs)
    policy = works.store.local_path(f"policies/{works.policy(**POLICY)}.json")
    assert policy is not None
    return local_predictor(works.bundles.fetch(digest, works.root / "fetched"), policy=policy, trunk=works.trunk)


def ask(one: Predictor, *frames: bytes, environment: str, wants_map: bool = False) -> Judgement:
    given = tuple(Frame(f"{n}.png", data) for n, data in enumerate(frames))
    return one.predict(PartRequest("mill", given, environment=environment, wants_map=wants_map))


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Predictor]:
    """By cut: a head and a branch whose map has a cell for every pixel."""
    return {cut: predictor(Works(tmp_path_factory.mktemp(f"cut{cut}")), cut=cut, sharpness=DULL) for cut in (0, 1)}


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """A head whose map has four cells a side, as the embedded backbone's."""
    return predictor(Works(tmp_path_factory.mktemp("coarse")), cell=8, sharpness=DULL)


@pytest.fixture(scope="module")
def sure(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """A head that is sure of what it sees, a cell for every pixel."""
    return predictor(Works(tmp_path_factory.mktemp("sure")))


@pytest.mark.parametrize("cut", [0, 1])
@pytest.mark.parametrize(("name", "box"), CASES)
def test_a_planted_defect_is_boxed_where_it_lies_in_the_frame(
    exact: dict[int, Predictor], name: str, box: Box, cut: int
):
    found = ask(exact[cut], planted(SIZE, box), environment=name)
    assert found.decision.verdict != "ok"
    assert found.location is not None
    assert found.location.found_by == "map"
    assert overlap(found.location.box, box) > 0.6, found.location.box


@pytest.mark.parametrize(("name", "box"), CASES)
def test_a_coarse_map_holds_the_middle_of_the_defect(coarse: Predictor, name: str, box: Box):
    found = ask(coarse, planted(SIZE, box), environment=name)
    assert found.location is not None
    x0, y0, x1, y1 = found.location.box
    assert x0 <= (box[0] + box[2]) / 2 <= x1
    assert y0 <= (box[1] + box[3]) / 2 <= y1
    assert overlap(found.location.box, box) > 0.2


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "JPEG", "WEBP"])
def test_a_frame_that_the_camera_turned_is_boxed_as_people_see_it(exact: dict[int, Predictor], kind: str):
    box = (150, 80, 186, 108)
    found = ask(exact[0], planted(SIZE, box, kind=kind, turned=True), environment="letterbox")
    assert found.location is not None
    assert overlap(found.location.box, box) > 0.6


def test_the_box_lies_in_the_frame_that_speaks_loudest(exact: dict[int, Predictor]):
    good, box = png(GREEN, size=SIZE), (182, 100, 200, 120)
    found = ask(exact[0], good, planted(SIZE, box), good, environment="tiles")
    assert found.location is not None
    assert found.location.frame == 1
    assert overlap(found.location.box, box) > 0.6
    tile = found.frames[1].tiles[0].box
    inner = found.location.box
    assert tile[0] <= inner[0] < inner[2] <= tile[2]
    assert inner != tile


def test_the_named_defect_is_boxed_and_not_another_one(sure: Predictor):
    image = Image.new("RGB", SIZE, GREEN)
    image.paste((250, 0, 0), (10, 5, 130, 115))
    image.paste(BLUE, (150, 20, 170, 100))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    found = ask(sure, buffer.getvalue(), environment="whole")
    assert found.decision.defect == "dent"
    assert found.location is not None
    assert overlap(found.location.box, (10, 5, 130, 115)) > 0.8


def test_what_is_ignored_is_not_pointed_at(tmp_path: Path):
    corner = ((0, 0), (60, 0), (60, 60), (0, 60))
    view = plant_view(environments={"cam": Environment(geometry=Geometry(fit="whole", ignore=(corner,)))})
    works = Works(tmp_path)
    digest = use_bundle(works, view=view)
    one = local_predictor(works.bundles.fetch(digest, works.root / "fetched"), trunk=works.trunk)
    image = Image.open(io.BytesIO(planted(SIZE, (120, 60, 190, 110))))
    image.paste((255, 0, 0), (0, 0, 60, 60))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    found = ask(one, buffer.getvalue(), environment="cam", wants_map=True)
    assert found.heat is not None
    assert found.heat.box is not None
    assert overlap(found.heat.box, (120, 60, 190, 110)) > 0.6


def test_a_part_that_passes_has_no_location_and_nothing_is_computed_for_it(
    sure: Predictor, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("serving.predictor.find", lambda *_args, **_kwargs: pytest.fail("a part that passes paid"))
    found = ask(sure, png(GREEN, size=SIZE), environment="tiles")
    assert (found.decision.verdict, found.location, found.heat) == ("ok", None, None)


def test_an_older_bundle_serves_on_with_the_tile_and_says_why_there_is_no_map(tmp_path: Path):
    works = Works(tmp_path)
    digest = works.bundle("old", serves={"mill": VIEW}, sharpness=40.0)
    one = local_predictor(works.bundles.fetch(digest, works.root / "fetched"), trunk=works.trunk)
    tiled = ask(one, planted(SIZE, (130, 50, 200, 120)), environment="tiles")
    assert tiled.location is not None
    assert tiled.location.found_by == "tile"
    assert tiled.location.box == tiled.frames[0].tiles[0].box
    whole = ask(one, planted(SIZE, (20, 20, 180, 110)), environment="whole")
    assert (whole.decision.verdict, whole.location) == ("reject", None)
    assert whole.map_problem is not None
    assert "exported before there were maps" in whole.map_problem


def test_a_damaged_file_of_evidence_costs_the_map_and_not_the_verdict(tmp_path: Path):
    works = Works(tmp_path)
    one = predictor(works)
    before = ask(one, planted(SIZE, (20, 20, 180, 110)), environment="whole")
    fresh = predictor(Works(tmp_path / "second"), name="other")
    (path,) = (tmp_path / "second" / "fetched").rglob("evidence.onnx")
    path.write_bytes(b"no model")
    found = ask(fresh, planted(SIZE, (20, 20, 180, 110)), environment="whole")
    assert found.probabilities == before.probabilities
    assert found.location is None
    assert found.map_problem == "the map could not be computed, see the replica's log"


def test_an_ensemble_adds_its_members_maps_as_far_as_they_have_any(tmp_path: Path):
    works = Works(tmp_path)
    both = [use_bundle(works, cut=cut, view=VIEW, name="both") for cut in (0, 1)]
    without = works.bundle("without", serves={"mill": VIEW})
    box = (150, 80, 186, 108)
    for members in ((both[0], both[1]), (without, both[1]), (without,)):
        digest = works.ensemble(members, (1.0,) * len(members), serves={"mill": VIEW})
        for one in (digest, *members):
            works.bundles.fetch(one, works.root / "fetched")
        one = local_predictor(works.root / "fetched" / digest, trunk=works.trunk)
        found = ask(one, planted(SIZE, box), environment="letterbox", wants_map=True)
        if members == (without,):
            assert found.heat is None
        else:
            assert found.heat is not None
            assert found.heat.box is not None
            assert overlap(found.heat.box, box) > 0.6


def test_a_picture_shows_the_frame_with_the_defect_marked_and_is_bounded(exact: dict[int, Predictor]):
    size, box = (2000, 1200), (1500, 800, 1860, 1080)
    data = planted(size, box)
    found = ask(exact[0], data, environment="letterbox")
    assert found.heat is not None
    picture = Image.open(io.BytesIO(found.heat.picture(data)))
    assert (picture.format, picture.size) == ("PNG", (640, 384))
    pixels = np.asarray(picture).astype(int)
    plain = np.asarray(Image.open(io.BytesIO(data)).resize((640, 384))).astype(int)
    far = np.abs(pixels - plain).sum(axis=2) > 60
    x0, y0, x1, y1 = (round(value * 0.32) for value in box)
    assert far[y0 + 8 : y1 - 8, x0 + 8 : x1 - 8].mean() > 0.95
    assert far[: y0 - 40].mean() < 0.02
    assert far[:, : x0 - 40].mean() < 0.02


@pytest.fixture
def http(tmp_path: Path) -> Any:
    works = Works(tmp_path)
    headers = works.token()
    works.promote(bundle=use_bundle(works, view=VIEW), policy=works.policy(**POLICY))
    with TestClient(build_app(open_service(works.settings, store_uri=works.store.uri, fleet="t", replica="r"))) as api:
        api.headers.update(headers)
        yield api


@pytest.mark.slow
def test_over_http_a_box_comes_by_itself_and_a_picture_on_request(http: TestClient):
    box = (60, 5, 196, 118)
    plain = http.post("/plants/mill/predict?environment=letterbox", content=planted(SIZE, box)).json()
    assert overlap(tuple(plain["location"]["box"]), box) > 0.6
    assert plain["map"] is None
    shown = http.post("/plants/mill/predict?environment=letterbox&map=true", content=planted(SIZE, box)).json()
    assert shown["location"] == plain["location"]
    assert (shown["map"]["frame"], shown["map"]["problem"]) == (0, None)
    assert Image.open(io.BytesIO(base64.b64decode(shown["map"]["png"]))).size == SIZE
    form = {"files": [("image", ("a.png", png(GREEN, size=SIZE)))], "data": {"environment": "tiles", "map": "true"}}
    good = http.post("/plants/mill/predict", **form).json()
    assert (good["verdict"], good["location"]) == ("ok", None)
    assert good["map"]["png"] is None
    assert good["map"]["problem"] == "no place speaks more for it than another"


@pytest.mark.slow
def test_a_retry_that_asks_for_the_picture_gets_it_and_a_wrong_word_is_refused(http: TestClient):
    data, address = planted(SIZE, (20, 20, 90, 90)), "/plants/mill/predict?environment=whole&map=true"
    first, again = (http.post(address, content=data, headers={"Idempotency-Key": "k"}).json() for _ in range(2))
    assert first == again
    assert first["map"]["png"]
    refused = http.post("/plants/mill/predict?environment=whole&map=yes", content=data)
    assert (refused.status_code, refused.json()["field"]) == (422, "map")
    late = http.post(f"{address}&deadline_ms=0.001", content=data).json()
    assert late["map"] == {"frame": None, "png": None, "problem": "no verdict was reached"}


@pytest.mark.slow
def test_in_int8_without_a_map_of_its_own_a_part_is_judged_all_the_same(tmp_path: Path):
    works = Works(tmp_path)
    digest = add_int8(works, use_bundle(works, view=VIEW))
    from serving.loading import Loader

    folder = works.bundles.fetch(digest, works.root / "fetched")
    loader = Loader(folder_of=lambda _: folder, trunk_of=lambda one: works.bundles.fetch_trunk(one, works.root / "t"))
    policy = predictor(works).policy
    found = ask(
        Predictor("mill", loader.scorer(digest, "int8"), policy), planted(SIZE, (20, 20, 180, 110)), environment="whole"
    )
    assert (found.decision.verdict, found.location) == ("reject", None)
    assert found.map_problem is not None


def test_predict_writes_a_picture_of_every_part(tmp_path: Path):
    works = Works(tmp_path / "works")
    folder = works.bundles.fetch(use_bundle(works, view=VIEW), works.root / "store" / "bundles")
    (tmp_path / "frames").mkdir()
    for name, box in (("a", (20, 20, 90, 90)), ("b", (120, 30, 190, 100))):
        (tmp_path / "frames" / f"{name}.png").write_bytes(planted(SIZE, box))
    (tmp_path / "frames" / "c.png").write_bytes(b"no frame")
    document = predict_files(
        [tmp_path / "frames"],
        settings=works.settings,
        bundle=folder,
        environment="letterbox",
        maps=tmp_path / "pictures",
    )
    rows = document["predictions"]
    assert [row.get("map", {}).get("frame") for row in rows] == [0, 0, None]
    names = ["0001-a.png", "0002-b.png"]
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == names
    assert [Path(row["map"]["file"]).name for row in rows[:2]] == names
    assert "png" not in rows[0]["map"]
