"""One picture under labels that cannot all be right, within a plant and between plants.

`conflicting_files` needs the label tables alone; what merely looks the same is found by `jobs.pictures`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import combinations

import pandas as pd

from plants.findings import Finding, Level
from plants.plant import Plant

NUM_NAMED = 5


def contradict(a: Plant, class_a: str, b: Plant, class_b: str) -> bool:
    """Whether two labels of one picture cannot both be right.

    The fleet's classes are compared, and within one of them the plants' own where both plants tell the two apart.
    """
    if class_a not in a.classes or class_b not in b.classes:
        return False
    fleet = a.classes[class_a].fleet
    if fleet != b.classes[class_b].fleet:
        return True
    own = ({name for name, value in plant.classes.items() if value.fleet == fleet} for plant in (a, b))
    return class_a != class_b and all({class_a, class_b} <= names for names in own)


def conflicting_files(tables: Sequence[tuple[Plant, pd.DataFrame]], *, names: Collection[str]) -> list[Finding]:
    """Files that are equal byte for byte and have labels that contradict each other, where one is of the named plants.

    tables: Label rows by plant, those that play no role included; rows without a class are not judged.
    """
    plants = {plant.name: plant for plant, _ in tables}
    columns = ["plant", "frame", "class", "sha256"]
    rows = pd.concat([rows.assign(plant=plant.name)[columns] for plant, rows in tables], ignore_index=True)
    rows = rows[rows["class"].notna()].drop_duplicates(["plant", "class", "sha256"])
    rows = rows[rows["sha256"].duplicated(keep=False)].sort_values("plant", key=lambda name: ~name.isin(names))
    found: dict[tuple[str, str], list[str]] = {}
    for _, group in rows.groupby("sha256", sort=True):
        for one, other in combinations(group.to_dict("records"), 2):
            a, b = plants[one["plant"]], plants[other["plant"]]
            if a.name in names and contradict(a, one["class"], b, other["class"]):
                words = " and ".join(f"{row['plant']}:{row['frame']} as {row['class']!r}" for row in (one, other))
                found.setdefault((a.name, b.name), []).append(words)
    return [_finding(plant, words=words, level=("error", "warning")[plant != b]) for (plant, b), words in found.items()]


def _finding(plant: str, *, words: Sequence[str], level: Level) -> Finding:
    more = f"; and {len(words) - NUM_NAMED} more" if len(words) > NUM_NAMED else ""
    detail = f"the same image has different labels, {len(words)} times: {'; '.join(words[:NUM_NAMED])}{more}"
    return Finding(level, "conflicting_labels", plant, detail, "Look at the image and correct the labels")
