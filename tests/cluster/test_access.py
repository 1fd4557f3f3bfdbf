from __future__ import annotations

import sqlite3
import stat
import time
from datetime import UTC, datetime, timedelta

import pytest

from cluster.access import Access, keep_token, kept_token
from plants.errors import InputError

NOW = datetime(2026, 3, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def access(tmp_path) -> Access:
    return Access(f"sqlite:///{tmp_path}/routes.db")


def test_a_plants_token_opens_that_plant_only(access):
    token = access.issue("plant", plant="steel", ttl=DAY)
    grant = access.check(token)
    assert grant is not None
    assert grant.may("predict", plant="steel")
    assert not grant.may("predict", plant="tiles")
    assert not grant.may("predict")
    assert not grant.may("promote", plant="steel")


@pytest.mark.parametrize(
    ("role", "actions"),
    [
        ("reviewer", {"read", "queue", "feedback"}),
        ("lead", {"read", "queue", "feedback", "promote"}),
        ("auditor", {"read"}),
    ],
)
def test_a_role_may_what_it_needs_and_no_more_at_every_plant(access, role, actions):
    grant = access.check(access.issue(role, ttl=DAY))
    assert grant is not None
    every = ("predict", "read", "feedback", "queue", "promote")
    assert {action for action in every if grant.may(action, plant="any")} == actions


def test_a_reviewer_of_one_plant_stays_there(access):
    grant = access.check(access.issue("reviewer", plant="steel", ttl=DAY))
    assert grant is not None
    assert grant.may("queue", plant="steel")
    assert not grant.may("queue", plant="tiles")


@pytest.mark.parametrize("token", ["", "cp_x", "ä\ud800", "x" * 10_000])
def test_an_unknown_token_is_nobody(access, token):
    access.issue("lead", ttl=DAY)
    assert access.check(token) is None


def test_a_token_ends_when_its_time_is_over_also_in_a_snapshot(access):
    token = access.issue("auditor", ttl=DAY, now=NOW)
    snapshot = access.grants(now=NOW)
    assert snapshot.check(token, now=NOW + DAY / 2) is not None
    assert snapshot.check(token, now=NOW + DAY) is None
    assert len(access.grants(now=NOW + DAY)) == 0


def test_a_revoked_token_is_dead_in_the_next_snapshot(access):
    token, other = access.issue("plant", plant="steel", ttl=DAY), access.issue("lead", ttl=DAY)
    assert access.revoke(token) == 1
    assert access.revoke(token) == 0
    assert access.check(token) is None
    assert access.check(other) is not None


def test_all_tokens_of_a_plant_are_revoked_at_once(access):
    tokens = [access.issue("plant", plant="steel", ttl=DAY) for _ in range(3)]
    kept = access.issue("plant", plant="tiles", ttl=DAY)
    assert access.revoke(plant="steel") == 3
    assert [access.check(token) for token in tokens] == [None] * 3
    assert access.check(kept) is not None


def test_the_database_holds_no_token(access, tmp_path):
    token = access.issue("plant", plant="steel", ttl=DAY)
    dump = "\n".join(sqlite3.connect(tmp_path / "routes.db").iterdump())
    assert "tokens" in dump
    assert token not in dump
    assert token.removeprefix("cp_") not in dump


def test_tokens_differ(access):
    assert len({access.issue("auditor", ttl=DAY) for _ in range(20)}) == 20


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"role": "king", "ttl": DAY}, "Roles: plant, reviewer, lead, auditor"),
        ({"role": "plant", "ttl": DAY}, "opens one plant only"),
        ({"role": "lead", "ttl": timedelta(0)}, "must be positive"),
    ],
)
def test_a_token_that_makes_no_sense_is_not_issued(access, options, words):
    with pytest.raises(InputError, match=words):
        access.issue(**options)
    assert len(access.grants()) == 0


def test_a_revocation_names_a_token_a_plant_or_a_role(access):
    with pytest.raises(InputError, match="name a token, a plant or a role"):
        access.revoke()


def test_a_kept_token_is_readable_by_its_owner_alone(tmp_path):
    path = keep_token(tmp_path, "steel", "cp_old")
    assert keep_token(tmp_path, "steel", "cp_new") == path
    assert kept_token(tmp_path, "steel") == "cp_new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["steel.token"]


def test_a_plant_without_a_kept_token_is_named(tmp_path):
    with pytest.raises(InputError, match="plant steel"):
        kept_token(tmp_path, "steel")


def test_after_a_rotation_old_and_new_open_until_the_overlap_ends_and_then_only_the_new(access):
    first = access.issue("plant", plant="steel", ttl=30 * DAY, now=NOW)
    dying = access.issue("plant", plant="steel", ttl=timedelta(minutes=5), now=NOW)
    others = [access.issue("plant", plant="tiles", ttl=DAY, now=NOW), access.issue("lead", ttl=DAY, now=NOW)]
    new, num_old = access.rotate("plant", plant="steel", ttl=30 * DAY, overlap=timedelta(hours=1), now=NOW)
    assert num_old == 2
    soon, later = NOW + timedelta(minutes=30), NOW + timedelta(minutes=61)
    assert [access.check(token, now=soon) is not None for token in (first, dying, new)] == [True, False, True]
    assert [access.check(token, now=later) is not None for token in (first, new, *others)] == [False, True, True, True]


def test_a_rotation_of_a_fleet_wide_role_leaves_the_plants_own_of_that_role_alone(access):
    local = access.issue("auditor", plant="steel", ttl=DAY, now=NOW)
    old = access.issue("auditor", ttl=DAY, now=NOW)
    _, num_old = access.rotate("auditor", ttl=DAY, overlap=timedelta(0), now=NOW)
    later = NOW + timedelta(seconds=1)
    assert num_old == 1
    assert access.check(old, now=later) is None
    assert access.check(local, now=later) is not None


def test_every_token_of_a_fleet_wide_role_can_be_revoked_at_once(access):
    tokens = [access.issue("lead", ttl=DAY) for _ in range(2)]
    kept = access.issue("lead", plant="steel", ttl=DAY)
    assert access.revoke(role="lead") == 2
    assert [access.check(token) for token in tokens] == [None, None]
    assert access.check(kept) is not None


def test_a_snapshot_is_read_again_only_where_tokens_changed_and_every_change_is_seen(access):
    tokens = [access.issue("plant", plant=f"plant-{n}", ttl=DAY) for n in range(3)]
    first = access.grants()
    assert access.grants() is first
    access.revoke(tokens[0])
    new = access.issue("plant", plant="plant-3", ttl=DAY)  # one went and one came: as many as before
    second = access.grants()
    assert [second.check(token) is not None for token in (*tokens, new)] == [False, True, True, True]
    newer, _ = access.rotate("plant", plant="plant-1", ttl=DAY, overlap=timedelta(seconds=1))
    third = access.grants()
    later = datetime.now(UTC) + timedelta(seconds=2)
    assert third.check(tokens[1], now=later) is None
    assert third.check(newer, now=later) is not None
    access.revoke(plant="plant-3")
    assert access.grants().check(new) is None


def test_a_token_that_took_a_revoked_ones_place_within_a_moment_is_seen(access):
    now = datetime.now(UTC)
    old = access.issue("plant", plant="steel", ttl=DAY, now=now)
    assert access.grants().check(old) is not None
    access.revoke(old)
    new = access.issue("plant", plant="steel", ttl=DAY, now=now)  # as many, issued and ending at the same moments
    assert access.grants().check(old) is None
    assert access.grants().check(new) is not None


def test_the_snapshot_of_a_thousand_tokens_that_did_not_change_costs_less_than_reading_them(tmp_path):
    access = Access(f"sqlite:///{tmp_path}/tokens.db")
    access.issue("auditor", ttl=DAY)
    with sqlite3.connect(tmp_path / "tokens.db") as database:
        rows = [(f"{n:064x}", "plant", f"plant-{n}", time.time(), time.time() + 3600) for n in range(1000)]
        database.executemany(
            "INSERT INTO tokens (sha256, role, plant, issued_at, expires_at) VALUES (?, ?, ?, ?, ?)", rows
        )

    def cpu_s(snapshot: Access) -> float:
        begun = time.thread_time()
        assert len(snapshot.grants()) == 1001
        return time.thread_time() - begun

    cold = min(cpu_s(Access(f"sqlite:///{tmp_path}/tokens.db")) for _ in range(3))
    access.grants()
    assert min(cpu_s(access) for _ in range(3)) < cold / 3
