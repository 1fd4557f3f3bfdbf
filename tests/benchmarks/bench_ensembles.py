"""What fitted weights of an ensemble are worth beside the plain average, and whether what is claimed of them holds.

Plants are simulated: an ok class and three defects, lots of 3 to 12 parts of one or two views, three models that err
partly alike, of which one may be much worse or better than the others. Weights are fitted and judged by
`jobs.candidates.candidate_of` itself; the truth is what the published weights and policy are worth on many new parts of
the same plant. Claims out of fold stand beside claims on the very parts that were fitted on. Prints one JSON object
last; `--plants 10` is a smoke run.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_ensembles.py
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from jobs.candidates import RULES, candidate_of
from plants.costs import expected_cost
from plants.ensembles import Mix, Parts, Said, combined
from plants.metrics import report
from plants.plant import Fleet, Plant
from plants.scores import PartScores, Speakers, softmax, speakers

CLASSES = ("ok", "dent", "crack", "chip")
PRIOR = (0.6, 0.2, 0.12, 0.08)
RUNS = ("own", "pooled", "warm")
SKILLS = {"alike": (2.4, 2.4, 2.4), "one worse": (2.6, 2.4, 1.2), "one better": (3.2, 2.0, 2.0)}
"""How far apart each model sees the classes, in deviations of its noise."""
SHARED = 0.6
"""Share of the variance of that noise that all models have in common."""
SHARPNESS = (1.0, 1.6, 0.6)
"""What each model multiplies its log odds by: they are calibrated unlike."""
NUM_LOTS = (10, 30, 100)
TRUTH_LOTS = 1_500


@dataclass(frozen=True)
class Simulated:
    """Views of parts, and what the models say of them: what `jobs.scoring.RoleInputs` is for candidates."""

    plant: Plant
    members: tuple[Said, ...]
    of_part: np.ndarray
    lots: np.ndarray
    truth: np.ndarray

    @classmethod
    def drawn(cls, plant: Plant, *, num_lots: int, skills: Sequence[float], rng: np.random.Generator) -> Simulated:
        lots = np.repeat(np.arange(num_lots), rng.integers(3, 13, num_lots))
        truth = rng.choice(len(CLASSES), len(lots), p=PRIOR)
        of_part = np.repeat(np.arange(len(lots)), rng.integers(1, 3, len(lots)))
        shows = np.where(np.diff(of_part, prepend=-1) > 0, truth[of_part], 0)
        common = rng.normal(size=(len(of_part), len(CLASSES)))
        members = []
        for skill, sharp in zip(skills, SHARPNESS, strict=True):
            noise = SHARED**0.5 * common + (1 - SHARED) ** 0.5 * rng.normal(size=common.shape)
            odds = sharp * (skill * (np.eye(len(CLASSES))[shows] * skill + noise) + np.log(PRIOR))
            members.append((softmax(odds).astype(np.float32), CLASSES))
        return cls(plant, tuple(members), of_part, lots, np.array(CLASSES, dtype=object)[truth])

    def speakers(self, probs: np.ndarray, leaves: tuple[str, ...]) -> Speakers:
        return speakers(probs, self.of_part, ok=np.array([leaf == "ok" for leaf in leaves]))

    def as_parts(self, leaf_sets: Mapping[str, Sequence[str]]) -> Parts:
        return Parts(self.speakers, lambda leaves: self.truth[:, None] == np.array(leaves, dtype=object))

    def probabilities(self, run: str) -> Said:
        return self.members[RUNS.index(run)]

    def scores(self, said: Sequence[Said], *, leaf_sets: Any = None, mix: Mix | None = None) -> PartScores:
        probs, leaves = combined(said, mix=mix or Mix.plain(len(said)))
        return PartScores(
            part_ids=np.arange(len(self.truth)),
            lots=self.lots,
            environments=np.full(len(self.truth), "line", dtype=object),
            truth=self.truth,
            probs=self.speakers(probs, leaves).mean(probs)[:, [leaves.index(name) for name in CLASSES]],
            classes=CLASSES,
            ok=("ok",),
        )


def fleet() -> Fleet:
    """One plant of these classes."""
    plant = {"name": "p", "images": "i", "classes": {name: name for name in CLASSES}, "ok": ["ok"]}
    return Fleet.model_validate({"fleet": "f", "store": "unused", "plants": [plant]})


def judged(kind: str, *, skills: Sequence[float], num_lots: int, seed: int) -> dict[str, float]:
    """One plant: what is claimed out of fold and in sample, and what is true."""
    found, rng = fleet(), np.random.default_rng((seed, num_lots))
    plant = found.plants[0]
    inputs = Simulated.drawn(plant, num_lots=num_lots, skills=skills, rng=rng)
    new = Simulated.drawn(plant, num_lots=TRUTH_LOTS, skills=skills, rng=rng)
    exports: Any = SimpleNamespace(material=SimpleNamespace(fleet=found), words=lambda run: {"cut": 1})
    since = time.perf_counter()
    one = candidate_of("e", kind, RUNS, plant=plant, inputs=inputs, exports=exports)  # type: ignore[arg-type]
    seconds = time.perf_counter() - since
    real = new.scores([new.members[RUNS.index(run)] for run in one.members], mix=one.mix)
    cost = {
        "claimed": expected_cost(one.scores, one.judged_by),
        "in_sample": expected_cost(one.published, one.policy),
        "true": expected_cost(real, one.policy),
    }
    f1 = {
        "claimed": report(one.scores, n_boot=1)["macro_f1"]["value"],
        "in_sample": report(one.published, n_boot=1)["macro_f1"]["value"],
        "true": report(real, n_boot=1)["macro_f1"]["value"],
    }
    values = {f"cost_{key}": value for key, value in cost.items()} | {f"f1_{key}": value for key, value in f1.items()}
    return {**{key: np.nan if v is None else v for key, v in values.items()}, "members": len(one.members), "s": seconds}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--plants", type=int, default=100)
    num = parser.parse_args().plants
    rows = []
    for name, skills in SKILLS.items():
        for num_lots in NUM_LOTS:
            for kind in ("ensemble", *RULES):
                drawn = [judged(kind, skills=skills, num_lots=num_lots, seed=seed) for seed in range(num)]
                mean = {key: float(np.nanmean([one[key] for one in drawn])) for key in drawn[0]}
                rows.append(
                    {"models": name, "lots": num_lots, "kind": kind, **{k: round(v, 4) for k, v in mean.items()}}
                )
                print(json.dumps(rows[-1]), flush=True)
    print(json.dumps({"name": "ensembles", "plants": num, "rows": rows}))


if __name__ == "__main__":
    main()
