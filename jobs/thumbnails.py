"""Small pictures of failures for the report, where a plant's images may be shown; few, so that a report stays small."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.storage import MissingFile, PlantFiles
from jobs.material import Material
from jobs.sheets import thumbnail
from plants.governance import not_shown

MAX_OF_PLANT = 12
MAX_BYTES = 2_000_000
"""Of all pictures of a report together."""


def pictures(document: Mapping[str, Any], *, material: Material) -> dict[str, dict[str, Any]]:
    """Plant -> `frames`, frame -> data URI of what its failures show, and `words` about what is not shown.

    The worst plants and the most expensive failures first, until `MAX_BYTES` are spent.
    """
    found: dict[str, dict[str, Any]] = {}
    left, files = MAX_BYTES, PlantFiles()
    for name in document["plants"]:
        plant = material.fleet.plant(name)
        groups = document["details"].get(name, {}).get("failures") or ()
        wanted = list(dict.fromkeys(one["frame"] for group in groups for one in group["examples"]))
        why = not_shown(plant)
        if not wanted or why:
            found[name] = {"frames": {}, "words": f"No pictures: {why}." if wanted else ""}
            continue
        rows = material.rows(name).set_index("frame")
        frames: dict[str, str] = {}
        gone = 0
        for frame in wanted[:MAX_OF_PLANT]:
            row = {**rows.loc[frame].to_dict(), "frame": frame} if frame in rows.index else None
            try:
                uri = row and thumbnail(row, plant=plant, read=lambda name, at=plant.images: files.read(at, name))
            except MissingFile:
                uri = None
            if uri is None:
                gone += 1
            elif len(uri) <= left:
                left -= len(uri)
                frames[frame] = uri
        words = f"{len(frames)} of {len(wanted)} frames are shown" if len(frames) < len(wanted) else ""
        found[name] = {"frames": frames, "words": f"{words}{f'; {gone} are gone' if gone else ''}." if words else ""}
    return found
