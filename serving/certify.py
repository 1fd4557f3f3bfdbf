"""A bundle is staged beside the live routes, asked what it was asked at export, and gets its certificate or none.

No route is live without one: a promotion makes it on the host that loads, and a replica on another kind of host makes
its own before the route goes live there. The staged route is the very `judge` that requests go through, in the batches
that a busy replica forms. A certificate that fails stands in the store for whoever asks why, and is made again.
"""

from __future__ import annotations

import io
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import ValidationError

from cluster.storage import Store, replaced
from plants.certificate import Certificate, Host, Stage, float_stage, int8_stage, key, live_stage, takt_ms
from plants.errors import InputError
from plants.geometry import Geometry
from plants.normality import Place
from plants.variants import Shift, shift
from serving.ensemble import Ensemble
from serving.intake import Frame, PartRequest
from serving.loading import Loader
from serving.predictor import Judgement, Predictor, Prepared, judge
from serving.scoring import Floats, GoodParts, Model, Scorer
from serving.sessions import Turns
from serving.variants import variant_of

log = logging.getLogger("crossplant.serving")

BATCHES = (1, 2, 5)
"""Parts in the batches of the staged route."""
BLOCK = 8
NUM_KEPT = 4
"""Trunk passes of a probe that are remembered: all bundles of a fleet have the same inputs."""
NUM_TIMED, TIMED_S = 100, 2.0
"""Parts that are timed, and how long at most; `LEAST_TIMED` in any case."""
LEAST_TIMED = 10

Clock = Callable[[], float]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Staged(Predictor):
    """A plant's predictor whose parts are views that lie ready, named by their row."""

    views: Pixels
    """[N, S, S, 3]."""

    def prepare(self, part: PartRequest) -> Prepared:
        """The view of this row, as one frame in the plant's first environment."""
        row = int(part.part_id or 0)
        environment = next(iter(self.view.environments))
        size = self.views.shape[1]
        box = np.array([[0, 0, size, size]], dtype=np.int32)
        frame = Frame("probe", b"")
        return Prepared(environment, self.views[row : row + 1], box, np.zeros(1, dtype=np.int64), (frame,), ("",))

    def parts(self) -> list[PartRequest]:
        """A part for each view."""
        return [PartRequest(self.plant, (Frame("probe", b""),), part_id=str(row)) for row in range(len(self.views))]


class Certifier:
    """Makes and keeps the certificates of one host."""

    def __init__(
        self, loader: Loader, *, store: Store, folder: Path, host: Host, clock: Clock = time.perf_counter
    ) -> None:
        """`folder` keeps what was made or fetched, so that a replica starts with the store away."""
        self._loader = loader
        self._store = store
        self._folder = folder
        self._host = host
        self._clock = clock
        self._passes: OrderedDict[tuple[str, str], dict[int, Floats]] = OrderedDict()
        self._lock = threading.Lock()
        self._turns = Turns()
        self._timing = threading.Lock()

    def ensure(self, predictor: Predictor, *, policy: str) -> Certificate:
        """The certificate of this route on this kind of host. policy: its digest.

        Raises InputError where there can be none, with the reason: then the route must not go live here.
        """
        scorer = predictor.scorer
        variant, is_merged = variant_of(scorer), self._is_merged(scorer)
        name = key(bundle=scorer.digest, policy=policy, host=self._host, variant=variant, is_merged=is_merged)
        with self._turns.of(name):
            known = self._known(name)
            if known is None:
                before = scorer.meter.ms
                known = self.make(predictor, policy=policy)
                scorer.meter.ms = before  # what a view costs is said of requests
                self._keep(name, known)
        if known.faults:
            raise InputError(
                f"no certificate for {known.variant} on {self._host.cpu}: {known.faults[0]}",
                plant=predictor.plant,
                file=f"bundle {scorer.digest[:12]}",
                remedy="The route before stays live. Promote another bundle, or serve it on another kind of host",
            )
        return known

    def make(self, predictor: Predictor, *, policy: str) -> Certificate:
        """What is found now, on this host."""
        scorer, plant = predictor.scorer, predictor.plant
        int8 = self._loader.manifest(scorer.digest).int8
        gate = int8.gate.get(plant) if int8 else None
        takt = takt_ms(predictor.policy.costs.parts_per_hour)
        with self._timing:  # side by side they would slow each other down
            times = self._timed(predictor) if takt is not None else []
        return Certificate(
            plant=plant,
            bundle=scorer.digest,
            policy=policy,
            variant=variant_of(scorer),
            host=self._host,
            stages=tuple(self._stages(predictor)),
            recall=dict(gate.recall) if gate else {},
            p99_ms=round(float(np.quantile(times, 0.99, method="higher")), 3) if times else None,
            num_timed=len(times),
            takt_ms=takt,
            made_at=datetime.now(UTC).isoformat(timespec="seconds"),
            is_merged=self._is_merged(scorer),
        )

    def _is_merged(self, scorer: Scorer) -> bool:
        return scorer.tier == "branch" and self._loader.manifest(scorer.digest).stages is not None

    def _stages(self, predictor: Predictor) -> Iterator[Stage]:
        scorer = predictor.scorer
        reference = self._loader.scorer(scorer.digest, "float")
        in_float, in_int8, judged = [], [], []
        views: Pixels | None = None
        for one, other in zip(_models(reference), _models(scorer), strict=True):
            probe = self._probe(one)
            if probe is None:
                continue
            inputs, expected, digest = probe
            views = inputs if views is None else views
            is_named = isinstance(one, Model)
            logits = self._logits(one, inputs, digest=digest)
            in_float.append(shift(expected, logits, is_named=is_named))
            int8 = self._loader.manifest(other.digest).int8
            if other is not one and int8 is not None and int8.probe is not None:
                in_int8.append(shift(logits, self._logits(other, inputs, digest=digest), is_named=is_named))
                judged.append(int8.probe)
        if reference is not scorer:
            self._loader.let_go(reference)
        yield float_stage(_together(in_float))
        if in_int8:
            yield int8_stage(_together(in_int8), judged=_together(judged))
        size = scorer.trunk.size_px
        yield live_stage(_live(predictor, np.zeros((1, size, size, 3), dtype=np.uint8) if views is None else views))

    def _probe(self, model: Model | GoodParts) -> tuple[Pixels, Floats, str] | None:
        """Inputs, what torch gave for them or in older bundles the exported files, and the inputs' digest."""
        path = self._loader.folder(model.digest) / "probe.npz"
        if not path.is_file():
            return None
        with np.load(path, allow_pickle=False) as probe:
            inputs = probe["inputs"]
            digest = str(probe["digest"]) if "digest" in probe else model.digest
            return inputs, probe["torch"] if "torch" in probe else probe["logits"], digest

    def _logits(self, model: Model | GoodParts, inputs: Pixels, *, digest: str) -> Floats:
        """What the model gives for its probe; the trunk's pass is shared by all models with these inputs."""
        name = (model.trunk.sha256, digest)
        with self._lock:
            known = self._passes.setdefault(name, {})
            self._passes.move_to_end(name)
            while len(self._passes) > NUM_KEPT:
                self._passes.popitem(last=False)
            if missing := model.cuts - set(known):
                rows = range(0, len(inputs), BLOCK)
                blocks = [model.trunk.activations(inputs[at : at + BLOCK], cuts=missing) for at in rows]
                known.update({cut: np.concatenate([block[cut] for block in blocks]) for cut in missing})
        return model.logits(known)

    def _timed(self, predictor: Predictor) -> list[float]:
        """Milliseconds of parts of one drawn frame each, from bytes to verdict, after two to warm up."""
        environment = next(iter(predictor.view.environments))
        data = drawn_frame(predictor.view.environments[environment].geometry, size_px=predictor.scorer.trunk.size_px)
        part = PartRequest(predictor.plant, (Frame("probe", data),), environment=environment)
        times: list[float] = []
        begun = self._clock()
        while len(times) < LEAST_TIMED + 2 or (len(times) < NUM_TIMED + 2 and self._clock() - begun < TIMED_S):
            start = self._clock()
            (result,) = judge([(predictor, part)])
            if isinstance(result, Exception):
                raise result
            times.append(1000 * (self._clock() - start))
        return times[2:]

    def _known(self, name: str) -> Certificate | None:
        """A certificate that holds, from this machine's disk or the store; None where there is none."""
        path = self._folder / name
        try:
            found = Certificate.model_validate_json(path.read_text(encoding="utf-8"))
            return None if found.faults else found
        except (OSError, ValidationError):
            pass
        try:
            data = self._store.read(name)
            found = Certificate.model_validate_json(data)
        except FileNotFoundError:
            return None
        except Exception as error:  # the store is away: the host can still find out for itself
            log.warning("certificates cannot be read (%s): this one is made again", type(error).__name__)
            return None
        if found.faults:
            return None
        self._write(name, data)
        return found

    def _keep(self, name: str, found: Certificate) -> None:
        data = found.to_json().encode()
        self._write(name, data)
        try:
            self._store.write(name, data)
        except Exception as error:  # it holds here all the same
            log.warning("a certificate is not in the store (%s)", type(error).__name__)

    def _write(self, name: str, data: bytes) -> None:
        try:
            with replaced(self._folder / name) as part:
                part.write_bytes(data)
        except OSError as error:
            log.warning("a certificate is not on disk (%s)", type(error).__name__)


def _models(scorer: Scorer) -> Sequence[Model | GoodParts]:
    if isinstance(scorer, Ensemble):
        return scorer.members
    assert isinstance(scorer, Model | GoodParts)
    return [scorer]


def _together(found: Sequence[Shift]) -> Shift:
    """Of several models: inputs and flips added up, the largest difference of any."""
    largest = max((one.largest for one in found), default=0.0)
    return Shift(n=sum(one.n for one in found), flips=sum(one.flips for one in found), largest=largest)


def _live(predictor: Predictor, views: Pixels) -> Shift:
    """The staged route against the model asked directly: verdicts that differ, and the largest difference."""
    some = views[: sum(BATCHES)]
    staged = Staged(predictor.plant, predictor.scorer, predictor.policy, some)
    parts = staged.parts()
    prepared = [staged.prepare(part) for part in parts]
    scorer = predictor.scorer
    places: list[Place] = [(predictor.plant, one.environment) for one in prepared]
    scored = scorer.score(scorer.trunk.activations(some, cuts=scorer.cuts), places)
    expected = [predictor.conclude(one, scored.rows(row, row + 1)) for row, one in enumerate(prepared)]
    found: list[Judgement] = []
    at = 0
    for size in BATCHES:
        for result in judge([(staged, part) for part in parts[at : at + size]]):
            if isinstance(result, Exception):
                raise result
            found.append(result)
        at += size
    flips = sum(_said(one) != _said(other) for one, other in zip(expected, found, strict=True))
    far = [abs(a - b) for one, other in zip(expected, found, strict=True) for a, b in _pairs(one, other)]
    return Shift(n=len(found), flips=flips, largest=max(far, default=0.0))


def _said(judgement: Judgement) -> tuple[Any, ...]:
    return judgement.decision.verdict, judgement.decision.defect


def _pairs(one: Judgement, other: Judgement) -> Iterator[tuple[float, float]]:
    return ((value, other.probabilities[name]) for name, value in one.probabilities.items())


def drawn_frame(geometry: Geometry, *, size_px: int) -> bytes:
    """A frame of noise as PNG, as large as its region of interest, or as one view where none is declared."""
    width = height = geometry.tile_px or size_px
    if geometry.roi is not None:
        width, height = geometry.roi[2], geometry.roi[3]
    rng = np.random.default_rng(0)
    if geometry.bit_depth == 8:
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    else:
        image = Image.fromarray(rng.integers(0, 2**geometry.bit_depth, (height, width), dtype=np.uint16))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
