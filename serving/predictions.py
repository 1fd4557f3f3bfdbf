"""The prediction log: every verdict is in the store within two seconds, as Arrow IPC segments by plant and day.

A row's `request_id` is the replica and a sequence without gaps, so a lost segment can be counted. `append` only puts
the row on a list; a thread writes. While the store is away the segments wait in a local spool and follow later, also
those of a process that died before it could send them.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from cluster.storage import replaced

SCHEMA = pa.schema(
    [
        ("request_id", pa.string()),
        ("request_key", pa.string()),
        ("replica", pa.string()),
        ("sequence", pa.int64()),
        ("at", pa.timestamp("us", tz="UTC")),
        ("plant", pa.string()),
        ("environment", pa.string()),
        ("part_id", pa.string()),
        ("product", pa.string()),
        ("bundle", pa.string()),
        ("policy", pa.string()),
        ("arm", pa.string()),
        ("verdict", pa.string()),
        ("defect", pa.string()),
        ("confidence", pa.float64()),
        ("why", pa.string()),
        ("probabilities", pa.map_(pa.string(), pa.float64())),
        ("impossible", pa.float64()),
        ("novelty", pa.float64()),
        ("frames", pa.list_(pa.string())),
        ("tensor_digests", pa.list_(pa.string())),
        ("latency_ms", pa.float64()),
    ]
)
"""One row per verdict. `frames` holds the sha256 of every image; `request_key` is the caller's Idempotency-Key: rows of
one plant and key are one part, judged again by another replica after a retry."""

Row = dict[str, Any]


class Sink(Protocol):
    """What the log needs of a store."""

    def write(self, key: str, data: bytes, /) -> Any:
        """The bytes are there, whole, under the key."""


class PredictionLog:
    """Appends verdicts of one replica. Thread-safe; `close` sends what is left."""

    def __init__(
        self,
        store: Sink,
        *,
        replica: str,
        spool: Path,
        flush_s: float = 1.0,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._replica = replica
        self._spool = spool
        self._flush_s = flush_s
        self._now = now
        self._sequence = itertools.count(1)
        self._rows: list[Row] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._writing = threading.Lock()
        self.problem: str | None = None
        """Why segments wait in the spool, or None."""
        self._thread = threading.Thread(target=self._work, name="prediction-log", daemon=True)
        self._thread.start()

    def next_id(self) -> tuple[str, int]:
        """A new request id and its sequence. Every one taken must be appended, else the log shows a gap."""
        sequence = next(self._sequence)
        return f"{self._replica}-{sequence}", sequence

    def append(self, row: Row, *, sequence: int) -> None:
        """The row will be in the store within two seconds."""
        with self._lock:
            self._rows.append({**row, "replica": self._replica, "sequence": sequence, "at": self._now()})

    def flush(self) -> None:
        """Everything appended so far is in the store, or in the spool when the store is away."""
        with self._writing:
            with self._lock:
                rows, self._rows = self._rows, []
            for (plant, day), group in _by_plant_and_day(rows).items():
                name = f"{self._replica}-{group[0]['sequence']}-{group[-1]['sequence']}.arrow"
                self._send(f"log/{plant}/{day}/{name}", segment(group))
            if self.problem is None or not rows:
                self._send_spooled()

    def close(self) -> None:
        """The thread has ended and nothing appended is left in memory."""
        self._stop.set()
        self._thread.join(timeout=30)
        self.flush()

    def _work(self) -> None:
        while not self._stop.wait(self._flush_s):
            self.flush()

    def _send(self, key: str, data: bytes) -> None:
        try:
            self._store.write(key, data)
            self.problem = None
        except Exception as error:  # the store is away: the verdicts must not be lost, nor the line stopped
            self.problem = f"prediction log waits in the spool ({type(error).__name__})"
            with replaced(self._spool / key) as part:
                part.write_bytes(data)

    def _send_spooled(self) -> None:
        for path in sorted((self._spool / "log").glob("*/*/[!.]*.arrow")):
            try:
                self._store.write(path.relative_to(self._spool).as_posix(), path.read_bytes())
            except FileNotFoundError:  # another replica of this machine sent it
                continue
            except Exception as error:
                self.problem = f"prediction log waits in the spool ({type(error).__name__})"
                return
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
        self.problem = None


def segment(rows: Sequence[Row]) -> bytes:
    """The rows as one Arrow IPC file, which `pyarrow.ipc.open_file` reads."""
    table = pa.Table.from_pylist([{n: row.get(n) for n in SCHEMA.names} for row in rows], schema=SCHEMA)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _by_plant_and_day(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["sequence"]):
        groups.setdefault((row["plant"], row["at"].strftime("%Y-%m-%d")), []).append(row)
    return groups
