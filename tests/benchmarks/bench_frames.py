"""Parts of six 5-megapixel frames with 30-pixel defects: are bad parts found by tiles, and how many parts a second.

Quality: a plant of labelled single frames (four products, three kinds of defects, boxes) is imported, trained, compared
and published by the product itself on the embedded backbone, frames in tiles; the published bundle then judges parts of
six frames from lots it has never met, in each bad part one frame with one defect. AUC over parts with an interval over
lots, with tiles and, by the same model, with each frame resized whole.

Speed: the endpoints' own `judge` without a server, and `serving.app.run` behind Ray's proxies, against two one-thread
ONNX Runtime processes that decode, cut the same tiles, run the same two files and pool. Everybody runs at the niceness
of Ray's workers, sides alternate, answers are compared before speed is spoken of.

    .venv/bin/python tests/benchmarks/bench_frames.py                       both questions
    .venv/bin/python tests/benchmarks/bench_frames.py --only speed --rounds 3
    .venv/bin/python tests/benchmarks/bench_frames.py --quick               a smoke run; its figures mean nothing
"""

from __future__ import annotations

import argparse
import csv
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bench_serving
import numpy as np
from large_frames import DEFECT_PX, DEFECTS, FRAMES, HEIGHT, PRODUCTS, WIDTH, Lot
from measuring import Child, entry, even_niceness, machine, note
from served import published

SIDES = ("judge", "python", "haproxy", "limit")
CASE = "part"
GOALS = {"auc": 0.95, "of_limit": 0.85}
GOOD = "good"
FRESH = 1000
"""Lots from this number on are never learned from."""

Row = dict[str, Any]


def compare(given: argparse.Namespace) -> dict[str, Any]:
    """The figures of both questions."""
    begun = time.monotonic()
    if given.quick:
        given.lots, given.fresh_lots, given.parts, given.num_frames = 6, 2, 2, 7
        given.seconds, given.warmup_s, given.rounds, given.sides = 2.0, 0.3, 1, given.sides or ["judge", "limit"]
    given.sides = given.sides or list(SIDES)
    folder = Path(given.folder or tempfile.mkdtemp(prefix="bench-frames-"))
    found: dict[str, Any] = {"name": "frames", "is_smoke_run": given.quick, "goals": GOALS}
    found["frames"] = {
        "size": f"{WIDTH} x {HEIGHT} mono JPEG",
        "of_a_part": FRAMES,
        "defect_px": DEFECT_PX,
        "products": PRODUCTS,
        "tiles": f"{given.tile_px} px, overlap {given.overlap_px}, {len(_boxes(given))} a frame, at 128 px",
    }
    if given.only != "speed":
        found["quality"] = quality(folder / "quality", given=given)
        shutil.rmtree(folder / "quality", ignore_errors=True)
    if given.only != "quality":
        found["speed"] = speed(folder / "speed", given=given)
        found |= {key: found["speed"][key] for key in ("ratio", "ours", "peer", "equal_quality")}
    if not given.folder:
        shutil.rmtree(folder, ignore_errors=True)
    found["seconds"] = round(time.monotonic() - begun, 1)
    found["machine"] = machine(threads={"replicas": 2, "replica": 1, "limit": "2 processes of 1"})
    return found


def _geometry(given: argparse.Namespace) -> dict[str, Any]:
    return {
        "fit": "tiles",
        "tile_px": given.tile_px,
        "overlap_px": given.overlap_px,
        "min_defect_px": DEFECT_PX,
    }


def _boxes(given: argparse.Namespace) -> Any:
    from plants.geometry import Geometry
    from plants.views import view_boxes

    return view_boxes(WIDTH, HEIGHT, geometry=Geometry(**_geometry(given)))


# --- quality ---------------------------------------------------------------------------------------------------------


def quality(folder: Path, *, given: argparse.Namespace) -> dict[str, Any]:
    """What the product's own model finds on parts it has never met, and how long it learned."""
    from bench_geometry import walked
    from rich.console import Console

    folder.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    path = labelled_plant(folder, given=given)
    note(f"{given.lots} lots of labelled frames drawn in {time.monotonic() - begun:.0f} s")
    learned = time.monotonic()
    document, sealed, fleet = walked(path, folder=folder, show=Console(stderr=True, quiet=not given.verbose))
    learned = time.monotonic() - learned
    decision = document["decisions"]["large"]
    note(f"learned in {learned:.0f} s: {decision['model']}")
    store = Path(fleet.store)
    tiled, policy = store / "bundles" / decision["bundle"], store / "policies" / f"{decision['policy_digest']}.json"
    judged = judged_parts({"tiles": tiled, "whole": resized_whole(tiled)}, policy=policy, given=given)
    return {
        "model": decision["model"],
        "learned_from": f"{given.lots} lots of {given.lot_frames} labelled single frames, embedded backbone",
        "learning_s": round(learned, 1),
        "sealed_frames": {key: sealed["plants"]["large"][key] for key in ("auc", "macro_f1", "n")},
        "parts": given.fresh_lots * given.parts,
        "lots": given.fresh_lots,
        **judged,
    }


def labelled_plant(folder: Path, *, given: argparse.Namespace) -> Path:
    """The fleet file of one plant: single frames with a class and, where there is a defect, its box."""
    from bench_geometry import written

    (folder / "large").mkdir()
    rows = []
    for number in range(given.lots):
        lot, rng = Lot(number, seed=given.seed), np.random.default_rng((given.seed, number, 0))
        for at in range(given.lot_frames):
            kind = DEFECTS[(number + at) % len(DEFECTS)] if at % 8 < 5 else None
            data, box = lot.frame(rng, defect=kind)
            name = f"{lot.name}-{at}.jpg"
            (folder / "large" / name).write_bytes(data)
            rows.append([name, kind or GOOD, lot.name, lot.product, *(box or ["", "", "", ""])])
    with (folder / "labels.csv").open("w", newline="") as file:
        head = ["frame", "class", "lot", "product", "x0_px", "y0_px", "x1_px", "y1_px"]
        csv.writer(file).writerows([head, *rows])
    plant = {
        "name": "large",
        "images": "large",
        "labels": "labels.csv",
        "classes": {GOOD: "ok"} | {kind: kind for kind in DEFECTS},
        "ok": [GOOD],
        "environments": {"default": {"geometry": _geometry(given)}},
        "shares": {"train": 0.5, "select": 0.15, "decide": 0.2, "test": 0.15},
    }
    return written(folder, [plant])


def resized_whole(tiled: Path) -> Path:
    """The same model in a bundle that says its frames are shown whole."""
    from plants import bundle
    from plants.geometry import Environment, Geometry

    manifest, _ = bundle.read(tiled)
    whole = Environment(geometry=Geometry(fit="letterbox"))
    serves = {
        name: view.model_copy(update={"environments": dict.fromkeys(view.environments, whole)})
        for name, view in manifest.serves.items()
    }
    copied = tiled.parent / "whole"
    shutil.copytree(tiled, copied)
    bundle.write(copied, manifest.model_copy(update={"serves": serves, "files": {}}))
    return copied


def judged_parts(bundles: dict[str, Path], *, policy: Path, given: argparse.Namespace) -> dict[str, Any]:
    """AUC over fresh parts, half of them bad, by each bundle, and the verdicts of the published one."""
    from serving.intake import Frame, PartRequest
    from serving.local import local_predictor

    told = {"tiles": policy, "whole": None}
    predictors = {name: local_predictor(path, plant="large", policy=told[name]) for name, path in bundles.items()}
    said: dict[str, list[dict[str, float]]] = {name: [] for name in bundles}
    truth, lots, verdicts = [], [], []
    for number in range(FRESH, FRESH + given.fresh_lots):
        lot = Lot(number, seed=given.seed)
        for at in range(given.parts):
            frames = tuple(Frame(f"{k}.jpg", data) for k, data in enumerate(lot.part(at, is_bad=at % 2 == 1)))
            part = PartRequest("large", frames)
            truth.append("bad" if at % 2 else GOOD)
            lots.append(lot.name)
            for name, predictor in predictors.items():
                judgement = predictor.predict(part)
                said[name].append(judgement.probabilities)
                verdicts += [judgement.decision.verdict] if name == "tiles" else []
        note(f"{number - FRESH + 1} of {given.fresh_lots} fresh lots judged")
    kinds = sorted(set(zip(truth, verdicts, strict=True)))
    return {
        "auc": {name: _auc(rows, truth=truth, lots=lots) for name, rows in said.items()},
        "verdicts": {
            f"{a} {b}": sum(1 for one in zip(truth, verdicts, strict=True) if one == (a, b)) for a, b in kinds
        },
    }


def _auc(said: Sequence[dict[str, float]], *, truth: list[str], lots: list[str]) -> dict[str, Any]:
    from plants.metrics import report
    from plants.scores import PartScores

    good = np.array([row[GOOD] for row in said])
    scores = PartScores(
        part_ids=np.arange(len(truth)),
        lots=np.array(lots),
        environments=np.full(len(truth), "default"),
        truth=np.array(truth),
        probs=np.stack([good, 1 - good], axis=1),
        classes=(GOOD, "bad"),
        ok=(GOOD,),
    )
    found: dict[str, Any] = report(scores)["auc"]
    return found


# --- speed -----------------------------------------------------------------------------------------------------------


def speed(folder: Path, *, given: argparse.Namespace) -> dict[str, Any]:
    """Parts a second of every side, as fractions of the limit."""
    given.geometry = _geometry(given)
    task = published(folder, given=given, sizes=[]) | {"peers": None, "frames": FRAMES}
    task |= {name: getattr(given, name) for name in ("seconds", "warmup_s", "connections")}
    task["files"] = {CASE: frame_files(folder / "frames", num=given.num_frames)}
    bench_serving.CASES[CASE] = (CASE, FRAMES)
    found: list[Row] = []
    for turn in range(given.rounds):
        for side in given.sides:
            for row in _measured(side, task=task, folder=folder / f"turn{turn}" / side, given=given):
                row["per_s"] /= FRAMES if side in ("python", "haproxy") else 1
                found.append(row | {"side": side})
                spent = f"{row['cpu_ms_a_request']:.0f} ms of CPU a part"
                note(f"round {turn + 1}, {side}: {row['per_s']:.3f} parts/s, {spent}")
    figures = bench_serving.figures(found, sides=given.sides, cases=[CASE], given=given)
    return figures | {"of_limit_by_cpu": _by_cpu(figures["sides"])}


def _by_cpu(sides: Row) -> Row:
    """CPU time of a part at the limit over that at each side, all its processes together, the load generator's apart.

    What the parts a second would be as a fraction of the limit's on cores that nobody else uses.
    """
    spent = {side: rows[CASE]["cpu_ms_a_request"] for side, rows in sides.items()}
    return {side: round(spent["limit"] / ms, 3) for side, ms in spent.items()} if "limit" in spent else {}


def frame_files(folder: Path, *, num: int) -> list[str]:
    """Frames of four lots, every third with a defect."""
    folder.mkdir(parents=True, exist_ok=True)
    lots, rng = [Lot(number) for number in range(4)], np.random.default_rng(0)
    files = []
    for number in range(num):
        data, _ = lots[number % 4].frame(rng, defect=DEFECTS[number % 3] if number % 3 == 0 else None)
        (folder / f"{number}.jpg").write_bytes(data)
        files.append(str(folder / f"{number}.jpg"))
    return files


def _measured(side: str, *, task: Row, folder: Path, given: argparse.Namespace) -> list[Row]:
    if side != "judge":
        return bench_serving._measured(side, task=task, cases=[CASE], folder=folder, given=given)
    child = Child(__file__, "judge", {**task, "images": task["files"][CASE]}, folder=folder)
    return [child.result(timeout_s=given.seconds + given.warmup_s + 180) | {"case": CASE, "share": None}]


def judge(task: Row) -> Row:
    """As many processes as there are replicas, each with the endpoints' predictor and nothing around it."""
    import plain_serving

    even_niceness()
    return plain_serving.limit({**task, "judge": True}, num_processes=task["replicas"])


# --- command ---------------------------------------------------------------------------------------------------------


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few frames, no Ray: a smoke run")
    parser.add_argument("--only", choices=("quality", "speed"))
    parser.add_argument("--sides", nargs="+", choices=SIDES, help="of speed; default: all")
    parser.add_argument("--lots", type=int, default=40, help="that are learned from, chosen and sealed on")
    parser.add_argument("--lot-frames", type=int, default=8, help="labelled frames of each, five with a defect")
    parser.add_argument("--fresh-lots", type=int, default=16, help="never met before")
    parser.add_argument("--parts", type=int, default=6, help="judged of each, every other one bad")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-frames", type=int, default=24, help="that speed is measured on")
    parser.add_argument("--tile-px", type=int, default=384)
    parser.add_argument("--overlap-px", type=int, default=48)
    parser.add_argument("--seconds", type=float, default=15.0, help="of load at each side and round")
    parser.add_argument("--warmup-s", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=2, help="sides alternate")
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--verbose", action="store_true", help="what the verbs print")
    parser.add_argument("--folder", help="where everything is kept; a temporary folder otherwise")
    parser.set_defaults(
        backbone="test_resnet", weights="embedded", size_px=128, cut=1, int8=False, open=False, peers=None
    )
    return parser


if __name__ == "__main__":
    entry({"judge": judge}, parser=arguments(), compare=compare)
