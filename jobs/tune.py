"""Bayesian search of the recipe: Ray Tune, Optuna's TPE and ASHA, on the packs and activations that training uses.

A trial fits one model of all plants named and is judged on `select`, by likelihood. The three best are fitted
again with new seeds before one is called best. A killed search goes on where it was.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from cluster import session
from cluster.settings import Settings
from jobs.activations import RunData
from jobs.material import Material
from jobs.recipe import Augment, Recipe, Stage, save_recipe
from jobs.selection import Score
from jobs.train import Fitted, fit
from plants.errors import CheckFailed, InputError
from plants.plant import Fleet

STRENGTHS = (0.0, 0.5, 1.0)
"""Augmentation strengths searched; each has its own cached views."""
EPOCHS = 20
FINALISTS = 3
SEEDS = (101, 102)
LOWEST = -10.0
"""Log-likelihood of what is no better than this, or cannot be judged."""


def space(*, cuts: Sequence[int]) -> dict[str, Any]:
    """The search space for Ray Tune. Source of the ranges: PRACTICE H1."""
    from ray import tune

    return {
        "lr_head": tune.loguniform(1e-4, 1e-2),
        "lr_backbone": tune.loguniform(1e-5, 1e-3),
        "cut": tune.choice(sorted(cuts)),
        "dropout": tune.uniform(0.0, 0.5),
        "weight_decay": tune.loguniform(1e-6, 1e-2),
        "strength": tune.choice(list(STRENGTHS)),
        "batch": tune.choice([16, 32, 64]),
    }


def recipe_of(config: Mapping[str, Any], *, cuts: Sequence[int], epochs: int = EPOCHS) -> Recipe:
    """The recipe that a trial's point stands for: a stage at each of these cuts, 0 (frozen features) to the point's."""
    stages = tuple(
        Stage(cut=cut, epochs=epochs, lr_head=config["lr_head"], lr_backbone=config["lr_backbone"])
        for cut in sorted(cuts)
        if 0 < cut <= config["cut"]
    )
    return Recipe(
        stages=stages,
        dropout=config["dropout"],
        weight_decay=config["weight_decay"],
        batch=int(config["batch"]),
        augment=Augment(strength=config["strength"]),
    )


def rank_value(score: Score) -> float:
    """One number to maximise: the mean log-likelihood on select, by which a fit chooses too; at least `LOWEST`."""
    return LOWEST if score.nll is None else max(-score.nll, LOWEST)


@functools.lru_cache(maxsize=8)
def _material(config_json: str) -> Material:
    return Material.from_config(json.loads(config_json))


def fit_point(
    config: Mapping[str, Any], *, plants: Sequence[str], material_json: str, seed: int, on_epoch: Any = None
) -> Fitted:
    """The model that a point of the space gives."""
    import torch

    torch.set_num_threads(1)
    raw = json.loads(material_json)
    raw["recipe"]["augment"]["strength"] = config["strength"]
    material = _material(json.dumps(raw, sort_keys=True))
    return fit(
        material.model,
        data=RunData(tuple(material.data(name) for name in plants)),
        leaf_sets=material.leaf_sets(plants),
        leaves=material.leaves(plants),
        recipe=recipe_of(config, cuts=material.trunk.cuts),
        seed=seed,
        on_epoch=on_epoch,
    )


def trial(config: Mapping[str, Any], *, plants: Sequence[str], material_json: str) -> None:
    """One trial: reports the best likelihood so far after every epoch, so that ASHA may stop it."""
    from ray import tune

    best, epoch = LOWEST, 0

    def report(row: Mapping[str, Any]) -> None:
        nonlocal best, epoch
        epoch += 1
        best = max(best, rank_value(Score(row["select"], row["select_nll"], {})))
        tune.report({"value": best, "epoch": epoch})

    fitted = fit_point(config, plants=plants, material_json=material_json, seed=0, on_epoch=report)
    tune.report({"value": rank_value(fitted.score), "epoch": epoch + 1, "done": True})


def fit_again(point: tuple[Mapping[str, Any], int], *, plants: Sequence[str], material_json: str) -> float | str:
    """The likelihood of a (config, seed) fitted anew, or one line that says why it could not be fitted."""
    config, seed = point
    try:
        return rank_value(fit_point(config, plants=plants, material_json=material_json, seed=seed).score)
    except Exception as error:
        return " ".join(f"seed {seed}: {type(error).__name__}: {error}".split())


def prepare(what: tuple[Mapping[str, Any], str]) -> None:
    """A material's config and a plant: its pack and activations are in the cache of this machine."""
    import torch

    torch.set_num_threads(1)
    config, name = what
    Material.from_config(config).data(name)


def tuned_plants(fleet: Fleet, *, named: Sequence[str] = ()) -> list[str]:
    """The plants whose images may be learned from together: those named, or all that may.

    Raises InputError for a plant named that may not, and where no plant may.
    """
    able = [plant for plant in fleet.plants if plant.may_train]
    leaving = able if len(able) == 1 else [plant for plant in able if plant.may_leave]
    plants = [fleet.plant(name) for name in dict.fromkeys(named)] or leaving
    for plant in plants:
        if not plant.may_train:
            raise InputError("its images may not be learned from", plant=plant.name, field="may_train")
        if not plant.may_leave and len(plants) > 1:
            remedy = f"Search for it alone: --plant {plant.name}"
            raise InputError("its images may not be pooled", plant=plant.name, field="may_leave", remedy=remedy)
    if not plants:
        remedy = "Name one that may_train with --plant"
        raise InputError("no plants may be pooled", field="may_train / may_leave", remedy=remedy)
    return [plant.name for plant in plants]


def tune(
    fleet: Fleet, *, settings: Settings, plants: Sequence[str], trials: int, out: Path, show: Console
) -> dict[str, Any]:
    """The best recipe is on disk; returns `best`, `trials[]` and `finalists[]`."""
    cuts = fleet.trunks[0].cuts
    base = Recipe(stages=tuple(Stage(cut=cut) for cut in sorted(cuts) if cut > 0))
    material = Material(fleet, cache=settings.cache, cache_gb=settings.cache_gb, recipe=base)
    session.start(settings, num_slots=settings.slots)
    material.export_trunk_once()
    show.print(f"caching activations at {len(STRENGTHS)} strengths of augmentation", markup=False)
    recipes = [base.model_copy(update={"augment": Augment(strength=strength)}) for strength in STRENGTHS]
    configs = [
        Material(fleet, cache=material.cache, cache_gb=material.cache_gb, recipe=recipe).to_config()
        for recipe in recipes
    ]
    for some in (configs[:1], configs[1:]):  # the first makes the packs
        for _ in session.map_tasks(prepare, [(config, name) for config in some for name in plants]):
            pass
    results = _search(material, plants=plants, trials=trials, settings=settings, show=show)
    rows = _rows(results)
    finalists = _finalists(rows, plants=plants, material=material, show=show)
    best = finalists[0]
    recipe = recipe_of(best["config"], cuts=cuts)
    header = (
        f"Found by `crossplant tune` on {', '.join(plants)}: {len(rows)} trials, "
        f"log-likelihood on select {best['mean']:.4f} over seeds {', '.join(map(str, SEEDS))}"
    )
    save_recipe(recipe, out, header=header)
    show.print(f"best recipe: {out} (log-likelihood on select {best['mean']:.4f})", markup=False, soft_wrap=True)
    show.print(f"use it with: crossplant train --recipe {out}", markup=False, soft_wrap=True)
    return {
        "best": {"recipe": recipe.model_dump(mode="json"), "value": best["mean"], "file": str(out)},
        "trials": rows,
        "finalists": finalists,
    }


def _search(
    material: Material, *, plants: Sequence[str], trials: int, settings: Settings, show: Console
) -> Sequence[Any]:
    from ray import tune as ray_tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    session.require({"CPU": 1})
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1")  # a killed search forgets a second, not half a minute
    raw = material.to_config()
    named = {
        "data": material.catalog.data_digest(plants),
        "plants": list(plants),
        "trials": trials,
        "material": {k: v for k, v in raw.items() if k != "cache"},
        "value": "log-likelihood",
    }
    name = hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:12]
    folder = settings.home / "tune"
    trainable = ray_tune.with_resources(
        ray_tune.with_parameters(trial, plants=tuple(plants), material_json=json.dumps(raw, sort_keys=True)),
        {"CPU": 1},
    )
    path = str(folder / name)
    if ray_tune.Tuner.can_restore(path):
        show.print(f"search {name} goes on where it was", markup=False)
        tuner = ray_tune.Tuner.restore(path, trainable, resume_unfinished=True, restart_errored=True)
    else:
        show.print(f"search {name}: {trials} trials", markup=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sampler = OptunaSearch(space=None, metric="value", mode="max", seed=material.fleet.seed)
        tuner = ray_tune.Tuner(
            trainable,
            param_space=space(cuts=material.trunk.cuts),
            tune_config=ray_tune.TuneConfig(
                num_samples=trials,
                search_alg=sampler,
                scheduler=ASHAScheduler(time_attr="epoch", max_t=2 * EPOCHS, grace_period=4, reduction_factor=3),
                metric="value",
                mode="max",
                reuse_actors=True,
                max_concurrent_trials=settings.slots,
            ),
            run_config=ray_tune.RunConfig(name=name, storage_path=str(folder), verbose=0),
        )
    return tuner.fit()


def _rows(results: Sequence[Any]) -> list[dict[str, Any]]:
    rows = []
    for result in results:
        metrics = result.metrics or {}
        error = " ".join(str(result.error).split())[-300:] if result.error else None
        rows.append(
            {
                "config": dict(metrics.get("config") or result.config or {}),
                "value": metrics.get("value"),
                "epochs": metrics.get("epoch"),
                "error": error,
            }
        )
    if not any(row["value"] is not None for row in rows):
        raise InputError(f"no trial finished; the first failed with: {rows[0]['error'] if rows else 'nothing ran'}")
    return sorted(rows, key=lambda row: -(row["value"] if row["value"] is not None else LOWEST))


def _finalists(
    rows: Sequence[dict[str, Any]], *, plants: Sequence[str], material: Material, show: Console
) -> list[dict[str, Any]]:
    """The best trials, fitted again with new seeds, best mean first; one that cannot be fitted again drops out.

    Raises CheckFailed when none is left.
    """
    finalists = [row for row in rows if row["value"] is not None][:FINALISTS]
    points = [(row["config"], seed) for row in finalists for seed in SEEDS]
    fitted = functools.partial(fit_again, plants=plants, material_json=json.dumps(material.to_config(), sort_keys=True))
    answers = iter(session.map_tasks(fitted, points))
    out, cause = [], ""
    for number, row in enumerate(finalists, start=1):
        values = [next(answers) for _ in SEEDS]
        if failed := [value for value in values if isinstance(value, str)]:
            cause = failed[0]
            show.print(f"finalist {number} drops out: {cause}", markup=False, soft_wrap=True)
        else:
            out.append({"config": row["config"], "values": values, "mean": float(np.mean(values))})
    if not out:
        raise CheckFailed(f"no finalist could be fitted again: {cause}")
    return sorted(out, key=lambda row: -row["mean"])
