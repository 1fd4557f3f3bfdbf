"""What a run is given and what it learned; the words that `jobs.begin`, `jobs.epoch` and `jobs.train` share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch.distributed as dist
from torch import Tensor

from jobs import forgetting
from jobs.adapt import Parent
from jobs.compute import Compute
from jobs.objective import Objective
from jobs.recipe import Recipe
from jobs.selection import Score
from jobs.supervision import Supervision
from plants.severity import SeverityHead

if TYPE_CHECKING:
    from jobs.tasks import SeverityTask

T = TypeVar("T")


class BranchFactory(Protocol):
    """What is needed of `jobs.model.CutModel`: branches at a cut, with pretrained stages."""

    def new_branch(
        self, cut: int, leaves: Sequence[str], *, seed: int = 0, dropout: float = 0.3, freeze_norm: bool = False
    ) -> Any:
        """A branch: forward(activation) -> (logits [N, L], features [N, F])."""


@dataclass(frozen=True)
class World:
    """The processes that fit one run together by DDP."""

    rank: int = 0
    size: int = 1


@dataclass
class Fitted:
    """What a run learned: the branch at the cut that won, and how it got there."""

    cut: int
    leaves: tuple[str, ...]
    state: dict[str, Tensor]
    score: Score
    start: dict[str, Tensor]
    """The same branch with a softer head that has not seen `select`: stages and other runs go on from it."""
    history: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    reweighting: list[dict[str, Any]] = field(default_factory=list)
    """What weighting by class did to the recall of each class, see `jobs.reweighting`."""
    adapter: dict[str, Tensor] = field(default_factory=dict)
    """Where the branch was adapted (`Recipe.lora_rank`): the factors, and the head, without what they were laid on."""
    task: dict[str, Any] | None = None
    """What learning severity too did to the class task, see `jobs.tasks.better`; None where that was not tried."""
    donor: dict[str, Any] | None = None
    """What the start of its parent was worth, see `jobs.adapt.judged`; None without a parent."""
    severity: SeverityHead | None = None
    """Of the branch's features, see `jobs.severity`; None where too few severities are labelled."""
    forgetting: dict[str, dict[str, float | None]] | None = None
    """What it lost at the plants that its parent knew, see `jobs.forgetting.forgotten`; None where not measured."""

    @property
    def is_refused(self) -> bool:
        """Whether the parent's start was shown to be worse than the pretrained one, so that nothing was built on it."""
        return self.donor is not None and bool(self.donor["refused"])


@dataclass
class Checkpoints:
    """Where a run keeps its state; the defaults keep none."""

    load: Callable[[], bytes | None] = lambda: None
    save: Callable[[bytes], None] = lambda data: None
    every_s: float = 15.0


@dataclass(frozen=True)
class Run:
    model: BranchFactory
    taught: Supervision
    objective: Objective
    recipe: Recipe
    seed: int
    world: World
    compute: Callable[[int], Compute]
    on_part: Callable[[dict[str, Any]], None] = lambda row: None
    parent: Parent | None = None
    replay: forgetting.Replay | None = None
    task: SeverityTask | None = None


def agreed(found: T, *, world: World) -> T:
    """What the first process found, so that all stop and keep alike where their arithmetic differs."""
    box = [found]
    if world.size > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]
