"""Runs in MLflow: one writer, in the driver, as things happen; a tracking server that is away costs a warning, no run.

A run that is taken up again, by this driver or another, goes on in the MLflow run that it had: the one of the same plan
and name. Epochs that are there already are not written twice.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cluster.settings import Settings
from cluster.tracking import prepare_tracking
from jobs.learning import epochs_of, figure_of, learning, overfits
from jobs.plan import Plan

METRICS = ("loss", "select", "select_nll")
PICTURE = "learning.png"
STATUS = {"refused": "KILLED", "failed": "FAILED"}
"""MLflow's word for a run that ended without a model."""


class Tracker:
    """Writes the events of a plan's runs to MLflow as they come."""

    def __init__(self, settings: Settings, *, plan: Plan, words: Callable[[str], Mapping[str, Any]]) -> None:
        """words: what a finished run says of itself."""
        self.plan, self.words = plan, words
        self.runs: dict[str, str] = {}
        self.before: dict[str, str] = {}
        """MLflow's runs of this plan from before, by run."""
        self.reached: dict[str, int] = {}
        self.client: Any = None
        self.keeps_pictures = True
        try:
            from mlflow import MlflowClient

            prepare_tracking(settings)
            self.client = MlflowClient(tracking_uri=settings.tracking_uri)
            found = self.client.get_experiment_by_name(plan.fleet)
            self.experiment = found.experiment_id if found else self._new_experiment(settings)
            self.before = self._found()
        except Exception as error:
            self._lost(error)

    def log(self, events: Sequence[Mapping[str, Any]]) -> None:
        """The events are in MLflow: epochs as metrics, ends as run states."""
        for event in events:
            if self.client is None:
                return
            try:
                self._log(event)
            except Exception as error:
                self._lost(error)

    def _new_experiment(self, settings: Settings) -> str:
        """Pictures of an MLflow in a file lie beside it; MLflow itself would put them where the command is run."""
        is_file = settings.tracking_uri.startswith("sqlite:")
        place = (settings.home / "mlflow" / self.plan.fleet).resolve().as_uri() if is_file else None
        return str(self.client.create_experiment(self.plan.fleet, artifact_location=place))

    def _found(self) -> dict[str, str]:
        """MLflow's runs of this plan, by name, the last begun of several."""
        found: dict[str, str] = {}
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment],
                f"tags.plan = '{self.plan.plan_id}'",
                max_results=1000,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            found |= {run.info.run_name: run.info.run_id for run in page}
            token = page.token
            if not token:
                return found

    def _log(self, event: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric

        if "run_id" not in event:
            return
        name = event["run_id"]
        run = self._run(name)
        if event["kind"] == "epoch":
            step = int(event.get("stage", 0)) * 1000 + int(event.get("epoch", 0))
            if step <= self.reached[name]:
                return
            self.reached[name] = step
            stamp = int(event["at"] * 1000)
            values = {key: event.get(key) for key in METRICS}
            metrics = [Metric(k, float(v), stamp, step) for k, v in values.items() if v is not None]
            self.client.log_batch(run, metrics=metrics)
        elif event["kind"] == "done":
            self._draw(name, run)
            self.client.set_terminated(run, status="FINISHED")
        elif event["kind"] in STATUS:
            self.client.set_tag(run, "error", event["error"])
            self.client.set_terminated(run, status=STATUS[event["kind"]])

    def _draw(self, name: str, run: str) -> None:
        """A run with epochs has its learning curves as a picture, and one that overfits says so in a tag."""
        told = learning(self.words(name))
        if sentences := overfits(told):
            self.client.set_tag(run, "overfitting", "; ".join(sentences))
        if epochs_of(told) and self.keeps_pictures:
            try:
                self.client.log_figure(run, figure_of([told]), PICTURE)
            except Exception as error:
                self.keeps_pictures = False
                warnings.warn(f"MLflow takes no pictures ({type(error).__name__}); curves go on", stacklevel=2)

    def _run(self, run_id: str) -> str:
        if run_id in self.runs:
            return self.runs[run_id]
        if run_id in self.before:
            self.runs[run_id] = self.before[run_id]
            self.client.update_run(self.runs[run_id], status="RUNNING")
            rows = [row for key in METRICS for row in self.client.get_metric_history(self.runs[run_id], key)]
            self.reached[run_id] = max((row.step for row in rows), default=-1)
            return self.runs[run_id]
        from mlflow.entities import Param

        spec = self.plan.run(run_id)
        tags = {"plan": self.plan.plan_id, "kind": spec.kind, "plants": ",".join(spec.plants)}
        created = self.client.create_run(self.experiment, run_name=run_id, tags=tags)
        self.runs[run_id], self.reached[run_id] = created.info.run_id, -1
        params = {"seed": spec.seed, "parent": ", ".join(spec.sources), "recipe": str(spec.recipe)[:5000]}
        self.client.log_batch(self.runs[run_id], params=[Param(k, str(v)) for k, v in params.items()])
        return self.runs[run_id]

    def _lost(self, error: Exception) -> None:
        self.client = None
        warnings.warn(f"MLflow cannot be reached ({type(error).__name__}); runs go on unlogged", stacklevel=2)
