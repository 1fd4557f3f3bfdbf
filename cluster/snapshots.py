"""What models learned from, kept as it was: label rows of the train and select roles, a table a plant and state.

Label tables follow what the plants correct; a plan and its bundles name the snapshots they were made from. Every row
holds its image's SHA-256, so last year's training set can be built again, or it is known which images are gone.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.storage import Store
from plants.errors import InputError
from plants.hashing import sha256
from plants.labels import LABEL_SCHEMA, from_table
from plants.tables import to_arrow

SCHEMA = pa.schema([*(field for field in LABEL_SCHEMA if field.name != "incumbent"), pa.field("role", pa.string())])
"""Nothing is learned from what the existing inspection said."""
LEARNED = ("train", "select")
"""Roles whose rows models are fitted to and chosen by."""


def keep(rows: pd.DataFrame, *, store: Store) -> str:
    """The digest of the snapshot of these label rows, which need `role`; it is written unless it is there."""
    learned = rows[rows["role"].isin(LEARNED)].sort_values("frame", ignore_index=True)
    buffer = io.BytesIO()
    pq.write_table(to_arrow(learned, schema=SCHEMA), buffer)
    data = buffer.getvalue()
    digest = sha256(data)
    if not store.exists(_key(digest)):
        store.write(_key(digest), data)
    return digest


def read(digest: str, *, store: Store) -> pd.DataFrame:
    """Label rows with `role`. Raises InputError when they are gone or not what their name says."""
    key = _key(digest)
    if not store.exists(key):
        raise InputError("the rows a model learned from are gone", file=store.at(key), remedy="Restore the file")
    data = store.read(key)
    if sha256(data) != digest:
        raise InputError("the rows a model learned from were changed", file=store.at(key), remedy="Restore the file")
    return from_table(pq.read_table(io.BytesIO(data)))


def data_digest(tables: Mapping[str, pd.DataFrame]) -> str:
    """Names what can be learned from: frames, labels and roles of the train and select rows of these plants."""
    digest = hashlib.sha256()
    for name, rows in sorted(tables.items()):
        learned = rows[rows["role"].isin(LEARNED)].sort_values("frame")
        for column in ("frame", "sha256", "class", "role", "part_id", "environment", "box"):
            values = "\x1f".join(_text(value) for value in learned[column])
            digest.update(f"{name}|{column}|{values}\n".encode())
    return digest.hexdigest()


def _key(digest: str) -> str:
    return f"snapshots/{digest}.parquet"


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return ""
    return ",".join(map(str, value)) if not isinstance(value, str) and hasattr(value, "__iter__") else str(value)
