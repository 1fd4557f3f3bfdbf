from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from serving.app import build_app
from serving.service import Service
from serving.wiring import open_service
from tests.serving.toys import Works


@pytest.fixture
def works(tmp_path: Path) -> Works:
    return Works(tmp_path)


@pytest.fixture
def live(works: Works) -> Works:
    """One plant, `mill`, with a route and a token."""
    works.token()
    works.promote(bundle=works.bundle("own"), policy=works.policy())
    return works


@pytest.fixture
def service(live: Works) -> Iterator[Service]:
    found = open_service(live.settings, store_uri=live.store.uri, fleet="toys", replica="r1", poll_s=0.05)
    yield found
    found.close()


@pytest.fixture
def http(service: Service) -> Iterator[TestClient]:
    with TestClient(build_app(service), raise_server_exceptions=False) as client:
        yield client
