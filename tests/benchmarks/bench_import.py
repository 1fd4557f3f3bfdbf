"""How fast, and in how much memory, a million label rows over a hundred thousand small frames are imported.

Cases: `boxes`, every frame in ten rows with other boxes; `missing`, one row a frame, nine of files that do not exist;
`half`, ten rows a frame of which half the frames do not exist; `killed`, boxes with kill -9 half-way and run again;
`bucket`, frames in a real S3 store behind a line that fails one call in ten. Each import is a process of its own, by
the verb, with its JSON document. Prints one JSON object last: `ratio` is the first import's seconds over those of an
unchanged plant's re-import; quality is equal when the label table of every repeated import has the same bytes.

    python tests/benchmarks/bench_import.py            # 100,000 frames, 1,000,000 rows, 2,000 frames in the bucket
    python tests/benchmarks/bench_import.py --quick    # a fiftieth
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from measuring import ROOT, Child, entry, machine, note
from PIL import Image

ROWS_A_FRAME, SIDE_PX, NUM_LOTS = 10, 96, 500
NUM_FRAMES, NUM_IN_BUCKET, QUICK = 100_000, 2_000, 50
FAILING = 0.1


def frame_name(number: int) -> str:
    """A path that tells lot and part."""
    return f"line/L{number % NUM_LOTS:03d}/P{number:06d}.jpg"


def draw(folder: Path, *, num: int) -> None:
    """So many small JPEG frames, no two alike."""
    rng = np.random.default_rng(0)
    grounds = rng.integers(40, 200, (64, 12, 12)).astype(np.uint8)
    for number in range(num):
        image = Image.fromarray(grounds[number % 64]).resize((SIDE_PX, SIDE_PX))
        image.putpixel((number % SIDE_PX, number // SIDE_PX % SIDE_PX), 255)
        image.paste(number % 251, (number // 251 % 80, 10, number // 251 % 80 + 8, 20))
        path = folder / frame_name(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=90)


def labels(case: str, *, num: int) -> pd.DataFrame:
    """The rows of a case, ten times as many as frames."""
    row = np.arange(num * ROWS_A_FRAME)
    frame = row % num
    x0 = row // num * 4
    names = np.array([frame_name(number) for number in range(num)], dtype=object)[frame]
    if case == "missing":
        names = np.where(row < num, names, np.array([f"line/none/{i}.jpg" for i in row], dtype=object))
    if case == "half":
        names = np.where(frame % 2 == 0, names, np.array([f"line/none/{i}.jpg" for i in frame], dtype=object))
    table = {
        "frame": names,
        "class": np.where(frame % 10 < 7, "good", "dent"),
        "x0": x0,
        "y0": 4,
        "x1": x0 + 9,
        "y1": 30,
    }
    return pd.DataFrame(table | {"captured_at": "2026-03-01T12:00:00Z", "annotator": "kim"})


def fleet_file(folder: Path, *, case: str, images: str, table: str, store: str) -> Path:
    """A fleet of one plant."""
    plant = {"name": case, "images": images, "labels": table, "classes": {"good": "ok", "dent": "dent"}, "ok": ["good"]}
    plant |= {"lot_pattern": r"/(L\d+)/", "part_pattern": r"(P\d+)"}
    path = folder / f"{case}.yaml"
    path.write_text(json.dumps({"fleet": case, "store": store, "plants": [plant]}), encoding="utf-8")
    return path


def do_import(task: dict[str, Any]) -> dict[str, Any]:
    """One import by the verb, with its JSON document."""
    from rich.console import Console

    from jobs.verbs import import_fleet
    from plants.plant import load_fleet

    began = time.monotonic()
    fleet = load_fleet(Path(task["fleet"]))
    document = import_fleet(fleet, names=[task["case"]], show=Console(file=sys.stderr, width=200))
    with Path(task["json"]).open("w", encoding="utf-8") as file:
        json.dump(document, file, indent=1)
    seconds = time.monotonic() - began
    if document["faults"]:
        raise SystemExit(str(document["faults"]))
    return {
        "import_s": round(seconds, 1),
        "rows": document["rows"],
        "rejects": len(document["rejected"]),
        "table_rows_per_s": round(task["num_rows"] / seconds),
        "frames_per_s": round(document.get("frames", document["rows"]) / seconds),
        "frames_read": document.get("frames_read"),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }


class Bench:
    """The frames of one run and its cases."""

    def __init__(self, root: Path, *, num: int) -> None:
        self.root, self.num, self.images = root, num, root / "frames"

    def fleet(self, case: str, *, kind: str = "") -> dict[str, Any]:
        """The task of importing a case into a store of its own."""
        table = self.root / f"{kind or case}.parquet"
        if not table.exists():
            labels(kind or case, num=self.num).to_parquet(table)
        store = self.root / f"store-{case}"
        path = fleet_file(self.root, case=case, images=str(self.images), table=str(table), store=str(store))
        rows = self.num * ROWS_A_FRAME
        return {"fleet": str(path), "case": case, "json": str(self.root / "import.json"), "num_rows": rows}

    def start(self, task: dict[str, Any], **env: str) -> Child:
        return Child(__file__, "import", task, folder=self.root / "work", env=env)

    def measured(self, task: dict[str, Any], what: str, **env: str) -> dict[str, Any]:
        found = self.start(task, **env).result(timeout_s=3600)
        note(f"{what}: {json.dumps(found)}")
        return found

    def table_bytes(self, case: str) -> bytes:
        return (self.root / f"store-{case}" / "labels" / f"{case}.parquet").read_bytes()

    def twice(self, case: str) -> dict[str, Any]:
        """First import and the re-import of what did not change."""
        task = self.fleet(case)
        first = self.measured(task, f"{case}, first")
        before = self.table_bytes(case)
        again = self.measured(task, f"{case}, again")
        return {"first": first, "again": again, "same_table": before == self.table_bytes(case)}

    def killed(self) -> dict[str, Any]:
        """Boxes, killed when half of the frames are remembered, and run again."""
        task, store = self.fleet("killed", kind="boxes"), self.root / "store-killed"
        child, began = self.start(task), time.monotonic()
        while len(list(store.glob("imports/killed/*.parquet"))) < max(1, self.num // 4_000):
            time.sleep(0.05)
        child.kill()
        note(f"killed after {time.monotonic() - began:.1f} s")
        again = self.measured(task, "killed, again")
        same = self.table_bytes("killed") == self.table_bytes("boxes")
        return {"killed_after_s": round(time.monotonic() - began, 1), "again": again, "same_table": same}


def bucket(root: Path, *, num: int) -> dict[str, Any]:
    """Frames in a real S3 store, over a line that fails one call in ten."""
    sys.path.insert(0, str(ROOT / "tests"))
    from flaky_proxy import FlakyProxy
    from object_store import started

    from cluster.storage import open_store

    running = started(root / "swift")
    try:
        os.environ |= running.env
        address = running.new_bucket()
        store = open_store(f"{address}/plants")
        bench = Bench(root, num=num)
        for number in range(num):
            store.upload(bench.images / frame_name(number), frame_name(number))
        table = io.BytesIO()
        labels("boxes", num=num).to_parquet(table)
        store.write("labels.parquet", table.getvalue())
        with FlakyProxy(running.endpoint, share=FAILING) as proxy:
            given = {"case": "bucket", "images": store.uri, "table": f"{store.uri}/labels.parquet"}
            path = fleet_file(root, store=f"{address}/store", **given)
            task = {"fleet": str(path), "case": "bucket", "json": str(root / "import.json")}
            task |= {"num_rows": num * ROWS_A_FRAME}
            env = {**running.env, "AWS_ENDPOINT_URL": proxy.endpoint}
            first = bench.measured(task, "bucket, first", **env)
            calls, failed = proxy.num_calls, proxy.spoiled
            again = bench.measured(task, "bucket, again", **env)
        lost = num - first["rows"]
        return {"first": first, "again": again, "calls": calls, "failed_calls": failed, "rows_lost": lost}
    finally:
        running.stop()


def cases(root: Path, *, num: int, num_in_bucket: int, only: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The cases chosen, one after another."""
    bench = Bench(root, num=num)
    for case in ("boxes", "missing", "half"):
        if case in only:
            yield case, bench.twice(case)
    if "killed" in only and "boxes" in only:
        yield "killed", bench.killed()
    if "bucket" in only:
        yield "bucket", bucket(root, num=num_in_bucket)


def compare(given: argparse.Namespace) -> dict[str, Any]:
    """Every case chosen; the temporary folder is gone afterwards."""
    share = QUICK if given.quick else 1
    num = given.frames or NUM_FRAMES // share
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        root = Path(folder).absolute()
        began = time.monotonic()
        draw(root / "frames", num=num)
        note(f"{num} frames drawn in {time.monotonic() - began:.0f} s")
        time.sleep(2.1)  # files that were just written are not remembered
        only = given.case or ["boxes", "missing", "half", "killed", "bucket"]
        found = dict(cases(root, num=num, num_in_bucket=min(num, NUM_IN_BUCKET // share), only=only))
    first, again = found["boxes"]["first"]["import_s"], found["boxes"]["again"]["import_s"]
    return {
        "name": "import",
        "ratio": round(first / again, 2),
        "ours": again,
        "peer": first,
        "equal_quality": {name: case["same_table"] for name, case in found.items() if "same_table" in case},
        "frames": num,
        "rows": num * ROWS_A_FRAME,
        "side_px": SIDE_PX,
        "cases": found,
        "machine": machine(threads={"readers": 8}),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fiftieth of the frames")
    parser.add_argument("--frames", type=int, help="so many frames instead")
    parser.add_argument("--case", action="append", help="only this case, besides boxes; may be repeated")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    entry({"import": do_import}, parser=parser, compare=compare)
