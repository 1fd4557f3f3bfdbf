"""How much of what is planted in copies of a plant the audit finds, and what the untouched plants hold.

Planted in memory, at known rates: 1 % of near duplicates of each kind, runs of each camera fault (3 % of the frames, 20
places or more), 2 % of wrong labels, and columns that tell the class. Camera faults are planted where times are known:
real plants, which know none, are given some, else `audit` would tell but black and saturated frames. In the three real
plants (CROSSPLANT_REAL_DATA, default ../shared/data) and in the six plants of the embedded fleet, which are synthetic.
Limits were chosen on neu and on the embedded plants, that of defocused frames on xsdd too, which like magnetic was else
only measured. Prints one JSON object last.

    python tests/benchmarks/bench_audit.py            # 3 seeds, some minutes
    python tests/benchmarks/bench_audit.py --quick    # one seed, a fifth of the frames, three embedded plants
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from measuring import ROOT, machine, note
from PIL import Image
from planted import (
    Picture,
    Rng,
    black,
    clean,
    cropped,
    defocused,
    dimmed,
    each_class,
    in_fixture,
    mislabelled,
    one_class,
    recompressed,
    saturated,
    shifted,
    stuck,
    turned,
    written,
)
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from plants.cameras import FrameSummary, summary
from plants.duplicates import Pair, near_duplicates, signature
from plants.shortcuts import COLUMNS, shortcuts
from plants.synthetic import make_fleet

REAL = {"neu": "steel/neu", "xsdd": "steel/xsdd", "magnetic": "magnetic"}
EMBEDDED = ("arden", "brno", "cadiz", "delft", "essen", "fargo")
MIN_COPIES = 30
"""Of each kind: small plants are asked more often."""
MIN_RUNS = 20
"""Of each camera fault: whether one is found hangs on where it lies."""
DUPLICATE_SHARE, FAULT_SHARE, WRONG_SHARE = 0.01, 0.03, 0.02
SIZE_PX = 128
"""Of the images whose features tell wrong labels."""
TELLING = {"each_95": (each_class, 0.95), "each_60": (each_class, 0.6), "one_95": (one_class, 0.95)}
PLANTED_COLUMNS = ("environment", "product", "annotator", "suffix", "hour")
CHANGES: dict[str, Sequence[Callable[[Picture, Rng], Picture]]] = {
    "crop": (cropped,),
    "rotation": (turned,),
    "recompression": (recompressed,),
    "all_three": (turned, cropped, recompressed),
}
FAULTS = {one.__name__: one for one in (dimmed, stuck, defocused, saturated, black)}


@dataclass(frozen=True)
class Subject:
    """A plant whose audit is measured."""

    root: Path
    table: pd.DataFrame
    """`frame`, `class`, `lot` and, where known, what else the label row holds."""
    is_ordered: bool
    """Whether the times are known; otherwise frames are shuffled before a camera fault is planted."""


def real(folder: Path) -> Subject:
    """A plant in class folders, each image its own lot."""
    frames = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.suffix in (".jpg", ".png", ".bmp"))
    classes = [frame.partition("/")[0] for frame in frames]
    return Subject(folder, pd.DataFrame({"frame": frames, "class": classes, "lot": frames}), is_ordered=False)


def embedded(folder: Path) -> Subject:
    """A plant of the embedded fleet, in the order of its times."""
    table = pd.read_csv(folder / "labels.csv").sort_values(["captured_at", "frame"], ignore_index=True)
    return Subject(folder, table, is_ordered=True)


# --- what is planted -------------------------------------------------------------------------------------------------


def duplicates(images: list[Picture], signatures: list[Any], *, untouched: list[Pair], rng: Rng) -> dict[str, Any]:
    """What was planted and found: 1 % of copies of each kind, all kinds at once, each original copied once.

    A pair of a copy and its original is right. A pair of a copy and what the untouched plant pairs with its original,
    directly or by a chain, follows from what was there before and is not counted; every other pair of a copy is wrong.
    `indirect`: how many of those not counted hang on a chain.
    """
    before = {(pair.i, pair.j) for pair in untouched}
    edges = np.array([pair[:2] for pair in untouched], dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(edges)), edges.T), shape=(len(images),) * 2)
    group = connected_components(graph, directed=False)[1]
    num = num_copies(images)
    origins = rng.choice(len(images), num * len(CHANGES), replace=False).tolist()
    kinds = [kind for kind in CHANGES for _ in range(num)]
    copies = []
    for origin, kind in zip(origins, kinds, strict=True):
        image = images[origin]
        for change in CHANGES[kind]:
            image = change(image, rng)
        copies.append(signature(np.asarray(image)))
    found: dict[str, Any] = {kind: {"planted": num, "found": 0, "wrong": 0, "indirect": 0} for kind in CHANGES}
    for i, j, _ in near_duplicates([*signatures, *copies]):
        if j >= len(images):
            a, b = (k if k < len(images) else origins[k - len(images)] for k in (i, j))
            if a == b or (min(a, b), max(a, b)) not in before:
                what = "found" if a == b else "indirect" if group[a] == group[b] else "wrong"
                found[kinds[j - len(images)]][what] += 1
    return found


def num_copies(images: list[Picture]) -> int:
    """How many copies of each kind are planted at once."""
    return max(2, round(DUPLICATE_SHARE * len(images)))


def planted_faults(
    images: list[Picture], summaries: list[FrameSummary], *, rows: pd.DataFrame, num_draws: int, rng: Rng
) -> dict[str, Any]:
    """Runs of each fault, one at a time, 3 % of the plant's frames, among the frames of one camera.

    A frame is right if a fault of the planted kind names it; every other naming of a frame, of any kind, is wrong,
    unless the same order without the planted run has it too. Nothing stands still in the frames of these plants, so
    the camera is moved in copies of them whose parts lie in a fixture. What names them is what `audit` calls.

    rows: What `audit` knows of the camera's frames, in their order; the index tells their places in `images`.
    """
    num = max(5, round(FAULT_SHARE * len(images)))
    in_order = [images[i] for i in rows.index]
    held = in_fixture(in_order, rng)
    settings = (
        (in_order, [summaries[i] for i in rows.index], FAULTS),
        (held, [summary(np.asarray(image)) for image in held], {"shifted": shifted}),
    )
    found: dict[str, Any] = {"before": 0}
    for frames, sound, changes in settings:
        before = named_frames(rows, sound)
        found["before"] += len(before)
        for kind, change in changes.items():
            found[kind] = {"planted": 0, "found": 0, "wrong": 0}
            for first in rng.integers(len(rows) - num, size=num_draws).tolist():
                at = range(first, first + num)
                changed = [summary(image) for image in change(frames[first : at.stop], rng)]
                told = named_frames(rows, sound[:first] + changed + sound[at.stop :])
                found[kind]["planted"] += num - (kind == "stuck")
                found[kind]["found"] += sum((kind, k) in told for k in at)
                found[kind]["wrong"] += sum(key[0] != kind or key[1] not in at for key in told - before)
    return found


def named_frames(rows: pd.DataFrame, summaries: list[FrameSummary]) -> set[tuple[str, int]]:
    """Each fault and each place in the order that it names."""
    from jobs.pictures import camera_faults

    found = camera_faults(rows.reset_index(drop=True), summaries)
    return {(fault.kind, int(k)) for _, at, fault in found for k in at}


def wrong_labels(features: np.ndarray, *, table: pd.DataFrame, seed: int) -> dict[str, Any]:
    """2 % of the labels made wrong; features [N, F] of the embedded backbone."""
    from jobs.suspects import suspicion

    rng = np.random.default_rng(seed)
    said, wrong = mislabelled(table["class"].to_numpy(dtype=object), share=WRONG_SHARE, rng=rng)
    frames = table["frame"].tolist()
    found = suspicion(features, frames=frames, labels=said.tolist(), lots=table["lot"].tolist(), seed=seed)
    named = {one.frame for one in found.suspects}
    hits = len(named & {frames[row] for row in wrong})
    return {"wrong_labels": {"planted": len(wrong), "found": hits, "wrong": len(named) - hits}}


def pooled_features(subject: Subject) -> np.ndarray:
    """Pooled features of the embedded backbone [N, F], mean and maximum side by side."""
    import torch

    from jobs.backbone import load_backbone
    from plants.plant import Trunk

    torch.set_num_threads(1)
    loaded = load_backbone(Trunk(size_px=SIZE_PX, options={"global_pool": "catavgmax"}))
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (loaded.mean, loaded.std))
    blocks = []
    for frames in np.array_split(subject.table["frame"].to_numpy(dtype=object), len(subject.table) // 64 + 1):
        images = [Image.open(subject.root / frame).convert("RGB").resize((SIZE_PX, SIZE_PX)) for frame in frames]
        batch = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2) / 255
        with torch.inference_mode():
            blocks.append(loaded.net((batch - mean) / std).numpy())
    return np.concatenate(blocks)


def telling_columns(table: pd.DataFrame, *, seed: int) -> dict[str, Any]:
    """One column at a time made to tell the class, others in turn with each seed; every other one named is wrong."""
    rng = np.random.default_rng(seed)
    filled = clean(table, rng=rng)
    before = {one.column for one in shortcuts(filled)}
    found: dict[str, Any] = {"before": sorted(before)}
    for number, (kind, (tell, faith)) in enumerate(TELLING.items()):
        free = [name for name in PLANTED_COLUMNS if name not in before]
        column = free[(3 * seed + number) % len(free)]
        values = tell(filled["class"].to_numpy(dtype=object), faith=faith, rng=rng)
        named = {one.column for one in shortcuts(written(filled, column, values=values))} - before
        others = set(COLUMNS) & {*filled.columns, "suffix", "folder", "number", "day", "hour"} - before - {column}
        found[kind] = {
            "planted": 1,
            "found": int(column in named),
            "wrong": len(named - {column}),
            "clean": len(others),
        }
    return found


# --- the report ------------------------------------------------------------------------------------------------------


def rates(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Precision and recall of each kind over all seeds, from their summed counts; None of nothing."""
    table = {}
    for kind in (kind for kind, counts in rounds[0].items() if isinstance(counts, dict)):
        planted, found, wrong = (sum(one[kind][key] for one in rounds) for key in ("planted", "found", "wrong"))
        table[kind] = {
            "precision": round(found / (found + wrong), 3) if found + wrong else None,
            "recall": round(found / planted, 3),
            "planted": planted,
            "wrong": wrong,
        }
        for extra in {"clean", "indirect"} & set(rounds[0][kind]):
            table[kind][extra] = sum(one[kind][extra] for one in rounds)
    return table


def camera_rows(table: pd.DataFrame, *, is_ordered: bool, rng: Rng) -> pd.DataFrame:
    """The frames of the camera and product with most frames as label rows in the order taken.

    Where that is unknown they are shuffled and given times.
    """
    number = table["frame"].str.extract(r"/(exp[0-9])_", expand=False).fillna("")
    keys = [table[name] for name in ("environment", "product") if name in table.columns] or [number]
    order = max((group.index.tolist() for _, group in table.groupby(keys)), key=len)
    rows = table.loc[order if is_ordered else rng.permutation(order).tolist()]
    times = pd.Timestamp("2026-01-01", tz="UTC") + pd.to_timedelta(np.arange(len(rows)), unit="min")
    times = pd.to_datetime(rows["captured_at"], utc=True) if is_ordered else times
    return rows.assign(environment="line1", product="", captured_at=times)


def measure(name: str, subject: Subject, *, seeds: Sequence[int], every: int) -> dict[str, Any]:
    """Everything about one plant."""
    table = subject.table.iloc[::every].reset_index(drop=True)
    subject = Subject(subject.root, table, is_ordered=subject.is_ordered)
    images = [Image.open(subject.root / frame).convert("L") for frame in table["frame"]]
    clock = [time.perf_counter()]
    signatures = [signature(np.asarray(image)) for image in images]
    clock.append(time.perf_counter())
    untouched = near_duplicates(signatures)
    clock.append(time.perf_counter())
    summaries = [summary(np.asarray(image)) for image in images]
    clock.append(time.perf_counter())
    features = pooled_features(subject)
    clock.append(time.perf_counter())
    note(f"{name}: {len(images)} frames, {len(untouched)} pairs untouched")
    rounds: dict[str, list[dict[str, Any]]] = {"duplicates": [], "camera_faults": [], "labels": [], "shortcuts": []}
    for seed in seeds:
        rng = np.random.default_rng(seed)
        rows = camera_rows(table, is_ordered=subject.is_ordered, rng=rng)
        num_draws = -(-MIN_RUNS // len(seeds))
        planted = planted_faults(images, summaries, rows=rows, num_draws=num_draws, rng=rng)
        rounds["camera_faults"].append(planted)
        for _ in range(-(-MIN_COPIES // (len(seeds) * num_copies(images)))):
            rounds["duplicates"].append(duplicates(images, signatures, untouched=untouched, rng=rng))
        rounds["labels"].append(wrong_labels(features, table=table, seed=seed))
        rounds["shortcuts"].append(telling_columns(table, seed=seed))
    spent = dict(zip(("signature", "near_duplicates", "summary", "features"), np.diff(clock).tolist(), strict=True))
    return {
        "num_frames": len(images),
        "seconds_per_1000": {key: round(1000 * value / len(images), 2) for key, value in spent.items()},
        **{what: rates(found) for what, found in rounds.items()},
        "untouched": {
            "num_pairs": len(untouched),
            "pairs": [[table["frame"][pair.i], table["frame"][pair.j], pair.score] for pair in untouched],
            "fault_frames": [one["before"] for one in rounds["camera_faults"]],
            "telling_columns": rounds["shortcuts"][0]["before"],
        },
    }


def main() -> None:
    """Measure, then print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, every fifth real frame, three embedded plants")
    parser.add_argument("--plant", action="append", choices=[*REAL, *EMBEDDED], help="only this plant; may be repeated")
    given = parser.parse_args()
    data = Path(os.environ.get("CROSSPLANT_REAL_DATA", ROOT.parent / "shared" / "data"))
    names = given.plant or [*REAL, *EMBEDDED[: 3 if given.quick else None]]
    if not data.is_dir() and set(names) & set(REAL):
        raise SystemExit(f"{data} is missing: set CROSSPLANT_REAL_DATA to the folder of the three real plants")
    seeds, every = ((0,), 5) if given.quick else ((0, 1, 2), 1)
    plants = {name: measure(name, real(data / REAL[name]), seeds=seeds, every=every) for name in names if name in REAL}
    with tempfile.TemporaryDirectory() as folder:
        if set(names) & set(EMBEDDED):
            make_fleet(Path(folder), seed=0, processes=1)
        for name in (name for name in names if name in EMBEDDED):
            plants[name] = measure(name, embedded(Path(folder) / name), seeds=seeds, every=1)
    print(
        json.dumps(
            {"name": "audit", "worst": worst(plants), "seeds": list(seeds), "plants": plants}
            | {"machine": machine(threads={})}
        )
    )


def worst(plants: dict[str, Any]) -> dict[str, float]:
    """The lowest precision and recall of each thing planted, over plants and kinds."""
    return {
        f"{what}_{rate}": min(one[rate] or 0.0 for plant in plants.values() for one in plant[what].values())
        for what in ("duplicates", "camera_faults", "labels", "shortcuts")
        for rate in ("precision", "recall")
    }


if __name__ == "__main__":
    main()
