"""What a person sees of an import: how far it is, how fast it was, what was rejected and where the list lies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from jobs import verbs
from plants.plant import Fleet, load_fleet
from tests.fleets import console, drawn_fleet


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch) -> Fleet:
    monkeypatch.setattr("cluster.storage.SETTLED_S", -1.0)
    return load_fleet(drawn_fleet(tmp_path, "north", num_lots=8))


def shown(fleet: Fleet, **options) -> tuple[dict, str]:
    show, text = console()
    return verbs.import_fleet(fleet, names=["north"], show=show, **options), text()


def test_the_rate_is_said_and_what_was_known_before(fleet):
    first, text = shown(fleet)
    assert "north: 24 frames read in " in text
    assert " frames/s" in text
    again, text = shown(fleet)
    assert "north: 0 frames read in " in text
    assert "24 were known from an earlier import" in text
    assert [first["frames_read"], again["frames_read"], shown(fleet, is_reread=True)[0]["frames_read"]] == [24, 0, 24]


def test_where_there_is_no_terminal_a_line_now_and_then_says_how_far_it_is(fleet, monkeypatch):
    monkeypatch.setattr(verbs, "LINE_S", 0.0)
    text = shown(fleet)[1]
    assert "reading north: 24 of 24 frames, " in text
    assert " s left" in text
    monkeypatch.setattr(verbs, "LINE_S", 30.0)
    assert "reading north" not in shown(fleet, is_reread=True)[1]


def test_ten_rejects_are_shown_then_counts_by_reason_and_where_all_are_listed(fleet):
    folder = Path(fleet.plant("north").images)
    for i in range(12):
        (folder / "good" / f"L00-w{i}.png").write_text("words")
        (folder / f"stray{i}.png").write_text("words")
    document, text = shown(fleet)
    assert text.count(": file ") == 10
    assert "12 times: lies in no class folder" in text
    assert "12 times: not a readable image" in text
    assert f"all 24 are listed in {document['rejects']}" in text
    assert len(document["rejected"]) == 24
    assert len(Path(document["rejects"]).read_text(encoding="utf-8").splitlines()) == 25


def test_a_file_that_many_rows_name_is_shown_once(tmp_path):
    for i in range(8):
        (tmp_path / "north" / f"{i}.png").parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8), 20 * i).save(tmp_path / "north" / f"{i}.png")
    rows = [f"{i}.png,good" for i in range(8)] + ["gone.png,good"] * 12 + ["lost.png,good"] * 3
    (tmp_path / "labels.csv").write_text("\n".join(["frame,class", *rows]), encoding="utf-8")
    north = {"name": "north", "images": "north", "labels": "labels.csv", "classes": {"good": "ok"}, "ok": ["good"]}
    (tmp_path / "fleet.yaml").write_text(json.dumps({"fleet": "one", "store": "store", "plants": [north]}))
    document, text = shown(load_fleet(tmp_path / "fleet.yaml"))
    assert len(document["rejected"]) == 15
    assert [text.count(f": file {name}.png: ") for name in ("gone", "lost")] == [1, 1]
