"""MLflow: made ready once before workers start, and the registry in it kept as a mirror of the routes.

The route journal decides; MLflow is told, best effort, so that a lost MLflow server never loses a promotion.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.settings import Settings

if TYPE_CHECKING:
    from cluster.registry import Route

_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""MLflow's own defaults try a server that is away for four minutes."""


def prepare_tracking(settings: Settings) -> str:
    """Afterwards MLflow's database exists and is up to date, whoever asked first. Returns the tracking address.

    Several processes that open a fresh SQLite file at once break it for good, so it is made under a file lock.
    """
    uri = settings.tracking_uri
    file = uri.removeprefix("sqlite:///")
    if file != uri:
        path = Path(file)
        with _locked(path.with_name(f"{path.name}.lock")):
            _client(uri).search_experiments(max_results=1)
    return uri


def model_name(fleet: str, plant: str) -> str:
    """The registered model of a plant."""
    return f"crossplant-{fleet}-{plant}"


def mirror(uri: str, *, fleet: str, route: Route, source: str) -> str | None:
    """Afterwards MLflow's aliases champion and challenger say what the route says. None, or one line why not.

    `source` is the address of the fleet's bundles.
    """
    try:
        client = _client(uri)
        name = model_name(fleet, route.plant)
        _ensure(client, name)
        for alias, digest in (("champion", route.bundle), ("challenger", route.challenger)):
            if digest is not None:
                version = _version(client, name, digest, source=f"{source.rstrip('/')}/{digest}")
                client.set_model_version_tag(name, version, "policy", route.policy)
                client.set_registered_model_alias(name, alias, version)
            elif alias in client.get_registered_model(name).aliases:
                client.delete_registered_model_alias(name, alias)
        client.set_registered_model_tag(name, "sequence", str(route.sequence))
    except Exception as error:
        return (
            f"plant {route.plant}: route {route.sequence} stands, but MLflow was not told ({type(error).__name__}). "
            "The next promotion tells it again"
        )
    return None


def _ensure(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _version(client: Any, name: str, digest: str, *, source: str) -> str:
    for version in client.search_model_versions(f"name='{name}'"):
        if version.tags.get("bundle") == digest:
            return str(version.version)
    return str(client.create_model_version(name, source=source, tags={"bundle": digest}).version)


def _client(uri: str) -> Any:
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
