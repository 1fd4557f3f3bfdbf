"""Which INT8 is tried next, and which is kept: pure decisions over what was tried.

The first rung that holds every plant's gate and is faster than float is kept. A rung that is not faster ends the walk,
because no later one does less work; where none holds, float is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobs.quantise import Method
from plants.variants import FASTER, PlantGate, Speed, faults, worst_loss


@dataclass(frozen=True, slots=True)
class Rung:
    """One way to make INT8."""

    name: str
    method: Method = "minmax"
    num_excluded: int = 0
    """Around how many of the worst tensors layers stay float."""


RUNGS = (
    Rung("int8 minmax"),
    Rung("int8 percentile", method="percentile"),
    Rung("int8 entropy", method="entropy"),
    Rung("int8 minmax, 3 worst float", num_excluded=3),
    Rung("int8 minmax, 8 worst float", num_excluded=8),
)
FLOAT = "float"


@dataclass(frozen=True)
class Tried:
    """What one rung gave."""

    rung: Rung
    gates: Mapping[str, PlantGate]
    """By plant, and by model where it is another than the plant's decision: `plant` or `plant: model`."""
    speed: Speed

    @property
    def faults(self) -> list[str]:
        """Why it may not serve, each plant's in turn; then whether it is too slow."""
        found = [f"{where}: {fault}" for where, gate in self.gates.items() for fault in faults(gate)]
        if not self.speed.is_faster:
            found.append(f"not faster here: {self.speed.int8_ms:.3g} ms an image, float {self.speed.float_ms:.3g}")
        return found

    @property
    def worst_macro_f1(self) -> float | None:
        """Of INT8, at the plant where it is lowest."""
        return min((g.macro_f1.int8 for g in self.gates.values() if g.macro_f1.int8 is not None), default=None)


def next_rung(tried: Sequence[Tried], *, rungs: Sequence[Rung] = RUNGS) -> Rung | None:
    """The rung to try now; None where the decision can be made."""
    if tried and (not tried[-1].faults or not tried[-1].speed.is_faster):
        return None
    return rungs[len(tried)] if len(tried) < len(rungs) else None


def kept(tried: Sequence[Tried]) -> Tried | None:
    """What serves beside float; None where float is kept alone."""
    return next((one for one in tried if not one.faults), None)


def sentence(tried: Sequence[Tried]) -> str:
    """The decision in one sentence."""
    found = kept(tried)
    if found is None:
        reason = tried[-1].faults[0] if tried else "there was nothing to quantise or to calibrate on"
        return f"kept float: {reason}"
    lost = worst_loss(found.gates)
    loss = "no macro-F1 was counted" if lost is None else f"the largest loss of macro-F1 is {100 * lost:.1f} points"
    before = f", after {', '.join(one.rung.name for one in tried[:-1])} did not hold" if len(tried) > 1 else ""
    return f"kept {found.rung.name}: {found.speed.ratio:.2f} x as fast as float (from {FASTER:g}), {loss}{before}"
