"""Runs in MLflow: one writer, in the driver, batched; a tracking server that is away costs a warning, not a run."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.settings import Settings
from cluster.tracking import prepare_tracking
from jobs.plan import Plan

STATUS = {"done": "FINISHED", "refused": "KILLED", "failed": "FAILED"}
"""MLflow's word for how a run ended."""


class Tracker:
    """Writes the events of a plan's runs to MLflow as they come."""

    def __init__(self, settings: Settings, *, plan: Plan) -> None:
        self.plan = plan
        self.runs: dict[str, str] = {}
        self.client: Any = None
        try:
            from mlflow import MlflowClient

            prepare_tracking(settings)
            self.client = MlflowClient(tracking_uri=settings.tracking_uri)
            found = self.client.get_experiment_by_name(plan.fleet)
            self.experiment = found.experiment_id if found else self.client.create_experiment(plan.fleet)
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

    def _log(self, event: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric

        if "run_id" not in event:
            return
        run = self._run(event["run_id"])
        if event["kind"] == "epoch":
            step = int(event.get("stage", 0)) * 1000 + int(event.get("epoch", 0))
            stamp = int(event["at"] * 1000)
            values = {k: event.get(k) for k in ("loss", "select", "select_nll")}
            metrics = [Metric(k, float(v), stamp, step) for k, v in values.items() if v is not None]
            self.client.log_batch(run, metrics=metrics)
        elif event["kind"] in ("done", "refused", "failed"):
            if event.get("error"):
                self.client.set_tag(run, "error", event["error"])
            self.client.set_terminated(run, status=STATUS[event["kind"]])

    def _run(self, run_id: str) -> str:
        if run_id not in self.runs:
            from mlflow.entities import Param

            spec = self.plan.run(run_id)
            tags = {"plan": self.plan.plan_id, "kind": spec.kind, "plants": ",".join(spec.plants)}
            created = self.client.create_run(self.experiment, run_name=run_id, tags=tags)
            self.runs[run_id] = created.info.run_id
            params = {"seed": spec.seed, "parent": ", ".join(spec.sources), "recipe": str(spec.recipe)[:5000]}
            self.client.log_batch(self.runs[run_id], params=[Param(k, str(v)) for k, v in params.items()])
        return self.runs[run_id]

    def _lost(self, error: Exception) -> None:
        self.client = None
        warnings.warn(f"MLflow cannot be reached ({type(error).__name__}); runs go on unlogged", stacklevel=2)
