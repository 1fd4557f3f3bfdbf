"""The frozen trunk on this machine: by the exported file, or by torch where that is faster or there is a GPU."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx.utils
import torch
from torch import Tensor

from jobs.compress import Evaluator
from jobs.compute import PLAIN

if TYPE_CHECKING:
    from jobs.material import Material


class TrunkRunner:
    """The frozen trunk on this machine, on its GPU where it has one.

    Without a GPU it is the exported file in ONNX Runtime, the very trunk that serves, unless torch is faster in
    bfloat16, as it can be for large convolutions. Measured, one thread, images/s, exported file / torch in bfloat16:
    `mobilenetv2_035` at 224 px 647 / 239, the embedded backbone 1,392 / 1,074, ResNet-18 59 / 82.
    """

    BLOCK = 8

    def __init__(self, material: Material) -> None:
        self._model = material.learner
        self._path = material.trunk_path
        self._onnx = Evaluator(self._path)
        self._parts: dict[int, Evaluator] = {}
        is_plain = material.recipe.compute == "float32"
        compute = None if is_plain else material.computes.of_trunk(self._exported)
        if compute is None and torch.cuda.is_available():
            compute = PLAIN
        if compute:
            self._model.trunk.compute_in(compute)
        self._in_torch = compute is not None
        self.weights_digest = self._model.weights_digest + (f"|{compute}" if compute else "")

    @property
    def device(self) -> torch.device:
        """Where it computes, and activations are."""
        return self._model.trunk.scale.device

    @torch.no_grad()
    def activations(self, images: Tensor, *, cut: int | None = None) -> Mapping[int, Tensor]:
        """Activations float32 [N, ...] by cut of images uint8 [N, S, S, 3]: at all cuts, or at the one asked for."""
        trunk, images = self._model.trunk, images.to(self.device)
        if cut and cut == self._model.max_cut:
            return {cut: trunk.normalise(images)}
        if not self._in_torch:
            return {at: torch.from_numpy(found) for at, found in self._exported(images.numpy(), cut=cut).items()}
        found = [trunk(block) for block in images.split(2 * self.BLOCK)]
        return {at: torch.cat([block[at] for block in found]) for at in (found[0] if cut is None else (cut,))}

    def _exported(self, images: np.ndarray, *, cut: int | None = None) -> Mapping[int, np.ndarray]:
        """By the exported file, or by the part of it below a cut: the runtime computes all that a file holds."""
        if cut and cut not in self._parts:
            path = self._path.with_name(f"trunk.cut{cut}.onnx")
            if not path.exists():
                part = path.with_name(f".{path.name}.{os.getpid()}")
                onnx.utils.extract_model(str(self._path), str(part), ["images"], [f"cut{cut}"])
                os.replace(part, path)
            self._parts[cut] = Evaluator(path)
        return (self._parts[cut] if cut else self._onnx).activations(images, batch=self.BLOCK)
