"""The report of a real comparison in a real browser: clicked through, read against the JSON, printed, offline."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import session
from cluster.settings import Settings
from jobs import verdicts
from jobs.fleet import COMPARED
from plants.plant import load_fleet
from tests.browser import BrowserUnavailable, chromium, opened
from tests.fleets import SHARES, Works, console, trained

pytestmark = [pytest.mark.slow, pytest.mark.browser]
SHOW, _ = console()
REAL_DATA = Path(os.environ.get("CROSSPLANT_REAL_DATA", "../shared/data"))
NUM_OF_CLASS = 22
MILLS = {
    "neu": {"inclusion": "inclusion", "rolled-in_scale": "scale", "scratches": "scratch", "patches": "patches"},
    "xsdd": {
        "slag_inclusion": "inclusion",
        "oxide_scale_of_plate_system": "scale",
        "surface_scratch": "scratch",
        "red_iron": "red_iron",
    },
}
MAGNETIC = {name: name for name in ("blowhole", "break", "crack", "uneven")}
A4_WIDE_PX = round((297 - 2 * 12) / 25.4 * 96)
"""What is printed on: A4 across, less its margins, in CSS pixels."""


@pytest.fixture(scope="module", autouse=True)
def browser() -> None:
    try:
        chromium()
    except BrowserUnavailable as reason:
        pytest.skip(str(reason))


def compared(works: Works) -> dict[str, Any]:
    """What `compare` writes, its plants judged one after another in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "start", lambda settings: None)
        patch.setattr(session, "map_tasks", map)
        verdicts.compare(works.fleet, settings=works.settings, show=SHOW)
    found: dict[str, Any] = works.store.read_json(COMPARED)
    return found


@pytest.fixture(scope="module")
def embedded(finished_works: Works, tmp_path_factory: pytest.TempPathFactory) -> Works:
    """Two plants of the embedded fleet, trained and compared."""
    folder = tmp_path_factory.mktemp("reported")
    shutil.copytree(Path(finished_works.fleet.store).parent, folder / "fleet")
    (folder / "home").mkdir()
    (folder / "home" / "cache").symlink_to(finished_works.settings.cache)
    settings = Settings(home=folder / "home", slots=2)
    return Works(fleet=load_fleet(folder / "fleet" / "fleet.yaml"), settings=settings, plan=finished_works.plan)


@pytest.fixture(scope="module")
def document(embedded: Works) -> dict[str, Any]:
    return compared(embedded)


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
def page(document: dict[str, Any], asked: list[str]) -> Iterator[Any]:
    with opened(Path(document["report"]).as_uri(), asked=asked) as found:
        yield found


def values(place: Any) -> list[float]:
    """The whole numbers behind what is shown there, in the order of the page."""
    return [float(value) for value in place.locator("data").evaluate_all("all => all.map(one => one.value)")]


def ends(figure: dict[str, Any] | None, key: str = "value") -> list[float]:
    """What a page shows of a figure: the value and its range."""
    if not figure or figure[key] is None:
        return []
    return [figure[key]] if figure["low"] is None else [figure[key], figure["low"], figure["high"]]


def check_glance(page: Any, document: dict[str, Any]) -> None:
    """Every plant's line holds the JSON's numbers."""
    for name in document["plants"]:
        reports, decision = document["details"][name], document["decisions"][name]
        link = page.get_by_role("link", name=name, exact=True)
        row = page.locator("main tr", has=link).first
        expected = ends(reports["chosen"]["cost"]) + ends(decision["gain"], "diff")
        expected += ends(reports.get("against_incumbent"), "diff")
        expected += ends(reports["chosen"]["macro_f1"]) + ends((reports["frozen"] or {}).get("macro_f1"))
        assert values(row) == expected
        assert decision["model"] in row.inner_text()


def check_plant(page: Any, name: str, document: dict[str, Any]) -> None:
    """The plant's page, which is the only one shown, holds the JSON's numbers."""
    section = page.locator(f"#plant-{name}")
    assert section.is_visible()
    assert page.locator("section.plant:visible").count() == 1
    assert not page.locator("main").is_visible()
    reports = document["details"][name]
    counts = [n for row in reports["chosen"]["confusion"]["counts"] for n in row]
    assert values(section.locator("table", has_text="Confusion: rows")) == counts
    rows = section.locator("h3", has_text="What dark, blur").locator("xpath=following-sibling::div[1]//tbody/tr")
    found = reports["robustness"]
    assert (found is None) == (document["decisions"][name]["kind"] == "normality")
    assert rows.count() == (0 if found is None else 1 + len(found["rows"]))
    for i, row in enumerate(found["rows"] if found else (), start=1):
        expected = []
        for key in ("macro_f1", "recall", "cost"):
            expected += [] if row["chosen"][key] is None else [row["chosen"][key]]
            expected += ends(row["chosen"]["damage"][key], "diff")
        assert values(rows.nth(i))[: len(expected)] == expected
    assert section.locator(".failures").count() == len(reports["failures"])
    n_of = [n for group in reports["failures"] for n in (group["n"], group["of"])]
    heads = [values(one) for one in section.locator(".failures .kind").all()]
    assert [n for head in heads for n in head[:2]] == n_of


def test_a_reader_clicks_from_the_glance_to_each_plant_and_back_and_reads_the_numbers_of_the_json(page, document):
    check_glance(page, document)
    assert page.locator("section.plant:visible").count() == 0
    for name in document["plants"]:
        page.locator("main").get_by_role("link", name=name, exact=True).first.click()
        check_plant(page, name, document)
        page.get_by_role("link", name="the fleet at a glance").locator("visible=true").click()
        assert page.locator("main").is_visible()


def test_the_page_asks_for_nothing_but_itself(page, document, asked):
    for name in document["plants"]:
        page.locator("main").get_by_role("link", name=name, exact=True).first.click()
        page.get_by_role("link", name="the fleet at a glance").locator("visible=true").click()
    assert {url.split(":")[0] for url in asked} <= {"file", "data"}
    assert sum(url.startswith("file:") for url in asked) == 1


def test_pictures_of_failures_are_there_and_are_the_frames_of_the_json(page, document):
    shown = 0
    for name in document["plants"]:
        images = page.locator(f"#plant-{name} .failures img")
        frames = {one["frame"] for group in document["details"][name]["failures"] for one in group["examples"]}
        assert set(images.evaluate_all("all => all.map(one => one.alt)")) <= frames
        assert all(images.evaluate_all("all => all.map(one => one.naturalWidth > 0)"))
        shown += images.count()
    assert shown > 0


def test_plants_are_reached_by_keyboard_alone(page, document):
    first = document["plants"][0]
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == first
    page.keyboard.press("Enter")
    assert page.locator(f"#plant-{first}").is_visible()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "the fleet at a glance"
    page.keyboard.press("Enter")
    assert page.locator("main").is_visible()


def test_printing_shows_the_fleet_and_every_plant_and_cuts_nothing_off(page, document, tmp_path):
    page.locator("main").get_by_role("link", name=document["plants"][0], exact=True).first.click()
    page.emulate_media(media="print")
    page.set_viewport_size({"width": A4_WIDE_PX, "height": 700})
    assert page.locator("main").is_visible()
    assert page.locator("section.plant:visible").count() == len(document["plants"])
    beyond = page.evaluate(
        """width => [...document.querySelectorAll('body *')]
        .filter(one => one.getBoundingClientRect().right > width + 1).map(one => one.outerHTML.slice(0, 120))""",
        A4_WIDE_PX,
    )
    assert beyond == []
    page.pdf(path=tmp_path / "report.pdf", prefer_css_page_size=True)
    sheets = re.findall(rb"/Type\s*/Page\b", (tmp_path / "report.pdf").read_bytes())
    assert len(sheets) > len(document["plants"])


def test_after_evaluate_the_report_shows_what_came_out_who_looked_and_when(embedded, document):
    verdicts.evaluate(embedded.fleet, settings=embedded.settings, names=document["plants"], show=SHOW)
    found = embedded.store.read_json(verdicts.EVALUATED)
    with opened(Path(document["report"]).as_uri()) as page:
        check_glance(page, document)
        for name in document["plants"]:
            row, (opening,) = found["plants"][name], [o for o in found["ledger"] if o["plant"] == name]
            section = page.locator(f"#plant-{name}")
            words = section.locator("table", has_text="Openings of the sealed test").text_content()
            assert opening["who"] in words
            assert opening["at"] in words
            assert row["bundle"][:12] in words
            shown = values(section.locator("table", has_text="on the sealed test", has_not_text="Openings"))
            expected = {row[key] for key in ("macro_f1", "macro_f1_low", "cost", "cost_high", "n", "n_lots")}
            assert expected - {None} <= set(shown)
            assert ("WITHDRAWN" in words) == row["withdrawn"]
    assert json.loads(json.dumps(document)) == embedded.store.read_json(COMPARED)


def real_fleet(folder: Path) -> Path:
    """Some images of some classes of the three real plants, linked; the path of their `fleet.yaml`."""
    plants: list[dict[str, Any]] = [{"name": name, "classes": classes} for name, classes in MILLS.items()]
    plants.append({"name": "magnetic", "classes": {"free": "ok", **MAGNETIC}, "ok": ["free"]})
    for plant in plants:
        source = REAL_DATA / ("magnetic" if plant["name"] == "magnetic" else f"steel/{plant['name']}")
        if not source.is_dir():
            pytest.skip(f"{plant['name']} is not under {REAL_DATA}: set CROSSPLANT_REAL_DATA")
        plant["images"] = plant["name"]
        for name in plant["classes"]:
            (folder / plant["name"] / name).mkdir(parents=True)
            num = NUM_OF_CLASS * (3 if name == "free" else 1)
            for file in sorted((source / name).iterdir())[:num]:
                (folder / plant["name"] / name / file.name).symlink_to(file.resolve())
    raw = {"fleet": "real", "store": "store", "shares": SHARES, "plants": plants}
    (folder / "fleet.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    return folder / "fleet.yaml"


@pytest.mark.real
def test_the_report_of_the_real_plants_is_clicked_through_and_says_the_numbers_of_the_json(tmp_path):
    works = trained(real_fleet(tmp_path), home=tmp_path / "home", kinds=("frozen", "own", "pooled", "normality"))
    document = compared(works)
    assert set(document["plants"]) == {"neu", "xsdd", "magnetic"}
    asked: list[str] = []
    with opened(Path(document["report"]).as_uri(), asked=asked) as page:
        assert "These data are synthetic" not in page.content()
        check_glance(page, document)
        for name in document["plants"]:
            page.locator("main").get_by_role("link", name=name, exact=True).first.click()
            check_plant(page, name, document)
            page.get_by_role("link", name="the fleet at a glance").locator("visible=true").click()
    assert {url.split(":")[0] for url in asked} <= {"file", "data"}
