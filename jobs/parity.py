"""The exported files themselves: run as serving runs them, and compared with torch before anything is published.

Evaluation and calibration look at what is returned here, never at torch: a model that was exported wrongly must not be
judged by the numbers of the one that was trained.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs.compute import PLAIN
from jobs.model import Branch, CutModel

TOLERANCE = 1e-3
"""Largest difference, as a fraction of the largest value, at which two float32 runtimes still agree."""


def agrees(report: Mapping[str, float], *, tolerance: float = TOLERANCE) -> bool:
    """Whether a parity report lets a branch be published: same decisions, logits and features within tolerance."""
    close = report["max_rel"] <= tolerance and report["max_rel_features"] <= tolerance
    return bool(close and report["flips"] == 0)


def parity(branch: Branch, onnx_path: str | Path, activations: np.ndarray, *, batch: int = 64) -> dict[str, float]:
    """How far the exported branch is from torch on these activations [N, ...], in evaluation mode.

    max_abs_diff of logits; max_rel and max_rel_features as a fraction of the largest value; flips: rows whose most
    probable leaf changes by more than a tie; n. A value that is not finite counts as infinitely far.
    """
    expected = torch_answers(branch, activations, batch=batch)
    return compared(expected, run_branch(open_session(str(onnx_path)), activations, batch=batch))


def parity_full(
    model: CutModel,
    branch: Branch,
    trunk_path: str | Path,
    branch_path: str | Path,
    images: np.ndarray,
    *,
    batch: int = 64,
) -> dict[str, float]:
    """As parity, from uint8 images [N, S, S, 3] through both exported files, against torch in plain float32."""
    trunk = copy.deepcopy(model.trunk).cpu()
    trunk.compute_in(PLAIN)
    with torch.inference_mode():
        blocks = [trunk(torch.from_numpy(block))[branch.cut].numpy() for block in _blocks(images, batch)]
    expected = torch_answers(branch, np.concatenate(blocks), batch=batch)
    evaluator = Evaluator(trunk_path)
    return compared(
        expected,
        evaluator.branch(branch_path, evaluator.activations(images, batch=batch, cuts=[branch.cut])[branch.cut]),
    )


def compared(expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> dict[str, float]:
    logits, other = expected[0], found[0]
    far = _distance(logits, other)
    order = np.sort(logits, axis=1)
    gap = order[:, -1] - order[:, -2] if logits.shape[1] > 1 else np.full(len(logits), np.inf)
    is_tie = gap <= 1e-5 * np.abs(logits).max(initial=1e-6)
    return {
        "max_abs_diff": far,
        "max_rel": far / max(float(np.abs(logits).max(initial=0)), 1e-6),
        "max_rel_features": _distance(expected[1], found[1]) / max(float(np.abs(expected[1]).max(initial=0)), 1e-6),
        "flips": int(((logits.argmax(1) != other.argmax(1)) & ~is_tie).sum()),
        "n": len(logits),
    }


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    return float(np.abs(a - b).max(initial=0))


@torch.inference_mode()
def torch_answers(branch: Branch, activations: np.ndarray, *, batch: int) -> tuple[np.ndarray, np.ndarray]:
    was = branch.training
    device = branch.head.weight.device
    branch.eval()
    try:
        out = [
            branch(torch.from_numpy(np.ascontiguousarray(b)).float().to(device)) for b in _blocks(activations, batch)
        ]
    finally:
        branch.train(was)
    return torch.cat([o[0] for o in out]).cpu().numpy(), torch.cat([o[1] for o in out]).cpu().numpy()


class Evaluator:
    """Runs exported files in ONNX Runtime as serving does: what evaluation and calibration look at."""

    KEPT = 8
    """Branch sessions kept open, the last used."""

    def __init__(self, trunk_path: str | Path, *, threads: int = 1) -> None:
        self.threads = threads
        self._trunk = open_session(str(trunk_path), threads=threads)
        self._branches: dict[tuple[str, int, int], Any] = {}
        names = [output.name for output in self._trunk.get_outputs()]
        self.cuts = tuple(int(name.removeprefix("cut")) for name in names if name.startswith("cut"))
        self.size_px = int(self._trunk.get_inputs()[0].shape[1])

    def activations(
        self, images: np.ndarray, *, batch: int = 64, cuts: Sequence[int] | None = None
    ) -> dict[int, np.ndarray]:
        """Activations float32 [N, ...] by cut (all, or those asked for) of images uint8 [N, S, S, 3]."""
        cuts = self.cuts if cuts is None else tuple(cuts)
        names = [f"cut{cut}" for cut in cuts]
        blocks = [self._trunk.run(names, {"images": block}) for block in _blocks(images, batch)]
        return {cut: np.concatenate([block[i] for block in blocks]) for i, cut in enumerate(cuts)}

    def branch(self, path: str | Path, activation: np.ndarray, *, batch: int = 64) -> tuple[np.ndarray, np.ndarray]:
        """Logits [N, L] and features [N, F], float32, of activations at the branch's cut."""
        return run_branch(self._session_of(Path(path)), activation, batch=batch)

    def _session_of(self, path: Path) -> Any:
        stat = path.stat()
        key = (str(path), stat.st_mtime_ns, stat.st_size)
        session = self._branches.pop(key, None) or open_session(str(path), threads=self.threads)
        self._branches[key] = session
        while len(self._branches) > self.KEPT:
            self._branches.pop(next(iter(self._branches)))
        return session


def open_session(model: str | bytes, *, threads: int = 1) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run_branch(session: Any, activations: np.ndarray, *, batch: int) -> tuple[np.ndarray, np.ndarray]:
    out = [
        session.run(["logits", "features"], {"activation": b.astype(np.float32)}) for b in _blocks(activations, batch)
    ]
    return np.concatenate([o[0] for o in out]), np.concatenate([o[1] for o in out])


def _blocks(values: np.ndarray, batch: int) -> Iterator[np.ndarray]:
    """Contiguous blocks of rows; one empty block where there are no rows, so that shapes stay known."""
    for start in range(0, max(len(values), 1), batch):
        yield np.ascontiguousarray(values[start : start + batch])
