"""How many planted near duplicates and camera faults are found in real plants, and what the untouched plants hold.

Reads the three real plants (CROSSPLANT_REAL_DATA, default ../shared/data), plants faults in copies in memory and prints
one JSON object last. Limits were chosen on neu and on the embedded plants; xsdd and magnetic were only measured.

    python tests/benchmarks/bench_audit.py            # 3 seeds, some minutes
    python tests/benchmarks/bench_audit.py --quick    # one seed, a fifth of the frames
"""

from __future__ import annotations

import argparse
import io
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measuring import ROOT, machine, note
from PIL import Image, ImageFilter

from plants.cameras import FrameSummary, faults, summary
from plants.duplicates import Pair, near_duplicates, signature

Rng = np.random.Generator
Picture = Image.Image
PLANTS = {"neu": "steel/neu", "xsdd": "steel/xsdd", "magnetic": "magnetic"}
DUPLICATE_SHARE, FAULT_SHARE = 0.01, 0.03


# --- planted duplicates ----------------------------------------------------------------------------------------------


def cropped(image: Picture, rng: Rng) -> Picture:
    """85-95 % of each side, anywhere."""
    width, height = (round(side * rng.uniform(0.85, 0.95)) for side in image.size)
    x, y = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
    return image.crop((x, y, x + width, y + height))


def turned(image: Picture, rng: Rng) -> Picture:
    """Turned by 2 degrees either way, with black corners or cut to what is left without them."""
    done = image.rotate(2.0 * rng.choice([-1, 1]), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        return done
    margin = int(np.ceil(max(image.size) * np.tan(np.radians(2)) / 2))
    return done.crop((margin, margin, image.width - margin, image.height - margin))


def recompressed(image: Picture, rng: Rng) -> Picture:
    """JPEG of quality 40-70, up to a tenth brighter or darker."""
    gain = rng.uniform(0.9, 1.1)
    data = io.BytesIO()
    image.point(lambda v: min(255, int(v * gain + 0.5))).save(data, "JPEG", quality=int(rng.integers(40, 71)))
    return Image.open(data).convert("L")


CHANGES: dict[str, Sequence[Callable[[Picture, Rng], Picture]]] = {
    "crop": (cropped,),
    "rotation": (turned,),
    "recompression": (recompressed,),
    "all_three": (turned, cropped, recompressed),
}


def duplicates(images: list[Picture], signatures: list[Any], *, untouched: list[Pair], rng: Rng) -> dict[str, Any]:
    """What was planted and found: 1 % of copies of each kind, all kinds at once, each original copied once.

    A pair of a copy and its original is right. A pair of a copy and what the untouched plant pairs with its original
    follows from what was there before and is not counted; every other pair of a copy is wrong.
    """
    before = {(pair.i, pair.j) for pair in untouched}
    num = max(2, round(DUPLICATE_SHARE * len(images)))
    origins = rng.choice(len(images), num * len(CHANGES), replace=False).tolist()
    kinds = [kind for kind in CHANGES for _ in range(num)]
    copies = []
    for origin, kind in zip(origins, kinds, strict=True):
        image = images[origin]
        for change in CHANGES[kind]:
            image = change(image, rng)
        copies.append(signature(np.asarray(image)))
    found: dict[str, Any] = {kind: {"planted": num, "found": 0, "wrong": 0} for kind in CHANGES}
    for i, j, _ in near_duplicates([*signatures, *copies]):
        if j >= len(images):
            a, b = (k if k < len(images) else origins[k - len(images)] for k in (i, j))
            if a == b or (min(a, b), max(a, b)) not in before:
                found[kinds[j - len(images)]]["found" if a == b else "wrong"] += 1
    return found


# --- planted camera faults -------------------------------------------------------------------------------------------


def _grey(image: Picture) -> np.ndarray:
    return np.asarray(image, dtype=np.float64)


def _as_image(values: np.ndarray) -> np.ndarray:
    return np.clip(values + 0.5, 0, 255).astype(np.uint8)


def dimmed(frames: list[Picture], rng: Rng) -> list[np.ndarray]:
    """Half the light."""
    return [_as_image(_grey(frame) * 0.5) for frame in frames]


def stuck(frames: list[Picture], rng: Rng) -> list[np.ndarray]:
    """The first frame again and again, with new sensor noise of sigma 1."""
    first = _grey(frames[0])
    return [_as_image(first + rng.normal(0, 1, first.shape)) for _ in frames]


def defocused(frames: list[Picture], rng: Rng) -> list[np.ndarray]:
    """Blurred by a Gaussian of sigma 2 px."""
    return [np.asarray(frame.filter(ImageFilter.GaussianBlur(2))) for frame in frames]


def saturated(frames: list[Picture], rng: Rng) -> list[np.ndarray]:
    """Twice the light that would bring the mean to white."""
    return [_as_image(_grey(frame) * 510 / _grey(frame).mean()) for frame in frames]


def black(frames: list[Picture], rng: Rng) -> list[np.ndarray]:
    """A covered lens: level 3, noise of sigma 1."""
    return [_as_image(rng.normal(3, 1, _grey(frame).shape)) for frame in frames]


FAULTS = {one.__name__: one for one in (dimmed, stuck, defocused, saturated, black)}


def orders(names: list[str], *, rng: Rng | None) -> dict[str, list[int]]:
    """The frames of each environment, in the order of their names or shuffled: no times are recorded."""
    groups: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        key = Path(name).name[:4] if Path(name).name.startswith("exp") else "default"
        groups.setdefault(key, []).append(number)
    return {key: (rng.permutation(ids).tolist() if rng else ids) for key, ids in groups.items()}


def camera_faults(
    images: list[Picture], summaries: list[FrameSummary], *, names: list[str], rng: Rng
) -> dict[str, Any]:
    """One run of each fault, 3 % of the plant's frames, in its largest environment, shuffled.

    A frame is right if a fault of the planted kind names it; every other naming of a frame, of any kind, is wrong,
    unless the same order without the planted run has it too.
    """
    order = max(orders(names, rng=rng).values(), key=len)
    num = max(5, round(FAULT_SHARE * len(images)))
    before = {(one.kind, k) for one in faults([summaries[i] for i in order]) for k in one.frames}
    found: dict[str, Any] = {"before": len(before)}
    for kind, change in FAULTS.items():
        first = int(rng.integers(len(order) - num))
        at = range(first, first + num)
        changed = [summary(image) for image in change([images[order[k]] for k in at], rng)]
        told = {
            (one.kind, k)
            for one in faults(
                [summaries[i] for i in order[:first]] + changed + [summaries[i] for i in order[at.stop :]]
            )
            for k in one.frames
        }
        hits = sum((kind, k) in told for k in at)
        wrong = {key for key in told - before if key[0] != kind or key[1] not in at}
        found[kind] = {"planted": num - (kind == "stuck"), "found": hits, "wrong": len(wrong)}
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
    return table


def measure(name: str, *, data: Path, seeds: Sequence[int], every: int) -> dict[str, Any]:
    """Everything about one plant."""
    root = data / PLANTS[name]
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in (".jpg", ".png", ".bmp"))[::every]
    names = [path.relative_to(root).as_posix() for path in paths]
    images = [Image.open(path).convert("L") for path in paths]
    clock = [time.perf_counter()]
    signatures = [signature(np.asarray(image)) for image in images]
    clock.append(time.perf_counter())
    untouched = near_duplicates(signatures)
    clock.append(time.perf_counter())
    summaries = [summary(np.asarray(image)) for image in images]
    clock.append(time.perf_counter())
    in_order = {
        key: [[one.kind, names[ids[one.frames[0]]], len(one.frames), one.detail] for one in told]
        for key, ids in orders(names, rng=None).items()
        if (told := faults([summaries[i] for i in ids]))
    }
    clock.append(time.perf_counter())
    note(f"{name}: {len(images)} frames, {len(untouched)} pairs untouched")
    rngs = [np.random.default_rng(seed) for seed in seeds]
    cameras = [camera_faults(images, summaries, names=names, rng=rng) for rng in rngs]
    copies = [duplicates(images, signatures, untouched=untouched, rng=rng) for rng in rngs]
    spent = dict(zip(("signature", "near_duplicates", "summary", "faults"), np.diff(clock).tolist(), strict=True))
    return {
        "num_frames": len(images),
        "seconds_per_1000": {key: round(1000 * value / len(images), 2) for key, value in spent.items()},
        "duplicates": rates(copies),
        "camera_faults": rates(cameras),
        "untouched": {
            "num_pairs": len(untouched),
            "pairs": [[names[pair.i], names[pair.j], pair.score] for pair in untouched],
            "fault_frames_when_shuffled": [one["before"] for one in cameras],
            "faults_in_order_of_names": in_order,
        },
    }


def main() -> None:
    """Measure, then print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, every fifth frame")
    parser.add_argument("--plant", action="append", choices=sorted(PLANTS), help="only this plant; may be repeated")
    given = parser.parse_args()
    data = Path(os.environ.get("CROSSPLANT_REAL_DATA", ROOT.parent / "shared" / "data"))
    if not data.is_dir():
        raise SystemExit(f"{data} is missing: set CROSSPLANT_REAL_DATA to the folder of the three real plants")
    seeds, every = ((0,), 5) if given.quick else ((0, 1, 2), 1)
    plants = {name: measure(name, data=data, seeds=seeds, every=every) for name in given.plant or PLANTS}
    worst = {
        key: min(one[rate] or 0.0 for plant in plants.values() for one in plant[what].values())
        for what in ("duplicates", "camera_faults")
        for rate in ("precision", "recall")
        for key in [f"{what}_{rate}"]
    }
    print(
        json.dumps(
            {"name": "audit", "worst": worst, "seeds": list(seeds), "plants": plants, "machine": machine(threads={})}
        )
    )


if __name__ == "__main__":
    main()
