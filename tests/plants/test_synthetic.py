from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from plants.factories import FACTORIES, Factory
from plants.images import decode
from plants.plant import Fleet, load_fleet
from plants.rendering import Light, shade
from plants.surfaces import DEFECTS, Style, Surface, continued
from plants.synthetic import COLUMNS, draw_frame, make_fleet, plan_parts
from plants.views import view_boxes

SMALL = 0.03


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_fleet(tmp_path_factory.mktemp("fleet"), seed=3, scale=SMALL)


@pytest.fixture(scope="module")
def fleet(made: Path) -> Fleet:
    return load_fleet(made)


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def labels(plant_labels: str | None) -> pd.DataFrame:
    return pd.read_csv(str(plant_labels), keep_default_na=False, dtype=str)


def factory(name: str) -> Factory:
    return next(f for f in FACTORIES if f.name == name)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_frames(made: Path, tmp_path: Path) -> None:
    again = make_fleet(tmp_path / "again", seed=3, scale=SMALL)
    assert digests(again.parent) == digests(made.parent)
    other = digests(make_fleet(tmp_path / "other", seed=4, scale=SMALL).parent)
    frames = {name for name in other if "/frames/" in name}
    assert not any(other[name] == digest for name, digest in digests(made.parent).items() if name in frames)


def test_a_plant_made_alone_is_the_one_of_the_whole_fleet(made: Path, tmp_path: Path) -> None:
    alone = make_fleet(tmp_path, seed=3, scale=SMALL, only=("essen",), processes=1)
    assert [plant.name for plant in load_fleet(alone).plants] == ["essen"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["essen", "fleet.yaml"]
    assert digests(tmp_path / "essen") == digests(made.parent / "essen")


@pytest.mark.slow
def test_two_processes_write_the_same_bytes_as_one(made: Path, tmp_path: Path) -> None:
    assert digests(make_fleet(tmp_path, seed=3, scale=SMALL, processes=2).parent) == digests(made.parent)


def test_the_fleet_file_loads_and_says_that_it_is_synthetic(fleet: Fleet) -> None:
    assert fleet.synthetic
    assert fleet.seed == 3
    assert len(fleet.plants) >= 5
    assert all(len(plant.environments) == 2 for plant in fleet.plants)
    assert fleet.trunks[0].cuts == (0, 1, 2)


def test_where_people_inspect_their_verdicts_err_as_declared_and_nothing_else_of_the_plant_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = {one.name: replace(one, inspection=None) for one in FACTORIES}
    for one in (factory("arden"), factory("essen")):
        assert one.inspection is not None
        parts = plan_parts(one, seed=0, scale=20.0)
        verdicts = {part.incumbent for part in parts}
        named = set(one.kinds) if one.inspection.names_rightly else {"reject"}
        assert verdicts == {"ok", "review", *named}
        good = [part.incumbent for part in parts if part.label == one.good]
        bad = [part.incumbent for part in parts if part.label != one.good]
        assert np.mean([said == "review" for said in good + bad]) == pytest.approx(one.inspection.asks, abs=0.02)
        assert np.mean([said in named for said in good]) == pytest.approx(one.inspection.false_alarms, abs=0.02)
        assert np.mean([said == "ok" for said in bad]) == pytest.approx(one.inspection.misses, abs=0.02)
        with monkeypatch.context() as patch:
            patch.setattr("plants.synthetic.FACTORIES", tuple(plain.values()))
            alone = plan_parts(plain[one.name], seed=0, scale=20.0)
        assert [replace(part, incumbent="") for part in parts] == alone


def test_plants_name_shared_defects_in_their_own_words_and_one_divides_a_class(fleet: Fleet) -> None:
    leaves = fleet.leaves(fleet.plants)
    assert leaves[0] == "ok"
    assert {"scratch", "dent", "crack", "chip", "stain/aceite", "stain/oxido"} == set(leaves[1:])
    assert "scratch" not in fleet.plant("brno").classes
    assert fleet.leaf_sets(fleet.plant("arden"))["stain"] == ("stain/aceite", "stain/oxido")
    assert len(fleet.plant("essen").annotated) < len(fleet.plant("arden").annotated)
    assert fleet.plant("essen").classes["Kratzer"].state == "absent"


def test_every_row_names_a_frame_that_decodes_at_a_declared_environment(fleet: Fleet) -> None:
    for plant in fleet.plants:
        rows = labels(plant.labels)
        assert tuple(rows.columns) == COLUMNS + ("incumbent",) * bool(factory(plant.name).inspection)
        assert rows["frame"].is_unique
        assert set(rows["class"]) == set(plant.annotated)
        for row in rows.itertuples():
            pixels = decode(Path(plant.images, row.frame).read_bytes(), source=row.frame)
            boxes = view_boxes(pixels.shape[1], pixels.shape[0], geometry=plant.environments[row.environment].geometry)
            if row.box:
                x0, y0, x1, y1 = map(int, row.box.split())
                assert boxes[:, 0].min() <= x0 < x1 <= boxes[:, 2].max()
                assert boxes[:, 1].min() <= y0 < y1 <= boxes[:, 3].max()


def test_a_defective_part_shows_its_defect_in_some_frame_and_a_good_one_in_none(fleet: Fleet) -> None:
    hidden = 0
    for plant in fleet.plants:
        rows = labels(plant.labels)
        for _, part in rows.groupby("part_id"):
            assert part["class"].nunique() == part["lot"].nunique() == part["environment"].nunique() == 1
            is_good = part["class"].iloc[0] in plant.ok
            assert (part["box"] != "").any() != is_good
            assert (part["severity"] == "").all() == is_good
            hidden += 0 if is_good else int((part["box"] == "").sum())
    assert hidden > 0


@pytest.mark.slow
def test_progress_ends_at_the_number_of_frames(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = make_fleet(tmp_path, scale=0.0, progress=lambda done, total: seen.append((done, total)))
    frames = sum(len(labels(plant.labels)) for plant in load_fleet(path).plants)
    assert seen[-1] == (frames, frames)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("plant", FACTORIES, ids=lambda f: f.name)
def test_a_plan_has_small_lots_rising_times_and_enough_of_every_class(plant: Factory, seed: int) -> None:
    parts = plan_parts(plant, seed=seed, scale=1.0)
    assert len(parts) == plant.num_parts
    times = [part.captured_at for part in parts]
    assert times == sorted(times)
    lots = Counter(part.lot for part in parts)
    assert max(lots.values()) <= 4
    assert len(lots) * (plant.shares or {"decide": 0.2})["decide"] >= 10
    for lot in lots:
        assert len({(p.product, p.station) for p in parts if p.lot == lot}) == 1
    counts = Counter(part.label for part in parts)
    assert 0.4 <= 1 - counts[plant.good] / len(parts) <= 0.6
    assert set(counts) == {plant.good, *plant.kinds}


def test_the_plant_with_few_labels_may_learn_from_under_twenty_defects() -> None:
    parts = plan_parts(factory("brno"), seed=0, scale=1.0)
    shares = factory("brno").shares
    assert shares is not None
    assert 12 <= shares["train"] * sum(part.label != "dobry" for part in parts) < 20


def test_the_rare_class_is_a_third_as_frequent_as_the_others() -> None:
    counts = Counter(part.label for part in plan_parts(factory("arden"), seed=0, scale=1.0))
    assert counts["chip"] < 0.5 * min(counts[name] for name in ("scratch", "dent", "stain", "crack"))


@pytest.mark.parametrize("plant", FACTORIES, ids=lambda f: f.name)
def test_a_defect_changes_the_frame_inside_its_box_and_nowhere_else(plant: Factory) -> None:
    rng = np.random.default_rng(0)
    shape = tuple(max(s.shape[i] for s in plant.stations.values()) for i in (0, 1))
    flat = np.ones((plant.period_px, plant.period_px), dtype=np.float32)
    blank = Surface(flat, flat)
    grain = continued(rng.standard_normal(flat.shape, dtype=np.float32), shape=(shape[0], shape[1]))
    chosen = {(p.label, p.station): p for p in plan_parts(plant, seed=0, scale=1.0) if p.label != plant.good}
    for part in chosen.values():
        with_defect, without = (
            draw_frame(plant, part, rng=np.random.default_rng(7), blank=blank, grain=grain, shown=shown)
            for shown in (True, False)
        )
        assert without[1] is None
        assert with_defect[1] is not None
        x0, y0, x1, y1 = with_defect[1]
        assert 12 <= max(x1 - x0, y1 - y0) <= (32 if plant.name == "fargo" else 100)
        changed = np.abs(with_defect[0].astype(int) - without[0].astype(int)).reshape(*with_defect[0].shape[:2], -1)
        strong = changed.max(axis=2) > (6 if plant.name == "fargo" else 24)
        assert strong[y0:y1, x0:x1].sum() >= 10
        margin = 8
        strong[max(y0 - margin, 0) : y1 + margin, max(x0 - margin, 0) : x1 + margin] = False
        assert strong.sum() == 0, (part.label, part.station)


def test_one_groove_is_dark_bright_or_both_as_the_light_falls() -> None:
    surface = Surface(np.zeros((64, 64), np.float32), np.ones((64, 64), np.float32))
    plain = {kind: shade(surface, light=Light(kind)) for kind in ("coaxial", "ring", "grazing")}
    style = Style(along=(90.0,))
    DEFECTS["scratch"](surface, np.random.default_rng(0), centre=(32, 32), size=50.0, force=1.0, style=style)
    change = {kind: shade(surface, light=Light(kind)) - before for kind, before in plain.items()}
    assert change["coaxial"].min() < -0.2
    assert change["coaxial"].max() < 1e-3
    assert change["ring"].max() > 0.2
    assert change["ring"].min() > -1e-3
    assert change["grazing"].min() < -0.2
    assert change["grazing"].max() > 0.2
