"""The search: what a point of the space means, and a real search that survives the death of its driver."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.recipe import load_recipe, save_recipe
from jobs.selection import Score
from jobs.tune import EPOCHS, FINALISTS, SEEDS, STRENGTHS, rank_value, recipe_of, space
from tests.fleets import imported, small_fleet
from tests.test_faults import kill_driver

ROOT = Path(__file__).resolve().parents[2]
POINT = {
    "lr_head": 2e-3,
    "lr_backbone": 1e-4,
    "cut": 1,
    "dropout": 0.2,
    "weight_decay": 1e-5,
    "strength": 0.5,
    "batch": 32,
}


def test_a_point_is_a_recipe_with_its_rates_on_every_stage_up_to_its_cut():
    recipe = recipe_of({**POINT, "cut": 2}, epochs=7)
    assert [(s.cut, s.epochs, s.lr_head, s.lr_backbone) for s in recipe.stages] == [
        (1, 7, 2e-3, 1e-4),
        (2, 7, 2e-3, 1e-4),
    ]
    assert (recipe.dropout, recipe.weight_decay, recipe.batch, recipe.augment.strength) == (0.2, 1e-5, 32, 0.5)


def test_cut_0_is_a_head_on_frozen_features():
    assert recipe_of({**POINT, "cut": 0}).stages == ()


@pytest.mark.parametrize("seed", range(30))
def test_every_point_of_the_space_is_a_recipe_that_can_be_written_and_read(seed, tmp_path):
    np.random.seed(seed)
    config = {name: domain.sample() for name, domain in space(cuts=(0, 1, 2)).items()}
    recipe = recipe_of(config)
    save_recipe(recipe, tmp_path / "r.yaml", header="found\nby a test")
    assert load_recipe(tmp_path / "r.yaml") == recipe
    assert config["cut"] in (0, 1, 2)
    assert config["strength"] in STRENGTHS
    assert len(recipe.stages) == config["cut"]


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ((0.9, 5.0), (0.8, 0.1)),
        ((0.9, 0.1), (0.9, 0.2)),
        ((0.9, 9.0), (0.0, 0.0)),
        ((0.1, 0.5), (None, None)),
    ],
)
def test_points_are_ranked_by_value_then_by_nll(better, worse):
    assert rank_value(Score(*better, {})) > rank_value(Score(*worse, {}))


@pytest.fixture(scope="module")
def works(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune")
    imported(small_fleet(folder, "essen", scale=0.08))
    return folder


def tune(works: Path, *, trials: int = 3) -> subprocess.Popen[bytes]:
    env = {
        **os.environ,
        "CROSSPLANT_HOME": str(works / "home"),
        "CROSSPLANT_SLOTS": "2",
        "CROSSPLANT_OBJECT_STORE_MB": "160",
        "HOME": str(works),
        "RAY_AUTH_MODE": "disabled",
        "OMP_NUM_THREADS": "1",
    }
    words = ["tune", "--fleet", str(works / "fleet.yaml"), "--trials", str(trials), "--out", str(works / "best.yaml")]
    words += ["--json", str(works / "tune.json")]
    with (works / "printed.txt").open("ab") as log:
        return subprocess.Popen([sys.executable, "-m", "crossplant", *words], cwd=ROOT, env=env, stdout=log, stderr=log)


def results(works: Path) -> dict[str, list[dict[str, Any]]]:
    """What each trial has reported, by trial."""
    found = {}
    for path in (works / "home" / "tune").glob("*/*/result.json"):
        rows = []
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
        found[rows[0]["trial_id"] if rows else path.parent.name] = rows
    return found


def ended(works: Path) -> set[str]:
    return {trial for trial, rows in results(works).items() if rows and rows[-1]["done"]}


@pytest.mark.slow
def test_a_search_whose_driver_is_killed_goes_on_and_ends_with_a_recipe_that_train_takes(works: Path):
    process = tune(works)
    printed = works / "printed.txt"
    begun = time.monotonic()
    while not ended(works):
        assert process.poll() is None, printed.read_text()
        assert time.monotonic() - begun < 150, printed.read_text()
        time.sleep(0.05)
    time.sleep(2)
    kill_driver(process)
    before = results(works)
    first = ended(works)
    assert not (works / "best.yaml").exists()
    assert tune(works).wait(timeout=200) == 0, printed.read_text()
    assert "goes on where it was" in printed.read_text()
    document = json.loads((works / "tune.json").read_text())
    assert len(document["trials"]) == 3
    assert all(trial["value"] is not None for trial in document["trials"])
    after = results(works)
    assert len(after) == 3
    assert all(after[trial] == before[trial] for trial in first), "a finished trial was repeated"
    values = [trial["value"] for trial in document["trials"]]
    assert values == sorted(values, reverse=True)
    assert len(document["finalists"]) == FINALISTS
    assert all(len(row["values"]) == len(SEEDS) for row in document["finalists"])
    means = [row["mean"] for row in document["finalists"]]
    assert document["best"]["value"] == means[0] == max(means)
    recipe = load_recipe(works / "best.yaml")
    assert recipe == recipe_of(document["finalists"][0]["config"], epochs=EPOCHS)
    assert recipe.model_dump(mode="json") == document["best"]["recipe"]
