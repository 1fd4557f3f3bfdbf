"""The search: what a point of the space means, and a real search that survives the death of its driver."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cluster.catalog import Catalog
from jobs.recipe import load_recipe, save_recipe
from jobs.selection import Score
from jobs.tune import EPOCHS, FINALISTS, SEEDS, STRENGTHS, _finalists, rank_value, recipe_of, space, tuned_plants
from plants.errors import CheckFailed, InputError
from plants.plant import Fleet, load_fleet
from tests.fleets import console, imported, small_fleet
from tests.processes import kill_driver

ROOT = Path(__file__).resolve().parents[2]
UNREADABLE = b"no answer"
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
    recipe = recipe_of({**POINT, "cut": 2}, cuts=(0, 1, 2), epochs=7)
    assert [(s.cut, s.epochs, s.lr_head, s.lr_backbone) for s in recipe.stages] == [
        (1, 7, 2e-3, 1e-4),
        (2, 7, 2e-3, 1e-4),
    ]
    assert (recipe.dropout, recipe.weight_decay, recipe.batch, recipe.augment.strength) == (0.2, 1e-5, 32, 0.5)


def test_cut_0_is_a_head_on_frozen_features():
    assert recipe_of({**POINT, "cut": 0}, cuts=(0, 1, 2)).stages == ()


@pytest.mark.parametrize(("cut", "stages"), [(0, []), (2, [2]), (4, [2, 4])])
def test_a_recipe_has_no_stage_at_a_cut_that_the_trunk_does_not_allow(cut: int, stages: list[int]):
    assert [stage.cut for stage in recipe_of({**POINT, "cut": cut}, cuts=(0, 4, 2)).stages] == stages


@pytest.mark.parametrize("seed", range(30))
def test_every_point_of_the_space_is_a_recipe_that_can_be_written_and_read(seed, tmp_path):
    np.random.seed(seed)
    config = {name: domain.sample() for name, domain in space(cuts=(0, 1, 2)).items()}
    recipe = recipe_of(config, cuts=(0, 1, 2))
    save_recipe(recipe, tmp_path / "r.yaml", header="found\nby a test")
    assert load_recipe(tmp_path / "r.yaml") == recipe
    assert config["cut"] in (0, 1, 2)
    assert config["strength"] in STRENGTHS
    assert len(recipe.stages) == config["cut"]


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ((0.8, 0.1), (0.9, 5.0)),
        ((0.9, 0.1), (0.9, 0.2)),
        ((0.0, 9.0), (None, None)),
    ],
)
def test_points_are_ranked_by_likelihood_as_a_fit_chooses(better, worse):
    assert rank_value(Score(*better, {})) > rank_value(Score(*worse, {}))


def fleet(**changes: dict[str, bool]) -> Fleet:
    plants = [{"name": n, "images": n, "classes": {"dent": "dent"}, **changes.get(n, {})} for n in ("a", "b", "c")]
    return Fleet.model_validate({"fleet": "f", "store": "s", "plants": plants})


STAYS, RESTS = {"may_leave": False}, {"may_train": False}


@pytest.mark.parametrize(
    ("changes", "named", "tuned"),
    [
        ({}, [], ["a", "b", "c"]),
        ({}, ["c", "a", "c"], ["c", "a"]),
        ({"b": RESTS}, [], ["a", "c"]),
        ({"b": STAYS}, [], ["a", "c"]),
        ({"b": STAYS}, ["b"], ["b"]),
        ({"a": RESTS, "b": RESTS, "c": STAYS}, [], ["c"]),
    ],
)
def test_a_search_learns_only_from_plants_that_may_and_pools_none_that_may_not_leave(changes, named, tuned):
    assert tuned_plants(fleet(**changes), named=named) == tuned


@pytest.mark.parametrize(
    ("changes", "named", "said"),
    [
        ({"b": RESTS}, ["b"], "plant b: field may_train"),
        ({"b": STAYS}, ["a", "b"], "plant b: field may_leave.* --plant b"),
        ({"a": STAYS, "b": STAYS, "c": RESTS}, [], "no plants may be pooled"),
        ({}, ["d"], "plant d: there is no such plant"),
    ],
)
def test_a_plant_named_that_may_not_be_learned_from_is_refused_with_its_field(changes, named, said):
    with pytest.raises(InputError, match=said):
        tuned_plants(fleet(**changes), named=named)


def refitted(monkeypatch: pytest.MonkeyPatch, *, diverging: set[float]) -> tuple[list[dict[str, Any]], str]:
    """The finalists of trials with dropouts 0.1, 0.2 and 0.3, of which these diverge on the last seed."""

    def fit_point(config: dict[str, Any], *, seed: int, **_: Any) -> SimpleNamespace:
        if config["dropout"] in diverging and seed == SEEDS[-1]:
            raise FloatingPointError("the loss is not finite\nin epoch 3")
        return SimpleNamespace(score=Score(0.5, -config["dropout"], {}))

    monkeypatch.setattr("jobs.tune.fit_point", fit_point)
    monkeypatch.setattr("cluster.session.map_tasks", map)
    rows = [{"config": {"dropout": dropout}, "value": 0.5} for dropout in (0.1, 0.2, 0.3)]
    show, said = console()
    material: Any = SimpleNamespace(to_config=dict)
    return _finalists(rows, plants=["a"], material=material, show=show), said()


def test_a_finalist_that_diverges_on_a_new_seed_drops_out_in_one_line_and_the_others_stay(monkeypatch):
    left, said = refitted(monkeypatch, diverging={0.3})
    assert [(row["config"]["dropout"], row["mean"]) for row in left] == [(0.2, 0.2), (0.1, 0.1)]
    assert said.splitlines() == [
        f"finalist 3 drops out: seed {SEEDS[-1]}: FloatingPointError: the loss is not finite in epoch 3"
    ]


def test_a_search_without_a_finalist_left_fails_with_the_cause(monkeypatch):
    with pytest.raises(CheckFailed, match=r"no finalist .* FloatingPointError: the loss is not finite"):
        refitted(monkeypatch, diverging={0.1, 0.2, 0.3})


@pytest.fixture(scope="module")
def works(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet whose sealed answers nobody can read any more."""
    folder = tmp_path_factory.mktemp("tune")
    catalog = Catalog.of(imported(small_fleet(folder, "essen", scale=0.08)))
    assert len(catalog.sealed("essen"))
    for entry in catalog.seal.list():
        catalog.seal.write(entry.key, UNREADABLE)
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
        time.sleep(0.2)
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
    seal = Catalog.of(load_fleet(works / "fleet.yaml")).seal
    assert {seal.read(entry.key) for entry in seal.list()} == {UNREADABLE}
    recipe = load_recipe(works / "best.yaml")
    assert recipe == recipe_of(document["finalists"][0]["config"], cuts=(0, 1, 2), epochs=EPOCHS)
    assert recipe.model_dump(mode="json") == document["best"]["recipe"]
