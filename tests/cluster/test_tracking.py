from __future__ import annotations

import multiprocessing
import socket
import time

import pytest

from cluster.registry import Journal, Route
from cluster.settings import Settings
from cluster.tracking import mirror, model_name, prepare_tracking

pytestmark = pytest.mark.slow


def _log(home, queue):
    from mlflow import MlflowClient

    uri = prepare_tracking(Settings(home=home))
    run = MlflowClient(tracking_uri=uri).create_run("0")
    queue.put(run.info.run_id)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> tuple[Settings, set[str]]:
    """A tracking database that three processes asked for at the same moment, and the runs they made in it."""
    home = tmp_path_factory.mktemp("home")
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    children = [context.Process(target=_log, args=(home, queue)) for _ in range(3)]
    for child in children:
        child.start()
    runs = {queue.get(timeout=180) for _ in children}
    for child in children:
        child.join()
    return Settings(home=home), runs


def test_processes_that_start_at_once_get_one_sound_database(prepared):
    from mlflow import MlflowClient

    settings, runs = prepared
    found = MlflowClient(tracking_uri=settings.tracking_uri).search_runs(["0"])
    assert {run.info.run_id for run in found} == runs
    assert len(runs) == 3


def test_aliases_follow_the_route_there_and_back(prepared, tmp_path):
    from mlflow import MlflowClient

    uri = prepared[0].tracking_uri
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    journal = Journal(f"sqlite:///{tmp_path}/routes.db")
    name = model_name("mills", "steel")

    def told(route: Route) -> dict[str, str]:
        assert mirror(uri, fleet="mills", route=route, source="s3://bucket/fleet/bundles") is None
        aliases = client.get_registered_model(name).aliases
        return {alias: client.get_model_version(name, version).tags["bundle"] for alias, version in aliases.items()}

    assert told(journal.promote("steel", bundle="a" * 64, policy="p", who="ann")) == {"champion": "a" * 64}
    canary = journal.challenge("steel", challenger="b" * 64, shares={"challenger": 0.1}, who="ann")
    assert told(canary) == {"champion": "a" * 64, "challenger": "b" * 64}
    assert told(journal.promote("steel", bundle="b" * 64, policy="p", who="ann")) == {"champion": "b" * 64}
    assert told(journal.rollback("steel", who="bob")) == {"champion": "a" * 64}
    assert len(client.search_model_versions(f"name='{name}'")) == 2
    assert client.get_model_version_by_alias(name, "champion").source.endswith("a" * 64)


def test_a_tracking_server_that_is_away_is_one_line_and_the_route_stands(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    journal = Journal(f"sqlite:///{tmp_path}/routes.db")
    route = journal.promote("steel", bundle="a" * 64, policy="p", who="ann")
    began = time.monotonic()
    line = mirror(f"http://127.0.0.1:{port}", fleet="mills", route=route, source="x")
    assert line is not None
    assert line.startswith("plant steel: route 1 stands, but MLflow was not told")
    assert "\n" not in line
    assert time.monotonic() - began < 60
    assert journal.current()["steel"] == route
