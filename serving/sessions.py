"""Open files by digest: ONNX sessions and what good parts look like, kept by recency within a bound of memory.

A trunk's session lives as long as a model that uses it. Branches are many and large (a ResNet-18's last stage is
33 MB), so that a model holds a `KeptSession` in a session's place: it runs what the `Recency` holds, and opens the file
again when that was let go. Eviction only drops a reference: who is in the middle of a batch keeps it until it ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from plants.errors import InputError
from plants.hashing import sha256

BRANCH_MB = 1024.0
"""What branches may take in a replica where nobody says otherwise: about thirty last stages of a ResNet-18."""
MB = 1e6
T = TypeVar("T")


class Session(Protocol):
    """The part of onnxruntime's InferenceSession that is used."""

    def run(self, names: Sequence[str] | None, inputs: Mapping[str, Any], /) -> list[Any]:
        """The named outputs."""


def open_branch(path: Path) -> Session:
    """As `open_session`; what the opening took beyond the weights is the system's again."""
    session = open_session(path)
    give_back()
    return session


def open_session(path: Path) -> Session:
    """A one-thread session: a replica is one core, and requests are what runs side by side."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session: Session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        reason = str(error).splitlines()[0][:200]
        raise InputError(f"is no ONNX model this runtime can load ({reason})", file=path.name) from None
    return session


def output_names(session: Session) -> frozenset[str]:
    """What the session's file can give."""
    return frozenset(one.name for one in getattr(session, "get_outputs", tuple)())


def give_back() -> None:
    """Memory that is free inside this process is the system's again, where the C library can do that (glibc).

    Opening a session leaves two and a half times its weights behind otherwise.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return None
    return found


@dataclass(frozen=True, slots=True)
class FileRef:
    """A file to open, and the SHA-256 that its bytes must have."""

    path: Path
    sha256: str


class Turns:
    """One thread at a time for a key, and none waits for another key's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._users: dict[str, int] = {}

    @contextlib.contextmanager
    def of(self, key: str) -> Iterator[None]:
        """This thread's turn."""
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
            self._users[key] = self._users.get(key, 0) + 1
        try:
            with lock:
                yield
        finally:
            with self._lock:
                self._users[key] -= 1
                if not self._users[key]:
                    del self._users[key], self._locks[key]


class Shared(Generic[T]):
    """Values by key, each made by one thread while the others wait, and freed with its last user."""

    def __init__(self) -> None:
        self._values: weakref.WeakValueDictionary[str, T] = weakref.WeakValueDictionary()
        self._turns = Turns()

    def get(self, key: str, make: Callable[[], T], /) -> T:
        """The value, made now where nobody uses it. Raises what `make` raises; the next one tries again."""
        with self._turns.of(key):
            found = self._values.get(key)
            if found is None:
                found = self._values[key] = make()
            return found

    def find(self, key: str) -> T | None:
        """The value where somebody uses it."""
        return self._values.get(key)


def checked(file: FileRef) -> Path:
    """The file's path, after its bytes were compared with the digest. Raises InputError."""
    if not file.path.is_file():
        raise InputError("no such file", file=str(file.path), remedy="Fetch the bundle with its trunk")
    if sha256(file.path.read_bytes()) != file.sha256:
        raise InputError("its bytes are not what the bundle was made with", file=file.path.name)
    return file.path


@dataclass(frozen=True, slots=True)
class Counts:
    """What a `Recency` holds and did since the start."""

    num_open: int
    open_mb: float
    bound_mb: float
    loads: int
    reloads: int
    """Loads of what had been evicted: each made a request wait."""
    evictions: int
    load_s: float


class Recency(Generic[T]):
    """Files used lately, up to `bound_mb`; those of pinned owners stay.

    What is pinned may exceed the bound, and a single file larger than it is kept until the next one comes.
    """

    def __init__(self, open_file: Callable[[Path], T], *, bound_mb: float) -> None:
        self._open_file = open_file
        self._shared: Shared[T] = Shared()
        self._bound_mb = bound_mb
        self._lock = threading.Lock()
        self._held: OrderedDict[str, tuple[T, float]] = OrderedDict()
        self._pins: dict[str, frozenset[str]] = {}
        self._evicted: set[str] = set()
        self._held_mb = 0.0
        self._loads = self._reloads = self._evictions = 0
        self._load_s = 0.0

    def pin(self, owner: str, *, digests: frozenset[str]) -> None:
        """These stay as long as the owner pins nothing else."""
        with self._lock:
            self._pins[owner] = digests

    def find(self, digest: str) -> T | None:
        """What is held, now the most recent, or None when it would have to be loaded."""
        with self._lock:
            found = self._held.get(digest)
            if found is not None:
                self._held.move_to_end(digest)
                return found[0]
        return self._shared.find(digest)

    def is_open(self, digest: str) -> bool:
        """Whether it is there without a load. Who only looks makes nothing recent."""
        with self._lock:
            return digest in self._held or self._shared.find(digest) is not None

    def get(self, file: FileRef, *, size_mb: float) -> T:
        """What is in the file, loaded when it is not there; the least recent may have to go. Raises InputError."""
        found = self.find(file.sha256)
        if found is None:
            found = self._shared.get(file.sha256, lambda: self._load(file, size_mb=size_mb))
        self._keep(file.sha256, found, size_mb=size_mb)
        return found

    def drop(self, digest: str) -> None:
        """What was needed once, and nobody pins, is not held any more."""
        with self._lock:
            if digest in self._held and not any(digest in pins for pins in self._pins.values()):
                self._held_mb -= self._held.pop(digest)[1]

    @property
    def counts(self) -> Counts:
        """What is held and was done."""
        with self._lock:
            numbers = self._loads, self._reloads, self._evictions, self._load_s
            return Counts(len(self._held), self._held_mb, self._bound_mb, *numbers)

    def _load(self, file: FileRef, *, size_mb: float) -> T:
        """Room is made first, so that the bound also holds while the file is opened."""
        begun = time.perf_counter()
        path = checked(file)
        with self._lock:
            self._evict(room_mb=size_mb)
        found = self._open_file(path)
        with self._lock:
            self._loads += 1
            self._reloads += file.sha256 in self._evicted
            self._load_s += time.perf_counter() - begun
        return found

    def _keep(self, digest: str, value: T, *, size_mb: float) -> None:
        with self._lock:
            is_new = digest not in self._held
            self._held[digest] = (value, size_mb)
            self._held.move_to_end(digest)
            self._held_mb += size_mb * is_new
            if is_new:
                self._evict(but=digest)

    def _evict(self, *, room_mb: float = 0.0, but: str = "") -> None:
        """What was used longest ago is let go until there is room, but for what is pinned."""
        if self._held_mb + room_mb <= self._bound_mb:
            return
        staying = frozenset([but]).union(*self._pins.values())
        for old in [one for one in self._held if one not in staying]:
            if self._held_mb + room_mb <= self._bound_mb:
                return
            self._held_mb -= self._held.pop(old)[1]
            self._evictions += 1
            self._evicted.add(old)


class KeptSession:
    """In a session's place: runs the one that `Recency` holds, and has it loaded again when it was let go."""

    def __init__(
        self, file: FileRef, recency: Recency[Session], *, again: Callable[[], object], least_mb: float = 0.0
    ) -> None:
        """`again` fetches the file once more, where it is gone or damaged. least_mb: what a session takes at least."""
        self.file = file
        self.size_mb = max(least_mb, file.path.stat().st_size / MB)
        self._recency = recency
        self._again = again

    def run(self, names: Sequence[str] | None, inputs: Mapping[str, Any], /) -> list[Any]:
        """The named outputs."""
        return self.session().run(names, inputs)

    def find(self) -> Session | None:
        """The session where it is loaded."""
        return self._recency.find(self.file.sha256)

    @property
    def is_open(self) -> bool:
        """Whether the session is loaded; asking does not keep it."""
        return self._recency.is_open(self.file.sha256)

    def session(self) -> Session:
        """The session, loaded where it is not. Raises InputError."""
        try:
            return self._recency.get(self.file, size_mb=self.size_mb)
        except InputError as damaged:
            try:
                self._again()
            except Exception:  # the store is away, or has it no more: what is wrong here is the news
                raise damaged from None
            return self._recency.get(self.file, size_mb=self.size_mb)
