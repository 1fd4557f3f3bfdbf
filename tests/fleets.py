"""Small real fleets for tests: a few plants of the embedded fleet at a fraction of its size, on disk or in a bucket."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from PIL import Image
from rich.console import Console

from cluster.catalog import Catalog
from cluster.imports import import_plant
from cluster.ledger import RunLedger, RunRecord, begin, finish, refuse
from cluster.settings import Settings
from cluster.storage import PlantFiles, Store, open_store
from plants.plant import Fleet, load_fleet
from plants.synthetic import make_fleet

NOW = datetime(2026, 3, 1, tzinfo=UTC)
KINDS = ("frozen", "own", "pooled", "warm", "sister", "normality")
SHARES = {"train": 0.4, "select": 0.2, "decide": 0.2, "test": 0.2}


def small_fleet(
    folder: Path, *names: str, scale: float = 0.1, seed: int = 0, shares: dict[str, float] | None = None
) -> Path:
    """Only these plants of the embedded fleet, each with this share of its parts; the path of their `fleet.yaml`."""
    path = make_fleet(folder, seed=seed, scale=scale, processes=1)
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    raw["plants"] = [plant for plant in raw["plants"] if plant["name"] in names]
    raw |= {"fleet": "small", "shares": shares or SHARES}
    for plant in raw["plants"]:
        plant.pop("shares", None)
    path.write_text(yaml.safe_dump(raw, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def textured(rng: np.random.Generator, *, blot: bool = False) -> bytes:
    """A grey frame of noise as PNG, with a black blot or without."""
    pixels = rng.normal(140, 12, (64, 64)).clip(0, 255).astype(np.uint8)
    if blot:
        pixels[20:44, 16:40] = 5
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def held_back(path: Path, *, share: float = 0.15) -> Callable[[], None]:
    """This share of every plant's lots, the last ones, is not labelled yet; what is returned labels them."""
    whole = {}
    for plant in yaml.safe_load(path.read_text(encoding="utf-8"))["plants"]:
        file = path.parent / plant["labels"]
        whole[file] = table = pd.read_csv(file)
        lots = table["lot"].drop_duplicates()
        early = lots.iloc[: round(len(lots) * (1 - share))]
        table[table["lot"].isin(early)].to_csv(file, index=False)

    def arrive() -> None:
        for file, table in whole.items():
            table.to_csv(file, index=False)

    return arrive


def with_new_plant(path: Path, name: str, *, num_lots: int = 20) -> Path:
    """The fleet has one plant more, of which only good parts are known, two a lot."""
    raw, rng = yaml.safe_load(path.read_text(encoding="utf-8")), np.random.default_rng(0)
    folder = path.parent / name
    folder.mkdir()
    lines = ["frame,class,lot,part_id"]
    for number in range(2 * num_lots):
        (folder / f"{number:03d}.png").write_bytes(textured(rng))
        lines.append(f"{number:03d}.png,good,{name}-{number // 2},{name}-{number}")
    (folder / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    plant = {"name": name, "images": name, "labels": f"{name}/labels.csv", "classes": {"good": "ok"}, "ok": ["good"]}
    raw["plants"].append(plant)
    path.write_text(yaml.safe_dump(raw, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def into_bucket(path: Path, *, bucket: str, seal: str | None = None) -> Path:
    """Frames lie in the bucket, the store will too, and a `fleet.yaml` beside `path` says so.

    The label tables, which hold every answer, lie with the seal where that has a bucket of its own.
    """
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    root = open_store(f"{bucket}/plants")
    for plant in raw["plants"]:
        folder = path.parent / plant["images"]
        labels = open_store(f"{seal or bucket}/labels/{plant['name']}")
        labels.upload(folder / "labels.csv", "labels.csv")
        (folder / "labels.csv").unlink()
        root.upload_folder(folder, plant["name"])
        plant |= {"images": f"{root.uri}/{plant['name']}", "labels": f"{labels.uri}/labels.csv"}
    raw |= {"store": f"{bucket}/store", **({"sealed": f"{seal}/sealed"} if seal else {})}
    remote = path.with_name("bucket.yaml")
    remote.write_text(yaml.safe_dump(raw, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return remote


def console() -> tuple[Console, Callable[[], str]]:
    """A console that shows nothing, and what was printed on it so far."""
    text = io.StringIO()
    return Console(file=text, width=250, highlight=False), text.getvalue


def imported(path: Path) -> Fleet:
    """The fleet after `import`."""
    fleet = load_fleet(path)
    catalog = Catalog.of(fleet)
    for plant in fleet.plants:
        import_plant(catalog, fleet, plant, files=PlantFiles(), now=NOW)
    return fleet


@dataclass(frozen=True)
class Works:
    """A fleet whose runs are done, fitted one after another in this process, without Ray."""

    fleet: Fleet
    settings: Settings
    plan: Any

    @property
    def store(self) -> Store:
        """The fleet's store."""
        return open_store(self.fleet.store)

    def exports(self) -> Any:
        """The plan's exported models."""
        from jobs.material import Material
        from jobs.plan import Plan
        from jobs.scoring import Exports

        plan: Plan = self.plan
        return Exports(Material(self.fleet, cache=self.settings.cache, recipe=plan.deepest), plan=plan)


def trained(
    path: Path, *, home: Path, kinds: Sequence[str] = KINDS, seeds: Sequence[int] = (0,), baselines: bool = False
) -> Works:
    """The fleet imported, and its runs of these kinds done, two epochs each but those from scratch."""
    import torch

    from jobs.fit import fit_run
    from jobs.fleet import planned
    from jobs.material import Material
    from jobs.recipe import Recipe, Stage

    torch.set_num_threads(1)
    fleet, settings = imported(path), Settings(home=home, slots=2)
    recipe = Recipe(stages=(Stage(cut=1, epochs=2),), views=2)
    material = Material(fleet, cache=settings.cache, recipe=recipe)
    plan = planned(fleet, material=material, recipe=recipe, seeds=seeds, baselines=baselines)
    material.store.write_json(f"runs/{plan.plan_id}/plan.json", plan.to_json())
    material.store.write_json("runs/latest.json", {"plan": plan.plan_id})
    ledger = RunLedger(material.store, plan.plan_id)
    for run in sorted(plan.runs, key=lambda r: len(r.sources)):
        if run.kind in kinds:
            fitted = fit_run(run, material=material, plan=plan)
            record = begin(RunRecord(run_id=run.run_id), lane="0", now=NOW)
            end = refuse(record, why=fitted.notes[-1]) if fitted.is_refused else None
            ledger.put(end or finish(record, select=fitted.score.value, seconds=1.0, now=NOW))
    return Works(fleet=fleet, settings=settings, plan=plan)


def drawn_fleet(folder: Path, *names: str, num_lots: int = 20) -> Path:
    """Plants of tiny plain frames in class folders, three frames a lot: for tests that train nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        for lot in range(num_lots):
            for i, label in enumerate(("good", "good", "crack")):
                file = folder / name / label / f"L{lot:02d}-{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (lot * 3, i * 40, number * 90 + (label == "crack") * 50)).save(file)
    plant = {"classes": {"good": "ok", "crack": "crack"}, "ok": ["good"], "lot_pattern": r"(L\d+)-"}
    plants = [{"name": name, "images": name, **plant} for name in names]
    raw = {"fleet": "drawn", "store": "store", "shares": SHARES, "plants": plants}
    (folder / "fleet.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    return folder / "fleet.yaml"
