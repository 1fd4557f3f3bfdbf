"""The audit with open eyes: what tables and images say, and a page on which people can look for themselves.

The sealed test is not among what is shown, nor are its labels judged: its rows have no class here. Its pixels are
looked at for copies of what is learned from, and for faults of the camera.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cluster.catalog import labels_key
from cluster.retention import enforce, record
from cluster.settings import Settings
from cluster.storage import LocalStore, PlantFiles
from jobs.backbone import trained_px
from jobs.domains import PRETRAINING, distances_html, pretraining_look
from jobs.material import Material
from jobs.page import page, table
from jobs.pictures import Seen, camera_findings, copy_findings, look_at, tone_findings
from jobs.recipe import Recipe
from jobs.sheets import Sheets, draw_sheets, sheets_html
from jobs.suspects import Suspicion, suspicion
from plants import splits
from plants.agreement import Golden, agreement_findings, read_golden
from plants.audit import audit
from plants.balance import fleet_classes
from plants.conflicts import conflicting_files
from plants.copies import QUARANTINE
from plants.distance import Look, Table, distances, pretraining_findings, sister_findings
from plants.errors import InputError
from plants.findings import EVERY_PLANT, LEVELS, Finding
from plants.governance import oldest
from plants.plant import Fleet, Plant, Trunk

NUM_NAMED = 5
BLOCK = 64
Say = Callable[[str], None]


def audit_tables(fleet: Fleet, *, names: Sequence[str], material: Material) -> list[Finding]:
    """What the label rows and the golden sets of the plants say."""
    size_px = material.trunk.size_px
    rows = {name: material.rows(name) for name in names}
    findings = [
        finding
        for name in names
        for finding in audit(fleet.plant(name), rows[name], fleet=fleet, trunk_size_px=size_px)
    ]
    golden = golden_sets(fleet, rows=rows, material=material)
    findings += [found for name in names for found in quarantine_findings(name, material.catalog.rows(name))]
    findings += conflicting_files(recorded(fleet, material=material), names=names)
    about_all = [*size_findings(material.trunk), *fleet_classes(fleet, rows)]
    return [*findings, *about_all, *agreement_findings(fleet, golden, names=names)]


def size_findings(trunk: Trunk) -> list[Finding]:
    """That the weights were trained at quite another input size."""
    trained, size = trained_px(trunk), trunk.size_px
    if trained is None or trained <= 2 * size <= 4 * trained:
        return []
    detail = f"the trunk {trunk.name} sees {size} px, and its weights were trained at {trained} px"
    remedy = f"Compare with a size_px from {-(-trained // 2)} to {2 * trained}"
    return [Finding("info", "input_size", EVERY_PLANT, detail, remedy)]


def quarantine_findings(plant: str, rows: pd.DataFrame) -> list[Finding]:
    """That some frames play no role."""
    out = rows.loc[rows["role"] == QUARANTINE, "frame"].tolist()
    if not out:
        return []
    detail = (
        f"{len(out)} frames play no role, as they show what frames of other roles show, or a part that plays another "
        f"one elsewhere, or were dealt before their lots were known: {', '.join(out[:NUM_NAMED])}"
    )
    return [Finding("info", "quarantined", plant, detail, "Give pictures of one part the same lot in a new store")]


def recorded(fleet: Fleet, *, material: Material) -> list[tuple[Plant, pd.DataFrame]]:
    """The plants that were imported with all their rows, those that play no role included."""
    there = material.catalog.versions()
    return [(plant, material.catalog.rows(plant.name)) for plant in fleet.plants if labels_key(plant.name) in there]


def golden_sets(fleet: Fleet, *, rows: Mapping[str, pd.DataFrame], material: Material) -> dict[str, Golden]:
    """The golden sets of the plants that name one, without what is sealed at any plant of the fleet."""
    plants = [plant for name in rows if (plant := fleet.plant(name)).golden]
    sealed: set[str] = set()
    for _, known in recorded(fleet, material=material) if plants else ():
        sealed.update(known.loc[known["role"].isin(["test", QUARANTINE]), "sha256"])
    return {p.name: read_golden(p, files=PlantFiles(), rows=rows[p.name], sealed=sealed) for p in plants}


@dataclass(frozen=True)
class Looked:
    """What the images of the plants say, their contact sheets, and how far the plants lie from one another."""

    findings: list[Finding]
    sheets: dict[str, Sheets]
    distances: Table


def audit_images(fleet: Fleet, *, names: Sequence[str], material: Material, say: Say) -> Looked:
    """Every image of these plants, looked at."""
    findings: list[Finding] = []
    sheets: dict[str, Sheets] = {}
    files = PlantFiles()
    seen: list[Seen] = []
    looks: list[Look] = []
    for name in names:
        plant = fleet.plant(name)
        rows = material.rows(name)
        seen.append(look_at(plant, rows, read=lambda frame, at=plant.images: files.read(at, frame)))
        findings += [*camera_findings(seen[-1]), *tone_findings(seen[-1])]
        rows = rows[(rows["role"] != "test") & rows["class"].isin(plant.annotated)]
        if rows.empty:
            continue
        looks.append(Look(name, frame_features(material, plant=plant, rows=rows), rows["lot"].to_numpy(dtype=object)))
        found = suspicion(
            looks[-1].features,
            frames=rows["frame"].tolist(),
            labels=rows["class"].tolist(),
            lots=rows["lot"].tolist(),
            seed=fleet.seed,
        )
        findings += label_findings(name, found)
        sheets[name] = draw_sheets(
            plant,
            rows,
            read=lambda frame, at=plant.images: files.read(at, frame),
            confidence=found.confidence,
            suspects={s.frame: f"likely {s.likely}" for s in found.suspects},
            seed=fleet.seed,
        )
        say(f"{name}: {len(seen[-1].rows)} images looked at")
    findings += copy_findings(seen)
    taught = pretraining_look(material)
    away = distances([taught, *looks] if taught else looks, seed=fleet.seed)
    findings += sister_findings(fleet, away, names=names)
    from_taught = {look.name: away.get((PRETRAINING, look.name)) for look in looks}
    findings += pretraining_findings(from_taught, weights=material.trunk.weights)
    return Looked(findings, sheets, away)


def frame_features(material: Material, *, plant: Plant, rows: pd.DataFrame) -> np.ndarray:
    """Pooled features of the fleet's trunk [len(rows), F], the mean over a frame's tiles, in the order of `rows`."""
    pack = material.pack(plant, rows=rows)
    runner, num = material.runner, len(pack.pixels)
    pixels = (torch.from_numpy(pack.take(np.arange(i, min(i + BLOCK, num)))) for i in range(0, num, BLOCK))
    found = np.concatenate([runner.activations(block)[0].cpu().numpy() for block in pixels])
    sums = np.add.reduceat(found, pack.starts[:-1], axis=0)
    means = sums / np.diff(pack.starts)[:, None]
    at = {frame: i for i, frame in enumerate(pack.frames)}
    if missing := set(rows["frame"]) - set(at):
        detail = f"{len(missing)} frames are not what was imported, {min(missing)} among them"
        raise InputError(detail, plant=plant.name, remedy="Run `crossplant import` again")
    return np.asarray(means[[at[frame] for frame in rows["frame"]]], dtype=np.float32)


def label_findings(plant: str, found: Suspicion) -> list[Finding]:
    """The suspicion in words."""
    if found.accuracy is None:
        detail = f"too few lots of each class to judge labels: {', '.join(found.left_out)}"
        return [Finding("info", "labels_not_judged", plant, detail, "Import more lots")]
    if not found.suspects:
        return []
    first = "; ".join(f"{s.frame} is labelled {s.label!r}, likely {s.likely!r}" for s in found.suspects[:NUM_NAMED])
    more = len(found.suspects) - NUM_NAMED
    detail = (
        f"{len(found.suspects)} of {len(found.confidence)} labels look wrong to a model that has not seen their lots "
        f"and is right at {found.accuracy:.1%}: {first}{f'; and {more} more' if more > 0 else ''}"
    )
    remedy = "Look at them on the audit's page, most suspicious first; correct the labels and import again"
    return [Finding("warning", "label_errors", plant, detail, remedy)]


def audit_html(fleet: Fleet, *, findings: Sequence[Finding], sheets: Mapping[str, Sheets], away: Table) -> str:
    """Findings, distances and contact sheets as one page."""
    cells = [[escape(f.level), escape(f.plant), escape(f.kind), escape(f.detail), escape(f.remedy)] for f in findings]
    counts = ", ".join(f"{sum(f.level == level for f in findings)} {level}" for level in LEVELS)
    body = [
        f'<p class="small">{counts}. The sealed test is not shown. A red frame: the label is likely wrong. A red box: '
        "the located defect. Each sheet shows a random hundred of its class, the least believed first.</p>",
        table(["level", "plant", "kind", "finding", "remedy"], cells, num_words=5, caption="Findings"),
        distances_html(away),
    ]
    for name, of_plant in sheets.items():
        body.append(f"<h2>{escape(name)}</h2>{sheets_html(name, of_plant)}")
    return page(f"crossplant: audit of fleet {fleet.fleet}", "\n".join(body))


def write_page(html: str, *, fleet: Fleet, settings: Settings, since: Mapping[str, datetime]) -> Path:
    """The page lies under home. since: plant -> when the oldest frame shown was taken or copied."""
    path = settings.home / "reports" / fleet.fleet / "audit.html"
    record(LocalStore(settings.home), f"reports/{fleet.fleet}/audit", since=since)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")
    return path


def audit_fleet(
    fleet: Fleet, *, settings: Settings, names: Sequence[str], is_looking: bool, say: Say = lambda text: None
) -> dict[str, Any]:
    """The `audit` document: findings, errors first, and the page where images were looked at."""
    enforce(fleet, cache=settings.cache, home=settings.home, now=datetime.now(UTC))
    material = Material(fleet, cache=settings.cache, cache_gb=settings.cache_gb, recipe=Recipe(stages=(), views=1))
    findings = audit_tables(fleet, names=names, material=material)
    looked = audit_images(fleet, names=names, material=material, say=say) if is_looking else None
    findings += looked.findings if looked else []
    order = [EVERY_PLANT, *names]
    findings.sort(key=lambda f: (LEVELS.index(f.level), order.index(f.plant)))
    report = None
    if looked:
        since = {name: oldest(material.rows(name), now=datetime.now(UTC)) for name in looked.sheets}
        html = audit_html(fleet, findings=findings, sheets=looked.sheets, away=looked.distances)
        report = str(write_page(html, fleet=fleet, settings=settings, since=since))
    dealt = material.catalog.assignments()
    return {
        "findings": [finding._asdict() for finding in findings],
        "report": report,
        "splits_digest": None if dealt is None else splits.digest(dealt),
    }
