"""What a plan will cost: seconds and bytes, from what there is to do and how fast it is done. Pure arithmetic.

Seconds are a range: early stopping and stages that do not win end a run sooner than its recipe allows, how much sooner
nobody knows. Caps hold against the upper end. Not for money: hours of lanes times their price is the reader's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs import begin, starts
from jobs.head import STRENGTHS
from jobs.recipe import Recipe
from jobs.run import Checkpoints
from plants.errors import InputError

START_S = 12.0
"""A group of workers, from the trainer's start to its first plant. Measured: 10 to 15 s on two cores."""
RUN_S = 0.1
"""What a run takes beside its arithmetic: its parent read, its model written, its lane asked for the next."""
FORWARD = 3.0
"""Forward alone is this much faster than forward and backward, whose backward takes about twice the forward."""
HEAD_FITS = len(STRENGTHS) + 1 + begin.FOLDS
JUDGE_FITS = 2 * len(STRENGTHS) * (starts.FOLDS - 1)
"""Of a donor's features and the pretrained ones, each fold's heads on the rows of the others."""
CHECKPOINT_COPIES = 6
"""Of its model in a run's kept state: the best, what others start from, the stage's best, the present, two of Adam."""
GB = 1e9


@dataclass(frozen=True)
class Inputs:
    """The rows of a plant that runs learn from, and what of them is still to be computed."""

    name: str
    train: int
    select: int
    passes: int = 0
    """Images that still have to go through the trunk, over all views."""
    augmented: int = 0
    """Those of them that are augmented first."""
    pack_inputs: int = 0
    """Inputs of the pack that is still to be made, 0 where it is there."""
    pack_megapixels: float = 0.0
    """Of all frames to be decoded for it."""


@dataclass(frozen=True)
class Work:
    """One run that is still to be done."""

    run_id: str
    recipe: Recipe
    train: int
    select: int
    num_leaves: int
    parents: tuple[str, ...] = ()
    """The runs of the plan that it begins with."""
    has_start: bool = False
    """Whether it begins with features of other weights than the trunk's."""
    is_judged: bool = False
    """Whether these are judged against the trunk's first."""
    known_train: int = 0
    """Rows to learn from of the plants that its parent knew and it does not, which it may replay."""
    known_select: int = 0
    """Rows of theirs on which it is measured what it forgot."""
    has_task: bool = False
    """Whether it is trained once more with a task beside the class, where enough rows have its labels."""
    is_shared: bool = False
    """All lanes fit it together."""
    is_normality: bool = False


@dataclass(frozen=True)
class Rates:
    """How fast one lane is here, all by a probe."""

    trunk: float
    """Images/s through the trunk."""
    augment: float
    """Images/s."""
    steps: Mapping[int, float]
    """Cut -> images/s forward, backward and step at the recipe's batch; with the trunk where a cut is streamed."""
    head: float
    """Rows x leaves/s of one fit of a head."""
    decode: float = math.inf
    """Megapixels/s of frames read and decoded; infinite where no pack is to be made."""


@dataclass(frozen=True)
class Sizes:
    """Bytes of one input and of one model."""

    activations: Mapping[int, int]
    """Cut -> bytes of an activation in the cache."""
    input: int
    """Bytes of an input in a pack."""
    branches: Mapping[int, int]
    """Cut -> bytes of the stages above it."""
    head: int
    """Bytes of the head a leaf."""


@dataclass(frozen=True)
class Cost:
    """What a plan will take from now on, and what that is made of."""

    runs: int
    lanes: int
    steps: int
    """Optimiser steps at most."""
    images: int
    """Branch images, forward and backward, at most."""
    trunk_passes: int
    seconds_low: float
    seconds_high: float
    prepare_s: float
    cache_bytes: int
    pack_bytes: int
    store_bytes: int
    """Models and kept states of runs."""
    inputs: tuple[Inputs, ...] = ()
    rates: Rates | None = None

    @property
    def gb(self) -> float:
        """All that will be written, in 10^9 bytes."""
        return (self.cache_bytes + self.pack_bytes + self.store_bytes) / GB

    @property
    def hours(self) -> float:
        """At most."""
        return self.seconds_high / 3600

    def to_json(self) -> dict[str, Any]:
        """Plain data for the `cost` of a document."""
        numbers = ("runs", "lanes", "steps", "images", "trunk_passes", "cache_bytes", "pack_bytes", "store_bytes")
        seconds = {name: round(getattr(self, name), 1) for name in ("seconds_low", "seconds_high", "prepare_s")}
        rates = self.rates and {
            "trunk_images_s": round(self.rates.trunk, 1),
            "branch_images_s": {str(cut): round(rate, 1) for cut, rate in self.rates.steps.items()},
        }
        plants = [{"name": i.name, "train": i.train, "select": i.select, "passes": i.passes} for i in self.inputs]
        return {
            "hours": round(self.hours, 4),
            **seconds,
            **{name: getattr(self, name) for name in numbers},
            "rates": rates,
            "plants": plants,
        }


NOTHING = Cost(0, 0, 0, 0, 0, 0.0, 0.0, 0.0, 0, 0, 0)
"""Of a plan that is done."""


def cost(
    works: Sequence[Work],
    *,
    inputs: Sequence[Inputs],
    rates: Rates,
    sizes: Sizes,
    lanes: int,
    trunk_lanes: int,
    start_s: float = START_S,
) -> Cost:
    """The runs' cost on so many lanes, of which `trunk_lanes` have a device of their own for the trunk."""
    prepared = [prepare_seconds(item, rates=rates) for item in inputs]
    prepare_s = spread(prepared, lanes=trunk_lanes)
    low, high = (
        wall_seconds(works, seconds={w.run_id: run_seconds(w, rates=rates, is_low=is_low) for w in works}, lanes=lanes)
        for is_low in (True, False)
    )
    return Cost(
        runs=len(works),
        lanes=lanes,
        steps=sum(num_steps(work) for work in works),
        images=round(sum(num_epochs(work) * epoch_images(work) for work in works)),
        trunk_passes=sum(item.passes for item in inputs),
        seconds_low=start_s + prepare_s + low,
        seconds_high=start_s + prepare_s + high,
        prepare_s=prepare_s,
        cache_bytes=sum(item.passes for item in inputs) * sum(sizes.activations.values()),
        pack_bytes=sum(item.pack_inputs for item in inputs) * sizes.input,
        store_bytes=sum(model_bytes(work, rates=rates, sizes=sizes) for work in works),
        inputs=tuple(inputs),
        rates=rates,
    )


def prepare_seconds(inputs: Inputs, *, rates: Rates) -> float:
    """Decoding, augmentation and the trunk on one lane."""
    return inputs.pack_megapixels / rates.decode + inputs.augmented / rates.augment + inputs.passes / rates.trunk


def epochs(recipe: Recipe, *, is_low: bool) -> list[int]:
    """Of each stage: at most, or at least, when nothing after the first epoch wins and no stage is kept."""
    most = [stage.epochs for stage in recipe.stages]
    return [min(n, recipe.patience + 1) for n in most[:1]] if is_low else most


def num_epochs(work: Work) -> int:
    """Of all stages, at most."""
    return (1 + work.has_task) * sum(epochs(work.recipe, is_low=False))


def num_steps(work: Work) -> int:
    """Optimiser steps at most."""
    return num_epochs(work) * math.ceil(work.train / work.recipe.batch)


def run_seconds(work: Work, *, rates: Rates, is_low: bool) -> float:
    """A run on one lane: its head fitted, from its parent's features where it has one, then its stages."""
    if work.is_normality:
        return RUN_S
    recipe, rows = work.recipe, work.train * work.recipe.views
    replayed = work.known_train if recipe.replay else 0
    fits = HEAD_FITS * (rows + replayed) + (1 + begin.FOLDS) * work.select
    fits += work.is_judged * JUDGE_FITS * (rows + work.select)
    total = fits * work.num_leaves / rates.head
    if work.has_start and rates.steps:
        slowest = min(rates.steps[stage.cut] for stage in recipe.stages) if recipe.stages else min(rates.steps.values())
        passes = (1 + work.is_judged) * (rows + work.select) + replayed + 2 * work.known_select
        total += passes / (FORWARD * slowest)
    for stage, num in zip(recipe.stages, epochs(recipe, is_low=is_low), strict=False):
        judged = (1 + recipe.average_epochs) * work.select / FORWARD
        total += num * (epoch_images(work) + judged) / rates.steps[stage.cut]
    return RUN_S + total * (1 + (work.has_task and not is_low))


def epoch_images(work: Work) -> float:
    """Images forward and backward in an epoch: the last step of it is a whole one, replayed rows come beside."""
    own = math.ceil(work.train / work.recipe.batch) * work.recipe.batch
    return own / (1 - work.recipe.replay) if work.known_train else own


def spread(seconds: Sequence[float], *, lanes: int) -> float:
    """Wall time of independent tasks on lanes: their share each, or the longest."""
    return max([sum(seconds) / lanes, *seconds]) if seconds else 0.0


def wall_seconds(works: Sequence[Work], *, seconds: Mapping[str, float], lanes: int) -> float:
    """Wall time of runs: shared ones by all lanes, the others a lane each, none before its parent."""
    together = sum(seconds[work.run_id] / lanes for work in works if work.is_shared)
    alone = {work.run_id: work for work in works if not work.is_shared}

    def chain(work: Work) -> float:
        parents = [alone[name] for name in work.parents if name in alone]
        return seconds[work.run_id] + max((chain(parent) for parent in parents), default=0.0)

    return together + max([sum(seconds[name] for name in alone) / lanes, *map(chain, alone.values())])


def model_bytes(work: Work, *, rates: Rates, sizes: Sizes) -> int:
    """A run's files in the store at most: its model, what others start from, and its kept state where it takes long."""
    cut = work.recipe.stages[-1].cut if work.recipe.stages else 0
    one = 0 if work.is_normality else sizes.branches.get(cut, 0) + sizes.head * work.num_leaves
    is_kept = bool(work.recipe.stages) and run_seconds(work, rates=rates, is_low=False) > Checkpoints().every_s
    return one * (2 + CHECKPOINT_COPIES * is_kept)


def check_caps(found: Cost, *, max_hours: float | None = None, max_gb: float | None = None) -> None:
    """Raises InputError with the figure, the cap and what to do where the cost is above a cap."""
    less = "Fewer plants, seeds or views, or shallower or shorter stages, take less"
    if max_hours is not None and found.hours > max_hours:
        what = f"the plan takes up to {found.hours:.2g} hours, more than {max_hours:g}"
        raise InputError(what, field="--max-hours", remedy=f"{less}; or raise the cap")
    if max_gb is not None and found.gb > max_gb:
        what = f"the plan writes up to {found.gb:.2g} GB, more than {max_gb:g}"
        raise InputError(what, field="--max-gb", remedy=f"{less}; or raise the cap")


def check_room(needed: int, *, free: int, place: str) -> None:
    """Raises InputError where a disk has not the room for what the plan will write there."""
    if needed > free:
        what = f"the plan writes {needed / GB:.2g} GB there, and {free / GB:.2g} GB are free"
        remedy = "Free some, set CROSSPLANT_HOME to a larger disk, or use fewer views, cuts or plants"
        raise InputError(what, file=place, remedy=remedy)


def words(found: Cost) -> list[str]:
    """The cost in lines for people."""
    if not found.runs:
        return ["cost: nothing is left to do"]
    rates = found.rates
    speeds = f"trunk {rates.trunk:,.0f} images/s" if rates else ""
    for cut, rate in (rates.steps if rates else {}).items():
        speeds += f", branch at cut {cut} {rate:,.0f}"
    span = f"{_time(found.seconds_low)} to {_time(found.seconds_high)}"
    sizes = {"activations": found.cache_bytes, "packs": found.pack_bytes, "models": found.store_bytes}
    disk = ", ".join(f"{name} {_size(size)}" for name, size in sizes.items())
    return [
        f"cost: {found.trunk_passes:,} trunk passes of {sum(i.train + i.select for i in found.inputs):,} inputs; "
        f"{found.runs} runs, at most {found.steps:,} steps on {found.images:,} images",
        f"cost: {span} on {found.lanes} lanes, by a probe of one: {speeds}",
        f"cost: {_size(found.cache_bytes + found.pack_bytes + found.store_bytes)} of disk: {disk}",
    ]


def _time(seconds: float) -> str:
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= 1.5 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s"


def _size(size: int) -> str:
    for unit, name in ((GB, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size / 1e3:.0f} kB"
