"""Frames in, a verdict out: decode, views, trunk, branch, pooling, calibration and decision in one process.

The same `Predictor` judges behind HTTP and for `crossplant predict --bundle`, so both give the same answer. Nothing in
here knows Ray, HTTP or where bundles come from. `judge` sends the views of many parts, of many plants, through one
trunk pass and each model's rows through its branch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from plants.bundle import PlantView
from plants.costs import Decision, Policy, decide_part
from plants.ensembles import disagreement
from plants.errors import InputError
from plants.heatmaps import Heat
from plants.images import tensor_digest
from plants.plant import is_ok, projection
from plants.scores import calibrate, pool, pool_groups, speakers, suspicion
from plants.views import read_views
from serving.intake import Frame, PartRequest
from serving.maps import Found, find
from serving.schemas import FrameAnswer, Location, Tile
from serving.scoring import Floats, Scored, Scorer, company, scored_runs

MAX_TILES_SHOWN = 5
CHUNK_VIEWS = 8
"""Views in one trunk pass, few enough that their maps stay in a core's cache: 32 took 12 % longer a view with the
embedded backbone, 53 % with MobileNetV3-small, as long with ResNet-18; one alone 0 to 32 % longer."""


@dataclass(frozen=True)
class Prepared:
    """One part ready for the trunk."""

    environment: str
    pixels: npt.NDArray[np.uint8]
    """Views of all frames, [N, S, S, 3]."""
    boxes: npt.NDArray[np.int32]
    owner: npt.NDArray[np.int64]
    """The frame of each view, [N]."""
    frames: tuple[Frame, ...]
    digests: tuple[str, ...]
    wants_map: bool = False
    """Whether a part that passes is to have a map too."""


@dataclass(frozen=True)
class Judgement:
    """A verdict with what led to it; everything of an answer but its request."""

    environment: str
    decision: Decision
    probabilities: dict[str, float]
    """Of the plant's classes, calibrated by the policy's temperature."""
    impossible: float
    novelty: float | None
    disagreement: float | None
    location: Location | None
    frames: tuple[FrameAnswer, ...]
    heat: Heat | None = None
    """The map that the location is of; of a part that passes where it was asked for."""
    map_problem: str | None = None
    """Why there is none, where there could be one."""
    severity: float | None = None
    """How grave what the loudest view shows is, 0 to 1; None of parts that pass, and where that is not known."""


@dataclass(frozen=True)
class Predictor:
    """One plant's live model and policy."""

    plant: str
    scorer: Scorer
    policy: Policy

    def __post_init__(self) -> None:
        if self.plant not in self.scorer.manifest.serves:
            known = ", ".join(sorted(self.scorer.manifest.serves))
            raise InputError("the bundle does not serve this plant", plant=self.plant, remedy=f"It serves: {known}")
        if tuple(self.policy.classes) != tuple(self.view.classes):
            raise InputError(
                "the policy was solved for other classes than the bundle has",
                plant=self.plant,
                field="classes",
                remedy="Solve the policy for this bundle",
            )

    @property
    def view(self) -> PlantView:
        """The plant as the bundle knows it: classes, environments, geometry."""
        return self.scorer.manifest.serves[self.plant]

    @cached_property
    def _projection(self) -> Floats:
        return projection(self.scorer.leaves, self.view.leaf_sets, self.view.classes)

    @cached_property
    def _ok(self) -> npt.NDArray[np.bool_]:
        return np.array([is_ok(leaf) for leaf in self.scorer.leaves], dtype=bool)

    def environment(self, name: str | None) -> str:
        """The environment's name; the only one where a request names none. Raises InputError for an unknown one."""
        return chosen_environment(name, known=self.view.environments, plant=self.plant)

    def prepare(self, part: PartRequest) -> Prepared:
        """The part's frames as the trunk takes them. Raises InputError naming the frame that cannot be read."""
        name = self.environment(part.environment)
        environment = self.view.environments[name]
        pixels, boxes, owner, digests = [], [], [], []
        for index, frame in enumerate(part.frames):
            try:
                seen = read_views(
                    frame.data,
                    geometry=environment.geometry,
                    photometry=environment.photometry,
                    size_px=self.scorer.trunk.size_px,
                    interpolation=self.scorer.trunk.interpolation,
                    source=frame.image,
                )
            except InputError as error:
                raise InputError(
                    f"{error.field}: {error.detail}" if error.field else error.detail,
                    plant=self.plant,
                    file=frame.image,
                    field=f"image[{index}]",
                    remedy=error.remedy or "Send this frame as the camera wrote it",
                ) from None
            pixels.append(seen.pixels)
            boxes.append(seen.boxes)
            owner.append(np.full(len(seen.boxes), index))
            digests.append(tensor_digest(seen.pixels))
        return Prepared(name, _whole(pixels), _whole(boxes), _whole(owner), part.frames, tuple(digests), part.wants_map)

    def conclude(self, prepared: Prepared, scored: Scored) -> Judgement:
        """The verdict on a part whose views were scored: tiles are pooled to frames, frames to the part."""
        geometry = self.view.environments[prepared.environment].geometry
        vectors, loudest = pool_groups(scored.probabilities, prepared.owner, ok=self._ok, top_k=geometry.top_k)
        vector, at = pool(vectors, ok=self._ok)
        probabilities = vector @ self._projection
        impossible = float(max(0.0, 1.0 - probabilities.sum()))
        is_known = scored.novelty is not None and self.scorer.normality.knows(self.plant)
        novelty = float(scored.novelty.max()) if scored.novelty is not None and is_known else None
        divided = self._disagreement(prepared, scored=scored, vectors=vectors)
        decision = decide_part(
            probabilities, policy=self.policy, impossible=impossible, novelty=novelty, disagreement=divided
        )
        named = self._named(probabilities)
        is_found, found = decision.verdict != "ok", Found()
        if is_found or prepared.wants_map:
            row = int(loudest[at])
            found = find(self.scorer, prepared, view=self.view, scored=scored, row=row, defect=decision.defect)
        return Judgement(
            environment=prepared.environment,
            decision=decision,
            probabilities=named,
            impossible=round(impossible, 6),
            novelty=None if novelty is None else round(novelty, 6),
            disagreement=None if divided is None else round(divided, 6),
            location=found.location if is_found else None,
            frames=self._frames(prepared, scored=scored, vectors=vectors, lone=named if len(vectors) == 1 else None),
            heat=found.heat,
            map_problem=found.problem,
            severity=_severity(scored, row=int(loudest[at])) if is_found else None,
        )

    def _disagreement(self, prepared: Prepared, *, scored: Scored, vectors: Floats) -> float | None:
        """How far an ensemble's members disagree about the part, of the views that speak for it."""
        if scored.members is None:
            return None
        if len(scored.members) == 1:
            return float(disagreement((scored.members[0] @ self._projection)[:, None], self.scorer.weights)[0])
        top_k = self.view.environments[prepared.environment].geometry.top_k
        tiles = speakers(scored.probabilities, prepared.owner, ok=self._ok, top_k=top_k)
        speaking = tiles.then(speakers(vectors, np.zeros(len(vectors)), ok=self._ok))
        said = [speaking.mean(one) @ self._projection for one in np.moveaxis(scored.members, 1, 0)]
        return float(disagreement(np.stack(said), self.scorer.weights)[0])

    def predict(self, part: PartRequest) -> Judgement:
        """The verdict on one part. Raises InputError for frames that cannot be judged."""
        (result,) = judge([(self, part)])
        if isinstance(result, Exception):
            raise result
        return result

    def _named(self, probabilities: npt.NDArray[Any]) -> dict[str, float]:
        shown = calibrate(np.asarray(probabilities, dtype=np.float64), self.policy.temperature)
        return {name: round(float(p), 6) for name, p in zip(self.view.classes, shown, strict=True)}

    def _frames(
        self, prepared: Prepared, *, scored: Scored, vectors: Floats, lone: dict[str, float] | None
    ) -> tuple[FrameAnswer, ...]:
        """What each frame contributed; `lone` is what was said of the part, where it has one frame."""
        by_view = suspicion(scored.probabilities, ok=self._ok)
        by_frame = by_view if len(vectors) == len(by_view) else suspicion(vectors, ok=self._ok)
        found = []
        for index, frame in enumerate(prepared.frames):
            rows = np.flatnonzero(prepared.owner == index)
            first = rows[np.argsort(-by_view[rows], kind="stable")[:MAX_TILES_SHOWN]]
            found.append(
                FrameAnswer(
                    image=frame.image,
                    sha256=frame.sha256,
                    tensor_digest=prepared.digests[index],
                    num_views=len(rows),
                    probabilities=lone if lone is not None else self._named(vectors[index] @ self._projection),
                    score=round(float(by_frame[index]), 6),
                    tiles=[Tile(box=_box(prepared.boxes[row]), score=round(float(by_view[row]), 6)) for row in first],
                )
            )
        return tuple(found)


def chosen_environment(name: str | None, *, known: Iterable[str], plant: str) -> str:
    """The name, or the only one known where none is given. Raises InputError with those that are known."""
    names = sorted(known)
    if name is None and len(names) == 1:
        return names[0]
    if name is None or name not in names:
        what = "must be named" if name is None else f"{name!r} is not declared"
        raise InputError(
            f"the environment {what}", plant=plant, field="environment", remedy=f"Known: {', '.join(names)}"
        )
    return name


def _whole(pieces: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """All as one array, without a copy where there is one."""
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _box(values: npt.NDArray[np.int32]) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = values.tolist()
    return x0, y0, x1, y1


def _severity(scored: Scored, *, row: int) -> float | None:
    """How grave what a view shows is; None where that is not known."""
    value = None if scored.severity is None else float(scored.severity[row])
    return None if value is None or np.isnan(value) else round(value, 6)


Work = tuple[Predictor, PartRequest]


def judge(work: Sequence[Work]) -> list[Judgement | Exception]:
    """A judgement for each part, or the InputError that only this part deserves."""
    results: list[Judgement | Exception | None] = [None] * len(work)
    ready: list[_Ready] = []
    for index, (predictor, part) in enumerate(work):
        try:
            ready.append(_Ready(index, predictor, predictor.prepare(part)))
        except InputError as error:
            results[index] = error
    ready.sort(key=lambda one: (id(one.scorer.trunk), str(company(one.scorer)), id(one.scorer)))
    for _, group in groupby(ready, key=lambda one: id(one.scorer.trunk)):
        items = list(group)
        for one, scored in zip(items, _scored(items), strict=True):
            results[one.index] = _concluded(one, scored)
    return [result if result is not None else AssertionError("a part was forgotten") for result in results]


@dataclass(frozen=True, slots=True)
class _Ready:
    index: int
    predictor: Predictor
    prepared: Prepared

    @property
    def scorer(self) -> Scorer:
        return self.predictor.scorer

    @property
    def num_views(self) -> int:
        return len(self.prepared.pixels)


def _concluded(one: _Ready, scored: Scored | Exception) -> Judgement | Exception:
    """The judgement, or why there is none."""
    try:
        if isinstance(scored, Exception):
            raise scored
        return one.predictor.conclude(one.prepared, scored)
    except InputError as error:
        return InputError(error.detail, plant=one.predictor.plant, field=error.field or "bundle", remedy=error.remedy)
    except Exception as error:  # what one plant's model does is no other plant's business
        return error


def _scored(items: Sequence[_Ready]) -> Iterator[Scored | Exception]:
    """What is said of each item's views, in order.

    All items share a trunk; those of one company follow one another, and in it those of one scorer.
    """
    if len(items) == 1 and items[0].num_views <= CHUNK_VIEWS:
        lone = items[0]
        num, place = lone.num_views, (lone.predictor.plant, lone.prepared.environment)
        outputs = lone.scorer.trunk.activations(lone.prepared.pixels, cuts=lone.scorer.cuts)
        (all_said,) = scored_runs([lone.scorer] * num, outputs, [place] * num)
        yield replace(all_said, outputs=outputs) if isinstance(all_said, Scored) else all_said
        return
    pixels = items[0].prepared.pixels if len(items) == 1 else np.concatenate([one.prepared.pixels for one in items])
    scorers = [one.scorer for one in items for _ in range(one.num_views)]
    places = [(one.predictor.plant, one.prepared.environment) for one in items for _ in range(one.num_views)]
    found: dict[int, list[Scored | Exception]] = {}
    for start in range(0, len(pixels), CHUNK_VIEWS):
        here = scorers[start : start + CHUNK_VIEWS]
        cuts = frozenset(cut for scorer in here for cut in scorer.cuts)
        activations = items[0].scorer.trunk.activations(pixels[start : start + CHUNK_VIEWS], cuts=cuts)
        at = 0
        for _, same in groupby(here, key=company):
            run = list(same)
            rows = {cut: value[at : at + len(run)] for cut, value in activations.items()}
            said = scored_runs(run, rows, places[start + at : start + at + len(run)])
            for (key, _), one in zip(groupby(run, key=id), said, strict=True):
                found.setdefault(key, []).append(one)
            at += len(run)
    for key, group in groupby(items, key=lambda one: id(one.scorer)):
        whole = _joined(found[key])
        at = 0
        for item in group:
            yield whole if isinstance(whole, Exception) else whole.rows(at, at + item.num_views)
            at += item.num_views


def _joined(pieces: Sequence[Scored | Exception]) -> Scored | Exception:
    said = [piece for piece in pieces if isinstance(piece, Scored)]
    if len(said) < len(pieces):
        return next(piece for piece in pieces if isinstance(piece, Exception))
    novelties = [piece.novelty for piece in said if piece.novelty is not None]
    members = [piece.members for piece in said if piece.members is not None]
    severities = [piece.severity for piece in said if piece.severity is not None]
    return Scored(
        np.concatenate([piece.probabilities for piece in said]),
        np.concatenate(novelties) if novelties else None,
        np.concatenate(members) if members else None,
        severity=np.concatenate(severities) if severities else None,
    )
