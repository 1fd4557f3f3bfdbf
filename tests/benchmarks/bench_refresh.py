"""What it costs to refresh a fleet when a tenth of its labels is new, against training it.

The embedded fleet is imported with nine tenths of each plant's lots and trained by the default recipe: the first cost.
It is compared, as a refresh goes on with what was decided for. Then the other lots come, and two sides follow in turn:
`crossplant train --refresh` on the store and cache of the first training, and the whole training again from nothing.
Each is a process of its own, measured from its start; `steady` leaves imports, Ray's start and its end out. Quality is
looked at before cost: macro-F1 per part on `decide` of the model that `compare` chooses at each plant, worst plant.

    .venv/bin/python tests/benchmarks/bench_refresh.py --seeds 0 1 2
    .venv/bin/python tests/benchmarks/bench_refresh.py --quick          a smoke run; its figures mean nothing
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from measuring import Child, entry, machine, mean, note

TIMEOUT_S = 3600
SHARE = 0.1
"""Of every plant's lots, the last ones, that come later."""


def compare(given: argparse.Namespace) -> dict[str, Any]:
    """The figures of all turns."""
    if given.quick:
        given.scale, given.epochs, given.seeds = 0.25, 2, given.seeds[:1]
        given.plants = given.plants or ["arden", "essen"]
    folder = Path(given.folder or tempfile.mkdtemp(prefix="bench-refresh-"))
    turns = []
    for seed in given.seeds:
        turns.append(_turn(folder / f"seed{seed}", seed=seed, given=given))
        note(f"seed {seed}: {turns[-1]['times']}, steady {turns[-1]['steady']}")
    if not given.folder:
        shutil.rmtree(folder, ignore_errors=True)
    return figures(turns, given=given)


def _turn(folder: Path, *, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    fleet, arrive = made(folder, seed=seed, given=given)
    base = {"seed": seed, "slots": given.slots, "epochs": given.epochs}
    ours, other = folder / "store", folder / "scratch-store"

    def task(role: str, store: Path, home: str, **more: Any) -> dict[str, Any]:
        words = {**base, "fleet": {**fleet, "store": str(store)}, "home": str(folder / home), **more}
        return Child(__file__, role, words, folder=folder / f"{role}-{home}").result(timeout_s=TIMEOUT_S)

    imported = [task("imports", ours, "home")["seconds"]]
    first = task("trains", ours, "home")
    decided = task("compares", ours, "home")
    arrive()
    imported.append(task("imports", ours, "home")["seconds"])
    shutil.copytree(ours, other)
    shutil.rmtree(other / "runs")
    shutil.rmtree(other / "packs")
    turns: dict[str, Callable[[], dict[str, Any]]] = {
        "refresh": lambda: task("refreshes", ours, "home"),
        "scratch": lambda: task("trains", other, "scratch-home"),
    }
    sides = {name: turns[name]() for name in sorted(turns, reverse=bool(seed % 2))}
    sides["first"] = first
    quality = {
        "first": decided["quality"],
        "refresh": task("compares", ours, "home")["quality"],
        "scratch": task("compares", other, "scratch-home")["quality"],
    }
    return {
        "seed": seed,
        "times": {name: round(side["seconds"], 2) for name, side in sides.items()},
        "steady": {name: round(side["steady_s"], 2) for name, side in sides.items()},
        "phases": {name: side["phases"] for name, side in sides.items()},
        "runs": {name: side["runs"] for name, side in sides.items()},
        "import_s": [round(seconds, 2) for seconds in imported],
        "quality": quality,
    }


def made(folder: Path, *, seed: int, given: argparse.Namespace) -> tuple[dict[str, Any], Callable[[], None]]:
    """The fleet with nine tenths of its lots labelled, as plain data, and what labels the others."""
    import pandas as pd

    from plants.plant import load_fleet
    from plants.synthetic import make_fleet

    note(f"making the embedded fleet, seed {seed}, scale {given.scale}")
    fleet = load_fleet(make_fleet(folder / "fleet", seed=seed, scale=given.scale, only=given.plants or ()))
    whole = {Path(str(plant.labels)): pd.read_csv(str(plant.labels)) for plant in fleet.plants}
    for file, table in whole.items():
        lots = table["lot"].drop_duplicates()
        table[table["lot"].isin(lots.iloc[: round(len(lots) * (1 - SHARE))])].to_csv(file, index=False)

    def arrive() -> None:
        for file, table in whole.items():
            table.to_csv(file, index=False)

    return fleet.model_dump(mode="json"), arrive


# --- the roles, each in its own process


def _given(task: dict[str, Any]) -> tuple[Any, Any]:
    from cluster.settings import Settings
    from plants.plant import Fleet

    return Fleet.model_validate(task["fleet"]), Settings(home=Path(task["home"]), slots=task["slots"])


def imports(task: dict[str, Any]) -> dict[str, Any]:
    """The fleet's rows are imported; lots that were dealt keep their roles."""
    from cluster.catalog import Catalog
    from cluster.imports import import_plant
    from cluster.storage import PlantFiles

    fleet, _ = _given(task)
    catalog = Catalog.of(fleet)
    for plant in fleet.plants:
        import_plant(catalog, fleet, plant, files=PlantFiles(), now=datetime.now(UTC))
    return {"ended_at": time.time()}


def trains(task: dict[str, Any]) -> dict[str, Any]:
    """The whole plan, by the call that `crossplant train` makes."""
    from jobs.fleet import train_fleet
    from jobs.recipe import default_recipe

    fleet, settings = _given(task)
    stage = {"epochs": task["epochs"]} if task["epochs"] else {}
    recipe = default_recipe(fleet.trunks[0].cuts, **stage)
    events: list[dict[str, Any]] = []
    trained = train_fleet(fleet, settings=settings, recipe=recipe, seeds=(task["seed"],), say=_heard(events))
    return _measured(trained, events=events, begun=task["begun_at"])


def refreshes(task: dict[str, Any]) -> dict[str, Any]:
    """What was decided for, by the call that `crossplant train --refresh` makes."""
    from jobs.refresh import refresh_fleet

    fleet, settings = _given(task)
    events: list[dict[str, Any]] = []
    return _measured(refresh_fleet(fleet, settings=settings, say=_heard(events)), events=events, begun=task["begun_at"])


def _heard(events: list[dict[str, Any]]) -> Callable[[Any], None]:
    return lambda event: events.append({"heard": time.time(), **event})


def _measured(trained: Any, *, events: list[dict[str, Any]], begun: float) -> dict[str, Any]:
    """When the work ended, and where the seconds went; all but `prepare` and `runs` is starting and ending."""
    ended = time.time()
    if trained.failed:
        raise SystemExit(f"failed: {trained.failed}")
    prepared = [event for event in events if event["kind"] == "prepared"]
    first = min(event["at"] - event["seconds"] for event in prepared)
    last = max(event["at"] for event in prepared)
    done = max(event["at"] for event in events if event["kind"] == "done")
    marks = {"start": first - begun, "prepare": last - first, "runs": done - last, "end": ended - done}
    return {
        "ended_at": ended,
        "steady_s": done - first,
        "phases": {name: round(seconds, 2) for name, seconds in marks.items()},
        "runs": {run["name"]: round(run["seconds"], 2) for run in trained.to_json()["runs"]},
    }


def compares(task: dict[str, Any]) -> dict[str, Any]:
    """What `crossplant compare` decides, and macro-F1 of it at every plant."""
    from rich.console import Console

    from jobs import verdicts

    fleet, settings = _given(task)
    with open("/dev/null", "w", encoding="utf-8") as nowhere:
        document = verdicts.compare(fleet, settings=settings, show=Console(file=nowhere))
    matrix = document["matrix"]
    return {
        "quality": {
            name: {"model": decision["model"], "macro_f1": matrix[decision["model"]][name]["macro_f1"]}
            for name, decision in document["decisions"].items()
        }
    }


# --- figures


def figures(turns: list[dict[str, Any]], *, given: argparse.Namespace) -> dict[str, Any]:
    """What the turns say; a ratio is the first cost over the refresh's."""

    def total(side: str, kind: str = "times") -> float:
        return sum(float(turn[kind][side]) for turn in turns)

    return {
        "name": "refresh",
        "ratio": round(total("first") / total("refresh"), 2),
        "ratio_steady": round(total("first", "steady") / total("refresh", "steady"), 2),
        "ours": {"what": "train --refresh", **_means(turns, side="refresh")},
        "peer": {"what": "the first training, on nine tenths of the lots", **_means(turns, side="first")},
        "scratch": {"what": "everything again from nothing, on all lots", **_means(turns, side="scratch")},
        "share_of_first_cost": round(total("refresh") / total("first"), 3),
        "share_of_first_cost_steady": round(total("refresh", "steady") / total("first", "steady"), 3),
        "equal_quality": _equality(turns),
        "is_smoke_run": given.quick,
        "scale": given.scale,
        "seeds": given.seeds,
        "turns": turns,
        "machine": machine(threads={"lanes": given.slots, "lane": 1, "refresh": given.slots}),
    }


def _means(turns: list[dict[str, Any]], *, side: str) -> dict[str, Any]:
    phases = turns[0]["phases"][side]
    return {
        "seconds": round(mean([turn["times"][side] for turn in turns]) or 0.0, 2),
        "steady_s": round(mean([turn["steady"][side] for turn in turns]) or 0.0, 2),
        "phases": {name: round(mean([turn["phases"][side][name] for turn in turns]) or 0.0, 2) for name in phases},
        "num_runs": len(turns[0]["runs"][side]),
    }


def _equality(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Macro-F1 in points of the chosen models: the mean over turns at each plant, then the lowest plant."""
    by_side = {}
    for side in ("first", "refresh", "scratch"):
        values = {
            name: round(100 * (mean([turn["quality"][side][name]["macro_f1"] for turn in turns]) or 0.0), 1)
            for name in turns[0]["quality"][side]
        }
        by_side[side] = {"worst": min(values.values()), "mean": round(mean(list(values.values())) or 0.0, 1)} | values
    gap = round(by_side["refresh"]["worst"] - by_side["scratch"]["worst"], 1)
    return {
        "measure": "macro-F1 per part on decide of the chosen models, points",
        "difference_at_the_worst": gap,
        "refresh_is_not_behind": gap >= -1,
        "by_side": by_side,
    }


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two small plants, two epochs: a smoke run")
    parser.add_argument("--scale", type=float, default=1.0, help="parts of every plant, times this")
    parser.add_argument("--plants", nargs="+", help="default: all six")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of fleet, splits and training")
    parser.add_argument("--epochs", type=int, default=0, help="of a stage; 0: the recipe's own")
    parser.add_argument("--slots", type=int, default=2, help="lanes")
    parser.add_argument("--folder", help="where everything is kept; a temporary folder otherwise")
    return parser


if __name__ == "__main__":
    roles = {"imports": imports, "trains": trains, "refreshes": refreshes, "compares": compares}
    entry(roles, parser=arguments(), compare=compare)
