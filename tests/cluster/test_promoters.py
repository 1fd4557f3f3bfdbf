"""Two processes promote different bundles at one plant, round after round, and are killed between any two steps."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from cluster.registry import Journal, Route, RouteTaken

NUM_ROUNDS = 50
STEPS = ("never", "before the look", "after the look", "before the commit", "after the commit")
PEOPLE = ("ann", "bob")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Mortal(Journal):
    """A journal whose process is killed at a step, by the signal that nobody can catch."""

    def __init__(self, url: str, *, dies: str) -> None:
        super().__init__(url)
        self.dies = dies

    def route(self, plant: str) -> Route | None:
        if self.dies == "before the look":
            die()
        return super().route(plant)

    def _append(self, route: Route) -> Route:
        if self.dies == "after the look":
            die()
        if self.dies == "before the commit":
            sa.event.listen(self._database._engine(), "commit", lambda _: die())
        found = super()._append(route)
        if self.dies == "after the commit":
            die()
        return found


def promoter(url: str, who: str, bundle: str, *, expected: int, dies: str, barrier, said: Path) -> None:
    """Exits 0 as the winner, 1 with who was first on its error's line."""
    journal = Mortal(url, dies=dies)
    barrier.wait(timeout=30)
    try:
        journal.promote("mill", bundle=bundle, policy="p" * 64, who=who, expected=expected)
    except RouteTaken as taken:
        said.write_text(str(taken))
        sys.exit(taken.exit_code)


@pytest.mark.slow
def test_one_wins_each_round_the_other_is_told_by_whom_and_when_and_rollbacks_walk_back_in_true_order(
    tmp_path: Path,
):
    rng = random.Random(0)
    url = f"sqlite:///{tmp_path}/routes.db"
    journal = Journal(url)
    journal.promote("mill", bundle="0" * 64, policy="p" * 64, who="first")
    context = multiprocessing.get_context("fork")
    num_kills = 0
    for number in range(NUM_ROUNDS):
        before = journal.history("mill")
        dying = dict(zip(PEOPLE, rng.choice([("never", "never"), (rng.choice(STEPS), rng.choice(STEPS))]), strict=True))
        barrier, children = context.Barrier(2), {}
        for who in PEOPLE:
            bundle = f"{who[0]}{number:063d}"
            options = {"expected": len(before), "dies": dying[who], "barrier": barrier, "said": tmp_path / who}
            (tmp_path / who).unlink(missing_ok=True)
            children[who] = context.Process(target=promoter, args=(url, who, bundle), kwargs=options)
            children[who].start()
        for child in children.values():
            child.join(timeout=60)
        codes = {who: child.exitcode for who, child in children.items()}
        after = journal.history("mill")
        assert after[: len(before)] == before
        assert len(after) - len(before) <= 1, "nobody's promotion is overwritten, nor are there two"
        num_kills += sum(code == -signal.SIGKILL for code in codes.values())
        if any(code == 0 for code in codes.values()) or 1 in codes.values():
            assert len(after) == len(before) + 1
        for who, code in codes.items():
            if code == 0:
                assert after[-1].who == who
            elif code == 1:
                line = (tmp_path / who).read_text()
                assert after[-1].who != who
                assert f"{after[-1].who} was first: promote of bundle {after[-1].bundle[:12]}" in line
                assert after[-1].at in line
            else:
                assert code == -signal.SIGKILL
                assert dying[who] != "never"
    history = journal.history("mill")
    assert num_kills > 5
    assert [route.sequence for route in history] == list(range(1, len(history) + 1))
    back = [journal.rollback("mill", who="cyd").bundle for _ in range(3)]
    assert back == [route.bundle for route in history[-2:-5:-1]]
