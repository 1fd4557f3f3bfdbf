from __future__ import annotations

import threading

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.telemetry import Telemetry, merge, plant_report, prometheus_text, quantile_ms


def counted(*, clock: float = 1000.0, verdicts: tuple[str, ...] = ("ok", "reject"), plant: str = "mill") -> Telemetry:
    telemetry = Telemetry(clock=lambda: clock)
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


def test_requests_are_counted_by_environment():
    telemetry = counted()
    telemetry.answered("mill", "cam-2", verdict="review", defect=None, confidence=0.05, latency_ms=100, frames=3)
    report = plant_report("mill", telemetry.snapshot())
    assert report["requests"] == 3
    assert report["environments"]["cam-1"]["verdicts"] == {"ok": 1, "reject": 1}
    assert report["environments"]["cam-1"]["defects"] == {"dent": 1}
    assert report["environments"]["cam-2"]["frames"] == 3
    assert report["environments"]["cam-2"]["confidence_histogram"] == [1, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    assert report["environments"]["cam-1"]["confidence_histogram"][9] == 2


def test_a_plant_nobody_asked_has_no_environments_and_no_invented_zeros():
    report = plant_report("quiet", counted().snapshot())
    assert report == {"plant": "quiet", "requests": 0, "errors": 0, "environments": {}}


def test_an_environment_with_errors_alone_has_no_latency():
    telemetry = Telemetry()
    telemetry.refused("mill", "cam-1", status=422)
    one = plant_report("mill", telemetry.snapshot())["environments"]["cam-1"]
    assert one["errors"] == {"422": 1}
    assert one["latency_ms"]["p50"] is None
    assert one["latency_ms"]["mean"] is None


@pytest.mark.parametrize("seed", range(5))
def test_a_quantile_is_within_ten_percent_of_the_exact_one(seed: int):
    import numpy as np

    values = np.random.default_rng(seed).lognormal(mean=3, sigma=1, size=500)
    telemetry = Telemetry(clock=lambda: 0.0)
    for value in values:
        telemetry.answered("p", "e", verdict="ok", defect=None, confidence=0.5, latency_ms=float(value))
    latency = telemetry.snapshot()["p"]["e"]["latency"]
    for q in (0.5, 0.99):
        exact = float(np.quantile(values, q, method="inverted_cdf"))
        found = quantile_ms(latency, q)
        assert found is not None
        assert exact * 0.999 <= found <= exact * 1.101


def test_latencies_leave_the_window_after_five_minutes_while_counts_stay():
    now = [0.0]
    telemetry = Telemetry(clock=lambda: now[0])
    telemetry.answered("p", "e", verdict="ok", defect=None, confidence=0.5, latency_ms=1000)
    now[0] = 360
    assert quantile_ms(telemetry.snapshot()["p"]["e"]["latency"], 0.5) is None
    telemetry.answered("p", "e", verdict="ok", defect=None, confidence=0.5, latency_ms=10)
    one = plant_report("p", telemetry.snapshot())["environments"]["e"]
    assert one["latency_ms"]["p99"] == pytest.approx(10, rel=0.1)
    assert one["requests"] == 2


def test_the_counts_of_replicas_add_up_in_any_order():
    a, b = counted().snapshot(), counted(verdicts=("ok", "ok", "review"), plant="foundry").snapshot()
    c = counted(verdicts=("reject",)).snapshot()
    assert merge([a, b, c]) == merge([c, b, a])
    assert merge([a, b, c])["mill"]["cam-1"]["requests"] == 3
    assert merge([a, b, c])["foundry"]["cam-1"]["verdicts"] == {"ok": 2, "review": 1}
    assert a["mill"]["cam-1"]["requests"] == 2


def test_prometheus_reads_the_text_and_finds_the_same_numbers():
    telemetry = counted()
    telemetry.refused('mi"ll', "", status=413)
    text = prometheus_text(telemetry.snapshot(), num_waiting=3, problems={"mill": "bad bundle"}).decode()
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    where = (("environment", "cam-1"), ("plant", "mill"))
    assert samples[("crossplant_verdicts_total", *where, ("verdict", "reject"))] == 1
    assert samples[("crossplant_defects_total", ("defect", "dent"), *where)] == 1
    assert samples[("crossplant_errors_total", ("environment", ""), ("plant", 'mi"ll'), ("status", "413"))] == 1
    assert samples[("crossplant_waiting",)] == 3
    assert samples[("crossplant_route_problem", ("plant", "mill"))] == 1
    assert samples[("crossplant_latency_window_seconds", *where, ("quantile", "0.99"))] == pytest.approx(0.008, rel=0.1)


def test_nothing_is_lost_when_threads_count_at_once():
    telemetry = Telemetry()

    def work() -> None:
        for _ in range(500):
            telemetry.answered("p", "e", verdict="ok", defect=None, confidence=1.0, latency_ms=1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert telemetry.snapshot()["p"]["e"]["requests"] == 2000
