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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.numpy import load_file

from cluster.catalog import Catalog
from cluster.ledger import RunLedger, RunRecord
from cluster.storage import Store, open_store
from jobs.fit import fit_run
from jobs.fleet import planned
from jobs.material import Material
from jobs.recipe import Recipe, Stage, save_recipe
from plants.plant import load_fleet
from tests.fleets import imported, small_fleet
from tests.processes import cmdline, descendants, kill_driver
from tests.ray_head import Node, started

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
TOKEN = "a-token-of-forty-characters-for-this-test"
POISONED = "brno"
POISONED_RUNS = {"frozen-brno-s0", "own-brno-s0"}

NORMALITY = "normality-brno-s0"
"""What its good parts look like needs no label that was lost."""


def recipe_of_long_runs() -> Recipe:
    """Runs of some seconds, so that there is a middle to kill them in."""
    return Recipe(stages=(Stage(cut=1, epochs=48),), views=2, patience=48, batch=8)


class Driver:
    """`crossplant train` in a process of its own, with a home of its own."""

    def __init__(self, works: Path, *, recipe: Recipe, cluster: Node | None = None) -> None:
        self.works, self.cluster = works, cluster
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
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
            "OMP_NUM_THREADS": "1",
        }
        if self.cluster:
            env |= {"CROSSPLANT_RAY_ADDRESS": self.cluster.address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
        words = ["train", "--fleet", str(self.works / "fleet.yaml"), "--recipe", str(self.works / "recipe.yaml")]
        words += ["--json", str(self.works / "train.json")]
        with (self.works / "printed.txt").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "crossplant", *words], cwd=ROOT, env=env, stdout=log, stderr=log
            )

    def workers(self, process: subprocess.Popen[bytes]) -> list[int]:
        """The processes that are its lanes: Ray Train's workers on a cluster, forks of one of its own here."""
        if self.cluster:
            return [pid for pid in descendants(self.cluster.pid) if "RayTrainWorker" in cmdline(pid)]
        return [
            pid for server in descendants(process.pid) if "forkserver" in cmdline(server) for pid in descendants(server)
        ]

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
            time.sleep(0.05)
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

    def weights(self) -> dict[str, Path]:
        """All that the runs have left, what others start from included, by run and name."""
        paths = Path(self.store.uri, "runs", self.plan).glob("*/*.safetensors")
        return {f"{path.parent.name}/{path.stem}": path for path in paths}


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A fleet of three plants and one whose frames stay its own and of which one has lost its label; that frame."""
    folder = tmp_path_factory.mktemp("fleet")
    path = small_fleet(folder, "arden", "brno", "essen", scale=0.08)
    raw = yaml.safe_load(path.read_text())
    for plant in raw["plants"]:
        plant["may_leave"] = plant["name"] != POISONED
    path.write_text(yaml.safe_dump(raw))
    return folder, without_a_label(open_store(imported(path).store), plant=POISONED)


def without_a_label(store: Store, *, plant: str) -> str:
    """One train row of the plant loses its class in the recorded table; returns its frame."""
    key = f"labels/{plant}.parquet"
    table = pd.read_parquet(io.BytesIO(store.read(key)))
    rows = Catalog(store).rows(plant)
    frame = str(rows.loc[rows["role"] == "train", "frame"].iloc[0])
    table.loc[table["frame"] == frame, "class"] = None
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    store.write(key, buffer.getvalue())
    return frame


@pytest.fixture(scope="module")
def undisturbed(poisoned: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """The runs that can be done, fitted one after another in this process: no Ray, no lanes, no kill."""
    driver, recipe = copy_of(poisoned[0], tmp_path_factory.mktemp("undisturbed") / "works"), recipe_of_long_runs()
    material = Material(driver.fleet, cache=driver.works / "home" / "cache", recipe=recipe)
    plan = planned(driver.fleet, material=material, recipe=recipe)
    driver.store.write_json("runs/latest.json", {"plan": plan.plan_id})
    for run in sorted(plan.runs, key=lambda run: run.parent is not None):
        if run.run_id not in POISONED_RUNS:
            fit_run(run, material=material, plan=plan)
    return driver


def copy_of(fleet: Path, folder: Path, *, cluster: Node | None = None) -> Driver:
    shutil.copytree(fleet, folder)
    return Driver(folder, recipe=recipe_of_long_runs(), cluster=cluster)


@dataclass(frozen=True)
class Killed:
    """A command whose worker and whose driver were killed, and that was then repeated."""

    driver: Driver
    struck: set[str]
    """The runs that the lanes were at when a worker was killed."""
    finished: list[dict[str, tuple[RunRecord, int]]]
    """What was finished at each kill."""
    said: str
    """What the last command printed."""


@pytest.fixture(scope="module", params=["here", "on a cluster"])
def killed(
    request: pytest.FixtureRequest,
    poisoned: tuple[Path, str],
    undisturbed: Driver,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Killed]:
    with started(token=TOKEN) if request.param == "on a cluster" else contextlib.nullcontext() as cluster:
        yield killed_twice(poisoned[0], tmp_path_factory.mktemp("killed"), cluster=cluster, like=undisturbed)


def killed_twice(fleet: Path, folder: Path, *, cluster: Node | None, like: Driver) -> Killed:
    driver = copy_of(fleet, folder / "works", cluster=cluster)
    shutil.copytree(like.works / "home" / "cache", driver.works / "home" / "cache")
    process = driver.start()
    assert driver.wait_until(lambda rs: bool(done(rs)) and len(alone(rs)) == 2, of=process), driver.printed
    struck = set(alone(driver.records()))
    os.kill(driver.workers(process)[0], signal.SIGKILL)
    finished = [snapshot(driver)]

    def is_at_it_again(records: dict[str, RunRecord]) -> bool:
        again = [r for r in struck if records[r].attempts == 2 and records[r].state == "running"]
        return bool(done(records)) and bool(again) and "died: " in driver.printed

    assert driver.wait_until(is_at_it_again, of=process), driver.printed
    assert kept(driver, finished[0])
    kill_driver(process)
    finished.append(snapshot(driver))
    before = len(driver.printed)
    assert driver.finished(driver.start()) == 1, driver.printed
    return Killed(driver, struck, finished, driver.printed[before:])


def test_a_killed_worker_and_a_killed_driver_cost_no_finished_run_and_change_no_model(
    killed: Killed, undisturbed: Driver
):
    driver, records = killed.driver, killed.driver.records()
    assert re.search(r"its worker \(\d\) died: .*; it is tried once more", driver.printed)
    assert all(kept(driver, before) for before in killed.finished)
    assert 0 < len(killed.finished[-1]) < len(records)
    assert {run_id for run_id, r in records.items() if r.state != "done"} == POISONED_RUNS
    assert max(records[run_id].attempts for run_id in killed.struck) >= 2
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
    """What runs have left that is not the same in both, and by how much."""
    assert set(a.weights()) == set(b.weights())
    assert any(name.endswith("/start") for name in a.weights())
    found = {}
    for name, path in a.weights().items():
        ours, theirs = load_file(path), load_file(b.weights()[name])
        assert ours.keys() == theirs.keys()
        far = [float(np.abs(ours[key].astype(np.float64) - theirs[key]).max()) for key in ours]
        worst = max(far, default=0.0)  # what good parts look like is a file of its own
        if not worst <= 1e-6:
            found[name] = worst
    return found


def test_a_plant_without_labels_fails_alone_with_its_cause_and_all_others_finish(
    poisoned: tuple[Path, str], killed: Killed
):
    frame, said = poisoned[1], killed.said
    runs = {run["name"]: run for run in json.loads((killed.driver.works / "train.json").read_text())["runs"]}
    assert {name for name, run in runs.items() if POISONED in run["plants"]} == {*POISONED_RUNS, NORMALITY}
    assert {name for name, run in runs.items() if run["state"] == "failed"} == POISONED_RUNS
    assert {runs[name]["state"] for name in runs.keys() - POISONED_RUNS} == {"done"}
    for name in POISONED_RUNS:
        assert f"plant {POISONED}: 1 rows have no label (NaN)" in runs[name]["error"]
        assert frame in runs[name]["error"]
    assert frame in said
    assert "Traceback" not in killed.driver.printed
    assert "recipe: patience 48 is above 10: expect wasted epochs" in said
    assert "check failed: 2 runs failed" in said
