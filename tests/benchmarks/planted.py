"""What `bench_audit.py` plants in copies of a plant: near duplicates, camera faults, wrong labels, telling columns."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFilter

Rng = np.random.Generator
Picture = Image.Image

# --- copies ----------------------------------------------------------------------------------------------------------


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


# --- camera faults ---------------------------------------------------------------------------------------------------


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


def in_fixture(frames: list[Picture], rng: Rng) -> list[Picture]:
    """The parts under two bright clamps and beside two dark pins, which lie at the same place in every frame."""
    spots = [(235, *rng.uniform(0, 0.9, 2), *sides) for sides in ((0.1, 0.4), (0.5, 0.08))]
    spots += [(20, *rng.uniform(0.1, 0.8, 2), *rng.uniform(0.08, 0.15, 2)) for _ in range(2)]
    held = []
    for frame in frames:
        picture = frame.copy()
        draw = ImageDraw.Draw(picture)
        for level, x, y, width, height in spots:
            box = [x * frame.width, y * frame.height, (x + width) * frame.width, (y + height) * frame.height]
            draw.rectangle(box, fill=level)
        held.append(picture)
    return held


def shifted(frames: list[Picture], rng: Rng) -> list[np.ndarray]:
    """A knocked camera: moved by 5-10 % of each side, mirrored where it now sees what it did not see before."""
    y, x = rng.uniform(0.05, 0.1, 2) * rng.choice([-1, 1], 2)
    moved = []
    for frame in frames:
        dy, dx = round(y * frame.height), round(x * frame.width)
        wide = np.pad(np.asarray(frame), ((abs(dy),) * 2, (abs(dx),) * 2), mode="symmetric")
        top, left = abs(dy) - dy, abs(dx) - dx
        moved.append(wide[top : top + frame.height, left : left + frame.width])
    return moved


# --- labels and columns ----------------------------------------------------------------------------------------------


def mislabelled(classes: np.ndarray, *, share: float, rng: Rng) -> tuple[np.ndarray, set[int]]:
    """The classes [N] with this share of them another class at random, and which rows those are."""
    wrong = rng.choice(len(classes), round(share * len(classes)), replace=False)
    said, names = classes.copy(), sorted(set(classes))
    for row in wrong:
        said[row] = rng.choice([name for name in names if name != classes[row]])
    return said, set(wrong.tolist())


def each_class(classes: np.ndarray, *, faith: float, rng: Rng) -> np.ndarray:
    """Numbers [N]: a value of its own for each class in this share of the rows, any value in the others."""
    names = sorted(set(classes))
    own = np.searchsorted(names, classes.astype(str))
    return np.where(rng.random(len(classes)) < faith, own, rng.integers(0, len(names), len(classes)))


def one_class(classes: np.ndarray, *, faith: float, rng: Rng) -> np.ndarray:
    """Numbers [N]: 1 for the second most frequent class and 0 for all others, in this share of the rows."""
    names, counts = np.unique(classes.astype(str), return_counts=True)
    told = classes == names[np.argsort(counts)[-2]]
    return np.where(rng.random(len(classes)) < faith, told, ~told).astype(int)


def written(table: pd.DataFrame, column: str, *, values: np.ndarray) -> pd.DataFrame:
    """The table with these numbers [N] as what a person would find in the column."""
    if column == "suffix":
        stems = table["frame"].str.rpartition(".")[0]
        return table.assign(frame=stems + "." + pd.Series(values, index=table.index).astype(str) + "x")
    if column == "hour":
        day = pd.to_datetime(table["captured_at"], utc=True).dt.floor("D")
        return table.assign(captured_at=day + pd.to_timedelta(values + 6, unit="h"))
    return table.assign(**{column: pd.Series(values, index=table.index).map(lambda v: f"{column}-{v}")})


def clean(table: pd.DataFrame, *, rng: Rng) -> pd.DataFrame:
    """The table with columns that tell nothing where it has none: two annotators, three products, a year of hours."""
    num = len(table)
    made = {
        "environment": [f"line{n}" for n in rng.integers(1, 3, num)],
        "product": [f"p{n}" for n in rng.integers(0, 3, num)],
        "annotator": [f"a{n}" for n in rng.integers(0, 2, num)],
        "captured_at": pd.Timestamp("2026-01-01", tz="UTC") + pd.to_timedelta(rng.integers(0, 365 * 24, num), unit="h"),
    }
    return table.assign(**{name: cells for name, cells in made.items() if name not in table.columns})
