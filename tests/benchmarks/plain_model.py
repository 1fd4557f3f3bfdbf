"""A bundle's two files run plainly, for the peers of `bench_serving.py`: the same bytes, decoder, views and files.

Imports nothing that LitServe's and BentoML's own virtual environments lack: the noun room and ONNX Runtime.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from plants import bundle
from plants.plant import is_ok
from plants.scores import pool, softmax
from plants.views import read_views

TASK = "BENCH_SERVING_TASK"
RAY_NICENESS = 15
CHUNK = 8
"""Views of a part that go through the trunk together: its maps then stay in a core's cache."""


class Plain:
    """A bundle's two files and its plant's geometry."""

    def __init__(self, *, folder: Path, trunk: Path, branch: Path, plant: str) -> None:
        manifest, _ = bundle.read(folder)
        view = manifest.serves[plant]
        (self.environment,) = view.environments.values()
        self.classes, self.cut = tuple(manifest.leaves), f"cut{manifest.cut}"
        self.inputs: Any = manifest.trunk.model_dump(include={"size_px", "interpolation"})
        self.trunk, self.branch = _session(trunk), _session(branch)

    @classmethod
    def of(cls, task: dict[str, Any]) -> Plain:
        """The bundle that a task names."""
        files = {name: Path(task[name]) for name in ("trunk", "branch")}
        return cls(folder=Path(task["bundle"]), plant=task["plant"], **files)

    def seen(self, data: bytes) -> np.ndarray:
        """Views uint8 [T, S, S, 3] of an image's bytes."""
        where = self.environment
        return read_views(data, geometry=where.geometry, photometry=where.photometry, **self.inputs).pixels

    def said(self, seen: np.ndarray) -> np.ndarray:
        """[T, C] of views."""
        (activation,) = self.trunk.run([self.cut], {"images": seen})
        (logits,) = self.branch.run(["logits"], {"activation": activation})
        return np.asarray(softmax(logits), dtype=np.float64)

    def probabilities(self, data: bytes) -> np.ndarray:
        """[C] of an image's bytes."""
        return self.said(self.seen(data))[0]

    def answer(self, asked: Any) -> dict[str, Any]:
        """The probabilities by class."""
        values = self.probabilities(asked).tolist()
        return {"probabilities": dict(zip(self.classes, values, strict=True))}


class PlainPart(Plain):
    """Several frames of one part: the loudest view of each frame, then the loudest frame."""

    def probabilities(self, frames: Sequence[bytes]) -> np.ndarray:  # type: ignore[override]
        """[C] of a part. Views go through the trunk a few at a time, which is the fastest way: see `CHUNK`."""
        ok, said = np.array([is_ok(name) for name in self.classes]), []
        for data in frames:
            seen = self.seen(data)
            rows = [self.said(seen[start : start + CHUNK]) for start in range(0, len(seen), CHUNK)]
            said.append(pool(np.concatenate(rows), ok=ok)[0])
        return pool(np.stack(said), ok=ok)[0]


class Whole(Plain):
    """Several models as separate sessions: each its own trunk and branch, the image decoded once."""

    def __init__(self, members: Sequence[Plain], *, weights: Sequence[float]) -> None:
        self.members, self.weights, self.classes = tuple(members), np.array(weights), members[0].classes

    def probabilities(self, data: bytes) -> np.ndarray:
        """[C] of an image's bytes, the members' weighted mean."""
        seen = self.members[0].seen(data)
        said = np.stack([member.said(seen)[0] for member in self.members])
        return np.asarray(self.weights @ said / self.weights.sum())


def made(task: dict[str, Any]) -> Plain:
    """What a task asks for: a bundle, the same for parts of several frames, or several bundles as one."""
    if "members" in task:
        names = task["members"]
        one = [
            Plain.of({**task, "plant": name, "bundle": where, "branch": f"{where}/branch.onnx"})
            for name, where in names
        ]
        return Whole(one, weights=task["weights"])
    return (PlainPart if task.get("frames", 1) > 1 else Plain).of(task)


def as_nice_as_ray() -> None:
    """This process yields as Ray's workers do."""
    os.nice(max(0, RAY_NICENESS - os.nice(0)))


def _session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
