"""The probe of a bundle: drawn inputs with what torch and the exported files gave for them where it was exported.

Every host that loads the bundle asks its own runtime the same; see `plants.certificate`.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from jobs.compute import PLAIN
from jobs.parity import torch_answers
from jobs.scoring import Exports
from plants.images import tensor_digest

PROBE_INPUTS = 32
BLOCK = 8


@dataclass(frozen=True)
class Drawn:
    """The probe's inputs uint8 [n, S, S, 3], and their activations by cut: of the exported trunk, and of torch's."""

    images: np.ndarray
    exported: Mapping[int, np.ndarray]
    in_torch: Mapping[int, np.ndarray]


_DRAWN: weakref.WeakKeyDictionary[Exports, Drawn] = weakref.WeakKeyDictionary()


def probe(run_id: str, *, exports: Exports) -> dict[str, np.ndarray]:
    """Inputs uint8 [n, S, S, 3] with the logits [n, L] that the exported files and, as `torch`, torch give for them.

    A normality has pooled features [n, F] in the logits' place. The inputs are drawn, not photographed, so that no
    image leaves a plant with a bundle.
    """
    if exports not in _DRAWN:
        _DRAWN[exports] = _drawn(exports)
    drawn = _DRAWN[exports]
    logits, in_torch, grave = drawn.exported[0], drawn.in_torch[0], {}
    if exports.plan.run(run_id).kind != "normality":
        words, branch, path = exports.branch(run_id)
        logits, features = exports.evaluator.branch(path, drawn.exported[words["cut"]])
        head = exports.severity(run_id)
        grave = {} if head is None else {"severity": head.of(features)}
        in_torch, _ = torch_answers(branch, drawn.in_torch[words["cut"]], batch=BLOCK)
    digest = np.array(tensor_digest(drawn.images))
    return {"inputs": drawn.images, "logits": logits, "torch": in_torch, "digest": digest, **grave}


@torch.inference_mode()
def _drawn(exports: Exports) -> Drawn:
    size = exports.material.trunk.size_px
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, size=(PROBE_INPUTS, 8, 8, 3))
    images = np.repeat(np.repeat(coarse, -(-size // 8), axis=1), -(-size // 8), axis=2)[:, :size, :size]
    images = np.clip(images + rng.normal(0, 12, size=images.shape), 0, 255).astype(np.uint8)
    trunk = copy.deepcopy(exports.material.model.trunk).cpu()
    trunk.compute_in(PLAIN)
    blocks = [trunk(torch.from_numpy(images[at : at + BLOCK])) for at in range(0, len(images), BLOCK)]
    in_torch = {cut: torch.cat([block[cut] for block in blocks]).numpy() for cut in blocks[0]}
    return Drawn(images, exports.evaluator.activations(images, batch=BLOCK), in_torch)
