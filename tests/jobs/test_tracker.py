"""MLflow says how a run goes while it goes, and a run that is taken up again goes on where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from cluster.settings import Settings
from jobs.plan import Plan, RunSpec
from jobs.tracking import PICTURE, Tracker
from tests.jobs.test_report import learned

STAGES = {"stages": [{"cut": 1}, {"cut": 2}]}
RUNS = tuple(RunSpec(run_id, "own", ("panel",), 0, STAGES) for run_id in ("own-panel-s0", "warm-panel-s0"))
PLAN = Plan(fleet="toys", data_digest="d", runs=RUNS)
OWN = "own-panel-s0"


def words(run_id: str) -> dict[str, Any]:
    return {**learned(run_id), "recipe": STAGES}


def epoch(number: int, *, loss: float | None = 0.5) -> dict[str, Any]:
    return {
        "kind": "epoch",
        "run_id": OWN,
        "at": 1e9 + number,
        "stage": 1,
        "epoch": number,
        "loss": loss,
        "select": 0.5,
    }


def runs(settings: Settings, *, name: str = OWN) -> list[Run]:
    client = MlflowClient(settings.tracking_uri)
    found = client.search_runs([client.get_experiment_by_name("toys").experiment_id])
    return [run for run in found if run.info.run_name == name]


@pytest.mark.slow
def test_epochs_are_there_while_the_run_goes_and_a_second_driver_goes_on_in_the_same_run(
    home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    client = MlflowClient(home.tracking_uri)
    first = Tracker(home, plan=PLAN, words=words)
    first.log([{"kind": "started", "run_id": OWN, "at": 1e9}, epoch(1), epoch(2)])
    (run,) = runs(home)
    assert (run.info.status, run.data.metrics["loss"]) == ("RUNNING", 0.5)

    second = Tracker(home, plan=PLAN, words=words)
    second.log([epoch(2), epoch(3), {"kind": "done", "run_id": OWN, "at": 1e9 + 4}])
    (run,) = runs(home)
    assert run.info.status == "FINISHED"
    assert [row.step for row in client.get_metric_history(run.info.run_id, "loss")] == [1001, 1002, 1003]
    assert run.data.tags["overfitting"].startswith("stage 1: overfitting from epoch 2")
    assert [item.path for item in client.list_artifacts(run.info.run_id)] == [PICTURE]
    assert list((home.home / "mlflow").rglob(PICTURE))
    assert list(Path.cwd().iterdir()) == [], "MLflow wrote where the command was run"

    other = Tracker(home, plan=Plan(fleet="toys", data_digest="other", runs=RUNS), words=words)
    other.log([epoch(1)])
    assert len(runs(home)) == 2


@pytest.mark.slow
def test_where_no_picture_can_be_kept_a_warning_says_so_once_and_curves_go_on(home: Settings):
    tracker = Tracker(home, plan=PLAN, words=words)
    (home.home / "mlflow").parent.mkdir(parents=True, exist_ok=True)
    (home.home / "mlflow").write_text("in the way")
    with pytest.warns(UserWarning, match="MLflow takes no pictures") as warned:
        tracker.log([{"kind": "done", "run_id": run.run_id, "at": 1e9} for run in RUNS])
    assert len([w for w in warned if "pictures" in str(w.message)]) == 1
    assert [run.info.status for spec in RUNS for run in runs(home, name=spec.run_id)] == ["FINISHED", "FINISHED"]


def test_a_server_that_is_away_costs_one_warning_and_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    settings = Settings(home=tmp_path, tracking_uri="http://127.0.0.1:9")
    with pytest.warns(UserWarning, match="MLflow cannot be reached") as warned:
        Tracker(settings, plan=PLAN, words=words).log([epoch(1), epoch(2)])
    assert len([w for w in warned if "MLflow" in str(w.message)]) == 1
