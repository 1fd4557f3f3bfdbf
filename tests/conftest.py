"""Fixtures of every room: a real S3 store, an embedded Ray, and a guard that keeps Ray out of tests that do not ask."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

# Read once, when torch and numpy load. Processes of tests share the cores: at two threads each, half as long again.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
from object_store import ObjectStore, StoreUnavailable, started

from cluster.settings import Settings

gc.set_threshold(100_000, 50, 100)  # as the command does
LONGEST = ("test_faults", "test_walk", "test_tune")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files start first, so that no process has the last one to itself."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """A real S3 store whose keys and endpoint stand in the environment for the rest of the session."""
    try:
        store = started(tmp_path_factory.mktemp("object-store"))
    except StoreUnavailable as reason:
        pytest.skip(f"no S3 store: {reason}")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_S3_"))]:
            patch.delenv(name)
        for name, value in store.env.items():
            patch.setenv(name, value)
        yield store
    store.stop()


@pytest.fixture
def bucket(object_store: ObjectStore) -> str:
    """A fresh, empty bucket, as s3://name."""
    return object_store.new_bucket()


@pytest.fixture(scope="module")
def ray_local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """An embedded Ray with two slots for one test module, under a home of its own and without a token.

    Its workers see the environment as it was here: name `object_store` before it where tasks read a bucket.
    """
    from cluster import session

    home = tmp_path_factory.mktemp("home")
    settings = Settings(home=home / ".crossplant", slots=2, object_store_mb=160)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
        session.start(settings)
        yield settings
        session.stop()


@pytest.fixture(autouse=True)
def _no_ray_by_accident(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that is not marked slow and does not ask for Ray fails when it starts one."""
    if "ray_local" in request.fixturenames or request.node.get_closest_marker("slow"):
        return

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("this test starts Ray: use the fixture ray_local, or mark it slow")

    monkeypatch.setattr("ray.init", refuse)


@pytest.fixture
def home(tmp_path: Path) -> Settings:
    """Settings with a home of their own."""
    return Settings(home=tmp_path / ".crossplant", slots=2)
