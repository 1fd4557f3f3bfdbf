"""The counters as Prometheus reads them, beside how each replica is. Written by prometheus_client.

Where several replicas share a board it is the board's process that writes the text, so a scrape of a thousand plants
costs the replicas nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from serving.counts import MAX_SERIES, Counts
from serving.tally import Tally

WINDOW = "5m"
VERDICTS = ("ok", "reject", "review")
_SERIES = ["plant", "environment"]


@dataclass(frozen=True, slots=True)
class Condition:
    """How a replica is, beside what it counted."""

    num_waiting: int = 0
    problems: tuple[str, ...] = ()
    """Why it is degraded; empty where it is well."""
    route_problems: tuple[str, ...] = ()
    """Plants whose newest route could not be loaded."""
    spool_segments: int = 0
    spool_bytes: int = 0
    dropped_rows: int = 0


def prometheus_text(
    counts: Counts,
    *,
    now: float,
    conditions: Mapping[str, Condition] | None = None,
    takt_s: Mapping[str, float] | None = None,
) -> bytes:
    """The body of `GET /metrics`."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(counts, now=now, conditions=conditions or {}, takt_s=takt_s or {}))
    return generate_latest(registry)


class _Families(Collector):
    """Prometheus' view of the counters and of every replica."""

    def __init__(
        self, counts: Counts, *, now: float, conditions: Mapping[str, Condition], takt_s: Mapping[str, float]
    ) -> None:
        self._counts, self._now = counts, now
        self._conditions, self._takt_s = conditions, takt_s

    def collect(self) -> Iterator[Metric]:
        """Every family once."""
        yield from self._counted()
        yield from self._windows()
        yield from _replicas(self._conditions)
        yield _gauge("crossplant_takt_seconds", "Seconds the line has for a part", self._takt_s)
        limit = {"in_use": float(len(self._counts)), "limit": float(MAX_SERIES)}
        yield _gauge("crossplant_series", "Plants x environments that are counted", limit, label="state")

    def _counted(self) -> Iterator[Metric]:
        verdicts = CounterMetricFamily("crossplant_verdicts", "Parts judged", labels=[*_SERIES, "arm", "verdict"])
        defects = CounterMetricFamily("crossplant_defects", "Defects named", labels=[*_SERIES, "defect"])
        errors = CounterMetricFamily("crossplant_errors", "Requests without a verdict", labels=[*_SERIES, "status"])
        frames = CounterMetricFamily("crossplant_frames", "Frames judged", labels=_SERIES)
        late = CounterMetricFamily("crossplant_late", "Parts without a verdict at their deadline", labels=_SERIES)
        spent = CounterMetricFamily("crossplant_latency_seconds", "Time spent on verdicts", labels=_SERIES)
        sure = CounterMetricFamily("crossplant_confidence", "Sum of the confidences of verdicts", labels=_SERIES)
        for where, series in self._counts.items():
            tally = Tally(series.totals)
            for arm, counts in tally.by_arm.items():
                for verdict in VERDICTS:  # also those not given yet: a rate is blind to a counter's first step
                    verdicts.add_metric([*where, arm, verdict], counts.get(verdict, 0))
            for family, kind in ((defects, "defect"), (errors, "error")):
                for name, count in tally.by_name(kind).items():
                    family.add_metric([*where, name], count)
            if tally.requests:
                late.add_metric(where, tally.late)
                frames.add_metric(where, tally.frames)
                spent.add_metric(where, round(tally.latency_sum_s, 4))
                sure.add_metric(where, round(tally.confidence_sum, 4))
        yield from (verdicts, defects, errors, frames, late, spent, sure)

    def _windows(self) -> Iterator[Metric]:
        labels = [*_SERIES, "quantile"]
        latency = GaugeMetricFamily("crossplant_latency_window_seconds", "Of the last five minutes", labels=labels)
        confidence = GaugeMetricFamily("crossplant_confidence_window", "Of the last five minutes", labels=labels)
        novelty = GaugeMetricFamily("crossplant_novelty_window", "Of the last five minutes", labels=labels)
        for where, series in self._counts.items():
            tally = Tally(series.window(WINDOW, now=self._now))
            _quantiles(latency, where, lambda q: _per_thousand(tally.latency_ms(q)), (0.5, 0.99))  # noqa: B023
            _quantiles(confidence, where, tally.confidence, (0.1, 0.5))
            _quantiles(novelty, where, tally.novelty, (0.5, 0.95))
        yield from (latency, confidence, novelty)


def _quantiles(
    family: GaugeMetricFamily, where: tuple[str, str], value: Callable[[float], float | None], shares: tuple[float, ...]
) -> None:
    for q in shares:
        if (found := value(q)) is not None:
            family.add_metric([*where, f"{q:g}"], found)


def _per_thousand(value: float | None) -> float | None:
    return None if value is None else value / 1000


def _replicas(conditions: Mapping[str, Condition]) -> Iterator[Metric]:
    stuck = {plant: 1.0 for condition in conditions.values() for plant in condition.route_problems}
    yield _gauge(
        "crossplant_route_problem", "1 where the newest route could not be loaded", dict(sorted(stuck.items()))
    )
    gauges: tuple[tuple[str, str, Callable[[Condition], float]], ...] = (
        ("crossplant_waiting", "Requests that wait in the replica", lambda one: one.num_waiting),
        ("crossplant_replica_degraded", "1 where something the replica needs is away", lambda one: bool(one.problems)),
        ("crossplant_log_spool_segments", "Log segments that wait for the store", lambda one: one.spool_segments),
        ("crossplant_log_spool_bytes", "Bytes of them", lambda one: one.spool_bytes),
    )
    for name, text, value in gauges:
        yield _gauge(name, text, {who: float(value(one)) for who, one in conditions.items()}, label="replica")
    dropped = CounterMetricFamily(
        "crossplant_log_dropped_rows", "Verdicts not logged: the spool was full", labels=["replica"]
    )
    for who, one in conditions.items():
        dropped.add_metric([who], one.dropped_rows)
    yield dropped


def _gauge(name: str, text: str, values: Mapping[str, float], *, label: str = "plant") -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
