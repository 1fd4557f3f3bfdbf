"""The prediction log: every verdict is in the store within two seconds, as Arrow IPC segments, one a flush.

A row's `request_id` is the replica and a sequence without gaps, so a lost segment can be counted (`serving.gaps`).
A request only puts its row on a queue. Once a second one thread writes what is there to the spool on this machine's
disk, and never waits for the network; another sends the spool. So a process killed at any point loses a second or so, a
store that is away loses nothing, and the line never stops: where neither store nor disk takes a segment, it is dropped,
counted, and said in /healthz, in the plant's status and to Prometheus.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from serving.schemas import Answer
from serving.segments import Segment
from serving.spool import Spool, SpoolFull, orphans

log = logging.getLogger("crossplant.serving")

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
        ("disagreement", pa.float64()),
        ("severity", pa.float64()),
        ("frames", pa.list_(pa.string())),
        ("tensor_digests", pa.list_(pa.string())),
        ("latency_ms", pa.float64()),
    ]
)
"""One row per verdict. `frames` holds the sha256 of every image; `request_key` is the caller's Idempotency-Key: rows of
one plant and key are one part, judged again by another replica after a retry."""

Row = dict[str, Any]
SPOOL_MB = 1024
MAX_IN_MEMORY = 64
"""Segments that wait in memory where the disk takes none."""
ADOPT_S = 30.0


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
        spool_mb: float = SPOOL_MB,
        flush_s: float = 1.0,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._replica = replica
        self._flush_s = flush_s
        self._now = now
        self._sequence = itertools.count(1)
        self._rows: deque[tuple[Callable[[], Row], int, datetime]] = deque()
        self._in_memory: deque[tuple[Segment, bytes]] = deque()
        self._writing, self._sending = threading.Lock(), threading.Lock()
        self._stop, self._wake = threading.Event(), threading.Event()
        self._away: str | None = None
        self._is_full = False
        self._num_noted = 0
        self._adopt_at = 0.0
        owner = f"{replica}@{time.time_ns() // 1_000_000:x}{secrets.token_hex(3)}"
        self.spool = Spool(spool, owner, limit_bytes=int(spool_mb * 1e6))
        self._threads = [
            threading.Thread(target=work, name=f"prediction-log-{name}", daemon=True)
            for name, work in (("writer", self._write_on), ("sender", self._send_on))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def problem(self) -> str | None:
        """Why verdicts wait for the store, or are not logged at all; None where all is well."""
        spool = self.spool
        if self._is_full:
            full = spool.problem or f"the spool holds its {spool.limit_bytes / 1e6:.0f} MB"
            return f"prediction log: {spool.dropped_rows} verdicts are NOT logged: {full}, and the store is away"
        if self._away:
            return f"prediction log: {spool.num_segments} segments wait in the spool ({self._away})"
        return f"prediction log: this disk keeps nothing ({spool.problem})" if spool.problem else None

    def next_id(self) -> tuple[str, int]:
        """A new request id and its sequence. Every one taken must be appended, else the log shows a gap."""
        sequence = next(self._sequence)
        self.spool.issue(sequence)
        return f"{self._replica}-{sequence}", sequence

    def append(self, row: Callable[[], Row], *, sequence: int) -> None:
        """The row, made by a thread of the log, will be in the store within two seconds."""
        self._rows.append((row, sequence, self._now()))

    def flush(self) -> None:
        """Everything appended so far is in the store, or in the spool when the store is away."""
        self._write()
        self._send()

    def close(self) -> None:
        """The threads have ended, and nothing appended is in memory alone."""
        self._stop.set()
        self._wake.set()
        for thread in self._threads:
            thread.join(timeout=30)
        self._write()
        is_sent = self._send() and self._noted("closed", self.spool)
        self.spool.close(is_empty=is_sent)

    def _write_on(self) -> None:
        while not self._stop.wait(self._flush_s):
            self._write()
            self._wake.set()

    def _send_on(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(self._flush_s)
            self._wake.clear()
            if not self._send():
                self._stop.wait(self._flush_s)

    def _write(self) -> None:
        with self._writing:
            for group in _runs(self._made()):
                day = group[0]["at"].strftime("%Y-%m-%d")
                name = Segment(day, self.spool.owner, group[0]["sequence"], group[-1]["sequence"])
                try:
                    data = segment(group)
                except (pa.ArrowException, TypeError, ValueError):  # the next ones must be written all the same
                    log.exception("verdicts %d to %d cannot be written", name.first, name.last)
                    self.spool.drop(name)
                    continue
                self._keep(name, data)

    def _made(self) -> list[Row]:
        rows = []
        for _ in range(len(self._rows)):
            make, sequence, at = self._rows.popleft()
            try:
                rows.append(make() | {"replica": self._replica, "sequence": sequence, "at": at})
            except Exception:  # a gap, and no reason to lose the others
                log.exception("verdict %d cannot be written", sequence)
                self.spool.drop(Segment(at.strftime("%Y-%m-%d"), self.spool.owner, sequence, sequence))
        return rows

    def _keep(self, name: Segment, data: bytes) -> None:
        try:
            self.spool.keep(name, data)
            self._is_full = False
        except OSError as error:
            if not isinstance(error, SpoolFull) and len(self._in_memory) < MAX_IN_MEMORY:
                self._in_memory.append((name, data))
                self.spool.problem = (error.strerror or type(error).__name__).lower()
            else:
                self._is_full = True
                self.spool.drop(name)

    def _send(self) -> bool:
        """Whether nothing waits any more."""
        with self._sending:
            try:
                while self._in_memory:
                    name, data = self._in_memory[0]
                    self._store.write(name.key, data)
                    self._in_memory.popleft()
                self._send_spool(self.spool)
                if time.monotonic() >= self._adopt_at:
                    self._adopt()
            except Exception as error:  # the store is away: the verdicts must not be lost, nor the line stopped
                self._away = type(error).__name__
                return False
            self._away, self._is_full = None, False
        return self.spool.dropped_rows == self._num_noted or self._noted("", self.spool)

    def _send_spool(self, spool: Spool) -> None:
        for name, path in spool.waiting():
            with contextlib.suppress(FileNotFoundError):
                self._store.write(name.key, path.read_bytes())
            spool.sent(path)

    def _adopt(self) -> None:
        for spool in orphans(self.spool.root, but=self.spool.owner):
            try:
                self._send_spool(spool)
                is_empty = self._noted("killed", spool)
            except BaseException:
                spool.close(is_empty=False)
                raise
            spool.close(is_empty=is_empty)
        self._adopt_at = time.monotonic() + ADOPT_S

    def _noted(self, ended: str, spool: Spool) -> bool:
        """Whether the store knows how far this owner counted, what it dropped and how it ended."""
        num_dropped, note = spool.dropped_rows, spool.note(ended=ended, at=self._now().isoformat(timespec="seconds"))
        if not note.issued and spool is not self.spool:
            return True
        try:
            self._store.write(note.key, note.to_bytes())
        except Exception as error:
            self._away = type(error).__name__
            return False
        if spool is self.spool:
            self._num_noted = num_dropped
        return True


def log_row(answer: Answer, *, product: str | None, key: str | None = None) -> Row:
    """The answer as a row of the prediction log."""
    return {
        "request_id": answer.request_id,
        "plant": answer.plant,
        "environment": answer.environment,
        "part_id": answer.part_id,
        "product": product,
        "request_key": key,
        "bundle": answer.model.bundle,
        "policy": answer.model.policy,
        "arm": answer.model.arm,
        "verdict": answer.verdict,
        "defect": answer.defect,
        "confidence": answer.confidence,
        "why": answer.why,
        "probabilities": list(answer.probabilities.items()),
        "impossible": answer.impossible,
        "novelty": answer.novelty,
        "disagreement": answer.disagreement,
        "severity": answer.severity,
        "frames": [frame.sha256 for frame in answer.frames],
        "tensor_digests": [frame.tensor_digest for frame in answer.frames],
        "latency_ms": answer.latency_ms,
    }


def segment(rows: Sequence[Row]) -> bytes:
    """The rows as one Arrow IPC file, which `pyarrow.ipc.open_file` reads."""
    columns = [pa.array([row.get(one.name) for row in rows], type=one.type) for one in SCHEMA]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
    return bytes(sink.getvalue())


def _runs(rows: list[Row]) -> list[list[Row]]:
    """The rows by sequence, in groups without a hole that lie on one day."""
    groups: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: row["sequence"]):
        last = groups[-1][-1] if groups else None
        if last and row["sequence"] == last["sequence"] + 1 and row["at"].date() == last["at"].date():
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups
