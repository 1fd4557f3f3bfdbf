from __future__ import annotations

import random
from pathlib import Path

import pytest

from cluster.database import DatabaseAway
from cluster.following import OVERLAP, REREAD_S, Follower
from cluster.registry import Journal


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(f"sqlite:///{tmp_path}/routes.db")


def write(journal: Journal, plant: str, letter: str = "a") -> None:
    journal.promote(plant, bundle=letter * 64, policy="p" * 64, who="ann")


@pytest.mark.parametrize("seed", range(5))
def test_a_follower_always_knows_what_the_whole_journal_says(journal: Journal, seed: int):
    rng = random.Random(seed)
    follower = Follower(journal)
    for step in range(60):
        plant = f"plant-{rng.randrange(6)}"
        if rng.random() < 0.3 and len(journal.history(plant)) > 2:
            journal.challenge(plant, challenger=None, shares={}, who="bob")
        else:
            write(journal, plant, "abcdef"[step % 6])
        if rng.random() < 0.6:
            before, version = dict(follower.current()) if step else {}, follower.version
            assert before == (journal.current() if step else {})
            write(journal, "last")
            assert dict(follower.current()) == journal.current()
            assert follower.version > version
            version = follower.version
            follower.current()
            assert follower.version == version


def test_a_row_committed_after_one_of_a_higher_number_is_not_missed(journal: Journal, tmp_path: Path):
    """As on Postgres, where numbers are given out before the commit."""
    for plant in "abc":
        write(journal, plant)
    (hidden,) = [row for row in journal.since(0) if row[1].plant == "b"]
    assert hidden[0] < journal.last()

    class Late(Journal):
        is_hidden = True

        def since(self, after: int):
            return [row for row in super().since(after) if not (self.is_hidden and row[0] == hidden[0])]

        def current(self):
            return {k: v for k, v in super().current().items() if not (self.is_hidden and k == "b")}

    late = Late(f"sqlite:///{tmp_path}/routes.db")
    follower = Follower(late)
    assert set(follower.current()) == {"a", "c"}
    late.is_hidden = False
    assert set(follower.current()) == {"a", "b", "c"}


def test_a_poll_reads_the_new_rows_and_not_all(journal: Journal, monkeypatch: pytest.MonkeyPatch):
    for number in range(3 * OVERLAP):
        write(journal, f"plant-{number}")
    follower = Follower(journal)
    follower.current()
    write(journal, "new")
    monkeypatch.setattr(Journal, "current", lambda self: pytest.fail("all routes were read"))
    assert "new" in follower.current()
    assert len(journal.since(journal.last() - OVERLAP)) == OVERLAP


def test_a_journal_that_was_put_back_to_an_older_state_is_read_anew(journal: Journal, tmp_path: Path):
    write(journal, "a", "a")
    older = (tmp_path / "routes.db").read_bytes()
    write(journal, "a", "b")
    follower = Follower(journal)
    assert follower.current()["a"].sequence == 2
    journal._database.close()
    (tmp_path / "routes.db").write_bytes(older)
    assert follower.current()["a"].sequence == 1


def test_all_routes_are_read_again_after_a_minute(journal: Journal):
    clock = Clock()
    write(journal, "a")
    follower = Follower(journal, clock=clock)
    follower.current()
    calls: list[int] = []
    whole = journal.current
    journal.current = lambda: (calls.append(1), whole())[1]  # type: ignore[method-assign]
    clock.now = REREAD_S - 1
    follower.current()
    assert calls == []
    clock.now = REREAD_S
    follower.current()
    assert calls == [1]


def test_a_journal_that_is_away_raises_and_the_next_poll_catches_up(journal: Journal, tmp_path: Path):
    write(journal, "a")
    follower = Follower(journal)
    follower.current()
    journal._database.close()
    (tmp_path / "routes.db").rename(tmp_path / "away.db")
    (tmp_path / "routes.db").mkdir()
    with pytest.raises(DatabaseAway):
        follower.current()
    (tmp_path / "routes.db").rmdir()
    (tmp_path / "away.db").rename(tmp_path / "routes.db")
    write(journal, "b")
    assert set(follower.current()) == {"a", "b"}
