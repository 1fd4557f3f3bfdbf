"""What an import leaves in the store besides the label table: which frames were read well, and what was rejected.

Readings are pieces of a table below `imports/<plant>/`, put while reading goes on, so that an import that is killed
costs a piece at most. Deleting them loses nothing: frames are read again. Several imports of one plant at once may
lose each other's pieces, never add a wrong one.
"""

from __future__ import annotations

import contextlib
import csv
import io
import uuid
from collections.abc import Iterable

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.storage import MissingFile, Store
from plants.errors import InputError
from plants.frames import KEY, SEEN
from plants.tables import Rejected, to_arrow

SCHEMA = pa.schema(
    [pa.field(name, pa.int64() if name in ("size", *SEEN[1:]) else pa.string(), nullable=False) for name in KEY + SEEN]
)
WHOLE = "whole.parquet"


class Readings:
    """The `Memory` of one plant's import. With `is_forgetful` it knows nothing at first, and keeps what is added."""

    def __init__(self, store: Store, plant: str, *, is_forgetful: bool = False) -> None:
        self._store, self._prefix, self._is_forgetful = store, f"imports/{plant}", is_forgetful
        self._pieces: list[str] = []
        self._num_known = 0

    def known(self) -> pd.DataFrame:
        """All that was added, in pieces. Raises InputError for what is no such table."""
        self._pieces = [entry.key for entry in self._store.list(self._prefix) if entry.key.endswith(".parquet")]
        pieces = []
        for key in [] if self._is_forgetful else self._pieces:
            with contextlib.suppress(MissingFile):  # another import of the plant has just put all pieces into one
                pieces.append(self._read(key))
        known: pd.DataFrame = pa.concat_tables([SCHEMA.empty_table(), *pieces]).to_pandas()
        self._num_known = len(known)
        return known

    def add(self, seen: pd.DataFrame) -> None:
        """Afterwards these rows of `SCHEMA` are in the store, as a piece of their own."""
        if len(seen):
            self._pieces.append(f"{self._prefix}/{uuid.uuid4().hex}.parquet")
            self._write(self._pieces[-1], seen)

    def settle(self, seen: pd.DataFrame) -> None:
        """Afterwards one piece holds these rows, and those seen or added here are gone."""
        whole = f"{self._prefix}/{WHOLE}"
        is_as_it_was = self._pieces in ([whole], []) and self._num_known == len(seen)
        if not is_as_it_was:
            self._write(whole, seen)
            for key in set(self._pieces) - {whole}:
                self._store.delete(key)
            self._pieces = [whole]

    def _write(self, key: str, seen: pd.DataFrame) -> None:
        buffer = io.BytesIO()
        pq.write_table(to_arrow(seen, schema=SCHEMA), buffer)
        self._store.write(key, buffer.getvalue())

    def _read(self, key: str) -> pa.Table:
        try:
            return pq.read_table(io.BytesIO(self._store.read(key)), schema=SCHEMA)
        except pa.ArrowException:
            remedy = "Delete it; its frames are then read again"
            raise InputError("is not a table of readings", file=self._store.at(key), remedy=remedy) from None


def write_rejects(store: Store, plant: str, rejected: Iterable[Rejected]) -> str:
    """Afterwards `rejects/<plant>.csv` lists exactly these; returns its address."""
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(Rejected._fields)
    rows.writerows(rejected)
    key = f"rejects/{plant}.csv"
    store.write(key, text.getvalue().encode())
    return store.at(key)
