"""The heads of all plants in a few arrays, so that one more plant costs its numbers and no session.

A head is an affine map of the trunk's pooled features. What it is stands in the bundle's `branch.onnx`, which is run
once on zeros and on the axes: the answers are the bias and the weights, to the last bit or the one before. So there is
no second file that could disagree with the first, and bundles need not be exported anew. A branch at cut 0 that is no
such map, or whose map is not the one recovered, is served as a session, as any other branch.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serving.sessions import Session

Floats = npt.NDArray[np.float32]

STEP = 2.0**30
"""How far along an axis the map is asked: so far that the bias rounds no weight off; a power of two, which is exact."""
_ROWS = 256
_TOLERANCE = 1e-5
_GROWTH = 1.5


def affine(session: Session, *, num_features: int) -> tuple[Floats, Floats] | None:
    """Weights [L, F] and bias [L] of a branch on features [N, F], or None where it is not affine.

    The map recovered is compared with the branch on features that were drawn.
    """

    def logits(features: Floats) -> npt.NDArray[np.float64]:
        return np.asarray(session.run(["logits"], {"activation": features})[0], dtype=np.float64)

    bias = logits(np.zeros((1, num_features), np.float32))[0]
    weights = np.empty((len(bias), num_features), np.float32)
    for start in range(0, num_features, _ROWS):
        stop = min(start + _ROWS, num_features)
        axes = np.zeros((stop - start, num_features), np.float32)
        axes[np.arange(stop - start), np.arange(start, stop)] = STEP
        weights[:, start:stop] = ((logits(axes) - bias) / STEP).T
    drawn = np.random.default_rng(0).normal(size=(4, num_features)).astype(np.float32)
    expected = logits(drawn)
    scale = np.abs(drawn) @ np.abs(weights.T) + np.abs(bias)
    is_same = np.isfinite(weights).all() and (np.abs(drawn @ weights.T + bias - expected) <= _TOLERANCE * scale).all()
    return (weights, bias.astype(np.float32)) if is_same else None


class _Table:
    """Heads of one shape. A row is written before anybody can know of it, and is used again after its last user."""

    def __init__(self, num_leaves: int, num_features: int) -> None:
        self.weights = np.empty((0, num_leaves, num_features), np.float32)
        self.bias = np.empty((0, num_leaves), np.float32)
        self.free: list[int] = []
        self.num_used = 0

    def put(self, weights: Floats, bias: Floats) -> int:
        """The row that now holds the head."""
        if self.free:
            row = self.free.pop()
        else:
            row = self.num_used
            if row == len(self.bias):
                self._grow(int(row * _GROWTH) + 8)
            self.num_used += 1
        self.weights[row], self.bias[row] = weights, bias
        return row

    def _grow(self, num_rows: int) -> None:
        """Readers go on with the array they took: their rows are in both."""
        wider = np.empty((num_rows, *self.weights.shape[1:]), np.float32)
        wider[: len(self.bias)] = self.weights
        longer = np.empty((num_rows, self.bias.shape[1]), np.float32)
        longer[: len(self.bias)] = self.bias
        self.weights, self.bias = wider, longer

    def logits(self, rows: npt.NDArray[np.intp], features: Floats) -> Floats:
        """[N, L]: each row's head of its own features [N, F], computed alone whatever its company."""
        bias, weights = self.bias, self.weights
        found: Floats = np.matmul(weights[rows], features[:, :, None])[:, :, 0] + bias[rows]
        return found

    def all_logits(self, rows: npt.NDArray[np.intp], features: Floats) -> Floats:
        """[K, N, L]: every one of these rows' heads of all features [N, F], each computed alone too."""
        bias, weights = self.bias, self.weights
        found: Floats = np.matmul(weights[rows][:, None], features[None, :, :, None])[..., 0] + bias[rows][:, None]
        return found


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Slot:
    """A head's place in `Heads`; given back when nobody holds it any more."""

    table: _Table
    row: int

    @property
    def size_mb(self) -> float:
        """Of its numbers."""
        return float(self.table.weights[0].nbytes + self.table.bias[0].nbytes) / 1e6

    def logits(self, features: Floats) -> Floats:
        """[N, L] of features [N, F]."""
        return self.table.logits(np.full(len(features), self.row, np.intp), features)


class Heads:
    """All heads of a process, a table for each number of leaves and features."""

    def __init__(self) -> None:
        self._tables: dict[tuple[int, ...], _Table] = {}
        self._lock = threading.Lock()

    def put(self, weights: Floats, bias: Floats) -> Slot:
        """The slot of a new head, weights [L, F] and bias [L]."""
        with self._lock:
            table = self._tables.setdefault(weights.shape, _Table(*weights.shape))
            slot = Slot(table, table.put(weights, bias))
        weakref.finalize(slot, table.free.append, slot.row).atexit = False
        return slot


def side_by_side(slots: Sequence[Slot], features: Floats) -> Floats | None:
    """The logits [K, N, L] of each of the heads for all views, features [N, F]; None where not all have one shape."""
    if len({id(slot.table) for slot in slots}) != 1:
        return None
    return slots[0].table.all_logits(np.array([slot.row for slot in slots], np.intp), features)


def gathered(slots: Sequence[Slot], features: Floats) -> list[Floats]:
    """The logits [L] of each view, by its own head: features [N, F], a slot a view, heads of any numbers of leaves."""
    found: list[Floats] = [features[0]] * len(slots)
    tables: dict[int, list[int]] = {}
    for at, slot in enumerate(slots):
        tables.setdefault(id(slot.table), []).append(at)
    for places in tables.values():
        rows = np.array([slots[at].row for at in places], np.intp)
        logits = slots[places[0]].table.logits(rows, features if len(places) == len(slots) else features[places])
        for at, one in zip(places, logits, strict=True):
            found[at] = one
    return found
