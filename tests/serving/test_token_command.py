"""`crossplant token` as a person runs it, and what an endpoint that runs says to old and new."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import crossplant
from cluster.access import kept_token
from serving.verbs import ensure_token
from tests.fleets import drawn_fleet
from tests.serving.toys import Works

pytestmark = pytest.mark.slow


def run(monkeypatch: pytest.MonkeyPatch, capsys: Any, works: Works, *words: str) -> tuple[int, Any, str]:
    """Exit code, document and what was said."""
    monkeypatch.setenv("CROSSPLANT_HOME", str(works.settings.home))
    fleet = drawn_fleet(works.root / "fleet", "mill", num_lots=1)
    monkeypatch.setattr(sys, "argv", ["crossplant", "token", "--fleet", str(fleet), "--json", "-", *words])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        crossplant.main()
    said = capsys.readouterr()
    return int(ended.value.code or 0), json.loads(said.out) if said.out else None, said.err


def status(http: TestClient, token: str) -> int:
    return http.get("/plants/mill", headers={"Authorization": f"Bearer {token}"}).status_code


def test_a_rotated_token_opens_at_once_the_old_one_until_the_overlap_ends_and_neither_is_shown(
    http: TestClient, live: Works, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    old = ensure_token(live.settings, plant="mill")
    code, document, said = run(monkeypatch, capsys, live, "--plant", "mill", "--overlap-hours", "0.001")
    new = kept_token(live.settings.home, "mill")
    assert (code, document["of"], Path(document["file"]).name) == (0, "mill", "mill.token")
    assert new != old
    assert old not in said + str(document)
    assert new not in said + str(document)
    assert (status(http, old), status(http, new)) == (200, 200)
    begun = time.monotonic()
    while status(http, old) == 200:
        assert time.monotonic() - begun < 10
        time.sleep(0.05)
    assert (status(http, old), status(http, new)) == (401, 200)


def test_a_revoked_plant_has_no_token_left(http: TestClient, live: Works, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    token = ensure_token(live.settings, plant="mill")
    assert status(http, token) == 200
    code, document, _ = run(monkeypatch, capsys, live, "--plant", "mill", "--revoke")
    assert (code, document["of"]) == (0, "mill")
    assert document["old"] >= 1
    assert not (live.settings.home / "tokens" / "mill.token").exists()
    begun = time.monotonic()
    while status(http, token) == 200:
        assert time.monotonic() - begun < 10
        time.sleep(0.05)


def test_a_roles_token_is_changed_likewise_and_one_of_both_must_be_named(
    live: Works, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    old = ensure_token(live.settings, role="lead")
    assert run(monkeypatch, capsys, live, "--role", "lead", "--overlap-hours", "0")[0] == 0
    assert kept_token(live.settings.home, "_lead") != old
    assert live.access.check(old) is None
    for words in ((), ("--plant", "mill", "--role", "lead")):
        code, _, said = run(monkeypatch, capsys, live, *words)
        assert (code, "--plant / --role" in said) == (2, True)
    assert run(monkeypatch, capsys, live, "--plant", "nowhere")[0] == 2
