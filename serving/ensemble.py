"""Several models as one: their probabilities are joined on a single trunk pass, by the rule of `plants.ensembles`.

All members sit on the same trunk, so an ensemble of five costs five branches, not five models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from plants.ensembles import Mix, combined, union
from plants.errors import InputError
from plants.normality import Place
from serving.heads import Slot
from serving.scoring import NOBODY, Floats, Known, Meter, Model, Scored, Tier, Trunk, novelty
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
    def parts(self) -> tuple[KeptSession | Slot, ...]:
        """All the members'."""
        return tuple(part for member in self.members for part in member.parts)

    @cached_property
    def cuts(self) -> frozenset[int]:
        """All the members' cuts, and the pooled features where good parts are known: one trunk pass gives them all."""
        known = [] if self.normality.is_empty else [0]
        return frozenset([*known, *(cut for member in self.members for cut in member.cuts)])

    def score(self, activations: Mapping[int, Floats], places: Sequence[Place], /) -> Scored:
        """What the members say together, and the distance to good parts where they are known."""
        said = [(member.probabilities(activations), member.leaves) for member in self.members]
        probs, _ = combined(said, mix=Mix(self.weights, self.manifest.rule))
        return Scored(probs, novelty(self.normality, activations, places))
