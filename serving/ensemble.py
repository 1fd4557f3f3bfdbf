"""Several models as one: their probabilities are joined on a single trunk pass, by the rule of `plants.ensembles`.

All members sit on the same trunk, so an ensemble of five costs five branches, not five models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from plants.ensembles import joined, union
from plants.errors import InputError
from plants.normality import Place
from plants.scores import softmax
from serving.adapters import Adapter
from serving.heads import Slot, side_by_side
from serving.known import NOBODY, Known
from serving.scoring import Floats, Meter, Model, Scored, Tier, Trunk, novelty, severity
from serving.sessions import KeptSession
from serving.words import Words


@dataclass(frozen=True, eq=False)
class Ensemble:
    """A bundle of kind `ensemble` with its members loaded."""

    digest: str
    manifest: Words
    members: tuple[Model, ...]
    weights: tuple[float, ...]
    normality: Known = NOBODY
    meter: Meter = field(default_factory=Meter)

    def __post_init__(self) -> None:
        if not self.members or len(self.members) != len(self.weights):
            raise InputError("an ensemble needs members, and a weight for each", field="weights")
        if min(self.weights) < 0 or sum(self.weights) <= 0:
            raise InputError("the weights of an ensemble are not negative and not all 0", field="weights")
        if len({(member.trunk.sha256, member.trunk.interpolation) for member in self.members}) > 1:
            raise InputError(
                "the members sit on different trunks", field="members", remedy="Average models of one trunk only"
            )

    @cached_property
    def leaves(self) -> tuple[str, ...]:
        """Every leaf that a member knows, good ones first."""
        return self.members[0].leaves if len(self.members) == 1 else union([one.leaves for one in self.members])

    @property
    def trunk(self) -> Trunk:
        """The members' common trunk."""
        return self.members[0].trunk

    @cached_property
    def tier(self) -> Tier:
        """The dearest of its members'."""
        order: tuple[Tier, ...] = ("head", "adapter", "branch", "whole")
        return max((member.tier for member in self.members), key=order.index)

    @cached_property
    def parts(self) -> tuple[KeptSession | Slot | Adapter, ...]:
        """All the members'."""
        return tuple(part for member in self.members for part in member.parts)

    @cached_property
    def cuts(self) -> frozenset[int]:
        """All the members' cuts, and the pooled features where good parts are known: one trunk pass gives them all."""
        known = [] if self.normality.is_empty else [0]
        return frozenset([*known, *(cut for member in self.members for cut in member.cuts)])

    @cached_property
    def _columns(self) -> tuple[list[int], ...]:
        """Where each member's leaves stand among all."""
        at = {leaf: column for column, leaf in enumerate(self.leaves)}
        return tuple([at[leaf] for leaf in member.leaves] for member in self.members)

    @cached_property
    def _slots(self) -> tuple[Slot, ...]:
        """The members' heads where all are heads, else none."""
        found = tuple(member.branch for member in self.members if isinstance(member.branch, Slot))
        return found if len(found) == len(self.members) else ()

    def score(self, activations: Mapping[int, Floats], places: Sequence[Place], /) -> Scored:
        """What the members say together, and the distance to good parts where they are known."""
        far = novelty(self.normality, activations, places)
        if len(self.members) == 1:
            probs, grave = self.members[0].said(activations, places)
            return Scored(probs, far, severity=grave)
        said, each = self._said(activations, places)
        together = joined(said.astype(np.float64), np.asarray(self.weights), rule=self.manifest.rule)
        return Scored(together.astype(np.float32), far, np.moveaxis(said, 0, 1), severity=self._together(each))

    def _together(self, each: Sequence[Floats | None]) -> Floats | None:
        """The severities [N] of the members that have a head, meaned by the members' weights; None where none has."""
        known = [(one, weight) for one, weight in zip(each, self.weights, strict=True) if one is not None]
        if not known or not sum(weight for _, weight in known):
            return None
        return np.asarray(np.average([one for one, _ in known], axis=0, weights=[w for _, w in known]), np.float32)

    def _said(
        self, activations: Mapping[int, Floats], places: Sequence[Place]
    ) -> tuple[Floats, Sequence[Floats | None]]:
        """What each member says over all leaves [K, N, L], 0 where it lacks one, and its severities.

        Heads of one shape are asked at once.
        """
        logits = side_by_side(self._slots, activations[0]) if self._slots else None
        if logits is None:
            each = [one.said(activations, places) for one in self.members]
            probs, grave = [one for one, _ in each], [one for _, one in each]
        else:
            joint: Floats = softmax(logits)
            probs = list(joint)
            grave = [severity(one.severity, activations[0], places) for one in self.members]
        said = np.zeros((len(probs), len(probs[0]), len(self.leaves)), np.float32)
        for one, mine, columns in zip(said, probs, self._columns, strict=True):
            one[:, columns] = mine
        return said, grave
