"""Models on trunks: what turns the views of frames into probabilities, without knowing plants, frames or requests.

A trunk's session is shared by digest among all models of the fleet. A `Scorer` is one model here or an ensemble
(`serving.ensemble`); all take the outputs of one trunk pass. Heads, which most of a large fleet has, are scored
together (`scored_runs`), whatever their plants.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from plants.bundle import MAP
from plants.geometry import Interpolation
from plants.normality import Place, evenly, goodness
from plants.scores import softmax
from plants.severity import SeverityHead
from serving.adapters import Adapter
from serving.heads import Slot, gathered
from serving.known import NOBODY, Known
from serving.sessions import KeptSession, Session
from serving.words import Words

Floats = npt.NDArray[np.float32]
Tier = Literal["head", "adapter", "branch", "whole"]


@dataclass(frozen=True, slots=True)
class Scored:
    """What a model says of some views."""

    probabilities: Floats
    """[N, L] over the scorer's leaves."""
    novelty: Floats | None
    """[N] distance to good parts, NaN at a plant whose good parts are not known; None where no plant's are."""
    members: Floats | None = None
    """[N, K, L] what each member of an ensemble says, over the scorer's leaves; None of a single model."""
    outputs: Mapping[int, Floats] | None = None
    """The trunk's, of few views; of many they would take too much memory for what a map may need of them."""
    severity: Floats | None = None
    """[N] how grave what a view shows is, NaN at a plant where that is not known; None where it is at no plant."""

    def rows(self, start: int, stop: int) -> Scored:
        """The views from `start` up to `stop`."""
        novelty, members = (None if one is None else one[start:stop] for one in (self.novelty, self.members))
        outputs = None if self.outputs is None else {cut: one[start:stop] for cut, one in self.outputs.items()}
        severity = None if self.severity is None else self.severity[start:stop]
        return Scored(self.probabilities[start:stop], novelty, members, outputs, severity)


class Meter:
    """How long a view takes, of late: a mean in which older views count ever less."""

    __slots__ = ("ms",)

    def __init__(self) -> None:
        self.ms: float | None = None
        """Milliseconds a view, None before the first."""

    def note(self, seconds: float, *, views: int) -> None:
        """So many views took so long."""
        ms, weight = 1000 * seconds / views, min(1.0, views / 256)
        self.ms = ms if self.ms is None else self.ms + weight * (ms - self.ms)


class Scorer(Protocol):
    """One model or an ensemble, on a trunk's outputs."""

    @property
    def digest(self) -> str:
        """Of the bundle."""

    @property
    def manifest(self) -> Words:
        """Of the bundle."""

    @property
    def leaves(self) -> tuple[str, ...]:
        """What `score` has probabilities for."""

    @property
    def trunk(self) -> Trunk:
        """The trunk whose outputs `score` takes."""

    @property
    def normality(self) -> Known:
        """What good parts look like at the plants it serves, as far as the bundle knows."""

    @property
    def cuts(self) -> frozenset[int]:
        """The trunk's outputs that `score` needs."""

    @property
    def tier(self) -> Tier:
        """What it has of its own."""

    @property
    def weights(self) -> tuple[float, ...]:
        """Of an ensemble's members; one 1 of a single model."""

    @property
    def parts(self) -> tuple[KeptSession | Slot | Adapter, ...]:
        """What it takes memory for: sessions, which may be let go, adapters and heads."""

    @property
    def meter(self) -> Meter:
        """What a view costs beyond the trunk."""

    def score(self, activations: Mapping[int, Floats], places: Sequence[Place], /) -> Scored:
        """Probabilities and novelty of the views [N] whose activations these are, each taken at its place."""


LAST_MAP = -1
"""Stands among cuts for the map that cut 0 pools."""


def output(cut: int) -> str:
    """Its name in the trunk's file."""
    return MAP if cut == LAST_MAP else f"cut{cut}"


@dataclass(frozen=True, eq=False)
class Trunk:
    """The shared part of the models: uint8 views to activations at its cuts."""

    sha256: str
    size_px: int
    session: Session
    interpolation: Interpolation = "bilinear"
    meter: Meter = field(default_factory=Meter)
    has_map: bool = False
    """Whether `LAST_MAP` is among its outputs."""

    @cached_property
    def num_features(self) -> int:
        """Pooled features of a view."""
        (features,) = self.session.run(["cut0"], {"images": np.zeros((1, self.size_px, self.size_px, 3), np.uint8)})
        return int(features.shape[1])

    def activations(self, pixels: npt.NDArray[np.uint8], *, cuts: frozenset[int]) -> dict[int, Floats]:
        """Outputs at the cuts, `LAST_MAP` among them, for views uint8 [N, S, S, 3]."""
        wanted = sorted(cuts)
        begun = time.perf_counter()
        found = self.session.run([output(cut) for cut in wanted], {"images": pixels})
        self.meter.note(time.perf_counter() - begun, views=len(pixels))
        return dict(zip(wanted, found, strict=True))


@dataclass(frozen=True, eq=False)
class Model:
    """One branch on a trunk: a head in `serving.heads`, an adapter of shared stages, or a session kept by recency."""

    digest: str
    manifest: Words
    trunk: Trunk
    branch: KeptSession | Slot | Adapter
    normality: Known = NOBODY
    meter: Meter = field(default_factory=Meter)
    evidence: KeptSession | None = None
    """Where its logits come from, see `serving.maps`; None of a bundle that gives no map."""
    severity: SeverityHead | None = None
    """Of the features that its logits are of; None of a bundle that has none."""

    @property
    def weights(self) -> tuple[float, ...]:
        """It speaks for itself."""
        return (1.0,)

    @property
    def leaves(self) -> tuple[str, ...]:
        """The branch's outputs."""
        return self.manifest.leaves

    @property
    def tier(self) -> Tier:
        """As the bundle says, but for a head that is none, and an adapter that is served merged into its branch."""
        is_session = isinstance(self.branch, KeptSession)
        return "branch" if is_session and self.manifest.tier in ("head", "adapter") else self.manifest.tier

    @property
    def parts(self) -> tuple[KeptSession | Slot | Adapter, ...]:
        """Its branch."""
        return (self.branch,)

    @cached_property
    def cuts(self) -> frozenset[int]:
        """The cut this branch sits on, its last map where that is evidence, the features where good parts are known."""
        known = [] if self.normality.is_empty else [0]
        return frozenset([self.manifest.cut, *known, *([self.evidence_cut] if self.gives_map else [])])

    @property
    def evidence_cut(self) -> int:
        """The trunk's output that a map of evidence is made of."""
        return self.manifest.cut or LAST_MAP

    @property
    def gives_map(self) -> bool:
        """Whether there can be one."""
        return self.evidence is not None and (self.evidence_cut != LAST_MAP or self.trunk.has_map)

    def logits(self, activations: Mapping[int, Floats]) -> Floats:
        """Logits [N, L]."""
        activation = activations[self.manifest.cut]
        if isinstance(self.branch, Slot):
            return self.branch.logits(activation)
        found: Floats = self.branch.run(["logits"], {"activation": activation})[0]
        return found

    def score(self, activations: Mapping[int, Floats], places: Sequence[Place], /) -> Scored:
        """Probabilities over leaves, the distance to good parts and severity where the bundle knows them."""
        probs, grave = self.said(activations, places)
        return Scored(probs, novelty(self.normality, activations, places), severity=grave)

    def said(self, activations: Mapping[int, Floats], places: Sequence[Place]) -> tuple[Floats, Floats | None]:
        """Probabilities over leaves [N, L], and severities [N] where the bundle has a head for them."""
        logits, features = self.answers(activations)
        return np.asarray(softmax(logits), dtype=np.float32), severity(self.severity, features, places)

    def answers(self, activations: Mapping[int, Floats]) -> tuple[Floats, Floats]:
        """Logits [N, L], and the pooled features [N, F] that they are of; without a severity head any features."""
        if self.severity is None or isinstance(self.branch, Slot):
            return self.logits(activations), activations[self.manifest.cut]
        logits, features = self.branch.run(["logits", "features"], {"activation": activations[self.manifest.cut]})
        return logits, features


def novelty(known: Known, activations: Mapping[int, Floats], places: Sequence[Place]) -> Floats | None:
    """Distances [N] to the good parts of each view's place, in the trunk's pooled features; None where none is known.

    The trunk's, not a branch's: a part keeps its novelty when its plant's model changes.
    """
    return None if known.is_empty else known.score(activations[0], places)


def severity(head: SeverityHead | None, features: Floats, places: Sequence[Place]) -> Floats | None:
    """How grave what each view shows is [N]; None without a head."""
    return None if head is None else head.at(features, places)


@dataclass(frozen=True, eq=False)
class GoodParts:
    """A bundle of kind `normality`: it knows good parts only, so that its one output is how near a view is to them."""

    digest: str
    manifest: Words
    trunk: Trunk
    normality: Known
    meter: Meter = field(default_factory=Meter)
    tier: Tier = "head"
    parts: tuple[KeptSession | Slot | Adapter, ...] = ()

    @property
    def weights(self) -> tuple[float, ...]:
        """It speaks for itself."""
        return (1.0,)

    @property
    def leaves(self) -> tuple[str, ...]:
        """The plant's good leaves; what is far is on none of them."""
        return self.manifest.leaves

    @cached_property
    def cuts(self) -> frozenset[int]:
        """The pooled features."""
        return frozenset([0])

    def logits(self, activations: Mapping[int, Floats]) -> Floats:
        """Pooled features [N, F]: there are no logits, and the probe of such a bundle records features."""
        return activations[0]

    def score(self, activations: Mapping[int, Floats], places: Sequence[Place], /) -> Scored:
        """The goodness of each view, evenly over the good leaves, and its novelty."""
        far = self.normality.score(activations[0], places)
        return Scored(evenly(goodness(far), self.leaves), far)


def held(scorer: Scorer, *, load: bool = False) -> tuple[Session, ...] | None:
    """The sessions that the scorer needs, now the most recent; while somebody has them no request waits for a load.

    None where one is not open and `load` is not asked for. Loading takes a tenth of a second. Raises InputError.
    """
    parts = [part for part in scorer.parts if isinstance(part, KeptSession)]
    found = [part.session() if load else part.find() for part in parts]
    sessions = tuple(one for one in found if one is not None)
    return sessions if len(sessions) == len(parts) else None


def company(scorer: Scorer) -> Hashable:
    """Equal for scorers whose views one call scores: all heads, and every other model alone."""
    return "heads" if isinstance(scorer, Model) and isinstance(scorer.branch, Slot) else id(scorer)


def scored_runs(
    scorers: Sequence[Scorer], activations: Mapping[int, Floats], places: Sequence[Place]
) -> list[Scored | Exception]:
    """What each run of equal scorers says of its views, a scorer a view, all of one `company`.

    A scorer that fails says why, and harms no other one's views.
    """
    runs = [list(run) for _, run in groupby(range(len(scorers)), key=lambda at: id(scorers[at]))]
    begun = time.perf_counter()
    logits: list[Floats] = []
    slots = [one.branch for one in scorers if isinstance(one, Model) and isinstance(one.branch, Slot)]
    if len(slots) == len(scorers):
        logits = gathered(slots, activations[0])
    found: list[Scored | Exception] = []
    for run in runs:
        scorer, at = scorers[run[0]], slice(run[0], run[-1] + 1)
        rows = {cut: value[at] for cut, value in activations.items()}
        try:
            if logits:
                said = np.asarray(softmax(np.stack(logits[at])), dtype=np.float32)
                far, here = novelty(scorer.normality, rows, places[at]), places[at]
                grave = severity(scorer.severity, rows[0], here) if isinstance(scorer, Model) else None
                found.append(Scored(said, far, severity=grave))
            else:
                found.append(scorer.score(rows, places[at]))
        except Exception as error:  # one plant's model fails: its parts hear of it, the batch goes on
            found.append(error)
    seconds = time.perf_counter() - begun
    for run in runs:
        scorers[run[0]].meter.note(seconds * len(run) / len(scorers), views=len(run))
    return found
