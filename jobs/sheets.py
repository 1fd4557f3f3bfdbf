"""Contact sheets: what a plant's labelled images look like, class by class, for a person's own eyes.

A random hundred of each class, the most suspicious first, with the located defect framed. Never the sealed test's.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from html import escape
from typing import Any

import pandas as pd
from PIL import Image, ImageDraw

from plants.hashing import unit_hash
from plants.images import decode
from plants.plant import Plant

PER_CLASS = 100
THUMB_PX = 96
NUM_READERS = 4


@dataclass(frozen=True)
class Picture:
    """One image of a sheet."""

    frame: str
    data_uri: str
    words: str = ""
    is_suspect: bool = False


Sheets = dict[str, list[Picture]]
"""Class -> its pictures."""


def draw_sheets(
    plant: Plant,
    rows: pd.DataFrame,
    *,
    read: Callable[[str], bytes],
    confidence: Mapping[str, float],
    suspects: Mapping[str, str],
    seed: int,
) -> Sheets:
    """Class -> up to `PER_CLASS` pictures drawn at random, those whose label is least believed first.

    rows: label rows with a class. confidence: frame -> probability of its label. suspects: frame -> words about it, all
    of them shown, whatever is drawn.
    """
    rows = rows.assign(_draw=[unit_hash("contact sheet", seed, frame) for frame in rows["frame"]])
    sheets: Sheets = {}
    for name, group in rows.groupby("class", sort=True):
        drawn = group.nsmallest(PER_CLASS, "_draw")
        drawn = pd.concat([group[group["frame"].isin(list(suspects))], drawn]).drop_duplicates("frame")
        order = drawn.assign(_sure=[confidence.get(frame, 1.0) for frame in drawn["frame"]]).sort_values("_sure")
        with ThreadPoolExecutor(NUM_READERS, thread_name_prefix="sheets") as pool:
            uris = pool.map(lambda row: thumbnail(row, plant=plant, read=read), order.to_dict("records"))
            sheets[str(name)] = [
                Picture(frame, uri, suspects.get(frame, ""), frame in suspects)
                for frame, uri in zip(order["frame"], uris, strict=True)
            ]
    return sheets


def sheets_html(plant: str, sheets: Sheets) -> str:
    """The sheets of one plant as HTML."""
    parts = []
    for name, pictures in sheets.items():
        parts.append(f"<h3>{escape(plant)}: {escape(name)} ({len(pictures)} shown)</h3>")
        parts.append("<div>" + "".join(_figures(pictures)) + "</div>")
    return "\n".join(parts)


def _figures(pictures: Iterable[Picture]) -> Iterable[str]:
    for picture in pictures:
        kind = ' class="suspect"' if picture.is_suspect else ""
        words = f"<br>{escape(picture.words)}" if picture.words else ""
        yield (
            f'<figure{kind}><img src="{picture.data_uri}" alt="{escape(picture.frame)}" loading="lazy">'
            f"<figcaption>{escape(picture.frame.rpartition('/')[2])}{words}</figcaption></figure>"
        )


def thumbnail(row: Mapping[str, Any], *, plant: Plant, read: Callable[[str], bytes]) -> str:
    """A label row's frame as a small JPEG in a data URI, with its located defect framed."""
    geometry = plant.environments[row["environment"]].geometry
    frame = str(row["frame"])
    pixels = decode(read(frame), bit_depth=geometry.bit_depth, window=geometry.window, source=frame)
    image = Image.fromarray(pixels)
    scale = THUMB_PX / max(image.size)
    image.thumbnail((THUMB_PX, THUMB_PX))
    if row.get("box") is not None and len(row["box"]) == 4:
        x0, y0, x1, y1 = (float(value) * scale for value in row["box"])
        ImageDraw.Draw(image).rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=(255, 64, 64))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
