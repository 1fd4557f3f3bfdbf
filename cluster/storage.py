"""One door to files, local or in a bucket: atomic puts, digest-checked gets, errors that a user can act on.

Keys are relative paths with `/`. Writes are whole objects that appear at once or not at all; the last writer wins.
Not for counters: conditional puts are not safe on every S3 store. One writer at a time: `cluster.lock`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from plants.errors import InputError, NoSpace
from plants.hashing import sha256 as sha256_of
from plants.tables import Listed

_PART = ".part"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SETTLED_S = 2.0
"""A file that changed later than this before it was listed may change again without its times saying so (FAT: 2 s)."""


class MissingFile(InputError, FileNotFoundError):
    """There is no such file or object."""


class DigestMismatch(InputError):
    """Bytes are not the ones that were recorded."""


class Entry(NamedTuple):
    """One object of a listing."""

    key: str
    size: int
    version: str = ""
    """An ETag, or a file's times; differs whenever the bytes may. Empty where the bytes may change and it would not."""


class Store(ABC):
    """A folder of objects. Picklable; connections are opened where they are used."""

    uri: str

    @abstractmethod
    def read(self, key: str) -> bytes:
        """The object's bytes. Raises MissingFile."""

    @abstractmethod
    def write(self, key: str, data: bytes) -> str:
        """Afterwards the object holds exactly these bytes, and never was half-written. Returns their SHA-256."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether there is an object of exactly this key."""

    @abstractmethod
    def list(self, prefix: str = "") -> list[Entry]:
        """Every object below the folder `prefix`, sorted by key; empty when there is none."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Afterwards there is no such object, whether or not there was."""

    @abstractmethod
    def upload(self, path: Path | str, key: str) -> str:
        """Afterwards the object is a copy of a local file. Returns its SHA-256."""

    @abstractmethod
    def _fetch(self, key: str, path: Path) -> None:
        """Copy the object into a local file, not atomically."""

    def local_path(self, key: str) -> Path | None:
        """Where the object lies on this machine, or None for a bucket."""
        checked_key(key)
        return None

    @abstractmethod
    def filesystem(self) -> tuple[Any, str]:
        """An fsspec filesystem and the store's folder on it, for libraries that read pieces of objects."""

    def read_checked(self, key: str, sha256: str) -> bytes:
        """The object's bytes, which have this SHA-256. Raises DigestMismatch."""
        data = self.read(key)
        _compare(sha256_of(data), sha256, where=self.at(key))
        return data

    def download(self, key: str, path: Path | str, *, sha256: str | None = None) -> Path:
        """Afterwards the local file is a whole copy of the object, with this SHA-256 where one is given."""
        target = Path(path)
        with replaced(target) as part:
            self._fetch(key, part)
            if sha256 is not None:
                _compare(file_sha256(part), sha256, where=self.at(key))
        return target

    def upload_folder(self, path: Path | str, prefix: str) -> dict[str, str]:
        """Afterwards every file below a local folder is an object below `prefix`. Returns name -> SHA-256."""
        root = Path(path)
        files = sorted(p for p in root.rglob("*") if p.is_file() and not p.name.endswith(_PART))
        return {
            name: self.upload(file, f"{prefix.rstrip('/')}/{name}")
            for file in files
            for name in [file.relative_to(root).as_posix()]
        }

    def download_folder(self, prefix: str, path: Path | str) -> Sequence[Path]:
        """Afterwards every object below `prefix` is a file below a local folder. Raises MissingFile when none is."""
        entries = self.list(prefix)
        if not entries:
            raise MissingFile("there is nothing below this prefix", file=self.at(prefix))
        cut = len(prefix.rstrip("/")) + 1 if prefix.rstrip("/") else 0
        return [self.download(entry.key, Path(path) / entry.key[cut:]) for entry in entries]

    def read_json(self, key: str) -> Any:
        """The object as JSON. Raises InputError for what is not JSON."""
        try:
            return json.loads(self.read(key))
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError("is not JSON", file=self.at(key)) from None

    def write_json(self, key: str, value: Any) -> str:
        """Afterwards the object is this value, keys sorted, so that equal values have equal digests."""
        text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
        return self.write(key, f"{text}\n".encode())

    def at(self, key: str) -> str:
        """The object's full address, for messages."""
        return f"{self.uri}/{key}" if key else self.uri

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r})"


class LocalStore(Store):
    """A folder on this machine, made on the first write."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).expanduser().absolute()
        self.uri = str(self.root)

    def local_path(self, key: str) -> Path:
        """Where the object lies."""
        return self.root / checked_key(key)

    def filesystem(self) -> tuple[Any, str]:
        from fsspec.implementations.local import LocalFileSystem

        return LocalFileSystem(), str(self.root)

    def read(self, key: str) -> bytes:
        path = self.local_path(key)
        with self._faults(key):
            return path.read_bytes()

    def write(self, key: str, data: bytes) -> str:
        path = self.local_path(key)
        with self._faults(key), replaced(path) as part, part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return sha256_of(data)

    def exists(self, key: str) -> bool:
        return self.local_path(key).is_file()

    def list(self, prefix: str = "") -> list[Entry]:
        start = self.root / checked_key(prefix.rstrip("/")) if prefix.rstrip("/") else self.root
        seen: set[str] = set()
        entries = []
        for folder, folders, names in os.walk(start, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            for name in names:
                path = os.path.join(folder, name)
                with contextlib.suppress(FileNotFoundError):
                    if not name.endswith(_PART):
                        key = os.path.relpath(path, self.root).replace(os.sep, "/")
                        entries.append(_entry(key, os.stat(path)))
        return sorted(entries)

    def delete(self, key: str) -> None:
        with self._faults(key):
            self.local_path(key).unlink(missing_ok=True)

    def upload(self, path: Path | str, key: str) -> str:
        target = self.local_path(key)
        with self._faults(key), replaced(target) as part:
            shutil.copyfile(path, part)
            return file_sha256(part)

    def _fetch(self, key: str, path: Path) -> None:
        with self._faults(key):
            shutil.copyfile(self.local_path(key), path)

    @contextlib.contextmanager
    def _faults(self, key: str) -> Iterator[None]:
        try:
            yield
        except InputError:
            raise
        except FileNotFoundError:
            raise MissingFile("there is no such file", file=self.at(key)) from None
        except OSError as error:
            if error.errno in FULL:
                raise no_space(self.at(key), reason="the disk is full") from None
            reason = (error.strerror or type(error).__name__).lower()
            raise InputError(reason, file=self.at(key), remedy="Check the path, its rights and the disk") from None


class PlantFiles:
    """Frames and label files of plants, wherever they lie: `plants.labels.Files` over folders and buckets."""

    def __init__(self) -> None:
        self._stores: dict[str, Store] = {}

    def list(self, uri: str) -> list[Listed]:
        """Every file below a folder or prefix. Raises InputError when it is not there."""
        store = self._store(uri)
        if isinstance(store, LocalStore) and not store.root.is_dir():
            raise MissingFile("there is no such folder", file=uri, remedy="Correct `images` in the fleet file")
        return [Listed(*entry) for entry in store.list()]

    def read(self, uri: str, relpath: str) -> bytes:
        """The bytes of one file. Raises MissingFile."""
        return self._store(uri).read(relpath)

    def _store(self, uri: str) -> Store:
        if uri not in self._stores:
            self._stores[uri] = open_store(uri)
        return self._stores[uri]

    def __getstate__(self) -> dict[str, Any]:
        return {"_stores": {}}


def open_store(uri: str | Path) -> Store:
    """The store at a local path or `s3://bucket/prefix`; contacts nothing. Raises InputError for other kinds."""
    text = str(uri)
    scheme, found, rest = text.partition("://")
    if not found:
        return LocalStore(text)
    if scheme == "file":
        return LocalStore(rest)
    if "@" in rest.partition("/")[0]:
        raise InputError("credentials do not belong in an address", remedy="Set AWS_ACCESS_KEY_ID and its secret")
    if scheme in ("s3", "s3a"):
        from cluster.s3 import S3Store

        return S3Store(rest)
    raise InputError("is neither a path nor s3://bucket/prefix", file=text)


def checked_key(key: str) -> str:
    """The key, if it stays below the store's root. Raises InputError."""
    parts = PurePosixPath(key).parts
    if not parts or parts[0] == "/" or ".." in parts or "\\" in key or "\0" in key:
        raise InputError("is not a relative path without `..`", file=repr(key))
    return key


def no_space(place: str, *, reason: str) -> NoSpace:
    """The error of a place that has no space for what is to be written."""
    return NoSpace(reason, file=place, remedy="Make space there; then the same command goes on where this one was")


def file_sha256(path: Path | str) -> str:
    """The SHA-256 of a local file, read in pieces."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def replaced(target: Path) -> Iterator[Path]:
    """A path beside `target` to write to; it becomes `target` at once when the block ends well, else it is gone."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name[:100]}.{uuid.uuid4().hex}{_PART}")
    try:
        yield part
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _entry(key: str, stat: os.stat_result) -> Entry:
    """A file's entry. Its version holds the time of the last change of its inode too, which no copying tool can set."""
    is_settled = max(stat.st_mtime, stat.st_ctime) < time.time() - SETTLED_S
    return Entry(key, stat.st_size, f"{stat.st_mtime_ns}.{stat.st_ctime_ns}" if is_settled else "")


def _compare(found: str, expected: str, *, where: str) -> None:
    if found != expected:
        raise DigestMismatch(
            f"has changed since it was recorded: SHA-256 {found[:12]} instead of {expected[:12]}",
            file=where,
            remedy="Fetch or make it again",
        )
