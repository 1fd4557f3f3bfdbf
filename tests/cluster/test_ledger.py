from __future__ import annotations

import pytest

from cluster.ledger import RunLedger, RunRecord, advance, begin, fail, finish, strike
from cluster.storage import open_store
from plants.errors import InputError

FRESH = RunRecord(run_id="own-a-0")


def test_two_attempts_without_an_epoch_fail_a_run():
    record = strike(begin(FRESH, lane="0"), error="NaN loss")
    assert (record.state, record.strikes, record.attempts) == ("waiting", 1, 1)
    record = strike(begin(record, lane="0"), error="NaN loss")
    assert (record.state, record.error, record.attempts) == ("failed", "NaN loss", 2)
    assert record.finished_at is not None


def test_an_attempt_with_a_new_epoch_forgives_earlier_strikes():
    record = strike(begin(FRESH, lane="0"), error="lost")
    record = strike(advance(begin(record, lane="0"), epoch=3), error="lost")
    assert (record.state, record.strikes, record.progress_epoch) == ("waiting", 0, 3)
    record = strike(begin(record, lane="0"), error="lost")
    assert record.state == "waiting"
    assert strike(begin(record, lane="0"), error="lost").state == "failed"


def test_a_run_found_running_was_lost_with_its_driver_and_that_is_no_strike():
    again = begin(begin(FRESH, lane="0"), lane="1")
    assert (again.state, again.lane, again.attempts, again.strikes) == ("running", "1", 2, 0)


def test_a_run_lost_after_progress_goes_on_without_a_strike():
    again = begin(advance(begin(FRESH, lane="0"), epoch=2), lane="1")
    assert (again.state, again.strikes, again.epoch_at_start) == ("running", 0, 2)


def test_an_error_that_cannot_pass_fails_at_once():
    assert fail(begin(FRESH, lane="0"), error="no such class").state == "failed"
    assert fail(advance(begin(FRESH, lane="0"), epoch=5), error="no such class").state == "failed"


@pytest.mark.parametrize("over", [finish(FRESH, select=0.9, seconds=1), fail(FRESH, error="x")])
def test_a_run_that_is_over_is_not_taken_up_again(over):
    assert over.is_over
    assert begin(over, lane="0") == over


def test_a_finished_run_keeps_its_score_and_the_time_of_all_attempts():
    record = finish(begin(strike(begin(FRESH, lane="0"), error="lost", seconds=2), lane="0"), select=0.9, seconds=3)
    assert (record.state, record.select, record.seconds, record.error) == ("done", 0.9, 5.0, None)


def test_progress_never_goes_back():
    assert advance(advance(FRESH, epoch=3), epoch=2).progress_epoch == 3


def test_records_come_back_from_storage_beside_weights_and_plan(tmp_path):
    store = open_store(tmp_path)
    ledger = RunLedger(store, "plan1")
    assert ledger.load() == {}
    assert ledger.get("a") == RunRecord(run_id="a")
    a, b = ledger.put(begin(RunRecord(run_id="a"), lane="0")), ledger.put(RunRecord(run_id="b"))
    store.write_json("runs/plan1/plan.json", {"runs": 2})
    store.write_json("runs/plan1/a/model.json", {})
    RunLedger(store, "plan2").put(RunRecord(run_id="c"))
    assert RunLedger(store, "plan1").load() == {"a": a, "b": b}
    assert ledger.get("a") == a


def test_a_damaged_record_names_its_file(tmp_path):
    store = open_store(tmp_path)
    store.write_json("runs/p/a.json", {"run_id": "a", "state": "odd"})
    with pytest.raises(InputError, match=r"runs/p/a\.json: is not a run record"):
        RunLedger(store, "p").load()
