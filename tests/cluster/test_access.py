from __future__ import annotations

import sqlite3
import stat
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


def test_a_revocation_names_a_token_or_a_plant(access):
    with pytest.raises(InputError, match="name a token or a plant"):
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
