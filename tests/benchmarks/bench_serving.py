"""How many images a second the endpoints answer, against the limit of the machine and against other servers.

One bundle is exported, published and promoted; `serving.app.run` serves it from two replicas, once behind Ray's Python
proxy and once behind HAProxy, which is what `crossplant serve` starts. The limit is two one-thread ONNX Runtime
processes that decode and judge the same files without any server. The other peers are FastAPI + ONNX Runtime in two
uvicorn workers, and LitServe and BentoML with two workers each in virtual environments of their own (`--peers FOLDER`,
made there when they are not there yet). Everybody runs the same two files and at the niceness of Ray's workers but the
load generator, a process of its own whose cost is stated and is taken from the same cores. Sides alternate over rounds;
answers are compared before speed is spoken of. `--open` adds latencies at half and four fifths of each side's capacity.

    .venv/bin/python tests/benchmarks/bench_serving.py --backbone resnet18 --int8 --rounds 3 --open --peers peers
    .venv/bin/python tests/benchmarks/bench_serving.py --backbone mobilenetv3_small_100 --rounds 3
    .venv/bin/python tests/benchmarks/bench_serving.py --cases 50kB 2MB 8MB --sides python haproxy limit
    .venv/bin/python tests/benchmarks/bench_serving.py --quick          a smoke run; its figures mean nothing
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measuring import Child, entry, even_niceness, machine, mean, note, percentile, say_ready
from served import CLASSES, PLANT, SIZES, published

CASES = {size: (size, 1) for size in SIZES} | {"8x50kB": ("50kB", 8)}
"""The size of an image, and how many of them a request holds."""
SIDES = ("python", "haproxy", "limit", "fastapi", "litserve", "bentoml", "bare")
WITH_FRAMES = ("python", "haproxy", "bare")
"""Who takes several images in a request; the limit is asked for single ones then too."""
TOLERANCE = 1e-4
START_TIMEOUT_S = 240
SHARES = (0.5, 0.8)
"""Of a side's own capacity, at which its latency is measured."""
WITHOUT_BARE = SIDES[:-1]

Row = dict[str, Any]


def compare(given: argparse.Namespace) -> dict[str, Any]:
    """The figures of all sides."""
    if given.quick:
        given.seconds, given.warmup_s, given.rounds = 2.0, 0.5, 1
        given.sides = given.sides or ["python", "limit", "fastapi"]
        given.cases = given.cases or ["10kB", "8x50kB"]
    sides = given.sides or [side for side in WITHOUT_BARE if given.peers or side not in ("litserve", "bentoml")]
    cases = given.cases or ["10kB", "50kB", "8x50kB"]
    folder = Path(given.folder or tempfile.mkdtemp(prefix="bench-serving-"))
    task = published(folder, given=given, sizes=sorted({CASES[case][0] for case in cases}))
    task |= {name: getattr(given, name) for name in ("seconds", "warmup_s", "connections", "peers")}
    found: list[Row] = []
    for turn in range(given.rounds):
        for side in sides:
            for row in _measured(side, task=task, cases=cases, folder=folder / f"turn{turn}" / side, given=given):
                found.append(row | {"side": side})
                times = f"p50 {_ms(row, 50)} ms, p99 {_ms(row, 99)} ms"
                share = f" at {row['share']:.0%} of capacity" if row["share"] else ""
                note(f"round {turn + 1}, {side}, {row['case']}{share}: {row['per_s']:.1f} images/s, {times}")
    if not given.folder:
        shutil.rmtree(folder, ignore_errors=True)
    return figures(found, sides=sides, cases=cases, given=given)


def _measured(side: str, *, task: Row, cases: list[str], folder: Path, given: argparse.Namespace) -> list[Row]:
    """What the load generator found at this side's server, or what the limit did without one."""
    wait_s = given.seconds + given.warmup_s + 180
    if side == "limit":
        return [_limited(case, task=task, folder=folder / case, wait_s=wait_s) for case in cases]
    ready = folder / "ready.json"
    role = "ours" if side in ("python", "haproxy") else "peer"
    env = {"RAY_SERVE_ENABLE_HA_PROXY": "0"} if side == "python" else {}
    server = Child(__file__, role, {**task, "side": side, "ready": str(ready)}, folder=folder, env=env)
    try:
        target = server.ready(ready, timeout_s=START_TIMEOUT_S)
        rows = []
        for case in cases:
            size, frames = CASES[case]
            if frames > 1 and side not in WITH_FRAMES:
                continue
            asked = {**task, **target, "images": task["files"][size], "frames": frames}
            before = server.cpu_s()
            capacity = _loaded(asked, folder=folder / case, wait_s=wait_s)
            capacity["cpu_ms_a_request"] = 1000 * (server.cpu_s() - before) / capacity["num_sent"]
            rows.append(capacity | {"case": case, "share": None})
            for share in SHARES if given.open else ():
                rate = share * capacity["per_s"] / frames
                open_load = _loaded({**asked, "rate_per_s": rate}, folder=folder / f"{case}-{share}", wait_s=wait_s)
                rows.append(open_load | {"case": case, "share": share})
        return rows
    finally:
        server.release(timeout_s=60)


def _loaded(task: Row, *, folder: Path, wait_s: float) -> Row:
    return Child(__file__, "load", task, folder=folder).result(timeout_s=wait_s)


def _limited(case: str, *, task: Row, folder: Path, wait_s: float) -> Row:
    child = Child(__file__, "limit", {**task, "images": task["files"][CASES[case][0]]}, folder=folder)
    return child.result(timeout_s=wait_s) | {"case": case, "share": None}


def ours(task: Row) -> None:
    """The endpoints as `crossplant serve --replicas 2` starts them, until the comparison lets go."""
    from cluster import session
    from cluster.settings import Settings
    from serving import app

    settings = Settings(home=Path(task["home"]), slots=task["replicas"])
    address = app.run(
        settings, store_uri=task["store"], fleet="bench", plants=[PLANT], port=0, num_replicas=task["replicas"]
    )
    headers = [f"Authorization: Bearer {task['token']}"]
    say_ready(task["ready"], url=f"{address}/plants/{PLANT}/predict", headers=headers)
    app.stop("bench")
    session.stop()


def peer(task: Row) -> None:
    """Another server on the same two files, until the comparison lets go."""
    import peers

    with peers.running(task) as target:
        say_ready(task["ready"], **target)


def limit(task: Row) -> Row:
    """As many one-thread processes as there are replicas, without a server."""
    import plain_serving

    even_niceness()
    return plain_serving.limit(task, num_processes=task["replicas"])


def load(task: Row) -> Row:
    """The load generator."""
    from load import generate

    return generate(task)


# --- figures


def figures(found: list[Row], *, sides: list[str], cases: list[str], given: argparse.Namespace) -> dict[str, Any]:
    """What was measured, each side as a fraction of the limit in every case."""
    table = {side: {case: _summary(_rows(found, side, case)) for case in cases} for side in sides}

    def ratio(side: str, to: str, case: str) -> float | None:
        mine, other = (table.get(one, {}).get(case) for one in (side, to))
        return round(mine["per_s"] / other["per_s"], 3) if mine and other else None

    proxies = [side for side in ("haproxy", "python") if side in table]
    best = proxies[0] if proxies else None
    return {
        "name": "serving",
        "ratio": ratio(best, "limit", cases[0]) if best else None,
        "ratios": {
            to: {case: ratio(best, to, case) for case in cases} for to in sides if best and to not in ("bare", best)
        },
        "ours": table.get(best or ""),
        "peer": {"what": "the limit: ONNX Runtime with decode, no server", **(table.get("limit") or {})},
        "sides": table,
        "equal_quality": _equality(found, sides=sides),
        "is_smoke_run": given.quick,
        "backbone": f"{given.backbone}, weights {given.weights}, {given.size_px} px, branch at cut {given.cut}",
        "is_int8": given.int8,
        "connections": given.connections,
        "seconds": given.seconds,
        "rounds": given.rounds,
        "machine": machine(
            threads={"replicas": given.replicas, "replica": 1, "limit": f"{given.replicas} processes of 1"}
        ),
    }


def _rows(found: list[Row], side: str, case: str) -> list[Row]:
    return [row for row in found if row["side"] == side and row["case"] == case]


def _summary(rows: list[Row]) -> dict[str, Any] | None:
    closed = [row for row in rows if row["share"] is None]
    if not closed:
        return None
    summary: dict[str, Any] = {
        "per_s": round(mean([row["per_s"] for row in closed]) or 0.0, 1),
        "per_s_by_round": [round(row["per_s"], 1) for row in closed],
        **_latency(closed),
    }
    if "cpu_ms_a_request" in closed[0]:
        summary["cpu_ms_a_request"] = round(mean([row["cpu_ms_a_request"] for row in closed]) or 0.0, 3)
    for share in SHARES:
        if some := [row for row in rows if row["share"] == share]:
            summary[f"at_{share:.0%}"] = {**_latency(some), "num_failed": sum(row["num_failed"] for row in some)}
    if "generator_cpu" in closed[0]:
        summary["generator_cores"] = round(mean([row["generator_cpu"] for row in closed]) or 0.0, 3)
        summary["generator_ms_a_request"] = round(mean([row["generator_ms_a_request"] for row in closed]) or 0.0, 3)
        summary["num_failed"] = sum(row["num_failed"] for row in closed)
    return summary


def _latency(rows: list[Row]) -> dict[str, float]:
    latencies = [ms for row in rows for ms in row["latencies_ms"]]
    return {f"p{q}_ms": round(percentile(latencies, q) or 0.0, 2) for q in (50, 99)}


def _equality(found: list[Row], *, sides: list[str]) -> dict[str, Any]:
    """Whether every side gives the same probabilities for every image as the first one does."""
    worst, flips, num = 0.0, 0, 0
    closed = [row for row in found if row["share"] is None]
    for case, (_, frames) in CASES.items():
        rows = [row for row in closed if row["case"] == case and (frames == 1 or row["side"] != "limit")]
        for row in rows[1:]:
            values, expected = _matrix(row["answers"]), _matrix(rows[0]["answers"])
            worst = max(worst, float(np.abs(values - expected).max()))
            flips += int((values.argmax(1) != expected.argmax(1)).sum())
            num += len(values)
    kinds = {int(value) for row in closed for value in _matrix(row["answers"]).argmax(1)}
    return {
        "is_equal": flips == 0 and worst <= TOLERANCE,
        "compared": num,
        "flips": flips,
        "largest_difference": worst,
        "different_answers": len(kinds),
        "sides": sides,
    }


def _matrix(answers: list[dict[str, float]]) -> np.ndarray:
    return np.array([[answer[name] for name in CLASSES] for answer in answers])


def _ms(row: Row, q: float) -> str:
    value = percentile(row["latencies_ms"], q)
    return "-" if value is None else f"{value:.1f}"


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two seconds a side, Python proxy only: a smoke run")
    parser.add_argument("--sides", nargs="+", choices=SIDES, help="default: all but bare, which is our app without Ray")
    parser.add_argument("--cases", nargs="+", choices=sorted(CASES), help="default: 10kB 50kB 8x50kB")
    parser.add_argument("--open", action="store_true", help="also latencies at 50 and 80 %% of each side's capacity")
    parser.add_argument("--int8", action="store_true", help="trunk and branch in static INT8")
    parser.add_argument("--peers", help="folder of the virtual environments of LitServe and BentoML")
    parser.add_argument("--seconds", type=float, default=15.0, help="of load at each side, case and round")
    parser.add_argument("--warmup-s", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=1, help="sides alternate")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--backbone", default="test_resnet", help="a timm backbone")
    parser.add_argument("--weights", help="embedded, none or a file; none for a backbone that is not the embedded one")
    parser.add_argument("--size-px", type=int, help="128 for the embedded backbone, else 224")
    parser.add_argument("--cut", type=int, default=1, help="0: a head on pooled features; 1: the last stage too")
    parser.add_argument("--folder", help="where everything is kept; a temporary folder otherwise")
    return parser


def _filled(given: argparse.Namespace) -> dict[str, Any]:
    is_embedded = given.backbone == "test_resnet"
    given.weights = given.weights or ("embedded" if is_embedded else "none")
    given.size_px = given.size_px or (128 if is_embedded else 224)
    return compare(given)


if __name__ == "__main__":
    entry({"ours": ours, "peer": peer, "limit": limit, "load": load}, parser=arguments(), compare=_filled)
