from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.counts import MAX_NAMES, OTHER, WINDOWS, Counts, Series
from serving.exposition import Condition, prometheus_text
from serving.telemetry import Telemetry
from tests.serving.toys import GREEN, png


class Clock:
    """A time that a test sets."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def counted(*, clock: Any = None, verdicts: tuple[str, ...] = ("ok", "reject"), plant: str = "mill") -> Telemetry:
    telemetry = Telemetry(clock=clock or Clock())
    for verdict in verdicts:
        telemetry.answered(
            plant,
            "cam-1",
            verdict=verdict,
            defect="dent" if verdict == "reject" else None,
            confidence=0.95,
            latency_ms=8,
        )
    return telemetry


def count(telemetry: Telemetry, *, plant: str = "p", environment: str = "e", **kwargs: Any) -> None:
    words: dict[str, Any] = {"verdict": "ok", "defect": None, "confidence": 0.5, "latency_ms": 10.0}
    telemetry.answered(plant, environment, **(words | kwargs))


def samples(text: bytes) -> dict[tuple[Any, ...], float]:
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def text_of(telemetry: Telemetry, **kwargs: Any) -> bytes:
    return telemetry.read(lambda counts, now: prometheus_text(counts, now=now, **kwargs))


def test_requests_are_counted_by_environment():
    telemetry = counted()
    telemetry.answered("mill", "cam-2", verdict="review", defect=None, confidence=0.05, latency_ms=100, frames=3)
    report = telemetry.report("mill")
    assert report["requests"] == 3
    assert report["environments"]["cam-1"]["verdicts"] == {"ok": 1, "reject": 1}
    assert report["environments"]["cam-1"]["defects"] == {"dent": 1}
    assert report["environments"]["cam-2"]["frames"] == 3
    assert report["environments"]["cam-2"]["confidence_histogram"] == [1, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    assert report["environments"]["cam-1"]["confidence_histogram"][9] == 2


def test_shares_rates_arms_and_late_answers_are_those_of_the_verdicts_given():
    telemetry = Telemetry(clock=Clock())
    for verdict, defect, arm in (
        ("ok", None, "champion"),
        ("review", "dent", "champion"),
        ("review", None, "challenger"),
        ("reject", "hole", "champion"),
    ):
        count(telemetry, verdict=verdict, defect=defect, arm=arm, confidence=0.6)
    count(telemetry, verdict="reject", confidence=0.0, is_late=True)
    one = telemetry.report("p")["environments"]["e"]
    assert one["verdict_shares"] == {"ok": 0.2, "reject": 0.4, "review": 0.4}
    assert one["review_rate"] == 0.4
    assert one["arms"] == {"champion": {"ok": 1, "reject": 2, "review": 1}, "challenger": {"review": 1}}
    assert one["class_mix"] == {"dent": 0.5, "hole": 0.5}
    assert one["late"] == 1
    assert one["confidence"]["mean"] == pytest.approx(0.48)


def test_a_plant_nobody_asked_has_no_environments_and_no_invented_zeros():
    assert counted().report("quiet") == {"plant": "quiet", "requests": 0, "errors": 0, "environments": {}}


def test_an_environment_with_errors_alone_has_no_latency_and_no_review_rate():
    telemetry = Telemetry()
    telemetry.refused("mill", "cam-1", status=422)
    report = telemetry.report("mill")
    one = report["environments"]["cam-1"]
    assert (report["requests"], report["errors"], one["errors"]) == (0, 1, {"422": 1})
    assert one["latency_ms"] == {"p50": None, "p99": None, "mean": None}
    assert one["review_rate"] is None
    assert one["novelty"]["p95"] is None


@pytest.mark.parametrize("seed", range(5))
def test_a_quantile_of_latency_is_within_ten_percent_and_of_novelty_within_a_quarter(seed: int):
    draw = np.random.default_rng(seed)
    telemetry, latencies = Telemetry(clock=Clock()), draw.lognormal(mean=3, sigma=1, size=500)
    distances = draw.lognormal(mean=-0.5, sigma=0.7, size=500)
    for latency, distance in zip(latencies, distances, strict=True):
        count(telemetry, latency_ms=float(latency), novelty=float(distance))
    one = telemetry.report("p")["environments"]["e"]
    for found, values, q, factor in (
        (one["latency_ms"]["p50"], latencies, 0.5, 1.1),
        (one["latency_ms"]["p99"], latencies, 0.99, 1.1),
        (one["novelty"]["p95"], distances, 0.95, 1.25),
    ):
        exact = float(np.quantile(values, q, method="inverted_cdf"))
        assert exact * 0.999 <= found <= exact * factor * 1.001


@pytest.mark.parametrize("seed", range(6))
def test_a_window_holds_what_was_counted_since_its_first_slot_began(seed: int):
    draw = np.random.default_rng(seed)
    at, events = 1_000_000.0, []
    series = Series()
    for _ in range(3000):
        at += float(draw.choice([0.2, 3, 40, 700, 9000], p=[0.5, 0.3, 0.15, 0.04, 0.01]))
        series.add({("n",): 1}, at=at)
        events.append(at)
    now = at + float(draw.uniform(0, 50))
    for name, (window_s, step_s) in WINDOWS.items():
        edge = int((now - window_s) // step_s) * step_s
        assert series.window(name, now=now).get(("n",), 0) == sum(one >= edge for one in events)
        assert edge > now - window_s - step_s
    assert series.totals == {("n",): 3000}


def test_windows_forget_while_the_sum_since_the_start_stays():
    clock = Clock()
    telemetry = Telemetry(clock=clock)
    count(telemetry, latency_ms=1000)
    telemetry.fold()
    clock.now += 400
    count(telemetry, latency_ms=10)
    one = telemetry.report("p")["environments"]["e"]
    assert one["requests"] == 2
    assert {name: window["requests"] for name, window in one["windows"].items()} == {
        "1m": 1,
        "5m": 1,
        "1h": 2,
        "24h": 2,
    }
    assert one["windows"]["5m"]["latency_ms"]["p99"] == pytest.approx(10, rel=0.1)
    assert one["windows"]["1h"]["latency_ms"]["p99"] == pytest.approx(1000, rel=0.1)


def test_two_busy_days_of_one_series_take_under_30_kb():
    import sys

    series, draw = Series(), np.random.default_rng(0)
    cells = [("latency", n) for n in range(25)] + [("confidence", n) for n in range(10)]
    for second in range(0, 2 * 86_400, 5):
        series.add({cells[int(draw.integers(35))]: 1}, at=float(second))
    size = sum(sys.getsizeof(values) for _, values in series._marks) + sys.getsizeof(series.totals)
    assert len(series._marks) <= 50
    assert size < 30_000


def test_environments_beyond_the_limit_and_names_beyond_theirs_are_counted_together():
    telemetry = Telemetry(clock=Clock(), max_series=3)
    for number in range(10):
        count(telemetry, plant=f"p{number}")
    assert telemetry.report("p2")["requests"] == 1
    assert telemetry.report("p3")["requests"] == 0
    assert telemetry.report(OTHER)["requests"] == 7
    for number in range(MAX_NAMES + 36):
        count(telemetry, plant="p0", defect=f"d{number}")
    defects = telemetry.report("p0")["environments"]["e"]["defects"]
    assert len(defects) == MAX_NAMES + 1
    assert defects[OTHER] == 36


def test_prometheus_reads_the_text_and_finds_the_same_numbers():
    telemetry = counted()
    telemetry.refused('mi"ll', "", status=413)
    conditions = {
        "r1": Condition(3, ("the store is away",), ("mill",), spool_segments=2, spool_bytes=900, dropped_rows=4),
        "r2": Condition(),
    }
    found = samples(text_of(telemetry, conditions=conditions, takt_s={"mill": 1.5}))
    where = (("environment", "cam-1"), ("plant", "mill"))
    assert found[("crossplant_verdicts_total", ("arm", "champion"), *where, ("verdict", "reject"))] == 1
    assert found[("crossplant_defects_total", ("defect", "dent"), *where)] == 1
    assert found[("crossplant_errors_total", ("environment", ""), ("plant", 'mi"ll'), ("status", "413"))] == 1
    assert found[("crossplant_latency_window_seconds", *where, ("quantile", "0.99"))] == pytest.approx(0.008, rel=0.1)
    assert found[("crossplant_confidence_total", *where)] == pytest.approx(1.9)
    assert found[("crossplant_waiting", ("replica", "r1"))] == 3
    assert found[("crossplant_replica_degraded", ("replica", "r1"))] == 1
    assert found[("crossplant_replica_degraded", ("replica", "r2"))] == 0
    assert found[("crossplant_route_problem", ("plant", "mill"))] == 1
    assert found[("crossplant_log_spool_bytes", ("replica", "r1"))] == 900
    assert found[("crossplant_log_dropped_rows_total", ("replica", "r1"))] == 4
    assert found[("crossplant_takt_seconds", ("plant", "mill"))] == 1.5


def test_a_plant_that_was_quiet_for_five_minutes_keeps_its_counters_and_has_no_quantiles():
    clock = Clock()
    telemetry = counted(clock=clock)
    telemetry.fold()
    clock.now += 400
    names = {key[0] for key in samples(text_of(telemetry))}
    assert "crossplant_verdicts_total" in names
    assert "crossplant_latency_window_seconds" not in names


def test_nothing_is_lost_when_threads_count_while_others_fold():
    telemetry = Telemetry()

    def work() -> None:
        for number in range(2000):
            count(telemetry)
            if number % 100 == 0:
                telemetry.fold()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert telemetry.report("p")["requests"] == 8000


def test_a_thread_folds_without_being_asked_and_ends_at_close():
    telemetry = Telemetry()
    telemetry.start()
    count(telemetry)
    begun = time.monotonic()
    while telemetry._queue and time.monotonic() - begun < 5:
        time.sleep(0.02)
    assert not telemetry._queue
    telemetry.close()
    assert not any(thread.name == "telemetry" and thread.is_alive() for thread in threading.enumerate())


def test_what_is_not_a_number_does_not_stop_the_counting():
    telemetry = Telemetry(clock=Clock())
    for novelty in (float("nan"), float("inf"), 0.0, 0.5):
        count(telemetry, novelty=novelty)
    count(telemetry, confidence=float("nan"))
    one = telemetry.report("p")["environments"]["e"]
    assert one["requests"] == 5
    assert one["novelty"]["n"] == 3


def test_a_queue_that_nobody_folds_does_not_grow_without_end():
    telemetry = Telemetry()
    for _ in range(45_000):
        count(telemetry)
    assert len(telemetry._queue) <= 20_001
    assert telemetry.report("p")["requests"] == 45_000


def test_what_was_not_posted_is_posted_again_and_what_did_not_change_is_not():
    telemetry = Telemetry(clock=Clock())
    count(telemetry, plant="a")
    count(telemetry, plant="b")
    first = telemetry.changed()
    assert set(first) == {("a", "e"), ("b", "e")}
    assert telemetry.changed() == {}
    telemetry.unposted(first)
    assert telemetry.changed() == first
    count(telemetry, plant="b")
    assert set(telemetry.changed()) == {("b", "e")}
    telemetry.all_changed()
    assert set(telemetry.changed()) == {("a", "e"), ("b", "e")}


def test_history_is_in_the_sum_and_in_no_window():
    counts = Counts()
    _, series = counts.series(("p", "e"))
    series.add({("n",): 2}, at=1_000_000)
    series.add_history({("n",): 5, ("m",): 1})
    series.add({("n",): 1}, at=1_000_200)
    assert series.totals == {("n",): 8, ("m",): 1}
    assert series.window("5m", now=1_000_210) == {("n",): 3}
    assert series.window("1m", now=1_000_210) == {("n",): 1}


def test_an_environment_that_the_plant_does_not_declare_and_a_plant_that_is_not_ours_make_no_series(http, live):
    for number in range(3):
        url = f"/plants/mill/predict?environment=moon-{number}"
        assert http.post(url, headers=live.token(), content=png(GREEN)).status_code == 422
        assert http.post(f"/plants/sea-{number}/predict", headers=live.token(), content=png(GREEN)).status_code == 403
    assert set(http.get("/plants/mill/metrics", headers=live.token()).json()["environments"]) == {""}
    found = samples(http.get("/metrics", headers=live.token("auditor", plant=None)).content)
    errors = {key: count for key, count in found.items() if key[0] == "crossplant_errors_total"}
    assert errors == {
        ("crossplant_errors_total", ("environment", ""), ("plant", "mill"), ("status", "422")): 3,
        ("crossplant_errors_total", ("environment", ""), ("plant", ""), ("status", "403")): 3,
    }
