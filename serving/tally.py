"""What counted cells mean: verdicts, shares, quantiles. Pure; `serving.telemetry` counts, this reads.

Confidence is counted in twenty bins, latency and novelty in buckets that grow by a factor, so a quantile is a bucket's
upper end: at most a tenth (latency) or a quarter (novelty) above the exact one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serving.counts import Cell

NUM_CONFIDENCE_BINS = 20
LATENCY_RATIO = math.log(1.1)
NOVELTY_RATIO = math.log(1.25)
LATENCY_UNIT_MS = 0.1
CONFIDENCE_UNIT = 1e-4


def latency_bucket(latency_ms: float) -> int:
    """The bucket of a latency, at most that of ten minutes."""
    return math.ceil(math.log(min(max(latency_ms, 0.01), 600_000.0)) / LATENCY_RATIO)


def novelty_bucket(novelty: float) -> int:
    """The bucket of a distance to good parts, from 0.01 to 100."""
    return math.ceil(math.log(min(max(novelty, 0.01), 100.0)) / NOVELTY_RATIO)


def confidence_bin(confidence: float) -> int:
    """The bin of a confidence between 0 and 1."""
    return min(NUM_CONFIDENCE_BINS - 1, max(0, int(confidence * NUM_CONFIDENCE_BINS)))


@dataclass(frozen=True, slots=True)
class Tally:
    """Counted cells, read. What was not counted is None, never 0."""

    cells: Mapping[Cell, int]

    def by_name(self, kind: str) -> dict[str, int]:
        """Name -> count of a kind: defect, error; for verdicts of all arms together."""
        found: dict[str, int] = {}
        for name, count in sorted((str(cell[-1]), count) for cell, count in self.cells.items() if cell[0] == kind):
            found[name] = found.get(name, 0) + count
        return found

    @property
    def by_arm(self) -> dict[str, dict[str, int]]:
        """Arm of the route -> verdict -> count."""
        found: dict[str, dict[str, int]] = {}
        for _, arm, verdict in sorted(cell for cell in self.cells if cell[0] == "verdict"):
            found.setdefault(str(arm), {})[str(verdict)] = self.cells["verdict", arm, verdict]
        return found

    @property
    def requests(self) -> int:
        """Verdicts given."""
        return sum(count for cell, count in self.cells.items() if cell[0] == "verdict")

    @property
    def errors(self) -> int:
        """Requests without a verdict."""
        return sum(count for cell, count in self.cells.items() if cell[0] == "error")

    @property
    def frames(self) -> int:
        """Frames of the parts judged."""
        return self.cells.get(("frames",), 0)

    @property
    def late(self) -> int:
        """Parts that got the plant's `on_timeout` at their deadline."""
        return self.cells.get(("late",), 0)

    @property
    def latency_sum_s(self) -> float:
        """Seconds spent on verdicts."""
        return self.cells.get(("latency_sum",), 0) * LATENCY_UNIT_MS / 1000

    @property
    def confidence_sum(self) -> float:
        """The confidences of all verdicts added up."""
        return self.cells.get(("confidence_sum",), 0) * CONFIDENCE_UNIT

    def share(self, kind: str) -> dict[str, float]:
        """Name -> share of the kind's counts."""
        counts = self.by_name(kind)
        total = sum(counts.values())
        return {name: round(count / total, 6) for name, count in counts.items()}

    @property
    def review_rate(self) -> float | None:
        """Share of the verdicts that ask a person."""
        return self.share("verdict").get("review", 0.0) if self.requests else None

    def latency_ms(self, q: float) -> float | None:
        """The latency that a share q of the verdicts did not exceed, within 10 %."""
        place = _place(self._buckets("latency"), q)
        return None if place is None else round(math.exp(place * LATENCY_RATIO), 3)

    def novelty(self, q: float) -> float | None:
        """The distance to good parts that a share q of the parts did not exceed, within 25 %."""
        place = _place(self._buckets("novelty"), q)
        return None if place is None else round(math.exp(place * NOVELTY_RATIO), 3)

    def confidence(self, q: float) -> float | None:
        """The upper end of the bin that holds this quantile of the confidences."""
        place = _place(self._buckets("confidence"), q)
        return None if place is None else round((place + 1) / NUM_CONFIDENCE_BINS, 3)

    @property
    def confidence_histogram(self) -> list[int]:
        """Verdicts by tenth of confidence."""
        bins = self._buckets("confidence")
        return [bins.get(2 * tenth, 0) + bins.get(2 * tenth + 1, 0) for tenth in range(NUM_CONFIDENCE_BINS // 2)]

    @property
    def novelty_histogram(self) -> list[list[float]]:
        """[upper end of the distance, parts] of every bucket that has some."""
        return [[round(math.exp(b * NOVELTY_RATIO), 3), n] for b, n in sorted(self._buckets("novelty").items())]

    def _buckets(self, kind: str) -> dict[int, int]:
        return {int(cell[1]): count for cell, count in self.cells.items() if cell[0] == kind}

    def document(self) -> dict[str, Any]:
        """All of it, as `GET /plants/{plant}/metrics` says it."""
        n = self.requests
        return {
            "requests": n,
            "frames": self.frames,
            "late": self.late,
            "verdicts": self.by_name("verdict"),
            "verdict_shares": self.share("verdict"),
            "review_rate": self.review_rate,
            "arms": self.by_arm,
            "defects": self.by_name("defect"),
            "class_mix": self.share("defect"),
            "errors": self.by_name("error"),
            "confidence": {
                "mean": round(self.confidence_sum / n, 4) if n else None,
                **{f"p{q}": self.confidence(q / 100) for q in (10, 50, 90)},
            },
            "confidence_histogram": self.confidence_histogram,
            "novelty": {
                "n": sum(self._buckets("novelty").values()),
                **{f"p{q}": self.novelty(q / 100) for q in (50, 95, 99)},
            },
            "novelty_histogram": self.novelty_histogram,
            "latency_ms": {
                "p50": self.latency_ms(0.5),
                "p99": self.latency_ms(0.99),
                "mean": round(self.latency_sum_s * 1000 / n, 3) if n else None,
            },
        }


def _place(buckets: Mapping[int, int], q: float) -> int | None:
    """The bucket that holds this quantile, None of nothing."""
    total = sum(buckets.values())
    seen = 0
    for bucket in sorted(buckets):
        seen += buckets[bucket]
        if seen >= q * total:
            return bucket
    return None
