"""A bundle on disk becomes a scorer, and a route becomes a predictor.

Every digest is checked before anything is loaded, and the bundle's own probe inputs must give the outputs that were
recorded at export: a bundle that answers differently on this machine is refused here, not discovered on the line.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np

from plants import bundle
from plants.bundle import Manifest
from plants.errors import InputError
from plants.normality import Normalities
from serving.ensemble import Ensemble
from serving.scoring import GoodParts, Model, Scorer, Sessions, Trunk

PROBE_TOLERANCE = 1e-2
"""Largest difference of a logit from the recorded one; float32 kernels of two machines differ by less."""
_NUM_PROBES = 4


class Loader:
    """Scorers by digest, shared by every plant that asks for the same bundle, and freed with the last of them."""

    def __init__(self, *, folder_of: Callable[[str], Path], trunk_of: Callable[[str], Path]) -> None:
        """`folder_of` gives a bundle's folder by its digest, `trunk_of` a trunk's file by its SHA-256."""
        self._folder_of = folder_of
        self._trunk_of = trunk_of
        self._sessions = Sessions()
        self._scorers: weakref.WeakValueDictionary[str, Scorer] = weakref.WeakValueDictionary()
        self._lock = threading.RLock()

    def scorer(self, digest: str) -> Scorer:
        """The bundle of this digest, loaded and probed. Raises InputError for one that is not what it says."""
        with self._lock:
            found = self._scorers.get(digest)
            if found is None:
                folder = self._folder_of(digest)
                manifest, actual = bundle.read(folder)
                if actual != digest:
                    raise InputError(f"holds bundle {actual[:12]} instead of {digest[:12]}", file=str(folder))
                found = self._scorers[digest] = self._opened(folder, manifest=manifest, digest=digest)
            return found

    def _opened(self, folder: Path, *, manifest: Manifest, digest: str) -> Scorer:
        known = "normality.npz" in manifest.files
        normality = Normalities.load(folder / "normality.npz") if known else Normalities()
        if manifest.kind == "ensemble":
            members = [self.scorer(member) for member in manifest.members]
            models = tuple(member for member in members if isinstance(member, Model))
            if len(models) != len(members):
                raise InputError("an ensemble's members must be single models", file=str(folder), field="members")
            return Ensemble(digest, manifest, models, tuple(manifest.weights), normality)
        ref = manifest.trunk
        session = self._sessions.get(self._trunk_of(ref.sha256), digest=ref.sha256)
        trunk = Trunk(ref.sha256, ref.size_px, session, ref.interpolation)
        model: Model | GoodParts
        if manifest.kind == "normality":
            model = GoodParts(digest, manifest, trunk, normality)
        else:
            branch = self._sessions.get(folder / "branch.onnx", digest=manifest.files["branch.onnx"])
            model = Model(digest, manifest, trunk, branch, normality)
        check_probe(model, folder=folder)
        return model


def check_probe(model: Model | GoodParts, *, folder: Path) -> None:
    """Raises InputError unless the model gives the outputs recorded at export for the first probe inputs."""
    if "probe.npz" not in model.manifest.files:
        return
    with np.load(folder / "probe.npz", allow_pickle=False) as probe:
        inputs, expected = probe["inputs"][:_NUM_PROBES], probe["logits"][:_NUM_PROBES]
    logits, _ = model.logits(model.trunk.activations(inputs, cuts=model.cuts))
    worst = float(np.abs(logits - expected).max(initial=0.0))
    if not worst <= PROBE_TOLERANCE * max(1.0, float(np.abs(expected).max(initial=0.0))):
        raise InputError(
            f"gives other outputs here than where it was exported (a logit differs by {worst:.3g})",
            file=str(folder / "probe.npz"),
            remedy="Export the bundle again, with this runtime",
        )
