"""Adapters: pretrained stages that plants share in one session, and small factors that each plant brings along.

The factors and the head are inputs of the shared file (`jobs.factors`), given anew with every call, so that a plant
takes the memory of its numbers and no call leaves anything behind for the next. The price is time: beside every layer
two small ones are computed, and weights that come as inputs cannot be laid out in advance.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plants.errors import InputError
from serving.sessions import MB, Session

Factors = Mapping[str, npt.NDArray[np.float32]]

LARGEST_MB = 256.0
"""No file of factors is larger once it is unpacked: rank 32 in all of a ViT-L is half of it."""


class Adapter:
    """In a branch's place: the shared stages with this plant's factors. For any thread."""

    __slots__ = ("_factors", "_stages", "size_mb")

    def __init__(self, stages: Session, factors: Factors) -> None:
        self._stages, self._factors = stages, factors
        self.size_mb = sum(one.nbytes for one in factors.values()) / MB
        """Of its own numbers."""

    def run(self, names: Sequence[str] | None, inputs: Mapping[str, Any], /) -> list[Any]:
        """The named outputs."""
        return self._stages.run(names, {**inputs, **self._factors})


def read_factors(path: Path, *, stages: Any) -> Factors:
    """The factors in a file, whose digest was checked. stages: the session that takes them.

    Raises InputError for others than its inputs, in name, kind or shape.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size_mb = sum(one.file_size for one in archive.infolist()) / MB
        factors: dict[str, npt.NDArray[np.float32]] = {}
        if size_mb <= LARGEST_MB:
            with np.load(path, allow_pickle=False) as table:
                factors = {name: np.ascontiguousarray(table[name]) for name in table.files}
    except (OSError, ValueError, zipfile.BadZipFile):
        raise InputError("is not a table of factors", file=path.name, remedy="Export the bundle again") from None
    if size_mb > LARGEST_MB:
        raise InputError(f"holds more than {LARGEST_MB:g} MB of factors", file=path.name)
    wanted = {one.name: one.shape for one in stages.get_inputs() if one.name != "activation"}
    fault = next(iter(sorted(wanted.keys() ^ factors.keys())), None) or next(
        (name for name, shape in wanted.items() if not _fits(factors[name], shape)), None
    )
    if fault is not None:
        what = f"does not fit the stages that it was made for ({fault})"
        raise InputError(what, file=path.name, remedy="Export the bundle again")
    return factors


def _fits(array: npt.NDArray[Any], shape: Sequence[int | str]) -> bool:
    """Whether the array has these axes, of any length where the shape has a name, of numbers that are finite."""
    axes = zip(array.shape, shape, strict=False)
    is_so = array.dtype == np.float32 and array.ndim == len(shape)
    return bool(is_so and all(isinstance(b, str) or a == b for a, b in axes) and np.isfinite(array).all())
