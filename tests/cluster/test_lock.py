"""One writer at a time, whoever they are and wherever the store is."""

from __future__ import annotations

import multiprocessing
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cluster.catalog import Catalog
from cluster.imports import import_plant
from cluster.lock import locked
from cluster.storage import LocalStore, PlantFiles, open_store
from plants import splits
from plants.errors import CheckFailed, InputError
from plants.plant import load_fleet
from tests.fleets import drawn_fleet


def count(uri: str, times: int) -> None:
    """Read, think, write: without a lock, counts are lost."""
    store = open_store(uri)
    for _ in range(times):
        with locked(store, "count") as claim:
            value = int(store.read("value"))
            time.sleep(0.01)
            claim.check()
            store.write("value", str(value + 1).encode())


def run_at_once(target, arguments) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=target, args=given) for given in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
        assert process.exitcode == 0


@pytest.fixture(params=["folder", pytest.param("bucket", marks=pytest.mark.slow)])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "store") if request.param == "folder" else f"{request.getfixturevalue('bucket')}/store"


@pytest.mark.slow
def test_four_writers_lose_no_count(uri):
    store = open_store(uri)
    store.write("value", b"0")
    times = 3 if "://" in uri else 10
    run_at_once(count, [(uri, times)] * 4)
    assert store.read("value") == str(4 * times).encode()
    assert store.list("locks") == []


def test_a_second_writer_is_told_after_its_time_and_gets_in_after_the_first_has_left(tmp_path):
    store = LocalStore(tmp_path)
    with locked(store, "x"):
        with (
            pytest.raises(InputError, match="another writer has held the store for 0 s"),
            locked(store, "x", timeout_s=0.3),
        ):
            pass
        with locked(store, "y", timeout_s=0.3):
            pass
    with locked(store, "x", timeout_s=0.3):
        pass
    assert store.list("locks") == []


@pytest.mark.slow
def test_what_a_killed_writer_left_lapses(tmp_path):
    store = LocalStore(tmp_path)
    store.write(f"locks/x/{'0' * 32}.{time.time() + 0.5:.3f}", b"")
    begun = time.monotonic()
    with locked(store, "x", timeout_s=5):
        assert time.monotonic() - begun > 0.3


@pytest.mark.slow
def test_a_claim_is_renewed_while_the_block_lasts_and_one_that_could_not_be_is_said(tmp_path, monkeypatch):
    store = LocalStore(tmp_path)
    with locked(store, "x", ttl_s=0.4) as claim:
        time.sleep(0.8)
        claim.check()
        with monkeypatch.context() as patch:
            patch.setattr(type(claim), "put", lambda self: None)
            time.sleep(0.6)
            with pytest.raises(CheckFailed, match="lapsed"):
                claim.check()


def import_one(path: str, store: str, plant: str) -> None:
    fleet = load_fleet(path).model_copy(update={"store": store})
    catalog = Catalog(open_store(store))
    import_plant(catalog, fleet, fleet.plant(plant), files=PlantFiles(), now=datetime.now(UTC))


@pytest.mark.slow
def test_plants_that_are_imported_at_once_deal_each_lot_once(tmp_path, uri):
    names = ["east", "north", "south", "west"]
    path = drawn_fleet(tmp_path / "fleet", *names)
    run_at_once(import_one, [(str(path), uri, name) for name in names])
    catalog = Catalog(open_store(uri))
    assignments = catalog.assignments()
    splits.verify(assignments)
    for name in names:
        assert len(catalog.rows(name)) == 60


def draw_lots(folder: Path, lots: list[int], *, cracked: set[int]) -> None:
    """Two good frames a lot, and a third with a crack where there is one; plants share no lot."""
    for number, plant in enumerate(("north", "south")):
        for lot in lots:
            for i, label in enumerate(("good", "good", "crack")):
                file = folder / plant / label / f"L{number}{lot:03d}-{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                if label == "good" or lot in cracked:
                    Image.new("RGB", (8, 8), (lot % 256, lot // 256 * 10 + i, number)).save(file)


@pytest.mark.slow
def test_sixty_lots_and_then_four_hundred_from_two_processes_move_none_and_leave_each_class_in_every_role(tmp_path):
    path, uri = drawn_fleet(tmp_path / "fleet", "north", "south", num_lots=0), str(tmp_path / "store")
    rng = np.random.default_rng(0)
    order = rng.permutation(460)
    cracked = {*rng.choice(order[:60], 5, replace=False), *rng.choice(order[60:], 40, replace=False)}
    roles: dict[str, dict[str, str]] = {"north": {}, "south": {}}
    for lots in (order[:60], *np.array_split(order[60:], 3)):
        draw_lots(path.parent, lots.tolist(), cracked=cracked)
        run_at_once(import_one, [(str(path), uri, name) for name in roles])
        catalog = Catalog(open_store(uri))
        assignments = catalog.assignments()
        assert assignments is not None
        assert assignments["lot"].is_unique
        for name, before in roles.items():
            rows = catalog.rows(name).set_index("frame")
            roles[name] = dict(zip(rows["lot"], rows["role"], strict=True))
            assert before.items() <= roles[name].items()
            assert (rows["role"] == "test").mean() == pytest.approx(0.2, abs=0.05)
            classes = rows["class"].fillna(catalog.sealed(name).set_index("frame")["class"])
            assert pd.crosstab(classes, rows["role"]).shape == (2, 4)
            assert (pd.crosstab(classes, rows["role"]) > 0).all(axis=None)
