from __future__ import annotations

import asyncio
import json
import time
from datetime import timedelta
from pathlib import Path

import pytest

from cluster.access import Access, Grant, Grants
from plants.hashing import sha256
from serving.auth import Gate, authorise, authorise_fleet, bearer
from serving.schemas import Refusal


def grant(role: str, plant: str | None = None) -> Grant:
    return Grant(sha256="0" * 64, role=role, plant=plant, expires_at=2e9)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("role", "at", "action", "status"),
    [
        ("plant", "mill", "predict", None),
        ("plant", "mill", "read", None),
        ("plant", "mill", "promote", 403),
        ("plant", "foundry", "predict", 403),
        ("plant", "foundry", "promote", 403),
        ("reviewer", "mill", "predict", 403),
        ("lead", None, "promote", None),
        ("lead", "foundry", "promote", 403),
        ("auditor", None, "read", None),
        ("auditor", None, "promote", 403),
    ],
)
def test_what_a_role_may_do_at_the_mill(role: str, at: str | None, action: str, status: int | None):
    if status is None:
        authorise(grant(role, at), plant="mill", action=action)  # type: ignore[arg-type]
    else:
        with pytest.raises(Refusal) as caught:
            authorise(grant(role, at), plant="mill", action=action)  # type: ignore[arg-type]
        assert caught.value.status == status


def test_only_readers_of_the_whole_fleet_see_every_plant():
    authorise_fleet(grant("auditor"))
    for narrow in (grant("plant", "mill"), grant("auditor", "mill"), grant("lead", "mill")):
        with pytest.raises(Refusal) as caught:
            authorise_fleet(narrow)
        assert caught.value.status == 403


def test_the_scheme_is_read_in_any_case_and_a_giant_token_is_none():
    assert bearer("bearer  abc ") == "abc"
    for header in (None, "", "abc", "Bearer", f"Bearer {'x' * 600}"):
        with pytest.raises(Refusal):
            bearer(header)


class Source:
    """Tokens of a database that can be away; counts its queries."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self.is_away = False
        self.queries = 0

    def __call__(self) -> Grants:
        self.queries += 1
        if self.is_away:
            raise ConnectionError
        return self.access.grants()


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(Access(f"sqlite:///{tmp_path}/tokens.db"))


def issue(source: Source, **kwargs: object) -> str:
    return source.access.issue("plant", plant="mill", ttl=timedelta(hours=1), **kwargs)  # type: ignore[arg-type]


def test_a_known_token_costs_no_query(source: Source, tmp_path: Path):
    token = issue(source)
    gate = Gate(source, state=tmp_path / "grants.json", renew_s=60)
    for _ in range(20):
        assert asyncio.run(gate.grant(f"Bearer {token}")).plant == "mill"
    assert source.queries == 1
    gate.close()


def test_guessing_tokens_does_not_load_the_database(source: Source, tmp_path: Path):
    gate = Gate(source, state=tmp_path / "grants.json", renew_s=60)

    async def guess() -> list[object]:
        return list(
            await asyncio.gather(*(gate.grant(f"Bearer guess-{n}") for n in range(200)), return_exceptions=True)
        )

    begun = time.monotonic()
    found = asyncio.run(guess())
    assert {one.status for one in found if isinstance(one, Refusal)} == {401}
    assert source.queries <= 2 + (time.monotonic() - begun) / 0.2
    gate.close()


def test_with_the_database_away_known_tokens_work_over_a_restart_and_new_ones_are_asked_to_wait(
    source: Source, tmp_path: Path
):
    state = tmp_path / "grants.json"
    token = issue(source)
    gate = Gate(source, state=state, renew_s=60)
    asyncio.run(gate.grant(f"Bearer {token}"))
    gate.close()
    assert token not in state.read_text()
    assert state.stat().st_mode & 0o077 == 0
    source.is_away = True
    again = Gate(source, state=state, renew_s=60)
    assert asyncio.run(again.grant(f"Bearer {token}")).plant == "mill"
    assert again.problem is not None
    with pytest.raises(Refusal) as caught:
        asyncio.run(again.grant("Bearer new"))
    assert caught.value.status == 503
    again.close()


def test_replicas_that_share_a_folder_keep_each_others_grants(source: Source, tmp_path: Path):
    state = tmp_path / "grants.json"
    one, two = (Gate(source, state=state, renew_s=60) for _ in range(2))
    asyncio.run(one.grant(f"Bearer {issue(source)}"))
    asyncio.run(two.grant(f"Bearer {issue(source)}"))
    one.close()
    two.close()
    assert len(json.loads(state.read_text())) == 2


def test_a_thousand_plants_that_come_back_at_once_are_a_few_writes_and_all_are_kept(tmp_path: Path):
    state = tmp_path / "grants.json"
    headers = [f"Bearer cp_{number}" for number in range(1000)]
    digests = [sha256(header.removeprefix("Bearer ").encode()) for header in headers]
    known = Grants({one: Grant(sha256=one, role="plant", plant="mill", expires_at=2e9) for one in digests})
    gate = Gate(lambda: known, state=state, renew_s=60)

    async def all_at_once() -> None:
        for header in headers:
            assert (await gate.grant(header)).plant == "mill"

    cpu = time.process_time()
    asyncio.run(all_at_once())
    assert time.process_time() - cpu < 1.0, "the file of grants is written anew for every token"
    gate.close()
    assert len(json.loads(state.read_text())) == 1000


def test_a_grant_is_on_disk_soon_though_nobody_closes_the_gate(source: Source, tmp_path: Path):
    state = tmp_path / "grants.json"
    gate = Gate(source, state=state, renew_s=60)
    for number in (1, 2):
        asyncio.run(gate.grant(f"Bearer {issue(source)}"))
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and (not state.exists() or len(json.loads(state.read_text())) < number):
            time.sleep(0.02)
        assert len(json.loads(state.read_text())) == number
    gate.close()


def test_a_damaged_file_of_grants_is_ignored(source: Source, tmp_path: Path):
    (tmp_path / "grants.json").write_text('[{"role": "king"}]')
    token = issue(source)
    gate = Gate(source, state=tmp_path / "grants.json", renew_s=60)
    assert asyncio.run(gate.grant(f"Bearer {token}")).role == "plant"
    gate.close()
