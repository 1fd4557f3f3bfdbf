"""Pictures in the report: few, small, and none of a plant whose images may not be passed on."""

from __future__ import annotations

import base64
import io
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from cluster.storage import open_store
from jobs.thumbnails import MAX_OF_PLANT, pictures
from tests.fleets import drawn_fleet, imported


@pytest.fixture
def fleet(tmp_path) -> Any:
    return imported(drawn_fleet(tmp_path, "north", "south"))


def material(fleet: Any) -> Any:
    from cluster.catalog import Catalog

    catalog = Catalog.of(fleet)
    return SimpleNamespace(fleet=fleet, store=open_store(fleet.store), rows=catalog.rows)


def document(frames: list[str], *names: str) -> dict[str, Any]:
    groups = [{"examples": [{"frame": frame}]} for frame in frames]
    return {"plants": list(names), "details": {name: {"failures": groups} for name in names}}


def test_a_picture_is_the_frame_itself_as_a_small_jpeg(fleet):
    found = pictures(document(["crack/L03-2.png"], "north"), material=material(fleet))
    kind, _, data = found["north"]["frames"]["crack/L03-2.png"].partition(",")
    assert kind == "data:image/jpeg;base64"
    image = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
    expected = (9, 80, 50)
    assert max(abs(a - b) for a, b in zip(image.getpixel((4, 4)), expected, strict=True)) < 12
    assert found["north"]["words"] == ""


@pytest.mark.parametrize(("flag", "words"), [({"may_leave": False}, "may_leave"), ({"retention_days": 9}, "9")])
def test_a_plant_whose_images_may_not_be_passed_on_has_none_and_the_report_says_so(fleet, flag, words):
    kept, other = fleet.plants
    governed = fleet.model_copy(update={"plants": (kept.model_copy(update=flag), other)})
    found = pictures(document(["good/L03-1.png"], "north", "south"), material=material(governed))
    assert found["north"]["frames"] == {}
    assert "No pictures: " in found["north"]["words"]
    assert words in found["north"]["words"]
    assert len(found["south"]["frames"]) == 1


def test_frames_that_are_gone_are_said_to_be_gone(fleet, tmp_path):
    (tmp_path / "north/good/L03-1.png").unlink()
    found = pictures(document(["good/L03-1.png", "good/L04-1.png", "never.png"], "north"), material=material(fleet))
    assert list(found["north"]["frames"]) == ["good/L04-1.png"]
    assert found["north"]["words"] == "1 of 3 frames are shown; 2 are gone."


def test_pictures_are_few_and_their_bytes_bounded_over_all_plants_the_worst_plants_first(fleet, monkeypatch):
    frames = [f"good/L{lot:02d}-1.png" for lot in range(MAX_OF_PLANT + 3)]
    found = pictures(document(frames, "north", "south"), material=material(fleet))
    assert list(found["north"]["frames"]) == frames[:MAX_OF_PLANT]
    size = sum(map(len, found["north"]["frames"].values()))
    monkeypatch.setattr("jobs.thumbnails.MAX_BYTES", size)
    found = pictures(document(frames, "south", "north"), material=material(fleet))
    assert sum(len(uri) for row in found.values() for uri in row["frames"].values()) <= size
    assert len(found["south"]["frames"]) >= MAX_OF_PLANT - 1 > len(found["north"]["frames"])
    assert found["north"]["words"].startswith(f"{len(found['north']['frames'])} of {len(frames)} frames are shown")
