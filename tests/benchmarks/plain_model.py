"""A bundle's two files run plainly, for the peers of `bench_serving.py`: the same bytes, decoder, views and files.

Imports nothing that LitServe's and BentoML's own virtual environments lack: the noun room and ONNX Runtime.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from plants import bundle
from plants.scores import softmax
from plants.views import read_views

TASK = "BENCH_SERVING_TASK"
RAY_NICENESS = 15


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

    def probabilities(self, data: bytes) -> np.ndarray:
        """[C] of an image's bytes."""
        where = self.environment
        seen = read_views(data, geometry=where.geometry, photometry=where.photometry, **self.inputs)
        (activation,) = self.trunk.run([self.cut], {"images": seen.pixels})
        (logits,) = self.branch.run(["logits"], {"activation": activation})
        return np.asarray(softmax(logits), dtype=np.float64)[0]

    def answer(self, data: bytes) -> dict[str, Any]:
        """The probabilities by class."""
        values = self.probabilities(data).tolist()
        return {"probabilities": dict(zip(self.classes, values, strict=True))}


def as_nice_as_ray() -> None:
    """This process yields as Ray's workers do."""
    os.nice(max(0, RAY_NICENESS - os.nice(0)))


def _session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
