"""Kills and poison: the same command finishes what was begun, repeats nothing, and one bad plant stops no other."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from cluster.catalog import Catalog
from cluster.ledger import RunLedger, RunRecord
from cluster.storage import open_store
from jobs.recipe import Recipe, Stage, save_recipe
from plants.plant import load_fleet
from tests.fleets import imported, small_fleet

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:patience 40 is above 10")]
ROOT = Path(__file__).resolve().parents[1]


def recipe_of_long_runs() -> Recipe:
    """Runs of some seconds, so that there is a middle to kill them in."""
    return Recipe(stages=(Stage(cut=1, epochs=40),), views=2, patience=40, batch=8)


class Driver:
    """`crossplant train` in a process of its own, with a home of its own."""

    def __init__(self, works: Path, *, recipe: Recipe) -> None:
        self.works = works
        self.fleet = load_fleet(works / "fleet.yaml")
        save_recipe(recipe, works / "recipe.yaml")
        self.store = open_store(self.fleet.store)

    def start(self) -> subprocess.Popen[bytes]:
        env = {
            **os.environ,
            "CROSSPLANT_HOME": str(self.works / "home"),
            "CROSSPLANT_SLOTS": "2",
            "CROSSPLANT_OBJECT_STORE_MB": "160",
            "HOME": str(self.works),
            "RAY_AUTH_MODE": "disabled",
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
            "OMP_NUM_THREADS": "1",
        }
        words = ["train", "--fleet", str(self.works / "fleet.yaml"), "--recipe", str(self.works / "recipe.yaml")]
        words += ["--json", str(self.works / "train.json")]
        with (self.works / "printed.txt").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "crossplant", *words], cwd=ROOT, env=env, stdout=log, stderr=log
            )

    def finished(self, process: subprocess.Popen[bytes]) -> int:
        """Its exit code; one that hangs fails the test."""
        try:
            return process.wait(timeout=150)
        except subprocess.TimeoutExpired:
            kill_driver(process)
            pytest.fail(f"train hangs; it said: {self.printed[-2000:]}")

    @property
    def printed(self) -> str:
        return (self.works / "printed.txt").read_text()

    def wait_until(self, seen: Callable[[dict[str, RunRecord]], bool], *, of: subprocess.Popen[bytes]) -> bool:
        """Whether it was seen before the command ended."""
        begun = time.monotonic()
        while not seen(self.records()):
            if of.poll() is not None:
                return False
            assert time.monotonic() - begun < 120, self.printed[-2000:]
            time.sleep(0.02)
        return True

    def records(self) -> dict[str, RunRecord]:
        """The run ledger of the latest plan."""
        if not self.store.exists("runs/latest.json"):
            return {}
        return RunLedger(self.store, self.plan).load()

    @property
    def plan(self) -> str:
        return str(self.store.read_json("runs/latest.json")["plan"])

    def models(self) -> dict[str, Path]:
        """The finished models by run."""
        return {path.parent.name: path for path in Path(self.store.uri, "runs", self.plan).glob("*/model.safetensors")}


def kill_driver(process: subprocess.Popen[bytes]) -> None:
    """kill -9 of a driver. Its workers end by themselves within seconds; Ray's agents, which take a minute, here."""
    children = {pid: cmdline(pid) for pid in below(process.pid)}
    process.kill()
    process.wait()
    begun = time.monotonic()
    while left := [pid for pid, name in children.items() if name and cmdline(pid) == name]:
        if all(children[pid].rstrip().endswith("Agent") for pid in left):
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        assert time.monotonic() - begun < 30, [children[pid] for pid in left]
        time.sleep(0.1)


def below(root: int) -> list[int]:
    """Every process that this one has started, directly or not."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found, grew = {root}, True
    while grew:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        found |= more
        grew = bool(more)
    return sorted(found - {root})


def cmdline(pid: int) -> str:
    """What the process calls itself; nothing once it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


@pytest.fixture(scope="module")
def fleet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet of three plants, imported."""
    folder = tmp_path_factory.mktemp("fleet")
    imported(small_fleet(folder, "arden", "delft", "essen", scale=0.08))
    return folder


@pytest.fixture(scope="module")
def undisturbed(fleet_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """The fleet, trained without a disturbance."""
    driver = copy_of(fleet_folder, tmp_path_factory.mktemp("undisturbed") / "works")
    process = driver.start()
    assert driver.finished(process) == 0, driver.printed
    return driver


def copy_of(fleet: Path, folder: Path, *, recipe: Recipe | None = None) -> Driver:
    shutil.copytree(fleet, folder)
    return Driver(folder, recipe=recipe or recipe_of_long_runs())


def test_a_killed_worker_and_a_killed_driver_cost_no_finished_run_and_change_no_model(
    fleet_folder: Path, undisturbed: Driver, tmp_path: Path
):
    driver = copy_of(fleet_folder, tmp_path / "works")
    process = driver.start()
    assert driver.wait_until(lambda rs: bool(done(rs)) and len(alone(rs)) == 2, of=process), driver.printed
    struck = set(alone(driver.records()))
    os.kill(next(pid for pid in below(process.pid) if "RayTrainWorker" in cmdline(pid)), signal.SIGKILL)
    before = snapshot(driver)
    again = lambda rs: any(rs[r].attempts == 2 and rs[r].state == "running" for r in struck)  # noqa: E731
    assert driver.wait_until(lambda rs: bool(done(rs)) and again(rs), of=process), driver.printed
    assert re.search(r"its worker \(\d\) died: .*; it is tried once more", driver.printed)
    kill_driver(process)
    assert kept(driver, before)
    before = snapshot(driver)
    assert 0 < len(before) < len(undisturbed.records())
    assert driver.finished(driver.start()) == 0, driver.printed
    records = driver.records()
    assert {r.state for r in records.values()} == {"done"}
    assert max(records[r].attempts for r in struck) >= 2
    assert kept(driver, before)
    assert differences(driver, undisturbed) == {}


def snapshot(driver: Driver) -> dict[str, tuple[RunRecord, int]]:
    """The finished runs: their records, and when their models were written."""
    models = driver.models()
    return {run_id: (r, models[run_id].stat().st_mtime_ns) for run_id, r in done(driver.records()).items()}


def kept(driver: Driver, before: dict[str, tuple[RunRecord, int]]) -> bool:
    """Whether what was finished then has been left alone."""
    return {run_id: now for run_id, now in snapshot(driver).items() if run_id in before} == before


def alone(records: dict[str, RunRecord]) -> list[str]:
    """The runs that single lanes are at."""
    return [r.run_id for r in records.values() if r.state == "running" and r.lane not in (None, "all")]


def done(records: dict[str, RunRecord]) -> dict[str, RunRecord]:
    return {run_id: r for run_id, r in records.items() if r.state == "done"}


def differences(a: Driver, b: Driver) -> dict[str, float]:
    """Runs whose weights are not the same in both, and by how much."""
    assert set(a.models()) == set(b.models())
    found = {}
    for run_id, path in a.models().items():
        ours, theirs = load_file(path), load_file(b.models()[run_id])
        assert ours.keys() == theirs.keys()
        worst = max(float(np.abs(ours[key].astype(np.float64) - theirs[key]).max()) for key in ours)
        if not worst <= 1e-6:
            found[run_id] = worst
    return found


def poison(driver: Driver, plant: str) -> str:
    """One train row of the plant loses its class in the recorded table; returns its frame."""
    key = f"labels/{plant}.parquet"
    table = pd.read_parquet(io.BytesIO(driver.store.read(key)))
    rows = Catalog(driver.store).rows(plant)
    frame = str(rows.loc[rows["role"] == "train", "frame"].iloc[0])
    table.loc[table["frame"] == frame, "class"] = None
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    driver.store.write(key, buffer.getvalue())
    return frame


def test_a_plant_without_labels_fails_alone_with_its_cause_and_all_others_finish(fleet_folder: Path, tmp_path: Path):
    driver = copy_of(fleet_folder, tmp_path / "works", recipe=recipe_of_long_runs().model_copy(update={"stages": ()}))
    frame = poison(driver, "essen")
    assert driver.finished(driver.start()) == 1, driver.printed
    runs = {run["name"]: run for run in json.loads((driver.works / "train.json").read_text())["runs"]}
    failed = {name for name, run in runs.items() if run["state"] == "failed"}
    own = {name for name, run in runs.items() if "essen" in run["plants"]}
    children = {name for name, run in runs.items() if run["parent"] in own}
    assert failed == own | children
    assert {runs[name]["state"] for name in runs.keys() - failed} == {"done"}
    for name in own - children:
        assert "plant essen: 1 rows have no label (NaN)" in runs[name]["error"]
        assert frame in runs[name]["error"]
        assert frame in driver.printed
    for name in children:
        assert runs[name]["error"] == f"its parent {runs[name]['parent']} failed"
    assert "Traceback" not in driver.printed
    assert "\nwarning: patience 40 is above 10: expect wasted epochs" in f"\n{driver.printed}"
    assert f"check failed: {len(failed)} runs failed" in driver.printed
