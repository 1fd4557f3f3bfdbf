"""Models on trunks: what turns the views of frames into probabilities, without knowing plants, frames or requests.

A trunk's session is shared by digest among all models of the fleet (`Sessions`). A `Scorer` is one model here or an
ensemble (`serving.ensemble`); both take the outputs of one trunk pass.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from plants.bundle import Manifest
from plants.errors import InputError
from plants.hashing import sha256
from plants.normality import Normality
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
    """[N] distance to good parts, None where the model brings no notion of normality."""

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
    def cuts(self) -> frozenset[int]:
        """The trunk's outputs that `score` needs."""

    def score(self, activations: Mapping[int, Floats], /) -> Scored:
        """Probabilities of the views whose activations these are."""


@dataclass(frozen=True)
class Trunk:
    """The shared part of the models: uint8 views to activations at its cuts."""

    sha256: str
    size_px: int
    session: Session

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
    normality: Normality | None

    @property
    def leaves(self) -> tuple[str, ...]:
        """The branch's outputs."""
        return tuple(self.manifest.leaves)

    @cached_property
    def cuts(self) -> frozenset[int]:
        """The one cut this branch sits on."""
        return frozenset([self.manifest.cut])

    def logits(self, activations: Mapping[int, Floats]) -> tuple[Floats, Floats]:
        """Logits [N, L] and features [N, F]."""
        logits, features = self.branch.run(["logits", "features"], {"activation": activations[self.manifest.cut]})
        return logits, features

    def score(self, activations: Mapping[int, Floats], /) -> Scored:
        """Probabilities over leaves, and the distance to good parts where the bundle knows them."""
        logits, features = self.logits(activations)
        novelty = None
        if self.normality is not None:
            novelty = np.asarray(self.normality.score(features), dtype=np.float32)
        return Scored(np.asarray(softmax(logits), dtype=np.float32), novelty)
