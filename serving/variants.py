"""Which variant of a bundle this host serves: float, the reference, or INT8 where it is faster here and answers alike.

Chosen once for a pair of trunks, so that all plants on it share batches: the first bundle that is loaded is timed in
both variants, in turns, by the thread's own time, and what was found is kept in a file for every process of the host.
A bundle whose INT8 does not answer here as where it was judged is served in float. Float trunk outputs are float32 in
both, but a bundle is served whole in one variant, as it was judged. Delete the file and the host is timed again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from plants.bundle import Manifest
from plants.certificate import Host
from plants.errors import InputError
from plants.variants import Speed, Variant, faults, speed
from serving.scoring import Scorer

log = logging.getLogger("crossplant.serving")

Load = Callable[[str, Variant], Scorer]
"""The bundle of this digest in this variant. Raises InputError for one that is not what it says here."""
Choose = Callable[[str, Manifest, Load], Variant]


class Files(NamedTuple):
    """What a bundle is loaded from in one variant."""

    trunk: str
    """SHA-256."""
    branch: str
    """A file of the bundle."""


def files_of(manifest: Manifest, variant: Variant) -> Files:
    """The files of this variant; a head stays float. Raises InputError where the bundle has no INT8."""
    if variant == "float":
        return Files(manifest.trunk.sha256, "branch.onnx")
    if manifest.int8 is None:
        raise InputError("the bundle has no INT8", field="int8", remedy="Run `crossplant compress`, then publish")
    return Files(manifest.int8.trunk, manifest.int8.branch or "branch.onnx")


def variant_of(scorer: Scorer) -> Variant:
    """The variant in which a scorer was loaded."""
    return scorer.manifest.variant


def always_float(digest: str, manifest: Manifest, load: Load) -> Variant:
    """The reference, for those who serve nobody."""
    return "float"


class Variants:
    """The choice of one host."""

    def __init__(self, *, host: Host, folder: Path) -> None:
        """`folder` keeps what was timed."""
        self._host = host
        self._folder = folder
        self._turn = threading.Lock()

    def __call__(self, digest: str, manifest: Manifest, load: Load) -> Variant:
        """The variant to serve this bundle in."""
        if manifest.int8 is None:
            return "float"
        gate = manifest.int8.gate
        if unshown := [plant for plant in manifest.serves if plant not in gate or faults(gate[plant])]:
            log.warning("bundle %s is served in float: INT8 was not shown to hold at %s", digest[:12], unshown[0])
            return "float"
        try:
            return "int8" if self._speed(digest, manifest, load).is_faster else "float"
        except InputError as error:
            log.warning("bundle %s is served in float: %s", digest[:12], error)
            return "float"

    def _speed(self, digest: str, manifest: Manifest, load: Load) -> Speed:
        assert manifest.int8 is not None
        path = self._folder / f"{self._host.kind}-{manifest.trunk.sha256[:16]}-{manifest.int8.trunk[:16]}.json"
        with self._turn:
            known = _read(path)
            if known is None:
                found = speed(*(_once(load(digest, variant)) for variant in ("float", "int8")))
                log.info("trunk %s: INT8 is %.2f x as fast as float here", manifest.trunk.sha256[:12], found.ratio)
                _keep(path, {**found._asdict(), "host": self._host.model_dump(mode="json")})
                known = _read(path) or found
            return known


def _once(scorer: Scorer) -> Callable[[], object]:
    """One view through trunk and branch."""
    size = scorer.trunk.size_px
    pixels = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
    plant, view = next(iter(scorer.manifest.serves.items()))
    place = (plant, next(iter(view.environments)))
    return lambda: scorer.score(scorer.trunk.activations(pixels, cuts=scorer.cuts), [place])


def _read(path: Path) -> Speed | None:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return Speed(float(raw["float_ms"]), float(raw["int8_ms"]), float(raw["ratio"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(path: Path, found: dict[str, Any]) -> None:
    """It stands in the file, unless another process was first: then that stands. A disk that is full costs nothing."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(found, sort_keys=True, indent=1), encoding="utf-8")
        if _read(path) is None:
            path.unlink(missing_ok=True)
        with contextlib.suppress(FileExistsError):
            os.link(part, path)
    part.unlink(missing_ok=True)
