"""What is going to be trained: runs, their parents and their order. Pure: no clock, no storage, no Ray."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from jobs.leave_out import ALL, FIELD, LeftOut, named, parse
from jobs.recipe import Recipe
from plants.balance import may_unfreeze, median_class, strategy
from plants.errors import InputError
from plants.governance import flags
from plants.plant import OK, Fleet, Plant

WAY = 4
"""Raised when the same data, recipe and seed come to give other models, or runs to leave other files to their children:
a plan that was begun before is then another plan."""

Kind = Literal["frozen", "own", "pooled", "without", "warm", "sister", "average", "normality", "scratch", "classical"]
AVERAGED = ("own", "warm", "pooled")
"""The kinds whose weights an average takes, of one seed."""
BASELINES = ("classical", "scratch")
"""Kinds that say what transfer is worth: judged beside the others at their own plant, chosen and served nowhere."""
HEADLESS = ("normality", "classical")
"""Kinds that have no branch, so that nothing of theirs is exported as one."""


@dataclass(frozen=True)
class RunSpec:
    """One model to be fitted: what it learns from, from where it starts, by which recipe."""

    run_id: str
    kind: Kind
    plants: tuple[str, ...]
    seed: int
    recipe: dict[str, Any]
    parent: str | None = None
    """The run that it starts from, its donor."""
    parents: tuple[str, ...] = ()
    """The runs that it is the mean of; of `average` only."""
    target: str | None = None
    """The plant it is meant for; None for a model of several plants. Of `without`: what was left out."""
    start: str | None = None
    """The run of an earlier plan whose weights it starts from, as plan/run, see `jobs.refresh`."""
    taught_by: tuple[str, ...] = ()
    """The plants that the run it starts from has learned from."""

    @property
    def left_out(self) -> LeftOut | None:
        """What it must not see, and is judged on; None for all other kinds."""
        return parse(self.target) if self.kind == "without" and self.target else None

    @property
    def sources(self) -> tuple[str, ...]:
        """The runs whose weights it begins with."""
        return self.parents or ((self.parent,) if self.parent else ())

    def serves(self, plant: str) -> list[str]:
        """The plants that a bundle of this run serves when it is written for this plant."""
        return sorted({plant, *self.plants}) if len(self.plants) > 1 else [plant]


@dataclass(frozen=True)
class Plan:
    """All runs of a fleet on one state of its data."""

    fleet: str
    data_digest: str
    runs: tuple[RunSpec, ...]
    trunk: int = 0
    governance: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Plant -> its flags when the plan was made. What they forbid is not among the runs."""
    data: Mapping[str, str] = field(default_factory=dict)
    """Plant -> the digest of the snapshot of its rows that may be learned from."""
    base: str = ""
    """The plan whose runs these start from, if any."""
    earlier: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Plant -> the digests of the snapshots that those, and the ones before them, have learned from."""
    plan_id: str = field(init=False)

    def __post_init__(self) -> None:
        content = json.dumps([WAY, self.data_digest, self.trunk, [asdict(run) for run in self.runs]], sort_keys=True)
        object.__setattr__(self, "plan_id", f"{self.fleet}-{hashlib.sha256(content.encode()).hexdigest()[:12]}")

    @property
    def deepest(self) -> Recipe:
        """The recipe of the fine-tuned run that trains most stages: it needs the activations of all others."""
        recipes = [run.recipe for run in self.runs if run.kind not in BASELINES]
        return Recipe.model_validate(max(recipes, key=lambda recipe: len(recipe["stages"])))

    def run(self, run_id: str) -> RunSpec:
        """The run of that id. Raises KeyError."""
        for run in self.runs:
            if run.run_id == run_id:
                return run
        raise KeyError(run_id)

    def learned_from(self, run_ids: Iterable[str]) -> tuple[str, ...]:
        """The plants whose images these runs, their parents and theirs have learned from, sorted."""
        found: set[str] = set()
        for run in map(self.run, run_ids):
            found.update(run.plants, run.taught_by, self.learned_from(run.sources))
        return tuple(sorted(found))

    def line(self, run_id: str) -> list[str]:
        """The run, what it began with, and theirs; each once."""
        found = [run_id]
        for source in self.run(run_id).sources:
            found += [one for one in self.line(source) if one not in found]
        return found

    def snapshots(self, plant: str) -> tuple[str | None, ...]:
        """The digests of all that runs of this plan may have learned from a plant; None of a plan that kept none."""
        return (self.data.get(plant), *self.earlier.get(plant, ()))

    def to_json(self) -> dict[str, Any]:
        """The plan as plain data, for storage."""
        return {
            "plan_id": self.plan_id,
            "fleet": self.fleet,
            "data_digest": self.data_digest,
            "trunk": self.trunk,
            "governance": self.governance,
            "data": self.data,
            "base": self.base,
            "earlier": self.earlier,
            "runs": [asdict(run) for run in self.runs],
        }

    def shared(self, *, lanes: int) -> frozenset[str]:
        """The runs of several plants that all lanes fit together, as one of them has more than its share of the work.

        Work is counted in plants whose branches are trained, over the whole plan but its baselines, finished or not: so
        a second driver with as many lanes does as the first, and a run is the same with baselines beside it. Measured
        on two lanes: together an epoch took longer than on one, and the models were worse (README, Decisions).
        """
        able = [run for run in self.runs if run.recipe["stages"] and run.kind not in BASELINES]
        work = {run.run_id: len(run.plants) for run in able}
        share = sum(work.values()) / lanes
        return frozenset(run_id for run_id, plants in work.items() if lanes > 1 and 1 < plants > share)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Plan:
        """The plan that `to_json` wrote."""
        lists = ("plants", "parents", "taught_by")
        runs = tuple(RunSpec(**{**run, **{k: tuple(run.get(k, ())) for k in lists}}) for run in raw["runs"])
        given = {name: raw.get(name, {}) for name in ("governance", "data")}
        given["earlier"] = {name: tuple(digests) for name, digests in raw.get("earlier", {}).items()}
        given["base"] = raw.get("base", "")
        return cls(raw["fleet"], raw["data_digest"], runs=runs, trunk=raw["trunk"], **given)


def make_plan(
    fleet: Fleet,
    *,
    recipe: Recipe,
    data_digest: str,
    train_parts: Mapping[str, int],
    train_defects: Mapping[str, int],
    seeds: Sequence[int] = (0,),
    leave_out: Sequence[str] = (),
    average: bool = False,
    donors: Mapping[str, str] | None = None,
    trunk: int = 0,
    data: Mapping[str, str] | None = None,
    labelled: Mapping[str, Mapping[str, int]] | None = None,
    from_scratch: Callable[..., Recipe] | None = None,
) -> Plan:
    """Frozen, own, pooled, warm-started from pooled and from a sister, for every plant and seed; one normality a plant.

    train_parts: training parts of each plant; a plant without any, or that may not train, learns nothing of its own.
    train_defects: those of them that are not good; a plant without any has nothing but its normality.
    leave_out: plants for which a pooled model without them is fitted too (what a new plant could expect), and
    environments or products, as `jobs.leave_out` writes them, for which their plant's model without them is; `all`
    names every plant that is pooled with two others.
    labelled: plant -> labelled images by fleet defect class, by which runs train stages or not; None trains them all.
    donors: plant -> the sister that its run starts from, where one was measured to be best; else by shared classes.
    average: also the mean of the weights of each plant's own, warm-started and pooled model, and of its own over seeds.
    data: the snapshot of each plant's rows that may be learned from.
    from_scratch: `num_parts` to learn from -> the recipe from random weights. With it every plant has a run from
    scratch for every seed, and one classical model, which draws nothing at random.
    Raises InputError when a model without what is named cannot be fitted.
    """
    outs = named(leave_out, fleet=fleet)
    full = recipe.model_dump(mode="json")
    frozen = {**full, "stages": []}
    able = [p for p in fleet.plants if p.may_train and train_parts.get(p.name, 0) > 0]
    taught = [p for p in able if train_defects.get(p.name, 0) > 0]
    groups = pooling_groups(fleet, plants=[p for p in taught if p.may_leave])
    outs += [out for out in _every(groups) if out not in outs] if ALL in leave_out else []
    runs: list[RunSpec] = []
    for seed in seeds:
        tail = f"-s{seed}"
        runs += _of_many(groups, outs=outs, taught={p.name for p in taught}, seed=seed, full=full)
        for plant in taught:
            parents: dict[Kind, str | None] = {"own": None}
            if group := next((g for g in groups if plant.name in g), ()):
                near = nearest(fleet, plant=plant, among=group, train_parts=train_parts)
                told = (donors or {}).get(plant.name)
                sister = told if told in near else near[0]
                parents |= {"warm": _pooled(group, groups=groups, tail=tail), "sister": f"own-{sister}{tail}"}
            runs += _of_plant(plant.name, seed=seed, parents=parents, full=full, frozen=frozen)
    runs += _averages(runs, plants=[p.name for p in taught], frozen=frozen) if average else []
    for plant in taught if from_scratch else ():
        random = from_scratch(num_parts=train_parts[plant.name]).model_dump(mode="json")
        runs += _baselines(plant.name, seeds=seeds, frozen=frozen, random=random)
    good = {p.name: train_parts[p.name] - (train_defects.get(p.name, 0) if p.ok else 0) for p in able}
    runs += [_normality(name, seed=seeds[0], frozen=frozen) for name, number in good.items() if number > 1]
    _check_left_out(outs, runs=runs)
    runs = runs if labelled is None else [by_data(run, labelled=labelled) for run in runs]
    governance = {name: flag.model_dump(mode="json") for name, flag in flags(fleet.plants).items()}
    return Plan(fleet.fleet, data_digest, runs=tuple(runs), trunk=trunk, governance=governance, data=data or {})


def _of_many(
    groups: Sequence[tuple[str, ...]],
    *,
    outs: Sequence[LeftOut],
    taught: Collection[str],
    seed: int,
    full: dict[str, Any],
) -> Iterator[RunSpec]:
    """Every group's pooled run and those without one of its plants; then those without a part of their plant."""
    for group in groups:
        yield RunSpec(_pooled(group, groups=groups, tail=f"-s{seed}"), "pooled", group, seed, full)
        for out in outs:
            rest = tuple(name for name in group if name != out.plant)
            if out.what == "plant" and out.plant in group and len(rest) > 1:
                yield _without(out, plants=rest, seed=seed, recipe=full)
    for out in outs:
        if out.what != "plant" and out.plant in taught:
            yield _without(out, plants=(out.plant,), seed=seed, recipe=full)


def _normality(plant: str, *, seed: int, frozen: dict[str, Any]) -> RunSpec:
    return RunSpec(f"normality-{plant}-s{seed}", "normality", (plant,), seed, frozen, target=plant)


def _every(groups: Sequence[Sequence[str]]) -> list[LeftOut]:
    """Every plant that is pooled with two others. Raises InputError where none is."""
    found = dict.fromkeys(name for group in groups if len(group) > 2 for name in group)
    if not found:
        remedy = "Three plants that share classes, and that may leave, are needed; or name environments"
        raise InputError("no plant can be left out: none is pooled with two others", field=FIELD, remedy=remedy)
    return [LeftOut(name) for name in found]


def _without(out: LeftOut, *, plants: tuple[str, ...], seed: int, recipe: dict[str, Any]) -> RunSpec:
    return RunSpec(f"without-{out.slug}-s{seed}", "without", plants, seed, recipe, target=str(out))


def _baselines(name: str, *, seeds: Sequence[int], frozen: dict[str, Any], random: dict[str, Any]) -> list[RunSpec]:
    """A plant's classical model, which draws nothing at random, and its net from random weights for every seed."""
    given: dict[str, Any] = {"plants": (name,), "target": name}
    found = [RunSpec(f"classical-{name}-s{seeds[0]}", "classical", seed=seeds[0], recipe=frozen, **given)]
    return found + [RunSpec(f"scratch-{name}-s{s}", "scratch", seed=s, recipe=random, **given) for s in seeds]


def by_data(run: RunSpec, *, labelled: Mapping[str, Mapping[str, int]]) -> RunSpec:
    """The run, without its stages where its plants together have too few labels to train more than a head."""
    if run.kind in BASELINES or may_unfreeze(median_class(labelled[name] for name in run.plants)):
        return run
    return replace(run, recipe={**run.recipe, "stages": []})


def strategies(plan: Plan, *, labelled: Mapping[str, Mapping[str, int]]) -> list[str]:
    """What the labels of each plant, and of plants that learn together, allow and the plan therefore does."""
    said = []
    for names in dict.fromkeys(run.plants for run in plan.runs if run.kind != "normality"):
        count = median_class(labelled[name] for name in names)
        does = "stages are trained after the head" if may_unfreeze(count) else "heads only"
        who = f"plant {names[0]}" if len(names) == 1 else f"plants {', '.join(names)} together"
        enough = f"{count:g} labelled images in the median defect class (enough for: {strategy(count)})"
        said.append(f"{who}: {enough}: {does}")
    return said


def _of_plant(
    name: str, *, seed: int, parents: Mapping[Kind, str | None], full: dict[str, Any], frozen: dict[str, Any]
) -> list[RunSpec]:
    """A plant's frozen baseline, and its run of every kind, each with what it starts from."""
    runs = [RunSpec(f"frozen-{name}-s{seed}", "frozen", (name,), seed, frozen, target=name)]
    return runs + [
        RunSpec(f"{kind}-{name}-s{seed}", kind, (name,), seed, full, parent=parent, target=name)
        for kind, parent in parents.items()
    ]


def _averages(runs: Sequence[RunSpec], *, plants: Sequence[str], frozen: dict[str, Any]) -> list[RunSpec]:
    """Of each plant: the mean of own, warm-started and pooled of a seed, and of its own over all seeds."""
    seeds = list(dict.fromkeys(run.seed for run in runs))
    found = []
    for name in plants:
        near = [run for run in runs if name in run.plants and run.kind in AVERAGED]
        sets = [(f"average-{name}-s{seed}", seed, [run for run in near if run.seed == seed]) for seed in seeds]
        sets.append((f"average-own-{name}-s{seeds[0]}", seeds[0], [run for run in near if run.kind == "own"]))
        for run_id, seed, members in sets:
            if len(members) > 1:
                ids = tuple(run.run_id for run in members)
                found.append(RunSpec(run_id, "average", (name,), seed, frozen, parents=ids, target=name))
    return found


def _pooled(group: Sequence[str], *, groups: Sequence[Sequence[str]], tail: str) -> str:
    return f"pooled-{group[0]}{tail}" if len(groups) > 1 else f"pooled{tail}"


def _check_left_out(outs: Sequence[LeftOut], *, runs: Sequence[RunSpec]) -> None:
    for out in outs:
        if str(out) not in {run.target for run in runs if run.kind == "without"}:
            why = "it is not pooled with two others" if out.what == "plant" else "no part may be learned from"
            raise InputError(f"no model without {out} can be fitted: {why}", plant=out.plant, field=FIELD)


def pooling_groups(fleet: Fleet, *, plants: Sequence[Plant]) -> list[tuple[str, ...]]:
    """Sets of two or more plants that share defect classes, directly or through others, in the fleet's order."""
    names = {plant.name for plant in plants}
    groups: list[tuple[str, ...]] = []
    for plant in plants:
        members = {plant.name, *(sister.name for sister in fleet.sisters(plant))} & names
        group = tuple(p.name for p in fleet.plants if p.name in members)
        if len(group) > 1 and group not in groups:
            groups.append(group)
    return groups


def nearest(fleet: Fleet, *, plant: Plant, among: Sequence[str], train_parts: Mapping[str, int]) -> list[str]:
    """The other plants, those that share most defect classes with this one first, of equals that with most parts."""

    def defects(p: Plant) -> set[str]:
        return {value.fleet for value in p.classes.values()} - {OK}

    others = [name for name in among if name != plant.name]
    own = defects(plant)
    order = {n: (len(own & defects(fleet.plant(n))), train_parts.get(n, 0), n) for n in others}
    return sorted(others, key=lambda n: order[n], reverse=True)
