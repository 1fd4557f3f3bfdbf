"""How long a fleet takes to train: lanes, against one TorchTrainer a run, plain timm plant by plant, and pure compute.

Own, pooled and warm-started models of every plant of the embedded fleet but fargo (tiles), the last stage trained for
the same epochs by every side. Each side is a process of its own, measured from its start, imports and Ray included;
`steady` leaves start-up out. Sides alternate over seeds and rounds. Quality is looked at before speed: macro-F1 per
part on `decide`, of the worst plant.

    .venv/bin/python tests/benchmarks/bench_fleet.py --seeds 0 1 2
    .venv/bin/python tests/benchmarks/bench_fleet.py --quick          a smoke run; its figures mean nothing
    .venv/bin/python tests/benchmarks/bench_fleet.py --plain-epochs 20      where the plain loop needs more to be equal
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from measuring import Child, entry, even_niceness, machine, mean, note

KINDS = ("pooled", "own", "warm")
SIDE_TIMEOUT_S = 3600


def compare(given: argparse.Namespace) -> dict[str, Any]:
    """The figures of all sides."""
    if given.quick:
        given.scale, given.epochs, given.seeds = 0.25, 2, given.seeds[:1]
        given.plants = given.plants or ["arden", "brno"]
    if given.trainers is None:
        given.trainers = 0 if given.quick else 2
    folder = Path(given.folder or tempfile.mkdtemp(prefix="bench-fleet-"))
    turns: list[dict[str, Any]] = []
    compute: dict[str, Any] | None = None
    trials: list[dict[str, Any]] = []
    for seed in given.seeds:
        base = made(folder / f"seed{seed}", seed=seed, given=given)
        if compute is None:
            found = _side("tune", base, folder=folder / "tune", is_quick=given.quick)
            compute, trials = found["compute"], found["tried"]
            note(f"the plain loop is fastest with {compute}")
        for turn in range(given.rounds):
            turns.append(_turn(base, folder=folder / f"seed{seed}" / f"turn{turn}", compute=compute, given=given))
            note(f"seed {seed}, round {turn + 1}: {turns[-1]['times']}")
    if not given.folder:
        shutil.rmtree(folder, ignore_errors=True)
    return figures(turns, given=given, compute=compute, trials=trials)


def made(folder: Path, *, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """The fleet is generated, imported and dealt; its task for every side."""
    from bench_plants_training import renamed

    from cluster.catalog import Catalog
    from cluster.imports import import_plant
    from cluster.storage import PlantFiles
    from jobs.recipe import Recipe, Stage
    from plants.plant import Fleet, Trunk, load_fleet
    from plants.synthetic import make_fleet

    note(f"making the embedded fleet, seed {seed}, scale {given.scale}")
    loaded = load_fleet(make_fleet(folder / "fleet", seed=seed, scale=given.scale))
    wanted = given.plants or [plant.name for plant in loaded.plants if plant.name != "fargo"]
    trunk = loaded.trunks[0].model_copy(update={"cuts": (0, 1)})
    if given.backbone:
        trunk = Trunk(backbone=given.backbone, weights=given.weights, size_px=given.size_px, cuts=(0, 1))
    raw = loaded.model_copy(update={"trunks": (trunk,)}).model_dump(mode="json")
    raw["plants"] = [plant for plant in raw["plants"] if plant["name"] in wanted]
    if given.more:
        file = make_fleet(folder / "more", seed=seed + 100, scale=given.scale, only=given.more)
        raw["plants"] += renamed(file, suffix="2")
    fleet = Fleet.model_validate(raw)
    catalog = Catalog.of(fleet)
    for plant in fleet.plants:
        import_plant(catalog, fleet, plant, files=PlantFiles(), now=datetime.now(UTC))
    recipe = Recipe(stages=(Stage(cut=1, epochs=given.epochs),), patience=given.patience or given.epochs)
    return {
        "fleet": fleet.model_dump(mode="json"),
        "recipe": recipe.model_dump(mode="json"),
        "plain_epochs": given.plain_epochs or given.epochs,
        "seed": seed,
        "slots": given.slots,
        "trainers": given.trainers,
        "at_once": given.at_once,
    }


def _turn(base: dict[str, Any], *, folder: Path, compute: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """Every side once, on a store and a cache that hold nothing but the imported labels."""
    sides = {"ours": _side("ours", base, folder=folder), "plain": _side("plain", base, folder=folder, compute=compute)}
    sides["pure"] = _side("pure", base, folder=folder)
    sides["pure_at_once"] = _at_once("pure", base, folder=folder, num=given.slots)
    if given.full:
        sides["full"] = _side("full", base, folder=folder, compute=compute)
    if given.trainers:
        sides["trainers"] = _side("trainers", base, folder=folder)
    for side in sides.values():
        side.pop("ended_at", None)
    times = {name: round(side["seconds"], 2) for name, side in sides.items()}
    return {"seed": base["seed"], "times": times, **sides}


def _side(role: str, base: dict[str, Any], *, folder: Path, **more: Any) -> dict[str, Any]:
    return _begun(role, base, folder=folder, **more).result(timeout_s=SIDE_TIMEOUT_S)


def _begun(role: str, base: dict[str, Any], *, folder: Path, **more: Any) -> Child:
    store = folder / f"{role}-store"
    shutil.copytree(base["fleet"]["store"], store)
    task = {**base, **more, "fleet": {**base["fleet"], "store": str(store)}, "home": str(folder / f"{role}-home")}
    return Child(__file__, role, task, folder=folder)


def _at_once(role: str, base: dict[str, Any], *, folder: Path, num: int) -> dict[str, Any]:
    """The mean of so many processes that each do all of a side's work, at once: what these cores can do together."""
    children = [_begun(role, base, folder=folder / f"at-once-{i}") for i in range(num)]
    found = [child.result(timeout_s=SIDE_TIMEOUT_S) for child in children]
    return {key: mean([one[key] for one in found]) for key in found[0]}


# --- the sides, each in its own process


def _given(task: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Settings, recipe and fleet of a task."""
    from cluster.settings import Settings
    from jobs.recipe import Recipe
    from plants.plant import Fleet

    settings = Settings(home=Path(task["home"]), slots=task["slots"])
    return settings, Recipe.model_validate(task["recipe"]), Fleet.model_validate(task["fleet"])


def _opened(task: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Settings, recipe and material of a task."""
    from jobs.material import Material

    settings, recipe, fleet = _given(task)
    return settings, recipe, Material(fleet, cache=settings.cache, recipe=recipe)


def _wanted(task: dict[str, Any], *, recipe: Any, material: Any) -> Any:
    """The plan of the fleet, reduced to the kinds compared here."""
    from jobs.fleet import planned

    plan = planned(material.fleet, material=material, recipe=recipe, seeds=(task["seed"],))
    return _reduced(plan)


def _reduced(plan: Any) -> Any:
    from jobs.plan import Plan

    runs = tuple(run for run in plan.runs if run.kind in KINDS)
    return Plan(fleet=plan.fleet, data_digest=plan.data_digest, runs=runs, trunk=plan.trunk)


def ours(task: dict[str, Any]) -> dict[str, Any]:
    """The fleet on lanes, by the call that `crossplant train` makes."""
    from jobs import fleet as job

    settings, recipe, fleet = _given(task)
    full, events = job.planned, []
    job.planned = lambda *args, **kwargs: _reduced(full(*args, **kwargs))
    trained = job.train_fleet(
        fleet,
        settings=settings,
        recipe=recipe,
        seeds=(task["seed"],),
        say=lambda event: events.append({"heard": time.time(), **event}),
    )
    ended = time.time()
    if trained.failed:
        raise SystemExit(f"failed: {trained.failed}")
    phases = _phases(events, begun=task["begun_at"], ended=ended)
    return {
        "ended_at": ended,
        "steady_s": phases["prepare"] + phases["lanes"],
        "phases": phases,
        "run_s": {run["name"]: run["seconds"] for run in trained.to_json()["runs"]},
        "num_runs": len(trained.plan.runs),
        "epochs": sum(e["kind"] == "epoch" and e["stage"] > 0 for e in events),
        "quality": _quality_of_exports(trained.plan, material=_opened(task)[2]),
    }


def _phases(events: list[dict[str, Any]], *, begun: float, ended: float) -> dict[str, float]:
    """Where the seconds went, in order; all but `prepare` and `lanes` is starting and ending processes."""
    prepared = [e for e in events if e["kind"] == "prepared"]
    (planned_at,) = [e["heard"] for e in events if e["kind"] == "plan"]
    first = min(e["at"] - e["seconds"] for e in prepared)
    last = max(e["at"] for e in prepared)
    done = max(e["at"] for e in events if e["kind"] == "done")
    marks = [begun, planned_at, first, last, done, ended]
    names = ("import_and_plan", "export_and_start_lanes", "prepare", "lanes", "end_lanes")
    return {name: b - a for name, a, b in zip(names, marks, marks[1:], strict=False)}


def pure(task: dict[str, Any]) -> dict[str, Any]:
    """The same preparation and the same runs, one after another in one process on one thread."""
    even_niceness()
    import torch

    torch.set_num_threads(1)
    _, recipe, material = _opened(task)
    plan = _wanted(task, recipe=recipe, material=material)
    from jobs.fit import fit_run

    start = time.time()
    material.export_trunk_once()
    exported_s = time.time() - start
    for plant in material.fleet.plants:
        material.data(plant.name)
    prepared_s = time.time() - start - exported_s
    for spec in sorted(plan.runs, key=lambda run: run.parent is not None):
        fit_run(spec, material=material, plan=plan)
    ended = time.time()
    return {
        "ended_at": ended,
        "compute_s": ended - start - exported_s,
        "export_s": exported_s,
        "prepare_s": prepared_s,
    }


def plain(task: dict[str, Any]) -> dict[str, Any]:
    """timm and a DataLoader, plant by plant."""
    even_niceness()
    from plain_training import fit_all

    from jobs.scoring import Exports

    _, recipe, material = _opened(task)
    plan = _wanted(task, recipe=recipe, material=material)
    start = time.time()
    recipe = _with_epochs(recipe, task["plain_epochs"])
    labels = _labels(material)
    fits = fit_all(plan.to_json()["runs"], labels=labels, fleet=material.fleet, recipe=recipe, compute=task["compute"])
    ended = time.time()
    quality = _quality(
        plan, exports=Exports(material, plan=plan), answer=lambda run_id, inputs: _answer(fits[run_id], inputs)
    )
    steps = sum(found.steps for found in fits.values())
    return {"ended_at": ended, "steady_s": ended - start, "steps": steps, "quality": quality}


def full(task: dict[str, Any]) -> dict[str, Any]:
    """The plain loop with the whole net unfrozen: one epoch of the largest plant, and all runs in proportion."""
    even_niceness()
    import torch
    from plain_training import THREADS, fit, taught

    torch.set_num_threads(THREADS)
    _, recipe, material = _opened(task)
    plan, labels = _wanted(task, recipe=recipe, material=material), _labels(material)
    spec, seed = material.fleet.trunks[0], material.fleet.seed
    sources = {n: taught(material.fleet.plant(n), labels=rows, spec=spec, seed=seed) for n, rows in labels.items()}
    name = max(sources, key=lambda n: sources[n].rows.num_train)
    given: dict[str, Any] = {"fleet": material.fleet, "spec": spec, "seed": seed, "compute": task["compute"]}
    start = time.time()
    fit([sources[name]], **given, recipe=_with_epochs(recipe, 2), is_full=True)
    epoch_s = (time.time() - start) / 2
    images = sum(sources[n].rows.num_train for run in plan.runs for n in run.plants)
    whole_s = epoch_s / sources[name].rows.num_train * images * task["plain_epochs"]
    return {"ended_at": time.time(), "epoch_s": epoch_s, "whole_s": whole_s, "plant": name}


def _with_epochs(recipe: Any, epochs: int) -> Any:
    (stage,) = recipe.stages
    patience = epochs if recipe.patience >= stage.epochs else recipe.patience
    return recipe.model_copy(update={"stages": (stage.model_copy(update={"epochs": epochs}),), "patience": patience})


def tune(task: dict[str, Any]) -> dict[str, Any]:
    """What makes the plain loop fastest here, tried on the largest plant."""
    even_niceness()
    import torch
    from plain_training import COMPUTES, THREADS, fastest, taught

    if task["is_quick"]:
        return {"compute": COMPUTES[1], "tried": []}

    torch.set_num_threads(THREADS)
    _, recipe, material = _opened(task)
    fleet, labels = material.fleet, _labels(material)
    name = max(labels, key=lambda name: len(labels[name]))
    source = taught(fleet.plant(name), labels=labels[name], spec=fleet.trunks[0], seed=fleet.seed)
    compute, tried = fastest(source, fleet=fleet, spec=fleet.trunks[0], recipe=recipe)
    return {"compute": compute, "tried": tried}


def trainers(task: dict[str, Any]) -> dict[str, Any]:
    """One TorchTrainer a run: the pooled run, then own and warm of some plants, `at_once` of them side by side."""
    import os

    os.environ |= {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
    import ray

    from cluster import session

    settings, recipe, material = _opened(task)
    plan = _wanted(task, recipe=recipe, material=material)
    material.store.write_json(f"runs/{plan.plan_id}/plan.json", plan.to_json())
    material.export_trunk_once()
    session.start(settings, num_slots=settings.slots)
    config = {**material.to_config(), "plan": plan.to_json(), "threads": settings.threads}
    folder = str(settings.home / "ray_train")
    parents = [run.run_id for run in plan.runs if run.kind == "pooled"]
    chosen = [plant.name for plant in material.fleet.plants][: task["trainers"]]
    shared_s = _in_trainers(parents, config=config, folder=folder, at_once=1)
    own = [run.run_id for kind in ("own", "warm") for run in plan.runs if run.kind == kind and run.target in chosen]
    own_s = _in_trainers(own, config=config, folder=folder, at_once=task["at_once"])
    ended = time.time()
    for run_id in (*parents, *own):
        assert material.store.exists(f"runs/{plan.plan_id}/{run_id}/model.json"), run_id
    ray.shutdown()
    of = len([run for run in plan.runs if run.kind in ("own", "warm")])
    return {"ended_at": ended, "shared_s": shared_s, "own_s": own_s, "runs": len(own), "of": of}


def _in_trainers(run_ids: list[str], *, config: dict[str, Any], folder: str, at_once: int) -> float:
    """Seconds for these runs, each fitted by a TorchTrainer of its own with one worker."""
    import ray

    def loop(given: dict[str, Any]) -> None:
        import torch

        from jobs.fit import fit_run
        from jobs.material import Material
        from jobs.plan import Plan

        torch.set_num_threads(given["threads"])
        plan = Plan.from_json(given["plan"])
        fit_run(plan.run(given["run_id"]), material=Material.from_config(given), plan=plan)

    @ray.remote(num_cpus=0, max_retries=0)
    def train(run_id: str) -> None:
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        TorchTrainer(
            loop,
            train_loop_config={**config, "run_id": run_id},
            scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(name=run_id, storage_path=folder),
        ).fit()

    start = time.time()
    waiting, running = list(run_ids), []
    while waiting or running:
        while waiting and len(running) < at_once:
            running.append(train.remote(waiting.pop(0)))
        ready, running = ray.wait(running, num_returns=1, timeout=600)
        ray.get(ready)
    return time.time() - start


# --- quality


def _labels(material: Any) -> dict[str, Any]:
    found = {}
    for plant in material.fleet.plants:
        rows = material.catalog.rows(plant.name)
        found[plant.name] = rows[rows["role"].isin(("train", "select"))]
    return found


def _quality_of_exports(plan: Any, *, material: Any) -> dict[str, dict[str, float]]:
    """Kind -> plant -> macro-F1 on decide, by the exported files; a refused warm start counts as the plant's own."""
    from jobs.scoring import Exports

    exports = Exports(material, plan=plan)

    def answer(run_id: str, inputs: Any) -> Any:
        is_there = material.store.exists(f"runs/{plan.plan_id}/{run_id}/model.safetensors")
        return inputs.probabilities(run_id if is_there else run_id.replace("warm-", "own-", 1))

    return _quality(plan, exports=exports, answer=answer)


def _answer(found: Any, inputs: Any) -> tuple[Any, tuple[str, ...]]:
    """Leaf probabilities of a role's inputs by the plain net."""
    from plain_training import logits

    from plants.scores import softmax

    return softmax(logits(found.net, inputs.pixels[inputs.inputs]).numpy()), found.leaves


def _quality(plan: Any, *, exports: Any, answer: Any) -> dict[str, dict[str, float]]:
    """Kind -> plant -> macro-F1 per part on decide: views, frames and parts pooled by one and the same code."""
    import numpy as np

    from jobs.scoring import role_inputs
    from jobs.selection import macro_f1

    fleet = exports.material.fleet
    found: dict[str, dict[str, float]] = {kind: {} for kind in KINDS}
    for plant in fleet.plants:
        inputs = role_inputs(plant.name, role="decide", exports=exports)
        if inputs is None:
            continue
        for run in plan.runs:
            if plant.name not in run.plants:
                continue
            scores = inputs.scores([answer(run.run_id, inputs)], leaf_sets=fleet.leaf_sets(plant))
            said = np.asarray(scores.classes, dtype=object)[np.asarray(scores.probs).argmax(1)]
            found[run.kind][plant.name] = macro_f1(np.asarray(scores.truth, dtype=object), said)
    return found


# --- figures


def figures(
    turns: list[dict[str, Any]], *, given: argparse.Namespace, compute: dict[str, Any], trials: list[dict[str, Any]]
) -> dict[str, Any]:
    """What the turns say, ratios above 1 in our favour."""

    def total(side: str, key: str = "seconds") -> float:
        return sum(turn[side][key] for turn in turns)

    lanes = given.slots
    found: dict[str, Any] = {
        "name": "fleet",
        "ratio": round(total("plain") / total("ours"), 2),
        "ratio_steady": round(total("plain", "steady_s") / total("ours", "steady_s"), 2),
        "ours": _summary(turns, side="ours", keys=("seconds", "steady_s")) | {"phases": _mean_phases(turns)},
        "peer": {
            "what": "plain timm + DataLoader, plant by plant, frames decoded once into memory",
            **_summary(turns, side="plain", keys=("seconds", "steady_s")),
            "compute": compute,
            "tried": trials,
        },
        "equal_quality": _equality(turns),
        "pure_compute": {
            **_summary(turns, side="pure", keys=("seconds", "compute_s", "export_s")),
            "wall_over_pure": round(total("ours") / (total("pure", "compute_s") / lanes), 3),
            "steady_over_pure": round(total("ours", "steady_s") / (total("pure", "compute_s") / lanes), 3),
            "at_once": {
                "what": f"{lanes} such processes at once, each with all the work: of what these cores can do together",
                **_summary(turns, side="pure_at_once", keys=("compute_s",)),
                "steady_over_pure": round(total("ours", "steady_s") / (total("pure_at_once", "compute_s") / lanes), 3),
            },
        },
        "is_smoke_run": given.quick,
        "runs": turns[0]["ours"]["num_runs"],
        "epochs": {
            "ours": turns[0]["ours"]["epochs"],
            "a_run": given.epochs,
            "a_plain_run": given.plain_epochs or given.epochs,
            "patience": given.patience,
        },
        "scale": given.scale,
        "seeds": given.seeds,
        "rounds": given.rounds,
        "turns": [turn["times"] | {"seed": turn["seed"]} for turn in turns],
        "machine": machine(threads={"lanes": lanes, "lane": 1, "plain": 2, "pure": 1}),
    }
    if given.trainers:
        found["one_trainer_a_run"] = _scaled(turns)
    if given.full:
        found["full_fine_tuning"] = {
            "ratio": round(total("full", "whole_s") / total("ours"), 2),
            "ratio_steady": round(total("full", "whole_s") / total("ours", "steady_s"), 2),
            "seconds_scaled": _summary(turns, side="full", keys=("whole_s", "epoch_s")),
            "measured": f"two epochs of {turns[0]['full']['plant']}; all runs and epochs in proportion to their images",
        }
    return found


def _summary(turns: list[dict[str, Any]], *, side: str, keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: round(mean([turn[side][key] for turn in turns]) or 0.0, 2) for key in keys}


def _mean_phases(turns: list[dict[str, Any]]) -> dict[str, float]:
    names = turns[0]["ours"]["phases"]
    return {name: round(mean([turn["ours"]["phases"][name] for turn in turns]) or 0.0, 2) for name in names}


def _scaled(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """One trainer a run for all runs, from the part of them that was run."""
    whole = []
    for turn in turns:
        side = turn["trainers"]
        rest = side["seconds"] - side["own_s"]
        whole.append(rest + side["own_s"] * side["of"] / side["runs"])
    side = turns[0]["trainers"]
    return {
        "ratio": round(sum(whole) / sum(turn["ours"]["seconds"] for turn in turns), 2),
        "seconds_scaled": round(mean(whole) or 0.0, 2),
        "measured": f"the pooled run and {side['runs']} of {side['of']} own and warm runs; the rest in proportion",
        "seconds_measured": [round(turn["trainers"]["seconds"], 2) for turn in turns],
    }


def _equality(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Macro-F1 in points of the worst plant, by kind: the mean over turns at each plant, then the lowest."""
    by_kind, gaps = {}, []
    for kind in KINDS:
        row: dict[str, Any] = {}
        for side in ("ours", "plain"):
            plants = {
                name: 100 * (mean([turn[side]["quality"][kind][name] for turn in turns]) or 0.0)
                for name in turns[0][side]["quality"][kind]
            }
            if plants:
                row[side] = {
                    "worst": round(min(plants.values()), 2),
                    "mean": round(mean(list(plants.values())) or 0, 2),
                }
                row[side]["by_plant"] = {name: round(value, 1) for name, value in plants.items()}
        if len(row) == 2:
            row["difference"] = round(row["ours"]["worst"] - row["plain"]["worst"], 2)
            gaps.append(row["difference"])
            by_kind[kind] = row
    return {
        "measure": "macro-F1 per part on decide, points, worst plant",
        "is_equal": all(abs(gap) <= 1 for gap in gaps),
        "ours_is_not_worse": all(gap >= -1 for gap in gaps),
        "by_kind": by_kind,
    }


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two small plants, two epochs: a smoke run")
    parser.add_argument("--scale", type=float, default=1.0, help="parts of every plant, times this")
    parser.add_argument("--plants", nargs="+", help="default: all but fargo")
    parser.add_argument("--more", nargs="+", default=[], help="these plants again, drawn by another seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of fleet, splits and training")
    parser.add_argument("--rounds", type=int, default=1, help="turns a seed; sides alternate")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument(
        "--plain-epochs", type=int, default=0, help="of the plain loop, if it needs others; 0: the same"
    )
    parser.add_argument("--patience", type=int, default=0, help="epochs without gain before a run ends; 0: never")
    parser.add_argument("--trainers", type=int, help="plants whose own and warm runs get a TorchTrainer each; 2")
    parser.add_argument("--full", action="store_true", help="also full fine-tuning, in part")
    parser.add_argument("--at-once", type=int, default=2, help="TorchTrainers side by side")
    parser.add_argument("--slots", type=int, default=2, help="lanes")
    parser.add_argument("--backbone", help="another timm ResNet instead of the embedded one, e.g. resnet18")
    parser.add_argument("--weights", default="none", help="of --backbone: none (random: speed only) or a file")
    parser.add_argument("--size-px", type=int, default=224, help="of --backbone")
    parser.add_argument("--folder", help="where everything is kept; a temporary folder otherwise")
    return parser


if __name__ == "__main__":
    roles = {"ours": ours, "pure": pure, "plain": plain, "tune": tune, "trainers": trainers, "full": full}
    entry(roles, parser=arguments(), compare=compare)
