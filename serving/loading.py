"""A bundle on disk becomes a scorer, and a route becomes a predictor.

Every digest is checked before anything is loaded, and the bundle's own probe inputs must give the outputs that were
recorded at export: a bundle that answers differently on this machine is refused here, not discovered on the line.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np

from plants import bundle
from plants.bundle import Manifest
from plants.certificate import int8_stage
from plants.errors import InputError
from plants.normality import Normalities
from plants.variants import Variant, shift
from serving.ensemble import Ensemble
from serving.scoring import GoodParts, Model, Scorer, Sessions, Trunk
from serving.variants import Choose, always_float, files_of

log = logging.getLogger("crossplant.serving")

PROBE_TOLERANCE = 1e-2
"""Largest difference of a logit from the recorded one; float32 kernels of two machines differ by less."""
_NUM_PROBES = 4


class Loader:
    """Scorers by digest, shared by every plant that asks for the same bundle, and freed with the last of them."""

    def __init__(
        self,
        *,
        folder_of: Callable[[str], Path],
        trunk_of: Callable[[str], Path],
        choose: Choose = always_float,
    ) -> None:
        """`folder_of` gives a bundle's folder by its digest, `trunk_of` a trunk's file by its SHA-256.

        `choose` says which variant of a bundle is served, see `serving.variants`.
        """
        self.folder_of = folder_of
        self._trunk_of = trunk_of
        self._choose = choose
        self._chosen: dict[str, Variant] = {}
        self._sessions = Sessions()
        self._scorers: weakref.WeakValueDictionary[tuple[str, Variant], Scorer] = weakref.WeakValueDictionary()
        self._lock = threading.RLock()

    def scorer(self, digest: str, variant: Variant | None = None) -> Scorer:
        """The bundle of this digest, loaded and probed, in the variant that is served unless one is named.

        Raises InputError for one that is not what it says.
        """
        with self._lock:
            variant = variant or self._chosen.get(digest)
            found = self._scorers.get((digest, variant)) if variant else None
            if found is None:
                folder = self.folder_of(digest)
                manifest, actual = bundle.read(folder)
                if actual != digest:
                    raise InputError(f"holds bundle {actual[:12]} instead of {digest[:12]}", file=str(folder))
                if variant is None:
                    found = self._served(folder, manifest=manifest, digest=digest)
                else:
                    found = self._opened(folder, manifest=manifest, digest=digest, variant=variant)
                self._scorers[digest, variant or self._chosen[digest]] = found
            return found

    def _served(self, folder: Path, *, manifest: Manifest, digest: str) -> Scorer:
        """In the variant that is chosen; in float where its INT8 does not answer here as where it was judged."""
        variant = self._choose(digest, manifest, self.scorer)
        if variant == "int8":
            try:
                found = self._opened(folder, manifest=manifest, digest=digest, variant=variant)
                self._chosen[digest] = variant
                return found
            except InputError as error:
                log.warning("bundle %s is served in float: %s", digest[:12], error)
        self._chosen[digest] = "float"
        return self._opened(folder, manifest=manifest, digest=digest, variant="float")

    def _opened(self, folder: Path, *, manifest: Manifest, digest: str, variant: Variant) -> Scorer:
        known = "normality.npz" in manifest.files
        normality = Normalities.load(folder / "normality.npz") if known else Normalities()
        if manifest.kind == "ensemble":
            members = [self.scorer(member, variant) for member in manifest.members]
            models = tuple(member for member in members if isinstance(member, Model))
            if len(models) != len(members):
                raise InputError("an ensemble's members must be single models", file=str(folder), field="members")
            return Ensemble(digest, manifest, models, tuple(manifest.weights), normality)
        ref, files = manifest.trunk, files_of(manifest, variant)
        session = self._sessions.get(self._trunk_of(files.trunk), digest=files.trunk)
        trunk = Trunk(files.trunk, ref.size_px, session, ref.interpolation)
        model: Model | GoodParts
        if manifest.kind == "normality":
            model = GoodParts(digest, manifest, trunk, normality)
        else:
            branch = self._sessions.get(folder / files.branch, digest=manifest.files[files.branch])
            model = Model(digest, manifest, trunk, branch, normality)
        check_probe(model, folder=folder, variant=variant)
        return model


def check_probe(model: Model | GoodParts, *, folder: Path, variant: Variant = "float") -> None:
    """Raises InputError unless the model gives the outputs recorded at export for the first probe inputs.

    INT8 may be as far from them as it was where it was judged.
    """
    if "probe.npz" not in model.manifest.files:
        return
    with np.load(folder / "probe.npz", allow_pickle=False) as probe:
        inputs, expected = probe["inputs"][:_NUM_PROBES], probe["logits"][:_NUM_PROBES]
    logits, _ = model.logits(model.trunk.activations(inputs, cuts=model.cuts))
    int8 = model.manifest.int8
    if variant == "int8" and int8 is not None and int8.probe is not None:
        found = shift(expected, logits, is_named=isinstance(model, Model))
        faults = int8_stage(found, judged=int8.probe).faults
        if faults:
            raise InputError(f"answers otherwise here than where INT8 was judged: {faults[0]}", file=str(folder))
        return
    worst = float(np.abs(logits - expected).max(initial=0.0))
    if not worst <= PROBE_TOLERANCE * max(1.0, float(np.abs(expected).max(initial=0.0))):
        raise InputError(
            f"gives other outputs here than where it was exported (a logit differs by {worst:.3g})",
            file=str(folder / "probe.npz"),
            remedy="Export the bundle again, with this runtime",
        )
