"""The audit looks at images: wrong labels are named, sheets show them first, and the sealed test is not shown."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest
import yaml

from cluster.catalog import Catalog
from cluster.retention import enforce
from cluster.storage import open_store
from jobs import verbs
from jobs.look import audit_fleet, audit_tables, label_findings, size_findings
from jobs.material import Material
from jobs.recipe import Recipe
from jobs.suspects import Suspect, Suspicion
from plants.labels import from_parquet, to_parquet
from plants.plant import Trunk, load_fleet
from tests.browser import BrowserUnavailable, opened
from tests.fleets import console, drawn_fleet, imported

NAMES = ["arden", "essen"]


@pytest.mark.slow
def test_the_page_shows_every_finding_and_every_class_but_nothing_of_the_sealed_test(works):
    document = audit_fleet(works.fleet, settings=works.settings, names=NAMES, is_looking=True)
    html = (works.settings.home / "reports" / works.fleet.fleet / "audit.html").read_text(encoding="utf-8")
    assert document["report"].endswith("audit.html")
    assert html.count("<tr>") == len(document["findings"]) + 1 + len(["head", "(pretraining)", *NAMES])
    kinds = {f["kind"] for f in document["findings"]}
    assert kinds & {"near_sisters", "far_from_sisters"}
    assert "near_pretraining" in kinds
    for name in NAMES:
        rows = Catalog.of(works.fleet).rows(name)
        shown = set(re.findall(r'alt="([^"]+)"', html))
        open_frames = set(rows.loc[rows["role"] != "test", "frame"])
        assert set(rows.loc[rows["role"] == "test", "frame"]).isdisjoint(shown)
        assert open_frames & shown
        for label in rows["class"].dropna().unique():
            assert f"<h3>{name}: {label} (" in html


def test_golden_sets_are_read_without_what_is_sealed_at_any_plant(tmp_path):
    path = drawn_fleet(tmp_path, "mill", "werk", num_lots=8)
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    raw["plants"][0]["golden"] = "golden.csv"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    fleet = imported(path)
    rows = {name: Catalog(open_store(fleet.store)).rows(name) for name in ("mill", "werk")}
    lines = [f"{frame},good,{who}," for frame in rows["mill"]["frame"] for who in ("ada", "bob")]
    lines += [f"lent/{i}.png,good,ada,{digest}" for i, digest in enumerate(rows["werk"]["sha256"])]
    (tmp_path / "golden.csv").write_text("\n".join(["frame,class,annotator,sha256", *lines]), encoding="utf-8")
    material = Material(fleet, cache=tmp_path / "cache", recipe=Recipe(stages=(), views=1))
    num_sealed = {name: int((table["role"] == "test").sum()) for name, table in rows.items()}
    found = {f.kind: f for f in audit_tables(fleet, names=["mill"], material=material)}
    assert f"on {len(rows['mill']) - num_sealed['mill']} images" in found["annotators_agree"].detail
    assert f"; {2 * num_sealed['mill'] + num_sealed['werk']} judgements of sealed" in found["annotators_agree"].detail


def test_one_file_with_two_labels_at_two_plants_is_told_from_the_tables_also_where_one_was_set_apart(tmp_path):
    path = drawn_fleet(tmp_path, "mill", "werk", num_lots=8)
    imported(path)
    catalog = Catalog.of(load_fleet(path))
    learned = {name: rows[rows["role"] == "train"] for name in ("mill", "werk") for rows in [catalog.rows(name)]}
    good = learned["mill"].loc[learned["mill"]["class"] == "good", "frame"].iloc[0]
    crack = learned["werk"].loc[learned["werk"]["class"] == "crack", "frame"].iloc[0]
    (tmp_path / "werk" / crack).write_bytes((tmp_path / "mill" / good).read_bytes())
    fleet = imported(path)
    apart = {"frame": crack, "sha256": "any", "role": "train", "copy_of": f"mill:{good}"}
    catalog.store.write_json("quarantine/werk.json", [apart])
    material = Material(fleet, cache=tmp_path / "cache", recipe=Recipe(stages=(), views=1))
    (found,) = (f for f in audit_tables(fleet, names=["werk"], material=material) if f.kind == "conflicting_labels")
    assert (found.level, found.plant) == ("warning", "werk")
    assert f"werk:{crack} as 'crack' and mill:{good} as 'good'" in found.detail


@pytest.mark.slow
def test_the_page_shows_no_frame_that_is_too_old_and_is_deleted_when_one_it_shows_is(works):
    table = works.store.read("labels/essen.parquet")
    rows = from_parquet(table)
    rows["captured_at"] = pd.Timestamp(datetime.now(UTC) - timedelta(days=29, hours=23))
    rows.loc[rows.index[::2], "captured_at"] -= timedelta(days=3)
    works.store.write("labels/essen.parquet", to_parquet(rows))
    raw = works.fleet.plant("essen").model_copy(update={"retention_days": 30})
    fleet = works.fleet.model_copy(update={"plants": (works.fleet.plant("arden"), raw)})
    audit_fleet(fleet, settings=works.settings, names=["essen"], is_looking=True)
    page = works.settings.home / "reports" / fleet.fleet / "audit.html"
    shown = set(re.findall(r'alt="([^"]+)"', page.read_text(encoding="utf-8")))
    assert shown
    assert shown.isdisjoint(rows["frame"].iloc[::2])
    given = {"cache": works.settings.home / "no cache", "home": works.settings.home}
    assert enforce(fleet, now=datetime.now(UTC) + timedelta(minutes=50), **given) == []
    enforce(fleet, now=datetime.now(UTC) + timedelta(minutes=70), **given)
    assert not page.exists()


@pytest.mark.slow
def test_without_images_the_tables_are_read_and_no_page_is_written(works):
    document = verbs.audit_fleet(works.fleet, settings=works.settings, names=NAMES, show=console()[0], is_looking=False)
    assert document["findings"]
    assert document["report"] is None
    assert not (works.settings.home / "reports").exists()


@pytest.mark.parametrize(("size_px", "is_said"), [(111, True), (112, False), (448, False), (449, True)])
def test_an_input_under_half_or_above_twice_what_the_weights_know_is_said(size_px, is_said):
    found = size_findings(Trunk(backbone="resnet18", weights="resnet18.safetensors", size_px=size_px))
    assert [(f.level, f.kind) for f in found] == [("info", "input_size")] * is_said
    assert all(f"sees {size_px} px" in f.detail and "224 px" in f.detail for f in found)
    assert size_findings(Trunk(backbone="resnet18", weights="none", size_px=size_px)) == []


def test_suspects_are_said_in_one_sentence_with_the_first_five_and_how_good_the_judge_is():
    suspects = tuple(Suspect(f"{i}.png", "ok", "dent", i / 10) for i in range(7))
    found = Suspicion(suspects, {f"{i}.png": 0.5 for i in range(100)}, 0.97, ())
    (finding,) = label_findings("mill", found)
    assert (finding.level, finding.kind, finding.plant) == ("warning", "label_errors", "mill")
    assert "7 of 100 labels look wrong" in finding.detail
    assert "right at 97.0%: 0.png is labelled 'ok', likely 'dent'" in finding.detail
    assert finding.detail.endswith("4.png is labelled 'ok', likely 'dent'; and 2 more")
    (unknown,) = label_findings("mill", Suspicion((), {}, None, ("ok", "dent")))
    assert (unknown.level, unknown.kind) == ("info", "labels_not_judged")
    assert label_findings("mill", Suspicion((), {"a": 1.0}, 1.0, ())) == []


@pytest.mark.slow
@pytest.mark.browser
def test_the_page_opens_in_a_browser_with_all_its_pictures_and_the_findings_of_the_json(works):
    document = json.loads(json.dumps(audit_fleet(works.fleet, settings=works.settings, names=NAMES, is_looking=True)))
    try:
        with opened(f"file://{document['report']}") as page:
            cells = page.locator("table:has(caption:text-is('Findings')) tbody tr td:nth-child(4)").all_inner_texts()
            assert cells == [" ".join(f["detail"].split()) for f in document["findings"]]
            page.evaluate("document.querySelectorAll('img').forEach(image => image.loading = 'eager')")
            page.wait_for_function("[...document.images].every(image => image.complete)")
            widths = page.evaluate("[...document.images].map(image => image.naturalWidth)")
            assert len(widths) > 20
            assert min(widths) > 0
    except BrowserUnavailable as reason:
        pytest.skip(str(reason))
