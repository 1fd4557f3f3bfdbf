"""The inputs on which INT8 is calibrated: `decide` views of all plants, as the trunk sees them when it serves.

Scales are drawn from images, so the rule of bundles holds: what may not leave a plant calibrates that plant's own files
alone. The sealed test is never looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from jobs.scoring import RoleInputs
from plants.governance import may_hold
from plants.hashing import unit_hash
from plants.plant import Fleet

NUM_INPUTS = 128
"""Views in all, dealt evenly to the plants; at least `LEAST` of each."""
LEAST = 2


def teachers(fleet: Fleet, *, among: Iterable[str], serves: Iterable[str]) -> list[str]:
    """Those of these plants whose images may calibrate a file that serves these plants."""
    served = list(serves)
    return sorted(name for name in among if may_hold(fleet.plant(name), serves=served))


def chosen(inputs: Mapping[str, RoleInputs], *, names: Iterable[str], num: int = NUM_INPUTS) -> dict[str, np.ndarray]:
    """Plant -> rows of its inputs, the same ones on every run, spread over its classes."""
    known = [name for name in names if name in inputs]
    each = max(LEAST, num // len(known)) if known else 0
    return {name: _spread(inputs[name], num=each) for name in known}


def _spread(inputs: RoleInputs, *, num: int) -> np.ndarray:
    """Of each class in turn one input, until there are enough."""
    classes = inputs.frames["class"].to_numpy(dtype=object)[inputs.frame_groups]
    frames = inputs.frames.index.to_numpy(dtype=object)[inputs.frame_groups]
    order = sorted(range(len(classes)), key=lambda row: (unit_hash("calibrate", row, frames[row]), row))
    seen: dict[str, int] = {}
    turns = []
    for row in order:
        seen[classes[row]] = seen.get(classes[row], -1) + 1
        turns.append((seen[classes[row]], row))
    return np.array(sorted(row for _, row in sorted(turns, key=lambda pair: pair[0])[:num]), dtype=np.intp)
