"""What a fleet is: plants, their environments, geometry and classes, read once from `fleet.yaml`.

Class names live on two levels. A *plant class* is what a plant writes on its labels; it maps to a *fleet class*.
Models have one output per *leaf*, the finest level that any plant of the fleet tells apart: a fleet class that no
plant divides is one leaf; one that some plant divides has a leaf per plant class of that plant (`scale/plate`).
A plant that only says `scale` labels the whole set of its leaves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from plants.config import Config
from plants.errors import InputError, ManyInputErrors
from plants.geometry import Environment, Interpolation
from plants.limits import Limits
from plants.names import NAME_PATTERN

OK = "ok"
"""The fleet class of good parts."""


def is_ok(leaf: str) -> bool:
    """Whether a leaf means a good part."""
    return leaf == OK or leaf.startswith(f"{OK}/")


Name = Annotated[str, Field(pattern=NAME_PATTERN)]


class PlantClass(Config):
    """A plant's own class name and what the fleet calls it."""

    fleet: str = Field(min_length=1)
    state: Literal["occurs", "absent", "unannotated"] = "occurs"

    @field_validator("fleet")
    @classmethod
    def _is_written_as_others_write_it(cls, fleet: str) -> str:
        meant = OK if fleet.strip().casefold() == OK else fleet.strip()
        if fleet != meant:
            raise ValueError(f"the fleet class {fleet!r} would be another one than {meant!r}; write {meant!r}")
        return fleet


class Costs(Config):
    """Money and floors of one plant. Costs are per part, in any one currency."""

    miss: float = Field(default=50_000, ge=0)
    miss_by_class: dict[str, float] = Field(default={})
    false_alarm: float = Field(default=5_000, ge=0)
    review: float = Field(default=500, ge=0)
    review_per_hour: float | None = Field(default=None, ge=0)
    parts_per_hour: float | None = Field(default=None, gt=0)
    defect_rate: tuple[float, float, float] = (0.02, 0.005, 0.05)
    """Prevalence on the line: estimate, low, high. Thresholds are solved at the unfavourable end."""
    novel_share: float = Field(default=0.05, gt=0, lt=1)
    """Share of good parts that people look at where the only model is the distance to good parts."""
    recall_floor: float = Field(default=0.0, ge=0, le=1)
    recall_floor_by_class: dict[str, float] = Field(default={})
    on_timeout: Literal["reject", "divert"] = "reject"
    limits: Limits | None = None
    """How much of a replica the plant may take; `Limits()` where it is not said."""

    @field_validator("defect_rate")
    @classmethod
    def _is_a_range(cls, rate: tuple[float, float, float]) -> tuple[float, float, float]:
        if not all(0 <= value <= 1 for value in rate):
            raise ValueError("each end is a share of the parts, so 2 % is 0.02")
        estimate, low, high = rate
        if not low <= estimate <= high:
            low, estimate, high = sorted(rate)
            raise ValueError(f"is estimate, low, high, so write [{estimate:g}, {low:g}, {high:g}]")
        return rate

    @model_validator(mode="after")
    def _knows_the_line(self) -> Self:
        if self.review_per_hour and self.parts_per_hour is None:
            raise ValueError("review_per_hour needs parts_per_hour: write how many parts the line makes in an hour")
        return self


def _as_class(value: Any) -> Any:
    return {"fleet": value} if isinstance(value, str) else value


class Shares(Config):
    """Which part of the lots each role gets, and in which order new lots are dealt."""

    train: float = 0.6
    select: float = 0.1
    decide: float = 0.1
    test: float = 0.2
    order: Literal["class", "time"] = "class"
    """class: rarest class first, each lot to the role furthest below its share. time: the oldest of the new lots are
    learned from, the newest are the test, so that figures say how a model does on what comes after it."""

    @model_validator(mode="after")
    def _sum_to_one(self) -> Self:
        values = (self.train, self.select, self.decide, self.test)
        if min(values) <= 0 or abs(sum(values) - 1) > 1e-6:
            raise ValueError("shares must be positive and sum to 1")
        return self


class Plant(Config):
    """One factory: where its frames lie, what its classes mean, what its errors cost."""

    name: Name
    images: str
    """Folder or s3:// prefix of the frames: class folders, unless `labels` names a table."""
    labels: str | None = None
    """CSV or Parquet with at least `frame` and `class`; other columns as in `plants.labels`."""
    golden: str | None = None
    """CSV or Parquet of what several annotators said about the same frames, as in `plants.agreement`."""
    incumbent: str | None = None
    """CSV or Parquet of the existing inspection's verdicts on frames or parts, as in `plants.incumbent`."""
    classes: dict[str, Annotated[PlantClass, BeforeValidator(_as_class)]] = Field(min_length=1)
    ok: tuple[str, ...] = ()
    """The plant classes that mean a good part."""
    environments: dict[str, Environment] = Field(default={"default": Environment()})
    environment_pattern: str | None = None
    """Regular expression over the frame's path with one group: the environment's name."""
    lot_pattern: str | None = None
    part_pattern: str | None = None
    costs: Costs = Costs()
    shares: Shares | None = None
    """Overrides the fleet's shares of lots by role."""
    may_train: bool = True
    may_leave: bool = True
    retention_days: int | None = Field(default=None, ge=1)
    store: str | None = None
    """What these four mean and who holds them is said in `plants.governance`."""
    group: Name | None = None
    """Plants that may not share a serving process are in different groups: `crossplant serve --group` serves one."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        faults = [
            f"classes: {name!r} has white space at its ends; write {name.strip()!r}"
            if name.strip()
            else f"classes: {name!r} is no name; write what the plant's labels say"
            for name in self.classes
            if name != name.strip() or not name
        ]
        faults += [f"ok: {name!r} is not among classes" for name in self.ok if name not in self.classes]
        faults += [
            f"classes: {name!r} is listed under ok, so its fleet class must be {OK!r}"
            for name in self.ok
            if name in self.classes and self.classes[name].fleet != OK
        ]
        faults += [
            f"classes: {name!r} maps to {OK!r} but is not listed under ok"
            for name, value in self.classes.items()
            if value.fleet == OK and name not in self.ok
        ]
        for key, pattern in (
            ("environment_pattern", self.environment_pattern),
            ("lot_pattern", self.lot_pattern),
            ("part_pattern", self.part_pattern),
        ):
            faults += _pattern_faults(key, pattern)
        for key, table in (
            ("miss_by_class", self.costs.miss_by_class),
            ("recall_floor_by_class", self.costs.recall_floor_by_class),
        ):
            known = ", ".join(self.classes)
            faults += [
                f"costs.{key}: unknown class {name!r}; known classes: {known}"
                for name in table
                if name not in self.classes
            ]
        if not self.environments:
            faults.append("environments: at least one is needed")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @property
    def defects(self) -> tuple[str, ...]:
        """Plant classes that are not good, in the order of the file."""
        return tuple(name for name in self.classes if name not in self.ok)

    @property
    def annotated(self) -> tuple[str, ...]:
        """Plant classes that occur and are labelled, the order of every probability vector of this plant."""
        return tuple(name for name, value in self.classes.items() if value.state == "occurs")


class Trunk(Config):
    """A backbone with its weights, shared by the fleet, and the cuts allowed in it.

    A cut counts the backbone's stages above it: 0 is the pooled features (only the head learns), 1 the last stage.
    """

    backbone: str = "test_resnet"
    weights: str = "embedded"
    """embedded | hub | none | a path or s3:// address of a safetensors file."""
    size_px: int = Field(default=96, ge=32, le=1024)
    cuts: tuple[int, ...] = (0, 1)
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    interpolation: Interpolation | None = None
    """Of frames to `size_px`; like `mean` and `std`, what the weights were trained with where it is None."""
    options: dict[str, Any] = Field(default={})
    """Extra arguments of `timm.create_model`, e.g. `{pad_type: same}`."""

    @property
    def name(self) -> str:
        """A short name for reports."""
        return f"{self.backbone}@{self.size_px}"


def _can_be_trained(trunk: Trunk) -> Trunk:
    wanted = ", ".join(map(str, sorted({0, *(cut for cut in trunk.cuts if cut > 0)})))
    if min(trunk.cuts, default=0) < 0:
        raise ValueError(f"cuts count stages, so they must not be negative; write cuts: [{wanted}]")
    if len(set(trunk.cuts)) < len(trunk.cuts):
        raise ValueError(f"cuts name a stage twice; write cuts: [{wanted}]")
    if 0 not in trunk.cuts:
        raise ValueError(f"cuts must contain 0, where training fits the head first; write cuts: [{wanted}]")
    return trunk


class Fleet(Config):
    """All plants of one manufacturer, and the trunks they share."""

    fleet: Name
    store: str
    """Folder or s3:// prefix for labels, packs, runs, bundles and reports."""
    sealed: str | None = None
    """Folder or s3:// prefix of the test's answers and their ledger, which only `import` and `evaluate` need to reach;
    `sealed` below the store when absent."""
    trunks: tuple[Annotated[Trunk, AfterValidator(_can_be_trained)], ...] = (Trunk(),)
    shares: Shares = Shares()
    part_ids: Literal["plant", "fleet"] = "plant"
    """Whether a part id names one part of its plant, or one part wherever it is seen."""
    seed: int = 0
    synthetic: bool = False
    """Whether the data were generated; every report says so."""
    plants: tuple[Plant, ...]

    @field_validator("trunks")
    @classmethod
    def _are_one_or_two(cls, trunks: tuple[Trunk, ...]) -> tuple[Trunk, ...]:
        if not 1 <= len(trunks) <= 2:
            raise ValueError(f"a fleet shares one or two trunks, not {len(trunks)}")
        return trunks

    @model_validator(mode="after")
    def _has_plants_of_different_names(self) -> Self:
        if not self.plants:
            raise ValueError("plants: at least one is needed")
        names = [plant.name for plant in self.plants]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"plants: name used twice: {', '.join(twice)}")
        return self

    def plant(self, name: str) -> Plant:
        """The plant of that name. Raises InputError for an unknown one."""
        for plant in self.plants:
            if plant.name == name:
                return plant
        known = ", ".join(plant.name for plant in self.plants)
        raise InputError("there is no such plant in the fleet", plant=name, remedy=f"Known plants: {known}")

    def divided(self) -> dict[str, tuple[str, ...]]:
        """Fleet class -> its leaves, sorted. One leaf of the same name unless some plant divides the class."""
        leaves: dict[str, set[str]] = {}
        for plant in self.plants:
            by_fleet: dict[str, list[str]] = {}
            for name, value in plant.classes.items():
                by_fleet.setdefault(value.fleet, []).append(name)
            for fleet_class, names in by_fleet.items():
                found = leaves.setdefault(fleet_class, set())
                if len(names) > 1:
                    found.update(f"{fleet_class}/{name}" for name in names)
        return {name: tuple(sorted(found)) or (name,) for name, found in sorted(leaves.items())}

    def leaf_sets(self, plant: Plant) -> dict[str, tuple[str, ...]]:
        """Plant class -> the leaves it covers, for every class listed at the plant."""
        divided = self.divided()
        sets = {}
        for name, value in plant.classes.items():
            leaf = f"{value.fleet}/{name}"
            sets[name] = (leaf,) if leaf in divided[value.fleet] else divided[value.fleet]
        return sets

    def leaves(self, plants: Sequence[Plant]) -> tuple[str, ...]:
        """The outputs of a model that learns from these plants, sorted, `ok` first."""
        found = {leaf for plant in plants for leaves in self.leaf_sets(plant).values() for leaf in leaves}
        return tuple(sorted(found, key=lambda leaf: (not is_ok(leaf), leaf)))

    def sisters(self, plant: Plant) -> tuple[Plant, ...]:
        """The other plants that share at least one defect class with this one, directly or through others."""
        group, grew = {plant.name}, True
        while grew:
            grew = False
            known = {value.fleet for p in self.plants if p.name in group for value in p.classes.values()} - {OK}
            for other in self.plants:
                shares = known & {value.fleet for value in other.classes.values()}
                if other.name not in group and shares:
                    group.add(other.name)
                    grew = True
        return tuple(p for p in self.plants if p.name in group and p.name != plant.name)


def projection(
    leaves: Sequence[str], leaf_sets: Mapping[str, Sequence[str]], classes: Sequence[str]
) -> npt.NDArray[np.float32]:
    """0/1 matrix [len(leaves), len(classes)] that sums leaf probabilities into a plant's classes.

    What a row leaves out is probability mass on something that cannot occur at the plant.
    """
    matrix = np.zeros((len(leaves), len(classes)), dtype=np.float32)
    index = {leaf: i for i, leaf in enumerate(leaves)}
    for column, name in enumerate(classes):
        for leaf in leaf_sets[name]:
            if leaf in index:
                matrix[index[leaf], column] = 1.0
    return matrix


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, but for two equal keys, of which that takes the last in silence. Raises MarkedYAMLError."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag.endswith(":merge"):
                continue
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value!r} is written twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def load_fleet(path: str | Path) -> Fleet:
    """Read `fleet.yaml`; relative paths in it are relative to the file. Raises InputError with every fault at once."""
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError("no such file", file=str(file), remedy="Name the fleet's YAML with --fleet FILE") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read ({type(error).__name__})", file=str(file)) from None
    try:
        raw = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        what = "is not YAML"
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
            what += f" at line {error.problem_mark.line + 1}: {error.problem}"
        remedy = "Indent with spaces, quote odd names, write every key once"
        raise InputError(what, file=str(file), remedy=remedy) from None
    if not isinstance(raw, dict):
        raise InputError("must be a mapping with `fleet` and `plants`", file=str(file))
    raw.setdefault("store", f".crossplant/{raw.get('fleet', 'fleet')}")
    try:
        fleet = Fleet.model_validate(raw)
    except ValidationError as error:
        raise ManyInputErrors([_fault(file, raw, e) for e in error.errors()]) from None
    return _with_absolute_paths(fleet, base=file.resolve().parent)


def _with_absolute_paths(fleet: Fleet, *, base: Path) -> Fleet:
    def absolute(value: str) -> str:
        return value if "://" in value else str((base / value).resolve())

    fields = ("images", "labels", "golden", "incumbent", "store")
    plants = tuple(
        p.model_copy(update={key: absolute(uri) for key in fields if (uri := getattr(p, key))}) for p in fleet.plants
    )
    trunks = tuple(
        t if t.weights in ("embedded", "hub", "none") else t.model_copy(update={"weights": absolute(t.weights)})
        for t in fleet.trunks
    )
    stores = {"store": absolute(fleet.store), "sealed": fleet.sealed and absolute(fleet.sealed)}
    return fleet.model_copy(update={**stores, "plants": plants, "trunks": trunks})


_REMEDIES = {
    "extra_forbidden": "Remove it or correct its spelling",
    "missing": "Add it",
    "string_pattern_mismatch": "Small letters, digits, - and _, a letter or digit first",
    "tuple_type": "Write a list: [one, two]",
    "dict_type": "Write `name: value`, a line each",
    "model_type": "Write `name: value`, a line each",
    "string_type": "Write one text, quoted where it is a number",
    "key": "Quote it: YAML takes bare numbers, yes and no for something else",
}


def _fault(file: Path, raw: dict[str, Any], error: Any) -> str:
    location = list(error["loc"])
    plant = None
    if location[:1] == ["plants"] and len(location) > 1 and isinstance(location[1], int):
        try:
            plant = str(raw["plants"][location[1]].get("name", location[1]))
        except (AttributeError, TypeError):
            plant = str(location[1])
        location = location[2:]
    message = error["msg"].removeprefix("Value error, ")
    remedy = _REMEDIES.get("key" if location[-1:] == ["[key]"] else error["type"])
    field = ".".join(str(part) for part in location)
    return str(InputError(message, plant=plant, file=str(file), field=field or None, remedy=remedy))


def _pattern_faults(key: str, pattern: str | None) -> list[str]:
    if pattern is None:
        return []
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        return [f"{key}: not a regular expression ({error})"]
    return [] if groups == 1 else [f"{key}: needs exactly one group in parentheses"]
