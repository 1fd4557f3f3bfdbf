"""Models on trunks: what turns the views of frames into probabilities, without knowing plants, frames or requests.

A trunk's session is shared by digest among all models of the fleet (`Sessions`). A `Scorer` is one model here or an
ensemble (`serving.ensemble`); both take the outputs of one trunk pass.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from plants.bundle import Manifest
from plants.errors import InputError
from plants.geometry import Interpolation
from plants.hashing import sha256
from plants.normality import Normalities, Place, evenly, goodness
from plants.scores import softmax

Floats = npt.NDArray[np.float32]


class Session(Protocol):
    """The part of onnxruntime's InferenceSession that is used."""

    def run(self, names: Sequence[str] | None, inputs: Mapping[str, Any], /) -> list[Any]:
        """The named outputs."""


def open_session(path: Path) -> Session:
    """A one-thread session: a replica is one core, and requests are what runs side by side."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session: Session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        reason = str(error).splitlines()[0][:200]
        raise InputError(f"is no ONNX model this runtime can load ({reason})", file=path.name) from None
    return session


class Sessions:
    """Open sessions by the digest of their file: the same file is loaded once, and freed with its last user."""

    def __init__(self) -> None:
        self._open: weakref.WeakValueDictionary[str, Session] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def get(self, path: Path, *, digest: str) -> Session:
        """The session of this file. Raises InputError when its bytes are not the digest's."""
        with self._lock:
            session = self._open.get(digest)
            if session is None:
                if not path.is_file():
                    raise InputError("no such file", file=str(path), remedy="Fetch the bundle with its trunk")
                if sha256(path.read_bytes()) != digest:
                    raise InputError("its bytes are not what the bundle was made with", file=path.name)
                session = self._open[digest] = open_session(path)
            return session


@dataclass(frozen=True, slots=True)
class Scored:
    """What a model says of some views."""

    probabilities: Floats
    """[N, L] over the scorer's leaves."""
    novelty: Floats | None
    """[N] distance to good parts, NaN at a plant whose good parts are not known; None where no plant's are."""

    def rows(self, start: int, stop: int) -> Scored:
        """The views from `start` up to `stop`."""
        return Scored(self.probabilities[start:stop], None if self.novelty is None else self.novelty[start:stop])


class Scorer(Protocol):
    """One model or an ensemble, on a trunk's outputs."""

    @property
    def digest(self) -> str:
        """Of the bundle."""

    @property
    def manifest(self) -> Manifest:
        """Of the bundle."""

    @property
    def leaves(self) -> tuple[str, ...]:
        """What `score` has probabilities for."""

    @property
    def trunk(self) -> Trunk:
        """The trunk whose outputs `score` takes."""

    @property
    def normality(self) -> Normalities:
        """What good parts look like at the plants it serves, as far as the bundle knows."""

    @property
    def cuts(self) -> frozenset[int]:
        """The trunk's outputs that `score` needs."""

    def score(self, activations: Mapping[int, Floats], places: Sequence[Place], /) -> Scored:
        """Probabilities and novelty of the views [N] whose activations these are, each taken at its place."""


@dataclass(frozen=True)
class Trunk:
    """The shared part of the models: uint8 views to activations at its cuts."""

    sha256: str
    size_px: int
    session: Session
    interpolation: Interpolation = "bilinear"

    def activations(self, pixels: npt.NDArray[np.uint8], *, cuts: frozenset[int]) -> dict[int, Floats]:
        """Outputs at the cuts for views uint8 [N, S, S, 3]."""
        wanted = sorted(cuts)
        found = self.session.run([f"cut{cut}" for cut in wanted], {"images": pixels})
        return dict(zip(wanted, found, strict=True))


@dataclass(frozen=True)
class Model:
    """One branch on a trunk."""

    digest: str
    manifest: Manifest
    trunk: Trunk
    branch: Session
    normality: Normalities = field(default_factory=Normalities)

    @property
    def leaves(self) -> tuple[str, ...]:
        """The branch's outputs."""
        return tuple(self.manifest.leaves)

    @cached_property
    def cuts(self) -> frozenset[int]:
        """The cut this branch sits on, and the pooled features where good parts are known."""
        return frozenset([self.manifest.cut, *([0] if self.normality.by_place else [])])

    def logits(self, activations: Mapping[int, Floats]) -> tuple[Floats, Floats]:
        """Logits [N, L] and features [N, F]."""
        logits, features = self.branch.run(["logits", "features"], {"activation": activations[self.manifest.cut]})
        return logits, features

    def score(self, activations: Mapping[int, Floats], places: Sequence[Place], /) -> Scored:
        """Probabilities over leaves, and the distance to good parts where the bundle knows them."""
        return Scored(self.probabilities(activations), novelty(self.normality, activations, places))

    def probabilities(self, activations: Mapping[int, Floats]) -> Floats:
        """Over leaves [N, L]."""
        return np.asarray(softmax(self.logits(activations)[0]), dtype=np.float32)


def novelty(normality: Normalities, activations: Mapping[int, Floats], places: Sequence[Place]) -> Floats | None:
    """Distances [N] to the good parts of each view's place, in the trunk's pooled features; None where none is known.

    The trunk's, not a branch's: a part keeps its novelty when its plant's model changes.
    """
    return normality.score(activations[0], places) if normality.by_place else None


@dataclass(frozen=True)
class GoodParts:
    """A bundle of kind `normality`: it knows good parts only, so that its one output is how near a view is to them."""

    digest: str
    manifest: Manifest
    trunk: Trunk
    normality: Normalities

    @property
    def leaves(self) -> tuple[str, ...]:
        """The plant's good leaves; what is far is on none of them."""
        return tuple(self.manifest.leaves)

    @cached_property
    def cuts(self) -> frozenset[int]:
        """The pooled features."""
        return frozenset([0])

    def logits(self, activations: Mapping[int, Floats]) -> tuple[Floats, Floats]:
        """Pooled features [N, F], twice: there are no logits, and the probe of such a bundle records features."""
        return activations[0], activations[0]

    def score(self, activations: Mapping[int, Floats], places: Sequence[Place], /) -> Scored:
        """The goodness of each view, evenly over the good leaves, and its novelty."""
        far = self.normality.score(activations[0], places)
        return Scored(evenly(goodness(far), self.leaves), far)
