"""Fault after fault under a steady load: no request fails, nobody gets another's answer, the log tells its gaps.

MLflow is away throughout: nobody listens at its address. `bench_steady.py` does the same longer, and kills a real one.
"""

from __future__ import annotations

import pytest
from object_store import ObjectStore

from cluster.settings import Settings
from serving.gaps import KILLED
from tests.postgres import PostgresUnavailable
from tests.serving.steady import table
from tests.serving.steady_faults import LIVE_S, Faults, under_load
from tests.serving.steady_fleet import Lost

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def faults(object_store: ObjectStore, ray_local: Settings, tmp_path_factory: pytest.TempPathFactory) -> Faults:
    """Every fault was met, the load has ended and the app too."""
    pytest.importorskip("psycopg", reason="no driver for PostgreSQL: pip install psycopg[binary]")
    try:
        with under_load(tmp_path_factory.mktemp("works"), store=object_store, pause_s=1.0, is_whole=False) as found:
            for fault in Faults.ALL:
                fault(found)
    except PostgresUnavailable as reason:
        pytest.skip(str(reason))
    print(table(found.rows))
    return found


def test_no_request_fails_whatever_is_killed_away_or_corrupt(faults: Faults):
    assert [one.failure for one in faults.load.asked if one.failure] == []
    assert len(faults.rows) == 11


def test_every_answer_is_the_plants_own_to_the_last_probability(faults: Faults):
    assert [one.wrong for one in faults.load.asked if one.wrong] == []
    assert {one.plant for one in faults.load.asked} == {"mill", "foundry", "mint", "forge"}


def test_another_plants_answer_would_have_been_seen(faults: Faults):
    answers = faults.works.answers
    for plant, bundle, policy, number in answers.known:
        for other, row in answers.known.items():
            if other[0] != plant and other[3] == number:
                model = {"bundle": bundle, "policy": policy}
                assert answers.fault(
                    {**row, "plant": plant, "model": model}, plant=plant, part_id=row["part_id"], number=number
                )


def test_only_what_a_killed_replica_held_has_to_be_asked_again(faults: Faults):
    again = {row.fault: row.retried for row in faults.rows if row.retried}
    assert set(again) <= {"a replica killed with -9"}
    assert sum(again.values()) <= faults.load.threads


def test_a_changed_route_is_every_replicas_within_two_seconds(faults: Faults):
    assert len(faults.live_s) == 4
    for fault, by_replica in faults.live_s.items():
        assert len(by_replica) == 2, fault
        assert max(by_replica.values()) < LIVE_S, fault


def test_the_log_lacks_two_seconds_of_the_killed_replica_at_most_and_says_so(faults: Faults):
    lost = Lost.of(faults.works)
    answers = lost.of_answers(faults.load.asked)
    assert all(faults.killed_at - one.ended < 2 for one in answers)
    assert {gap.why for gap in lost.missing} <= {KILLED}
    assert len({gap.owner for gap in lost.missing}) <= 1
    reported = sum(gap.num_rows for gap in lost.missing)
    assert len(answers) <= reported <= len(answers) + faults.load.threads
