"""The floor of every plant: heads on frozen features at every setting, from one pass of the trunk.

Nothing is unfrozen and only the plain view of a frame is looked at, so a fleet takes seconds. A model that was
fine-tuned has to beat this. Heads are fitted to `train` and judged on `select`, as in training.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster import session
from cluster.settings import Settings
from jobs.activations import RunData
from jobs.head import STRENGTHS, HeadFit, Lesson
from jobs.material import Material
from jobs.recipe import Recipe, save_recipe
from jobs.supervision import Supervision
from jobs.tune import tuned_plants
from jobs.verbs import new_table
from plants.errors import InputError
from plants.plant import Fleet

CLASS_WEIGHTS = (1.0, 2.0, 5.0)
"""How much more than the most frequent class a rare one may weigh."""


def frozen(fleet: Fleet, *, settings: Settings, named: Sequence[str], out: Path, show: Console) -> dict[str, Any]:
    """The floor of the plants named, or of all that may train, and the recipe with the class weight best over them.

    The JSON document of `tune`, a finalist a plant. Raises InputError for a plant named that may not train, and where
    none has parts to judge by.
    """
    began = time.monotonic()
    plants = [name for one in dict.fromkeys(named) for name in tuned_plants(fleet, named=[one])]
    plants = plants or [plant.name for plant in fleet.plants if plant.may_train]
    if not plants:
        raise InputError("no plant may train", field="may_train", remedy="Allow it for one")
    material = Material(fleet, cache=settings.cache, cache_gb=settings.cache_gb, recipe=Recipe(stages=(), views=1))
    material.export_trunk_once()
    order = material.largest_first(plants)
    words = f"{len(order)} plants, {len(CLASS_WEIGHTS)} class weights, {len(STRENGTHS)} strengths of L2"
    show.print(f"frozen heads: {words}", markup=False)
    trials: list[dict[str, Any]] = []
    with _mapped(settings) as mapped:
        for name, rows in zip(order, mapped(heads, [(material.to_config(), name) for name in order]), strict=True):
            trials += rows
            why = f"{len(rows)} heads" if rows else "nothing to learn from or to judge by in train and select"
            show.print(f"{name}: {why}, {time.monotonic() - began:.0f} s", markup=False)
    if not trials:
        raise InputError("no plant has parts to learn from and to judge by", remedy="Import labelled images")
    best = best_weight(trials)
    recipe = Recipe(max_class_weight=best)
    floors = [floor(trials, plant=name) for name in plants if any(row["plant"] == name for row in trials)]
    save_recipe(recipe, out, header=f"max_class_weight by `crossplant tune --frozen` on {', '.join(plants)}")
    _show(floors, show=show)
    show.print(f"best class weight over all: {best:g}, written to {out}", markup=False, soft_wrap=True)
    return {
        "best": {"recipe": recipe.model_dump(mode="json"), "value": _mean(trials, weight=best), "file": str(out)},
        "trials": trials,
        "finalists": floors,
        "seconds": round(time.monotonic() - began, 2),
    }


@contextlib.contextmanager
def _mapped(settings: Settings) -> Iterator[Callable[..., Iterator[Any]]]:
    """What maps a function over items: Ray's tasks on a cluster, threads on one machine.

    Decoding, the trunk and the heads all let go of Python's lock, and starting Ray takes longer than they do.
    """
    if settings.ray_address != "local":
        session.start(settings)
        yield session.map_tasks
        return
    with ThreadPoolExecutor(settings.slots, thread_name_prefix="frozen") as pool:
        yield pool.map


def heads(what: tuple[Mapping[str, Any], str]) -> list[dict[str, Any]]:
    """Of a material's config and a plant: every head's setting, log-likelihood and worth on `select`; often nothing."""
    import torch

    torch.set_num_threads(1)
    config, name = what
    material = Material.from_config(config)
    data = RunData((material.data(name),))
    if not len(data.train_ids) or not len(data.select_ids(0)):
        return []
    given: dict[str, Any] = {"leaf_sets": material.leaf_sets([name]), "leaves": material.leaves([name])}
    features = {"train": data.fetch(0, ids=data.train_ids), "select": data.fetch(0, ids=data.select_ids(0))}
    rows = []
    for weight in CLASS_WEIGHTS:
        taught = Supervision(data, **given, max_class_weight=weight)
        at = torch.from_numpy(taught.train_ids)
        lesson = Lesson(features["train"], taught.targets[at], taught.mask[at], taught.weights[at])
        for strength, head in HeadFit(lesson).path():
            found = taught.judge_rows(head.logits(features["select"]))
            if found.nll is not None:
                setting = {"max_class_weight": weight, "l2": strength}
                rows.append({"plant": name, "config": setting, "value": -found.nll, "worth": found.value})
    return rows


def floor(trials: Sequence[Mapping[str, Any]], *, plant: str) -> dict[str, Any]:
    """The plant's head of the highest log-likelihood, of equals the first."""
    return dict(max((row for row in trials if row["plant"] == plant), key=lambda row: row["value"]))


def best_weight(trials: Sequence[Mapping[str, Any]]) -> float:
    """The class weight whose best heads have the highest log-likelihood, in the mean over plants alike."""
    return max(CLASS_WEIGHTS, key=lambda weight: _mean(trials, weight=weight))


def _mean(trials: Sequence[Mapping[str, Any]], *, weight: float) -> float:
    here = [row for row in trials if row["config"]["max_class_weight"] == weight]
    names = dict.fromkeys(row["plant"] for row in here)
    return sum(floor(here, plant=name)["value"] for name in names) / len(names)


def _show(floors: Sequence[Mapping[str, Any]], *, show: Console) -> None:
    table = new_table(
        "Frozen floor on select, worst plant first", "plant", "log-likelihood", "worth", "class weight", "L2"
    )
    for row in sorted(floors, key=lambda row: row["value"]):
        setting = row["config"]
        worth = "-" if row["worth"] is None else f"{row['worth']:.3f}"
        table.add_row(
            row["plant"], f"{row['value']:.3f}", worth, f"{setting['max_class_weight']:g}", f"{setting['l2']:g}"
        )
    show.print(table)
