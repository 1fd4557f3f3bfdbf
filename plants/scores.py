"""From a model's outputs to one probability vector per part: softmax, calibration, pooling, and the table of parts.

The same pooling joins tiles into a frame and frames into a part, in training, evaluation and serving alike.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

Floating = TypeVar("Floating", bound=np.floating[Any])
Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]
_TEXTS = ("part_ids", "lots", "environments", "truth")
_DISTANCES = ("novelty", "disagreement")


def softmax(logits: npt.NDArray[Floating]) -> npt.NDArray[Floating]:
    """Probabilities along the last axis; the dtype is kept."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: npt.NDArray[Floating] = shifted / shifted.sum(axis=-1, keepdims=True)
    return result


def calibrate(probs: npt.NDArray[Floating], temperature: float) -> npt.NDArray[Floating]:
    """`p ** (1 / temperature)` along the last axis, scaled so that every vector keeps its own sum.

    What a vector lacks to 1 is mass on classes that cannot occur here. No label ever says how much of that is right,
    so the temperature leaves it alone. Source: Guo et al., On Calibration of Modern Neural Networks, 2017.
    """
    if temperature <= 0:
        raise ValueError("a temperature is positive")
    if temperature == 1:
        return probs
    wide = np.asarray(probs, dtype=np.float64)
    top = wide.max(axis=-1, keepdims=True)
    powered = (wide / np.where(top > 0, top, 1)) ** (1 / temperature)
    total = powered.sum(axis=-1, keepdims=True)
    scaled = powered * wide.sum(axis=-1, keepdims=True) / np.where(total > 0, total, 1)
    result: npt.NDArray[Floating] = scaled.astype(probs.dtype)
    return result


def suspicion(probs: npt.NDArray[Floating], *, ok: Mask) -> npt.NDArray[np.float64]:
    """What a row is chosen by [N]: its mass outside `ok`, or its confidence where no leaf means good."""
    wide = np.asarray(probs, dtype=np.float64)
    found: npt.NDArray[np.float64] = 1 - wide[:, ok].sum(axis=1) if ok.any() else wide.max(axis=1)
    return found


class Speakers(NamedTuple):
    """Which rows a group's vector is the mean of, M entries: a row, the group it speaks for, and its share in it."""

    rows: Indices
    groups: Indices
    shares: npt.NDArray[np.float64]

    def mean(self, probs: npt.NDArray[Floating]) -> npt.NDArray[Floating]:
        """The groups' vectors [G, L] of rows [N, L]."""
        total = np.zeros((int(self.groups.max(initial=-1)) + 1, probs.shape[1]))
        np.add.at(total, self.groups, self.shares[:, None] * probs[self.rows])
        return total.astype(probs.dtype)

    def then(self, others: Speakers) -> Speakers:
        """Which rows speak for groups of these groups, where `others` says which of these speak for theirs."""
        share = np.zeros(int(self.groups.max(initial=-1)) + 1)
        group = np.zeros(len(share), dtype=np.intp)
        share[others.rows], group[others.rows] = others.shares, others.groups
        at = share[self.groups] > 0
        return Speakers(self.rows[at], group[self.groups[at]], self.shares[at] * share[self.groups[at]])


def speakers(probs: npt.NDArray[Floating], groups: npt.NDArray[Any], *, ok: Mask, top_k: int = 1) -> Speakers:
    """Of the rows `probs` [N, L]: with good leaves the `top_k` of most defect mass in each group, without all of them.

    In the order of the groups, a group's loudest row first; ties go to the earlier row. Groups are numbered 0..G-1,
    none empty.
    """
    groups = np.asarray(groups, dtype=np.intp)
    if groups.shape != (len(probs),):
        raise ValueError("one group per row is needed")
    if top_k < 1:
        raise ValueError("top_k is at least 1")
    sizes = np.bincount(np.maximum(groups, 0))
    if len(groups) and (groups.min() < 0 or not sizes.all()):
        raise ValueError("groups are numbered 0..G-1 and none is empty")
    kept = np.lexsort((-suspicion(probs, ok=ok), groups))
    if ok.any():
        rank = np.arange(len(kept)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        kept = kept[rank < top_k]
        sizes = np.minimum(sizes, top_k)
    return Speakers(kept, groups[kept], np.repeat(1 / sizes, sizes))


def pool_groups(
    probs: npt.NDArray[Floating], groups: npt.NDArray[Any], *, ok: Mask, top_k: int = 1
) -> tuple[npt.NDArray[Floating], Indices]:
    """One vector per group [G, L] and the row of `probs` [N, L] that speaks loudest in it [G].

    With good leaves: the mean of the group's `top_k` rows of most defect mass, and the first of them. Without: the
    mean of all its rows, and the most confident. Groups are numbered 0..G-1, none empty; ties go to the earlier row.
    """
    if len(probs) == 1 and len(groups) == 1 and groups[0] == 0 and top_k >= 1:  # most parts on a line
        return probs, np.zeros(1, dtype=np.intp)
    rows, of, _ = speakers(probs, groups, ok=ok, top_k=top_k)
    if not len(rows):
        return probs[:0], np.zeros(0, dtype=np.intp)
    sizes = np.bincount(of)
    starts = np.cumsum(sizes) - sizes
    pooled = np.add.reduceat(probs[rows].astype(np.float64), starts, axis=0) / sizes[:, None]
    return pooled.astype(probs.dtype), rows[starts]


def pool(probs: npt.NDArray[Floating], *, ok: Mask, top_k: int = 1) -> tuple[npt.NDArray[Floating], int]:
    """One vector [L] for the rows [T, L], and the row that speaks loudest, as `pool_groups` does for one group."""
    if not len(probs):
        raise ValueError("nothing to pool")
    vectors, index = pool_groups(probs, np.zeros(len(probs), dtype=np.intp), ok=ok, top_k=top_k)
    return vectors[0], int(index[0])


@dataclass(frozen=True, eq=False)
class PartScores:
    """What one model says of a plant's labelled parts, one row a part, uncalibrated."""

    part_ids: npt.NDArray[Any]
    lots: npt.NDArray[Any]
    environments: npt.NDArray[Any]
    truth: npt.NDArray[Any]
    """Plant classes [N]."""
    probs: npt.NDArray[np.float64]
    """[N, C] over `classes`; a row may sum to less than 1, the rest is `impossible`."""
    classes: tuple[str, ...]
    """The plant's annotated classes, in the plant's order."""
    ok: tuple[str, ...] = ()
    novelty: npt.NDArray[np.float64] | None = None
    """[N] distance to the plant's good parts."""
    disagreement: npt.NDArray[np.float64] | None = None
    """[N] how far the members of an ensemble disagree, 0 to 1; None of a single model."""

    def __post_init__(self) -> None:
        for name in _TEXTS:
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=object))
        object.__setattr__(self, "probs", np.asarray(self.probs, dtype=np.float64).reshape(-1, len(self.classes)))
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "ok", tuple(name for name in self.ok if name in self.classes))
        for name in _DISTANCES:
            if (found := getattr(self, name)) is not None:
                object.__setattr__(self, name, np.asarray(found, dtype=np.float64))
        columns = [getattr(self, name) for name in (*_TEXTS, *_DISTANCES)] + [self.probs]
        if {len(column) for column in columns if column is not None} != {len(self.truth)}:
            raise ValueError("every column of PartScores has one entry per part")
        if not np.isfinite(self.probs).all():
            raise ValueError("probabilities of parts must be finite numbers")
        strangers = sorted({str(name) for name in self.truth} - set(self.classes))
        if strangers:
            raise ValueError(f"truth holds classes that are not annotated: {', '.join(strangers)}")

    def __len__(self) -> int:
        return len(self.truth)

    @cached_property
    def truth_index(self) -> Indices:
        """The column of every part's true class [N]."""
        at = {name: i for i, name in enumerate(self.classes)}
        return np.fromiter((at[name] for name in self.truth), dtype=np.intp, count=len(self))

    @cached_property
    def predicted_index(self) -> Indices:
        """The column of every part's most probable class [N], whatever any policy says."""
        found: Indices = self.probs.argmax(axis=1)
        return found

    @cached_property
    def ok_mask(self) -> Mask:
        """Which classes mean a good part [C]."""
        return np.isin(np.array(self.classes, dtype=object), np.array(self.ok, dtype=object))

    @cached_property
    def is_good(self) -> Mask:
        """Which parts are good in truth [N]."""
        return self.ok_mask[self.truth_index]

    @cached_property
    def impossible(self) -> npt.NDArray[np.float64]:
        """Mass on classes that cannot occur here [N]."""
        mass: npt.NDArray[np.float64] = np.clip(1 - self.probs.sum(axis=1), 0, 1)
        return mass

    @cached_property
    def p_defect(self) -> npt.NDArray[np.float64]:
        """Mass outside the good classes [N], uncalibrated; 1 everywhere where no class is good."""
        mass: npt.NDArray[np.float64] = np.clip(1 - self.probs[:, self.ok_mask].sum(axis=1), 0, 1)
        return mass

    def to_parquet(self) -> bytes:
        """The scores as one Parquet file; `from_parquet` reads them again, equal to the bit."""
        columns = {name: pa.array([str(value) for value in getattr(self, name)]) for name in _TEXTS}
        columns |= {f"p{i}": pa.array(self.probs[:, i]) for i in range(len(self.classes))}
        columns |= {name: pa.array(each) for name in _DISTANCES if (each := getattr(self, name)) is not None}
        about = {"scores": json.dumps({"classes": self.classes, "ok": self.ok})}
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns).replace_schema_metadata(about), buffer)
        return buffer.getvalue()

    @classmethod
    def from_parquet(cls, data: bytes) -> PartScores:
        """The scores that `to_parquet` wrote; part ids and lots as text. Raises ValueError or KeyError for others."""
        table = pq.read_table(io.BytesIO(data))
        about = json.loads((table.schema.metadata or {})[b"scores"])
        found = {name: table.column(name).to_numpy() for name in table.column_names}
        return cls(
            **{name: found[name] for name in _TEXTS},
            probs=np.stack([found[f"p{i}"] for i in range(len(about["classes"]))], axis=1),
            classes=tuple(about["classes"]),
            ok=tuple(about["ok"]),
            novelty=found.get("novelty"),
            disagreement=found.get("disagreement"),
        )

    def take(self, rows: npt.NDArray[Any] | Sequence[int]) -> PartScores:
        """The parts at these rows (indices or a mask), in that order."""
        at = np.asarray(rows)
        at = at if at.dtype == bool else at.astype(np.intp)
        columns = {name: getattr(self, name) for name in (*_TEXTS, *_DISTANCES, "probs")}
        taken: dict[str, Any] = {name: None if column is None else column[at] for name, column in columns.items()}
        return PartScores(**taken, classes=self.classes, ok=self.ok)
