"""Whether a plant of many costs more to train than one of few: 2, 4, 8, 16 and 32 plants of the embedded fleet.

Every count has the same mix, `arden` and `essen`, each pair drawn by another seed, and is trained by the default recipe
in a process of its own on an empty store and cache, measured from its start; `steady` leaves imports, Ray's start and
its end out. Memory is the sum over all its processes, Ray's included, of proportional set sizes, twice a second; what
is mapped from files, which the system may drop, is told apart. Flat means that no count takes over 20 % more a plant
than a smaller one. Quality is looked at first: every run must be done, and macro-F1 on `decide` of the own models of
the plants that every count has is beside it.

    .venv/bin/python tests/benchmarks/bench_plants_training.py --out plants-training.png
    .venv/bin/python tests/benchmarks/bench_plants_training.py --quick          a smoke run; its figures mean nothing
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from measuring import Child, entry, machine, mean, note

PAIR = ("arden", "essen")
COUNTS = (2, 4, 8, 16, 32)
TIMEOUT_S = 4 * 3600
FLAT = 1.2


def compare(given: argparse.Namespace) -> dict[str, Any]:
    """The figures of every count."""
    if given.quick:
        given.scale, given.epochs, given.counts = 0.1, 2, [2, 4]
    folder = Path(given.folder or tempfile.mkdtemp(prefix="bench-plants-"))
    plants = made(folder / "plants", count=max(given.counts), given=given)
    rows: list[dict[str, Any]] = []
    for turn in range(given.rounds):
        for count in sorted(given.counts, reverse=bool(turn % 2)):
            rows.append(_turn(plants[:count], folder=folder / f"round{turn}" / f"{count}", given=given))
            note(f"round {turn + 1}: {rows[-1]}")
    if not given.folder:
        shutil.rmtree(folder, ignore_errors=True)
    return figures(rows, given=given)


def made(folder: Path, *, count: int, given: argparse.Namespace) -> list[dict[str, Any]]:
    """So many plants as a fleet's file lists them, each pair by a seed of its own; no two share a lot."""
    from plants.synthetic import make_fleet

    plants: list[dict[str, Any]] = []
    for seed in range(-(-count // len(PAIR))):
        note(f"making plants {seed * len(PAIR) + 1} and {seed * len(PAIR) + 2} of {count}")
        file = make_fleet(folder / f"seed{seed}", seed=seed, scale=given.scale, only=PAIR)
        plants += renamed(file, suffix=f"{seed:02d}")
    return plants


def renamed(file: Path, *, suffix: str) -> list[dict[str, Any]]:
    """The plants of an embedded fleet's file under other names, with lots and parts that no other fleet has."""
    import pandas as pd
    import yaml

    plants = []
    for plant in yaml.safe_load(file.read_text(encoding="utf-8"))["plants"]:
        labels = file.parent / plant["labels"]
        table = pd.read_csv(labels)
        for column in ("lot", "part_id"):
            table[column] = [f"{suffix}-{value}" for value in table[column]]
        table.to_csv(labels, index=False)
        where = {"images": str(file.parent / plant["images"]), "labels": str(labels)}
        plants.append({**plant, **where, "name": f"{plant['name']}{suffix}"})
    return plants


def _turn(plants: list[dict[str, Any]], *, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    from plants.synthetic import TRUNK

    shares = {"train": 0.5, "select": 0.1, "decide": 0.2, "test": 0.2}
    fleet = {"fleet": "many", "store": str(folder / "store"), "synthetic": True, "trunks": [TRUNK], "shares": shares}
    task = {
        "fleet": {**fleet, "plants": plants},
        "home": str(folder / "home"),
        "slots": given.slots,
        "epochs": given.epochs,
    }
    Child(__file__, "imports", task, folder=folder).result(timeout_s=TIMEOUT_S)
    found = Child(__file__, "trains", task, folder=folder).result(timeout_s=TIMEOUT_S)
    found |= Child(__file__, "judges", task, folder=folder).result(timeout_s=TIMEOUT_S)
    count = len(plants)
    return {
        "plants": count,
        "seconds": round(found["seconds"], 2),
        "steady_s": round(found["steady_s"], 2),
        "seconds_a_plant": round(found["seconds"] / count, 3),
        "steady_s_a_plant": round(found["steady_s"] / count, 3),
        **found["memory_mb"],
        "peak_mb_a_plant": round(found["memory_mb"]["peak_mb"] / count, 1),
        "num_runs": found["num_runs"],
        "macro_f1": found["macro_f1"],
    }


# --- the roles, each in its own process


def _given(task: dict[str, Any]) -> tuple[Any, Any, Any]:
    from cluster.settings import Settings
    from jobs.recipe import default_recipe
    from plants.plant import Fleet

    fleet = Fleet.model_validate(task["fleet"])
    stage = {"epochs": task["epochs"]} if task["epochs"] else {}
    return fleet, Settings(home=Path(task["home"]), slots=task["slots"]), default_recipe(fleet.trunks[0].cuts, **stage)


def imports(task: dict[str, Any]) -> dict[str, Any]:
    """All plants are imported."""
    from cluster.catalog import Catalog
    from cluster.imports import import_plant
    from cluster.storage import PlantFiles

    fleet, _, _ = _given(task)
    catalog = Catalog.of(fleet)
    for plant in fleet.plants:
        import_plant(catalog, fleet, plant, files=PlantFiles(), now=datetime.now(UTC))
    return {}


def trains(task: dict[str, Any]) -> dict[str, Any]:
    """The whole plan, by the call that `crossplant train` makes, while memory is watched."""
    with Memory() as memory:
        from jobs.fleet import train_fleet

        fleet, settings, recipe = _given(task)
        events: list[dict[str, Any]] = []
        trained = train_fleet(fleet, settings=settings, recipe=recipe, say=lambda event: events.append(dict(event)))
        ended = time.time()
    if trained.failed:
        raise SystemExit(f"failed: {trained.failed}")
    first = min(event["at"] - event["seconds"] for event in events if event["kind"] == "prepared")
    done = max(event["at"] for event in events if event["kind"] == "done")
    return {
        "ended_at": ended,
        "steady_s": done - first,
        "memory_mb": memory.peaks(),
        "num_runs": len(trained.plan.runs),
    }


class Memory:
    """The peak of the memory of this process and all below it, while a block lasts."""

    EVERY_S = 0.5

    def __init__(self) -> None:
        self.found: list[dict[str, float]] = []
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop.set()
        self.thread.join()

    def peaks(self) -> dict[str, float]:
        """Of all memory, and of that which is not mapped from files, in MB."""
        names = {"peak_mb": "Pss", "peak_file_mb": "Pss_File"}
        found = {name: round(max(row[key] for row in self.found) / 1024, 1) for name, key in names.items()}
        own = max(row["Pss"] - row["Pss_File"] for row in self.found)
        return {**found, "peak_anonymous_mb": round(own / 1024, 1)}

    def _watch(self) -> None:
        while not self.stop.wait(self.EVERY_S):
            self.found.append(_pss_kb())


def _pss_kb() -> dict[str, float]:
    """The sum over this process and all below it of what /proc says, in kB."""
    import psutil

    total = {"Pss": 0.0, "Pss_File": 0.0}
    here = psutil.Process()
    for process in [here, *here.children(recursive=True)]:
        try:
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        except (OSError, psutil.Error):
            continue
        for name, _, value in (line.partition(":") for line in lines):
            if name in total:
                total[name] += float(value.split()[0])
    return total


def judges(task: dict[str, Any]) -> dict[str, Any]:
    """Macro-F1 on `decide` of the own models of the first plants, which every count has."""
    import numpy as np

    from cluster.storage import open_store
    from jobs.scoring import role_inputs
    from jobs.selection import macro_f1
    from jobs.verdicts import exports_of, latest_plan

    fleet, settings, _ = _given(task)
    exports = exports_of(fleet, settings=settings, plan=latest_plan(open_store(fleet.store)))
    found = {}
    for plant in fleet.plants[: len(PAIR)]:
        inputs = role_inputs(plant.name, role="decide", exports=exports)
        if inputs is not None:
            member = inputs.probabilities(f"own-{plant.name}-s0")
            scores = inputs.scores([member], leaf_sets=fleet.leaf_sets(plant))
            said = np.asarray(scores.classes, dtype=object)[np.asarray(scores.probs).argmax(1)]
            found[plant.name] = round(100 * macro_f1(np.asarray(scores.truth, dtype=object), said), 1)
    return {"macro_f1": found}


# --- figures


def figures(rows: list[dict[str, Any]], *, given: argparse.Namespace) -> dict[str, Any]:
    """What the rows say; a ratio is the most that a count takes a plant over what a smaller one takes."""
    keys = ("seconds_a_plant", "steady_s_a_plant", "peak_mb_a_plant")
    counts = sorted({row["plants"] for row in rows})
    table = {key: [mean([row[key] for row in rows if row["plants"] == n]) or 0.0 for n in counts] for key in keys}
    growth = {key: round(grown(values), 3) for key, values in table.items()}
    largest, smallest = (
        [row["peak_anonymous_mb"] for row in rows if row["plants"] == n] for n in (counts[-1], counts[0])
    )
    marginal = ((mean(largest) or 0.0) - (mean(smallest) or 0.0)) / max(1, counts[-1] - counts[0])
    plot(counts, table, Path(given.out))
    return {
        "name": "plants_training",
        "ratio": growth["steady_s_a_plant"],
        "ours": {key: dict(zip(map(str, counts), values, strict=True)) for key, values in table.items()},
        "peer": "the same with fewer plants",
        "growth": growth,
        "is_flat": {key: value <= FLAT for key, value in growth.items()},
        "marginal_anonymous_mb_a_plant": round(marginal, 1),
        "equal_quality": {str(row["plants"]): row["macro_f1"] for row in rows},
        "is_smoke_run": given.quick,
        "plot": str(given.out),
        "rows": rows,
        "scale": given.scale,
        "machine": machine(threads={"lanes": given.slots, "lane": 1}),
    }


def grown(values: list[float]) -> float:
    """The largest of the values over one before it."""
    return max((later / earlier for i, earlier in enumerate(values) for later in values[i + 1 :]), default=1.0)


def plot(counts: list[int], table: dict[str, list[float]], path: Path) -> None:
    """A picture of seconds and memory a plant over the number of plants is at the path."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(counts, table["seconds_a_plant"], marker="o", label="from start to end")
    left.plot(counts, table["steady_s_a_plant"], marker="o", label="without start-up")
    left.set_ylabel("seconds a plant")
    left.legend()
    right.plot(counts, table["peak_mb_a_plant"], marker="o")
    right.set_ylabel("peak memory a plant, MB")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(n) for n in counts])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("plants")
    figure.savefig(path, dpi=120)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 and 4 small plants, two epochs: a smoke run")
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS), help="how many plants")
    parser.add_argument("--scale", type=float, default=0.5, help="parts of every plant, times this")
    parser.add_argument("--epochs", type=int, default=0, help="of a stage; 0: the recipe's own")
    parser.add_argument("--rounds", type=int, default=1, help="how often; every other one begins with the most plants")
    parser.add_argument("--slots", type=int, default=2, help="lanes")
    parser.add_argument("--out", default="plants-training.png", help="where the picture is written")
    parser.add_argument("--folder", help="where everything is kept; a temporary folder otherwise")
    return parser


if __name__ == "__main__":
    entry({"imports": imports, "trains": trains, "judges": judges}, parser=arguments(), compare=compare)
