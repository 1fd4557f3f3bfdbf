"""Two files that give the same model: float32, the reference, and INT8, which serves where it is as good and faster.

The rules that hold when a fleet's INT8 is judged and again when a host chooses what it serves. How INT8 is made is in
`jobs.quantise`, and which host serves what in `serving.variants`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field, StringConstraints

from plants.config import Config

Variant = Literal["float", "int8"]
BRANCH_INT8 = "branch.int8.onnx"

MAX_LOSS = 0.02
"""More macro-F1 than this INT8 may not cost at any plant."""
FASTER = 1.05
"""INT8 is faster from this ratio of times on: less is what neighbours on the machine make of two equal files."""
ROUNDS = 15
EXACT_TIE = 1e-5
"""Logits nearer to each other than this fraction of the largest are a tie, which may fall either way."""

Work = Callable[[], object]
Clock = Callable[[], float]


class Shift(Config):
    """How far one answer to the same inputs is from another."""

    n: int = Field(ge=0)
    flips: int = Field(ge=0)
    """Inputs of which another class is the most probable, ties left out."""
    largest: float = Field(ge=0)
    """The largest difference of a logit, as a fraction of the largest logit."""


class Pair(Config):
    """One figure by both variants; None where nothing was counted."""

    float32: float | None
    int8: float | None


class PlantGate(Config):
    """What both variants said of a plant's `decide` parts, judged by the same policy."""

    n: int = Field(ge=0)
    macro_f1: Pair
    cost: Pair
    recall: dict[str, Pair] = Field(default_factory=dict)
    """By class: the share of its parts that are called so."""
    caught: dict[str, Pair] = Field(default_factory=dict)
    """By defect class: the share of its parts that do not pass; empty where no class is good."""
    floors: dict[str, float] = Field(default_factory=dict)
    """Defect class -> recall that the plant asks for."""
    flips: int = Field(default=0, ge=0)
    """Parts that the variants call by different classes."""
    verdict_flips: int = Field(default=0, ge=0)
    """Parts on which their verdicts differ."""


class Int8(Config):
    """The INT8 files of a bundle, and what let them be kept."""

    trunk: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of the INT8 trunk, which lies beside the float one."""
    branch: Literal["branch.int8.onnx"] | None = None
    """None where the branch is a head alone, or an ensemble's members have their own: heads stay float."""
    rung: str
    """How it was made, see `jobs.ladder`."""
    probe: Shift | None = None
    """INT8 against float on the bundle's probe, on that host. None of an ensemble."""
    gate: dict[str, PlantGate] = Field(default_factory=dict)


class Speed(NamedTuple):
    """Milliseconds of one image by both variants, and how many times faster INT8 is; medians of paired rounds."""

    float_ms: float
    int8_ms: float
    ratio: float

    @property
    def is_faster(self) -> bool:
        """Whether INT8 is worth serving for its speed."""
        return self.ratio >= FASTER


def faults(gate: PlantGate) -> list[str]:
    """Why INT8 may not judge this plant's parts; nothing where it may."""
    found = []
    lost = _lost(gate.macro_f1)
    if lost is not None and lost > MAX_LOSS + 1e-9:
        found.append(f"macro-F1 loses {100 * lost:.1f} points, {100 * MAX_LOSS:g} are allowed")
    recalls = gate.caught or gate.recall
    for name, floor in sorted(gate.floors.items()):
        pair = recalls.get(name)
        if pair is None or pair.int8 is None or pair.float32 is None:
            continue
        if pair.int8 < floor - 1e-9 and pair.int8 < pair.float32 - 1e-9:
            found.append(f"recall of {name} falls from {pair.float32:.3f} to {pair.int8:.3f}, its floor is {floor:g}")
    return found


def _lost(pair: Pair) -> float | None:
    return None if pair.float32 is None or pair.int8 is None else pair.float32 - pair.int8


def worst_loss(gates: Mapping[str, PlantGate]) -> float | None:
    """The largest loss of macro-F1 at any plant, as a fraction; None where none was counted."""
    found = [lost for gate in gates.values() if (lost := _lost(gate.macro_f1)) is not None]
    return max(found, default=None)


def speed(in_float: Work, in_int8: Work, *, rounds: int = ROUNDS, clock: Clock = time.thread_time) -> Speed:
    """How fast one image goes through either variant, in turns, after two rounds to warm up.

    clock: the thread's own time unless told otherwise, so that neighbours on the machine do not count. Both must work
    in the thread that calls, as a session with one thread does.
    """
    times: list[tuple[float, float]] = []
    for number in range(rounds + 2):
        begun = clock()
        in_float()
        between = clock()
        in_int8()
        ended = clock()
        if number >= 2:
            times.append((between - begun, ended - between))
    ratio = statistics.median(a / max(b, 1e-9) for a, b in times)
    float_ms, int8_ms = (1000 * statistics.median(column) for column in zip(*times, strict=True))
    return Speed(float_ms, int8_ms, ratio)


def shift(
    expected: npt.NDArray[Any], found: npt.NDArray[Any], *, tie: float = EXACT_TIE, is_named: bool = True
) -> Shift:
    """How far logits found [N, L] are from those expected. A value that is not finite counts as 1e9 times the largest.

    is_named: whether the columns are classes; where they are features, none flips.
    """
    if not len(expected):
        return Shift(n=0, flips=0, largest=0.0)
    scale = max(float(np.abs(expected).max()), 1e-6)
    is_finite = bool(np.isfinite(expected).all() and np.isfinite(found).all())
    far = float(np.abs(expected - found).max()) / scale if is_finite else 1e9
    flips = 0
    if is_named and expected.shape[1] > 1:
        order = np.sort(expected, axis=1)
        is_tie = order[:, -1] - order[:, -2] <= tie * scale
        flips = int(((expected.argmax(axis=1) != found.argmax(axis=1)) & ~is_tie).sum())
    return Shift(n=len(expected), flips=flips, largest=far)
