"""How far a plant's images lie from another plant's, and from those its backbone was pretrained on.

In pooled features, by the distance that `plants.normality` keeps (Mahalanobis, shrunk): fitted on half of the lots of
one plant, it is the median distance of another plant's frames over that of the frames of the other half. 1 is as far as
the plant's own unseen lots lie from it, whatever the number of frames or features. It has a direction: a plant whose
images vary little sees others far away, one whose images vary much does not. A Fréchet distance falls as frames are
added, and a classifier of plants is always right; neither has a scale that people can read.

Near does not mean that a model will do: it says what the images look like, not which defects are in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from plants.findings import Finding
from plants.normality import Normality
from plants.plant import Fleet

FAR = 2.0
"""Distances from which a finding warns. Halves of one plant came to 0.9-1.14, stations of one plant to 1.4-3.2, two
mills whose models are of use to each other to 1.2 and 2.0, embedded plants whose models are not to 2.4-8."""
MIN_LOTS = 10
NUM_ROUNDS = 2
MAX_FRAMES = 2_000
"""Drawn from each plant; what is fitted grows with their square."""

Table = dict[tuple[str, str], float | None]
"""(seen from, seen) -> distance; None where there are not enough lots, or all look alike."""


@dataclass(frozen=True, eq=False)
class Look:
    """What the images of a plant look like to the fleet's trunk."""

    name: str
    features: npt.NDArray[np.float32]
    """[N, F]"""
    lots: npt.NDArray[np.object_]
    """[N]"""


def distances(looks: Sequence[Look], *, seed: int = 0) -> Table:
    """How far each is from each other one; every fit is on half of the lots, both halves in turn."""
    table: Table = {}
    drawn = [_drawn(look, seed=seed) for look in looks]
    for a in drawn:
        found = _seen_from(a, [b.features for b in drawn], seed=seed)
        table |= {(a.name, b.name): found[k] if found else None for k, b in enumerate(drawn) if b is not a}
    return table


def _drawn(look: Look, *, seed: int) -> Look:
    if len(look.features) <= MAX_FRAMES:
        return look
    at = np.sort(np.random.default_rng(seed).choice(len(look.features), MAX_FRAMES, replace=False))
    return Look(look.name, look.features[at], look.lots[at])


def _seen_from(look: Look, others: Sequence[npt.NDArray[np.float32]], *, seed: int) -> list[float] | None:
    names, lot = np.unique(look.lots, return_inverse=True)
    if len(names) < MIN_LOTS:
        return None
    rng, rounds = np.random.default_rng(seed), []
    for _ in range(NUM_ROUNDS):
        half = rng.permutation(len(names))[lot] < len(names) // 2
        for fitted in (half, ~half):
            if look.features[fitted].std(axis=0).max() == 0:
                return None
            near = Normality.fit(look.features[fitted])
            own = float(np.median(near.score(look.features[~fitted])))
            rounds.append([float(np.median(near.score(other))) / own for other in others])
    return [float(value) for value in np.mean(rounds, axis=0)]


def sister_findings(fleet: Fleet, table: Table, *, names: Sequence[str]) -> list[Finding]:
    """How far each plant lies from its sisters among `names`; a warning where even the nearest is far."""
    findings = []
    for name in names:
        sisters = [sister.name for sister in fleet.sisters(fleet.plant(name)) if sister.name in names]
        known = sorted((d, sister) for sister in sisters if (d := table.get((sister, name))) is not None)
        if not known:
            continue
        words = ", ".join(f"{sister} {d:.1f}" for d, sister in known)
        is_far = known[0][0] >= FAR
        findings.append(
            Finding(
                "warning" if is_far else "info",
                "far_from_sisters" if is_far else "near_sisters",
                name,
                f"its images lie this many times as far from a sister as that plant's own unseen lots: {words}"
                + ("; even the nearest is another world" if is_far else ""),
                "Do not take a sister's model as it is; `compare` says whether pooling or a warm start pays, and "
                "`photometry` undoes what light and camera do"
                if is_far
                else "None",
            )
        )
    return findings


def pretraining_findings(away: Mapping[str, float | None], *, weights: str) -> list[Finding]:
    """How far each plant lies from the pretraining's images; away: plant -> distance, None where they are not known."""
    findings = []
    for name, distance in away.items():
        if distance is None:
            detail = f"how far it lies from the pretraining is not known: no images of it came with weights {weights}"
            findings.append(Finding("info", "pretraining_unknown", name, detail, "None; `compare` shows what they do"))
            continue
        is_far = distance >= FAR
        findings.append(
            Finding(
                "warning" if is_far else "info",
                "far_from_pretraining" if is_far else "near_pretraining",
                name,
                f"its images lie {distance:.1f} times as far from the pretraining's as those from one another",
                "Lower the cut, or try weights from images that resemble these" if is_far else "None",
            )
        )
    return findings
