"""What an ensemble of five costs on one trunk pass: five heads against one model, five last stages against five models.

Five heads and five last stages are drawn on one exported trunk, published alone and joined in three ways (average,
weighted, stacked). The peer of the last stages is the same five as whole separate sessions: the image decoded once,
then five trunks and five branches in one-thread ONNX Runtime, and their mean. First every ensemble's answer is compared
with numpy on what its members say alone, each run by itself in ONNX Runtime. `inside`: the endpoints' own `judge`,
sides alternate image by image in one process, in CPU time. `http`: two replicas of `serving.app.run` behind Ray, asked
for one model, for five heads and for five last stages in turns, against FastAPI around the five in two uvicorn workers,
and against two processes without a server.

    .venv/bin/python tests/benchmarks/bench_ensemble.py                              ResNet-18, float
    .venv/bin/python tests/benchmarks/bench_ensemble.py --int8                       its INT8
    .venv/bin/python tests/benchmarks/bench_ensemble.py --backbone test_resnet       the embedded one
    .venv/bin/python tests/benchmarks/bench_ensemble.py --quick                      a smoke run, without Ray
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measuring import Child, entry, even_niceness, machine, mean, note, percentile, say_ready
from members import CLASSES, KINDS, WEIGHTS, ensemble_name, joined, member_names, published

GOALS = {"heads_of_one": 0.9, "stages_of_whole": 2.3}
TOLERANCE = 1e-4
START_TIMEOUT_S = 300
ONE = {"heads": member_names("heads")[0], "stages": member_names("stages")[0]}
ASKED = {
    "one head": ONE["heads"],
    "five heads": ensemble_name("heads", "average"),
    "one stage": ONE["stages"],
    "five stages": ensemble_name("stages", "average"),
}
"""What is measured by the plant that is asked."""
WHOLE = "five whole"
SERVERLESS = "five whole, no server"

Row = dict[str, Any]


def compare(given: argparse.Namespace) -> dict[str, Any]:
    """The figures of all parts."""
    if given.quick:
        given.backbone, given.image, given.turns, given.parts = "test_resnet", "10kB", 6, ["inside"]
    is_embedded = given.backbone == "test_resnet"
    given.weights = "embedded" if is_embedded else "none"
    given.size_px = given.size_px or (128 if is_embedded else 224)
    folder = Path(given.folder or tempfile.mkdtemp(prefix="bench-ensemble-"))
    task = published(folder, given=given)
    task |= {name: getattr(given, name) for name in ("seconds", "warmup_s", "connections", "turns")}
    found: dict[str, Any] = {"name": "ensemble", "is_smoke_run": given.quick, "goals": GOALS}
    inside = Child(__file__, "inside", task, folder=folder / "inside").result(timeout_s=1200)
    found |= {"equal_quality": inside.pop("equal_quality"), "inside": inside}
    found |= {"ratio": inside["stages_of_whole"], "ours": inside["ms"]["five stages"], "peer": inside["ms"][WHOLE]}
    if "http" in given.parts:
        found["http"] = _over_http(task, folder=folder / "http", given=given)
    if not given.folder:
        shutil.rmtree(folder, ignore_errors=True)
    found["backbone"] = f"{given.backbone}, weights {given.weights}, {given.size_px} px, images of {given.image}"
    found["is_int8"] = given.int8
    found["machine"] = machine(threads={"replicas": given.replicas, "replica": 1, "whole": "1 a session"})
    return found


# --- without HTTP


def inside(task: Row) -> Row:
    """The same answers, then CPU time of an image at each side, in turns."""
    even_niceness()
    from plain_model import made

    judges = {name: _judge(task, plant=plant) for name, plant in ASKED.items()}
    whole = made(whole_task(task))
    sides: dict[str, Callable[[bytes], Any]] = {**judges, WHOLE: whole.probabilities}
    images = [Path(file).read_bytes() for file in task["images"]]
    equal = equality(task, images=images, whole=whole)
    note(f"answers: {equal}")
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(task["turns"] + 2):
        for name, ask in sides.items():
            begun = time.thread_time()
            ask(images[turn % len(images)])
            spent[name] += [1000 * (time.thread_time() - begun)] if turn > 1 else []
    found = {name: round(percentile(ms, 50) or 0.0, 3) for name, ms in spent.items()}
    note(f"ms of CPU an image: {found}")
    return {
        "ms": found,
        "heads_of_one": round(found["one head"] / found["five heads"], 3),
        "heads_of_one_stage": round(found["one stage"] / found["five heads"], 3),
        "stages_of_whole": round(found[WHOLE] / found["five stages"], 3),
        "turns": task["turns"],
        "equal_quality": equal,
    }


def _judge(task: Row, *, plant: str) -> Callable[[bytes], dict[str, float]]:
    """As the endpoint judges: decode, views, trunk, branches, pooling, decision."""
    from cluster.storage import open_store
    from serving.intake import Frame, PartRequest
    from serving.router import Target
    from serving.wiring import Shelf

    shelf = Shelf(open_store(task["store"]), folder=Path(task["shelf"]))
    predictor = shelf.predictor(plant, Target(*task["routes"][plant], 1))
    return lambda data: predictor.predict(PartRequest(plant, (Frame("0.jpg", data),))).probabilities


def whole_task(task: Row) -> Row:
    """The five last stages as separate models, for `plain_model`."""
    members = [[name, task["bundles"][name]] for name in member_names("stages")]
    return {**task, "members": members, "weights": WEIGHTS["average"]}


def equality(task: Row, *, images: list[bytes], whole: Any) -> Row:
    """How far every ensemble's answer is from numpy on its members' own answers."""
    from plain_model import Plain

    worst, flips, num = {}, 0, 0
    for kind in KINDS:
        plain = [
            Plain.of(
                {
                    **task,
                    "plant": name,
                    "bundle": task["bundles"][name],
                    "branch": f"{task['bundles'][name]}/branch.onnx",
                }
            )
            for name in member_names(kind)
        ]
        said = [[member.probabilities(data) for member in plain] for data in images]
        for way in WEIGHTS:
            judge = _judge(task, plant=ensemble_name(kind, way))
            expected = np.stack([joined(one, way=way) for one in said])
            values = np.stack([[judge(data)[name] for name in CLASSES] for data in images])
            worst[ensemble_name(kind, way)] = float(np.abs(values - expected).max())
            flips += int((values.argmax(1) != expected.argmax(1)).sum())
            num += len(images)
    apart = float(np.abs(np.stack([whole.probabilities(data) for data in images]) - _averages(task, images)).max())
    return {
        "is_equal": max(*worst.values(), apart) <= TOLERANCE and not flips,
        "compared": num,
        "flips": flips,
        "largest_difference": {name: round(value, 8) for name, value in worst.items()},
        "whole_differs": round(apart, 8),
    }


def _averages(task: Row, images: list[bytes]) -> np.ndarray:
    judge = _judge(task, plant=ASKED["five stages"])
    return np.stack([[judge(data)[name] for name in CLASSES] for data in images])


# --- over HTTP


def _over_http(task: Row, *, folder: Path, given: argparse.Namespace) -> Row:
    found: dict[str, list[Row]] = {}
    for turn in range(given.rounds):
        for side in ("ours", "peer", "limit"):
            for name, row in _measured(side, task=task, folder=folder / f"{turn}-{side}", given=given).items():
                found.setdefault(name, []).append(row)
                spent = f"{row['cpu_ms_a_request']:.1f} ms of CPU a request"
                note(f"round {turn + 1}, {name}: {row['per_s']:.1f} images/s, {spent}")
    rates = {name: mean([row["per_s"] for row in rows]) or 0.0 for name, rows in found.items()}
    spent = {name: round(mean([row["cpu_ms_a_request"] for row in rows]) or 0.0, 2) for name, rows in found.items()}
    return {
        "cpu_ms_a_request": spent,
        "by_cpu": {
            "heads_of_one": round(spent["one head"] / spent["five heads"], 3),
            "stages_of_whole": round(spent[WHOLE] / spent["five stages"], 3),
            "stages_of_whole_without_server": round(spent[SERVERLESS] / spent["five stages"], 3),
        },
        "per_s": {name: round(rate, 1) for name, rate in rates.items()},
        "per_s_by_round": {name: [round(row["per_s"], 1) for row in rows] for name, rows in found.items()},
        "p50_ms": {name: _percentile(rows, 50) for name, rows in found.items()},
        "p99_ms": {name: _percentile(rows, 99) for name, rows in found.items()},
        "heads_of_one": round(rates["five heads"] / rates["one head"], 3),
        "heads_of_one_stage": round(rates["five heads"] / rates["one stage"], 3),
        "stages_of_whole": round(rates["five stages"] / rates[WHOLE], 3),
        "stages_of_whole_without_server": round(rates["five stages"] / rates[SERVERLESS], 3),
        "num_failed": sum(row.get("num_failed", 0) for rows in found.values() for row in rows),
        "rounds": given.rounds,
        "connections": given.connections,
    }


def _percentile(rows: list[Row], q: float) -> float:
    return round(percentile([ms for row in rows for ms in row["latencies_ms"]], q) or 0.0, 1)


def _measured(side: str, *, task: Row, folder: Path, given: argparse.Namespace) -> dict[str, Row]:
    wait_s = 6 * given.seconds + 300
    if side == "limit":
        return {SERVERLESS: Child(__file__, "limit", task, folder=folder).result(timeout_s=wait_s)}
    ready = folder / "ready.json"
    server = Child(__file__, side, {**task, "ready": str(ready)}, folder=folder)
    try:
        target = server.ready(ready, timeout_s=START_TIMEOUT_S)
        found = {}
        for name, plant in ASKED.items() if side == "ours" else [(WHOLE, "")]:
            asked = {**task, **target, "form": None}
            if side == "ours":
                asked["url"] = f"{target['url']}/plants/{plant}/predict"
                asked["headers"] = [f"Authorization: Bearer {task['tokens'][plant]}"]
            before = server.cpu_s()
            child = Child(__file__, "load", asked, folder=folder / name.replace(" ", "-"))
            found[name] = child.result(timeout_s=wait_s)
            found[name]["cpu_ms_a_request"] = 1000 * (server.cpu_s() - before) / found[name]["num_sent"]
        return found
    finally:
        server.release(timeout_s=60)


def ours(task: Row) -> None:
    """The endpoints, until the comparison lets go."""
    from cluster import session
    from cluster.settings import Settings
    from serving import app

    settings = Settings(home=Path(task["home"]), slots=task["replicas"])
    address = app.run(
        settings,
        store_uri=task["store"],
        fleet="bench",
        plants=list(ASKED.values()),
        port=0,
        num_replicas=task["replicas"],
    )
    say_ready(task["ready"], url=address)
    app.stop("bench")
    session.stop()


def peer(task: Row) -> None:
    """FastAPI around the five, until the comparison lets go."""
    import peers

    with peers.running({**whole_task(task), "side": "fastapi", "token": ""}) as target:
        say_ready(task["ready"], **target)


def limit(task: Row) -> Row:
    """The five in as many one-thread processes as there are replicas, without a server."""
    import plain_serving

    even_niceness()
    return plain_serving.limit(whole_task(task), num_processes=task["replicas"])


def load(task: Row) -> Row:
    """The load generator."""
    from load import generate

    return generate(task)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the embedded backbone, a few images, no Ray: a smoke run")
    parser.add_argument("--parts", nargs="+", choices=("inside", "http"), default=["inside", "http"])
    parser.add_argument(
        "--backbone", default="resnet18", help="a timm backbone; others than test_resnet are not trained"
    )
    parser.add_argument("--int8", action="store_true", help="trunk and last stages in static INT8")
    parser.add_argument("--image", default="50kB", choices=("10kB", "50kB"))
    parser.add_argument("--turns", type=int, default=150, help="images at each side inside")
    parser.add_argument("--seconds", type=float, default=10.0, help="of load at each side and round")
    parser.add_argument("--warmup-s", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--size-px", type=int, help="128 for the embedded backbone, else 224")
    parser.add_argument("--folder", help="where everything is kept; a temporary folder otherwise")
    return parser


if __name__ == "__main__":
    roles = {"inside": inside, "ours": ours, "peer": peer, "limit": limit, "load": load}
    entry(roles, parser=arguments(), compare=compare)
