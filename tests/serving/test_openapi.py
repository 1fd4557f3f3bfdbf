"""What the API says of itself is what it does: schemathesis asks every endpoint whatever the description allows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving.toys import GREEN, Works, png
from tests.serving.uvicorn_server import Server

pytestmark = pytest.mark.slow

CHECKS = ["--checks", "all", "--exclude-checks", "positive_data_acceptance"]
"""All but one: that any bytes called an image are taken for one, which no description of an image can promise."""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Works:
    works = Works(tmp_path_factory.mktemp("works"))
    works.token()
    for role in ("lead", "auditor"):
        works.token(role, plant=None)
    works.promote(bundle=works.bundle("own"), policy=works.policy())
    return works


@pytest.fixture(scope="module")
def server(fleet: Works) -> Iterator[Server]:
    with Server(fleet.root) as found:
        yield found


@pytest.fixture(scope="module")
def described(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{server.address}/openapi.json").json()
    return found


@pytest.mark.parametrize("role", ["plant", "lead"])
def test_no_request_that_the_description_allows_or_nearly_allows_gets_an_answer_it_does_not_describe(
    server: Server, fleet: Works, role: str, tmp_path: Path
):
    pytest.importorskip("schemathesis", reason="schemathesis is not installed: pip install -e '.[dev]'")
    (tmp_path / "schemathesis.toml").write_text('[parameters]\n"path.plant" = "mill"\n')
    token = fleet.token(role, plant="mill" if role == "plant" else None)["Authorization"]
    words = ["run", f"{server.address}/openapi.json", "-H", f"Authorization: {token}", "--max-examples", "20"]
    words += ["--generation-deterministic", "--phases", "examples,coverage,fuzzing", "--no-color", *CHECKS]
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", *words], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "unresolvable" not in done.stdout.lower()
    assert httpx.get(f"{server.address}/healthz").json()["status"] == "ok"


def test_every_endpoint_names_its_refusals_in_one_shape_and_all_but_health_need_a_token(described: dict[str, Any]):
    assert described["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    for path, methods in described["paths"].items():
        for about in methods.values():
            refusals = {status: one for status, one in about["responses"].items() if not status.startswith("2")}
            assert all("RefusalBody" in str(one) for one in refusals.values())
            if path == "/healthz":
                assert about["security"] == []
                continue
            assert {"400", "401", "403", "500", "503"} <= set(refusals)
            assert "Retry-After" in refusals["503"]["headers"]
            assert ("404" in refusals) == ("{plant}" in path)


def test_a_part_is_described_as_a_form_and_as_a_raw_image_with_every_field(described: dict[str, Any]):
    predict = described["paths"]["/plants/{plant}/predict"]["post"]
    content = predict["requestBody"]["content"]
    fields = {"part_id", "product", "environment", "deadline_ms", "map"}
    assert set(content["multipart/form-data"]["schema"]["properties"]) == fields | {"image"}
    assert content["image/jpeg"]["schema"]["format"] == "binary"
    assert {one["name"] for one in predict["parameters"]} == fields | {"plant", "Idempotency-Key"}
    assert {"408", "413", "415", "422", "429"} <= set(predict["responses"])


def test_an_answer_has_the_fields_that_are_described_and_no_others(
    server: Server, fleet: Works, described: dict[str, Any]
):
    url = f"{server.address}/plants/mill/predict?environment=cam-1"
    answer = httpx.post(url, headers=fleet.token(), content=png(GREEN)).json()
    assert set(answer) == set(described["components"]["schemas"]["Answer"]["properties"])
