"""Whether the stated 95 % intervals hold the truth in 95 % of plants, and how often two equal models are told apart.

Plants are simulated: an ok class, three defect classes of which one is rare, lots of 3 to 12 parts that resemble one
another in what is wrong with them and in how well the model sees it. The truth is the same figure on a very large
sample of the same plant. What is measured is `plants.metrics.report` and `plants.differences.paired` themselves,
nothing rebuilt. Prints one JSON object last; `--quick` is a smoke run.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_intervals.py
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from plants.costs import Policy
from plants.differences import paired
from plants.metrics import report
from plants.scores import PartScores, softmax

CLASSES = ("ok", "dent", "crack", "chip")
LOG_PRIOR = np.log([0.70, 0.18, 0.09, 0.03])
LOT_SIZES = (3, 12)
SKILLS = {"fair": 2.4, "good": 3.2, "strong": 4.0}
"""How far apart a model sees the classes, in standard deviations of its noise: macro-F1 about 0.75 and 0.97."""
CORRELATIONS = (0.0, 0.1, 0.3)
NUM_LOTS = (3, 5, 10, 30, 100)
LESS = 0.4
"""By how much less the lesser model of an unequal pair sees them apart."""
PAIRED = ("cost", "macro_f1")
POLICY = Policy(plant="simulated", classes=CLASSES, ok=("ok",), pass_below=0.1, reject_above=0.6)
TRUTH_LOTS = 60_000
QUICK = 45

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Sample:
    """Parts of many lots, and what three models say of them: two of equal skill and one of less."""

    lot: Indices
    truth: Indices
    probs: tuple[Floats, ...]

    def scores(self, *, model: int, rows: slice) -> PartScores:
        """What one of the models says of these rows."""
        lot = self.lot[rows]
        return PartScores(
            part_ids=np.arange(len(lot)),
            lots=lot,
            environments=np.full(len(lot), "line", dtype=object),
            truth=np.array(CLASSES, dtype=object)[self.truth[rows]],
            probs=self.probs[model][rows],
            classes=CLASSES,
            ok=("ok",),
        )


def sample(num_lots: int, *, skill: float, correlation: float, rng: np.random.Generator) -> Sample:
    """This many lots. `correlation` is within a lot, of the log odds of the classes and of either model's noise."""
    sizes = rng.integers(LOT_SIZES[0], LOT_SIZES[1] + 1, num_lots)
    lot = np.repeat(np.arange(num_lots), sizes)
    width = len(CLASSES)
    of_mix = np.sqrt(correlation / (1 - correlation) * np.pi**2 / 3)
    odds = LOG_PRIOR + of_mix * rng.normal(size=(num_lots, width))[lot]
    truth = (odds + rng.gumbel(size=(len(lot), width))).argmax(axis=1)
    probs = []
    for apart in (skill, skill, skill - LESS):
        seen = np.sqrt(correlation) * rng.normal(size=(num_lots, width))[lot]
        seen += np.sqrt(1 - correlation) * rng.normal(size=(len(lot), width))
        seen[np.arange(len(lot)), truth] += apart
        probs.append(softmax(apart * seen + LOG_PRIOR))
    return Sample(lot, truth, tuple(probs))


def stated(found: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every figure of a report that may have an interval."""
    yield from ((name, found[name]) for name in ("macro_f1", "auc", "average_precision", "cost"))
    yield from ((f"recall {name}", row["recall"]) for name, row in found["per_class"].items())
    verdicts = dict(found["verdicts"])
    yield from ((f"caught {name}", figure) for name, figure in verdicts.pop("caught").items())
    yield from verdicts.items()


@cache
def truths(*, skill: float, correlation: float) -> tuple[dict[str, float], Floats]:
    """The figures of the plant itself, and the F1 of the first and of the lesser model by class [2, C]."""
    many = sample(TRUTH_LOTS, skill=skill, correlation=correlation, rng=np.random.default_rng(12345))
    scores = many.scores(model=0, rows=slice(None))
    found = report(scores, policy=POLICY, n_boot=1)
    worse = report(many.scores(model=2, rows=slice(None)), policy=POLICY, n_boot=1)
    f1 = np.array([[row["f1"] for row in side["per_class"].values()] for side in (found, worse)])
    figures = {name: figure["value"] for name, figure in stated(found) if figure}
    return figures | {
        "equal cost": 0.0,
        "equal macro_f1": 0.0,
        "unequal cost": figures["cost"] - worse["cost"]["value"],
    }, f1


class Tally:
    """Of one figure: how often an interval was given, held the truth, and how wide it was."""

    def __init__(self) -> None:
        self.num, self.given, self.held, self.below, self.width = 0, 0, 0, 0, 0.0

    def add(self, figure: dict[str, Any] | None, *, truth: float) -> None:
        """One simulation more. A missing figure counts as one without an interval."""
        self.num += 1
        if figure is None or figure["low"] is None:
            return
        self.given += 1
        self.held += figure["low"] <= truth <= figure["high"]
        self.below += figure["high"] < truth
        self.width += figure["high"] - figure["low"]

    def join(self, other: Tally) -> None:
        """Takes in what another counted of the same figure."""
        for name in vars(self):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def shown(self) -> dict[str, Any]:
        """Shares; coverage is of the intervals that were given, None where none was."""
        some = max(1, self.given)
        return {
            "given": round(self.given / self.num, 4),
            "coverage": round(self.held / some, 4) if self.given else None,
            "truth_above": round(self.below / some, 4) if self.given else None,
            "width": round(self.width / some, 4) if self.given else None,
        }


def simulate(num_lots: int, *, correlation: float, skill: str, sims: int, n_boot: int, show: dict[str, Tally]) -> None:
    """Adds `sims` plants of `num_lots` lots to the tallies."""
    figures, f1 = truths(skill=SKILLS[skill], correlation=correlation)
    truth = dict(figures)
    rng = np.random.default_rng([num_lots, round(100 * correlation), round(10 * SKILLS[skill])])
    drawn = sample(sims * num_lots, skill=SKILLS[skill], correlation=correlation, rng=rng)
    edges = np.searchsorted(drawn.lot, np.arange(sims + 1) * num_lots)
    for i in range(sims):
        rows = slice(edges[i], edges[i + 1])
        a, equal, worse = (drawn.scores(model=model, rows=rows) for model in range(3))
        found = report(a, policy=POLICY, n_boot=n_boot, seed=i)
        own, lesser = f1[:, np.unique(drawn.truth[rows])].mean(axis=1)
        truth |= {"macro_f1": own, "unequal macro_f1": own - lesser}
        for name, figure in stated(found):
            show.setdefault(name, Tally()).add(figure, truth=truth[name])
        for metric in PAIRED:
            policy = POLICY if metric == "cost" else None
            for kind, b in (("equal", equal), ("unequal", worse)):
                both = paired(a, b, policy_a=policy, policy_b=policy, n_boot=n_boot, seed=i)
                if both["metric"] == metric:
                    show.setdefault(f"{kind} {metric}", Tally()).add(both, truth=truth[f"{kind} {metric}"])


def measure(*, sims: int, n_boot: int, num_lots: Sequence[int]) -> dict[str, Any]:
    """Number of lots -> figure -> its coverage over all cells, and its worst cell of correlation and skill."""
    table: dict[str, Any] = {}
    cells = [(c, s) for c in CORRELATIONS for s in SKILLS]
    for g in num_lots:
        begun = time.monotonic()
        pooled: dict[str, Tally] = {}
        worst: dict[str, tuple[float, str]] = {}
        for correlation, skill in cells:
            show: dict[str, Tally] = {}
            each = -(-sims // len(cells))
            simulate(g, correlation=correlation, skill=skill, sims=each, n_boot=n_boot, show=show)
            for name, tally in show.items():
                pooled.setdefault(name, Tally()).join(tally)
                if tally.given >= each // 2:
                    found = (tally.shown()["coverage"], f"correlation {correlation}, {skill} model")
                    worst[name] = min(found, worst.get(name, found))
        table[str(g)] = {name: {**tally.shown(), "worst_cell": worst.get(name)} for name, tally in pooled.items()}
        print(f"{g} lots: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    return table


def falsely_different(table: dict[str, Any]) -> dict[str, Any]:
    """Number of lots -> how often two models of equal skill are called different, in money and in macro-F1."""
    return {
        g: {m: None if (held := rows[f"equal {m}"]["coverage"]) is None else round(1 - held, 4) for m in PAIRED}
        for g, rows in table.items()
    }


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--quick", action="store_true")
    ask.add_argument("--sims", type=int, default=2000)
    ask.add_argument("--lots", type=int, nargs="+", default=list(NUM_LOTS))
    ask.add_argument("--boot", type=int, default=500)
    given = ask.parse_args()
    begun = time.monotonic()
    sims = QUICK if given.quick else given.sims
    table = measure(sims=sims, n_boot=given.boot, num_lots=given.lots)
    words = {"name": "intervals", "level": 0.95, "sims_per_number_of_lots": sims, "n_boot": given.boot}
    shown = {**words, "seconds": round(time.monotonic() - begun, 1), "falsely_different": falsely_different(table)}
    print(json.dumps({**shown, "coverage": table}))


if __name__ == "__main__":
    main()
