"""Counters per plant and environment: requests, verdicts, defects, confidence, latency, errors.

Each replica counts in its own memory: an increment is a few dictionary operations under one lock, no I/O. What leaves
the process is a `Snapshot`, a plain cumulative document. Snapshots of several replicas are added up by `merge`, so the
answer of any one replica speaks for all of them: every replica posts its snapshot to a shared board about twice a
second (`serving.app.Board`, a Ray actor) and gets everybody's. Numbers of the other replicas are therefore up to a
second old, and those of a replica that died stay counted. Prometheus must scrape the address, not each replica.

Cardinality is the cost of metrics, so an unknown plant's requests are counted together and under no name, histograms
stay in the JSON, and the Prometheus text holds counters and two quantiles.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

NUM_CONFIDENCE_BINS = 10
WINDOW_S = 300
_SLOT_S = 60
_RATIO = math.log(1.1)

Snapshot = dict[str, dict[str, dict[str, Any]]]
"""plant -> environment -> {requests, verdicts, defects, errors, confidence, latency, latency_sum_ms, frames}."""


@dataclass(slots=True)
class _Counters:
    requests: int = 0
    frames: int = 0
    verdicts: dict[str, int] = field(default_factory=dict)
    defects: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    confidence: list[int] = field(default_factory=lambda: [0] * NUM_CONFIDENCE_BINS)
    latency: dict[int, dict[int, int]] = field(default_factory=dict)
    latency_sum_ms: float = 0.0


class Telemetry:
    """The counters of one replica. Thread-safe."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._all: dict[tuple[str, str], _Counters] = {}

    def answered(
        self,
        plant: str,
        environment: str,
        *,
        verdict: str,
        defect: str | None,
        confidence: float,
        latency_ms: float,
        frames: int = 1,
    ) -> None:
        """One verdict is counted."""
        slot = int(self._clock() // _SLOT_S)
        bucket = math.ceil(math.log(max(latency_ms, 0.01)) / _RATIO)
        place = min(NUM_CONFIDENCE_BINS - 1, max(0, int(confidence * NUM_CONFIDENCE_BINS)))
        with self._lock:
            found = self._counters(plant, environment)
            found.requests += 1
            found.frames += frames
            _add(found.verdicts, verdict)
            if defect is not None:
                _add(found.defects, defect)
            found.confidence[place] += 1
            found.latency_sum_ms += latency_ms
            if slot not in found.latency:
                oldest = slot - WINDOW_S // _SLOT_S
                found.latency = {s: counts for s, counts in found.latency.items() if s > oldest}
                found.latency[slot] = {}
            _add(found.latency[slot], bucket)

    def refused(self, plant: str, environment: str, *, status: int) -> None:
        """One request without a verdict is counted. Pass "" for a plant that is not ours."""
        with self._lock:
            _add(self._counters(plant, environment).errors, str(status))

    def snapshot(self) -> Snapshot:
        """A copy of everything counted so far; latencies of the last five minutes only."""
        oldest = int(self._clock() // _SLOT_S) - WINDOW_S // _SLOT_S
        found: Snapshot = {}
        with self._lock:
            for (plant, environment), counters in self._all.items():
                latency: dict[int, int] = {}
                for slot, counts in counters.latency.items():
                    if slot > oldest:
                        _add_all(latency, counts)
                found.setdefault(plant, {})[environment] = {
                    "requests": counters.requests,
                    "frames": counters.frames,
                    "verdicts": dict(counters.verdicts),
                    "defects": dict(counters.defects),
                    "errors": dict(counters.errors),
                    "confidence": list(counters.confidence),
                    "latency": latency,
                    "latency_sum_ms": counters.latency_sum_ms,
                }
        return found

    def _counters(self, plant: str, environment: str) -> _Counters:
        key = (plant, environment)
        if key not in self._all:
            self._all[key] = _Counters()
        return self._all[key]


def merge(snapshots: Sequence[Snapshot]) -> Snapshot:
    """The sum of the replicas' snapshots."""
    total: Snapshot = {}
    for snapshot in snapshots:
        for plant, environments in snapshot.items():
            for environment, one in environments.items():
                into = total.setdefault(plant, {}).setdefault(
                    environment, {"confidence": [0] * NUM_CONFIDENCE_BINS} | {k: {} for k in _TABLES}
                )
                for name in _TABLES:
                    _add_all(into[name], one[name])
                for name in ("requests", "frames", "latency_sum_ms"):
                    into[name] = into.get(name, 0) + one[name]
                into["confidence"] = [a + b for a, b in zip(into["confidence"], one["confidence"], strict=True)]
    return total


_TABLES = ("verdicts", "defects", "errors", "latency")


def quantile_ms(latency: Mapping[int, int], q: float) -> float | None:
    """The latency that a share q of the window's requests did not exceed, within 10 %; None without requests."""
    total = sum(latency.values())
    if not total:
        return None
    seen = 0
    for bucket in sorted(latency):
        seen += latency[bucket]
        if seen >= q * total:
            return round(math.exp(bucket * _RATIO), 3)
    raise AssertionError("a share of more than everything")


def plant_report(plant: str, snapshot: Snapshot) -> dict[str, Any]:
    """The JSON of `GET /plants/{plant}/metrics`: one entry per environment that was asked or refused."""
    environments = {
        name: {
            "requests": one["requests"],
            "frames": one["frames"],
            "verdicts": one["verdicts"],
            "defects": one["defects"],
            "errors": one["errors"],
            "confidence_histogram": one["confidence"],
            "latency_ms": {
                "p50": quantile_ms(one["latency"], 0.5),
                "p99": quantile_ms(one["latency"], 0.99),
                "mean": one["latency_sum_ms"] / one["requests"] if one["requests"] else None,
                "window_s": WINDOW_S,
            },
        }
        for name, one in sorted(snapshot.get(plant, {}).items())
    }
    return {
        "plant": plant,
        "requests": sum(one["requests"] for one in environments.values()),
        "errors": sum(sum(one["errors"].values()) for one in environments.values()),
        "environments": environments,
    }


class _Families(Collector):
    """Prometheus' view of one merged snapshot."""

    def __init__(self, snapshot: Snapshot, *, num_waiting: int, problems: Mapping[str, str]) -> None:
        self._snapshot = snapshot
        self._num_waiting = num_waiting
        self._problems = problems

    def collect(self) -> Iterator[Metric]:
        """Every family once."""
        labels = ["plant", "environment"]
        verdicts = CounterMetricFamily("crossplant_verdicts", "Parts judged", labels=[*labels, "verdict"])
        defects = CounterMetricFamily("crossplant_defects", "Defects named", labels=[*labels, "defect"])
        frames = CounterMetricFamily("crossplant_frames", "Frames judged", labels=labels)
        errors = CounterMetricFamily("crossplant_errors", "Requests without a verdict", labels=[*labels, "status"])
        spent = CounterMetricFamily("crossplant_latency_seconds", "Time spent on verdicts", labels=labels)
        window = GaugeMetricFamily(
            "crossplant_latency_window_seconds", "Quantiles of the last five minutes", labels=[*labels, "quantile"]
        )
        for plant, environments in sorted(self._snapshot.items()):
            for environment, one in sorted(environments.items()):
                where = [plant, environment]
                for family, name in ((verdicts, "verdicts"), (defects, "defects"), (errors, "errors")):
                    for key, count in sorted(one[name].items()):
                        family.add_metric([*where, key], count)
                frames.add_metric(where, one["frames"])
                spent.add_metric(where, one["latency_sum_ms"] / 1000)
                for q in (0.5, 0.99):
                    if (value := quantile_ms(one["latency"], q)) is not None:
                        window.add_metric([*where, str(q)], value / 1000)
        yield from (verdicts, defects, frames, errors, spent, window)
        yield GaugeMetricFamily(
            "crossplant_waiting", "Requests that wait in the replica that answered", value=self._num_waiting
        )
        stuck = GaugeMetricFamily(
            "crossplant_route_problem", "1 where the newest route could not be loaded", labels=["plant"]
        )
        for plant in sorted(self._problems):
            stuck.add_metric([plant], 1)
        yield stuck


def prometheus_text(snapshot: Snapshot, *, num_waiting: int = 0, problems: Mapping[str, str] | None = None) -> bytes:
    """The body of `GET /metrics`, written by prometheus_client from a registry of its own."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(snapshot, num_waiting=num_waiting, problems=problems or {}))
    return generate_latest(registry)


def _add(into: dict[Any, int], key: Any) -> None:
    into[key] = into.get(key, 0) + 1


def _add_all(into: dict[Any, int], counts: Mapping[Any, int]) -> None:
    for key, count in counts.items():
        into[key] = into.get(key, 0) + count
