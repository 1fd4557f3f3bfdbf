"""A prefix of a bucket as a Store, over s3fs. The endpoint and the keys are the AWS_* variables botocore reads itself.

Errors are told apart here: what passes (a store that restarts, throttles or drops a line) is tried again with growing
pauses; what does not (keys, bucket, rights) becomes one line at once. No message repeats what a server or a library
wrote, because request headers and signed addresses carry credentials.
"""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from cluster.storage import Entry, MissingFile, Store, checked_key, file_sha256
from plants.config import Config
from plants.errors import InputError
from plants.hashing import sha256 as sha256_of

T = TypeVar("T")

_BAD_KEYS = frozenset(
    ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "AuthorizationHeaderMalformed")
)
_NO_RIGHTS = frozenset(("AccessDenied", "Forbidden", "403", "AllAccessDisabled", "AccountProblem"))
_PASSING = frozenset((
    "SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "OperationAborted", "Throttling",
    "ThrottlingException", "RequestLimitExceeded", "IncompleteBody", "XAmzContentSHA256Mismatch",
))  # fmt: skip


class Retry(Config):
    """How often and how long to try again. The default bears a store that is away for about 15 seconds."""

    attempts: int = 8
    first_s: float = 0.2
    longest_s: float = 5.0

    def pauses(self) -> Iterator[float]:
        """Seconds between attempts: doubling, bounded."""
        return (min(self.first_s * 2**i, self.longest_s) for i in range(self.attempts - 1))


class S3Store(Store):
    """Objects below a prefix of a bucket."""

    def __init__(self, path: str, *, retry: Retry | None = None) -> None:
        self.bucket, _, prefix = path.partition("/")
        self.prefix = prefix.strip("/")
        self.uri = "s3://" + "/".join(part for part in (self.bucket, self.prefix) if part)
        self.retry = retry or Retry()
        if not self.bucket:
            raise InputError("names no bucket", file="s3://", remedy="Write s3://bucket/prefix")

    def filesystem(self) -> tuple[Any, str]:
        return _filesystem(), self.uri.removeprefix("s3://")

    def read(self, key: str) -> bytes:
        path = self._path(key)
        data: bytes = self._try(lambda fs: fs.cat_file(path, max_concurrency=1), key)
        return data

    def write(self, key: str, data: bytes) -> str:
        path = self._path(key)
        self._try(lambda fs: fs.pipe_file(path, data), key)
        return sha256_of(data)

    def exists(self, key: str) -> bool:
        try:
            self._try(lambda fs: fs.call_s3("head_object", Bucket=self.bucket, Key=self._object(key)), key)
        except MissingFile:
            return False
        return True

    def list(self, prefix: str = "") -> list[Entry]:
        start = self._path(prefix.rstrip("/")) if prefix.rstrip("/") else self.uri.removeprefix("s3://")
        found = self._try(lambda fs: fs.find(f"{start}/", detail=True, refresh=True), prefix)
        if not found:
            self._try(lambda fs: fs.call_s3("head_bucket", Bucket=self.bucket), "")
        cut = len(self.uri.removeprefix("s3://")) + 1
        objects = [(name[cut:], info) for name, info in found.items() if name[-1] != "/"]
        return sorted(Entry(name, int(info["size"] or 0), str(info.get("ETag") or "")) for name, info in objects)

    def delete(self, key: str) -> None:
        name = self._object(key)
        self._try(lambda fs: fs.call_s3("delete_object", Bucket=self.bucket, Key=name), key)

    def upload(self, path: Path | str, key: str) -> str:
        target = self._path(key)
        digest = file_sha256(path)
        self._try(lambda fs: fs.put_file(str(path), target), key)
        return digest

    def _fetch(self, key: str, path: Path) -> None:
        source = self._path(key)
        self._try(lambda fs: fs.get_file(source, str(path)), key)

    def _object(self, key: str) -> str:
        return f"{self.prefix}/{checked_key(key)}" if self.prefix else checked_key(key)

    def _path(self, key: str) -> str:
        return f"{self.bucket}/{self._object(key)}"

    def _try(self, action: Callable[[Any], T], key: str) -> T:
        pauses = [*self.retry.pauses(), None]
        for pause in pauses:
            try:
                return action(_filesystem())
            except Exception as error:
                if not _passes(error):
                    raise self._fault(error, key) from None
                if pause is None:
                    raise InputError(
                        f"the object store did not answer in {len(pauses)} attempts ({_name(error)})",
                        file=self.at(key),
                        field="AWS_ENDPOINT_URL",
                        remedy="See that the store is up and its address right, then repeat the command",
                    ) from None
            time.sleep(pause * random.uniform(0.5, 1.0))
        raise AssertionError("unreachable")

    def _fault(self, error: Exception, key: str) -> Exception:
        code, name = _code(error), type(error).__name__
        if code in _BAD_KEYS or "Credential" in name or "Token" in name:
            return InputError(
                f"the object store refused the keys ({code or name})",
                file=self.uri,
                field="AWS_ACCESS_KEY_ID",
                remedy="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of an account of this store",
            )
        if code in _NO_RIGHTS or isinstance(error, PermissionError):
            return InputError(
                f"the object store denied access ({code or name})",
                file=self.at(key),
                field="AWS_ACCESS_KEY_ID",
                remedy="Check the keys, and that they may read and write this prefix",
            )
        if code == "NoSuchBucket" or (_is_missing(error) and not key):
            return InputError("there is no such bucket", file=f"s3://{self.bucket}", remedy="Create it, or correct it")
        if _is_missing(error):
            return self._missing(key)
        if name == "ParamValidationError" or code == "InvalidBucketName":
            return InputError("the address is not one of a bucket and key", file=self.at(key))
        if code or isinstance(error, OSError):
            return InputError(f"the object store refused the request ({_name(error)})", file=self.at(key))
        return error

    def _missing(self, key: str) -> InputError:
        try:
            self._try(lambda fs: fs.call_s3("head_bucket", Bucket=self.bucket), "")
        except InputError as fault:
            return fault
        return MissingFile("there is no such object", file=self.at(key))


_filesystems: dict[tuple[Any, ...], Any] = {}


def _filesystem() -> Any:
    """The connection of this process, shared by its stores: opening one costs 0.15 s of botocore.

    Keyed by process, because a forked one must not use it, and by what botocore reads, because that may change.
    """
    key = (os.getpid(), *sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    if key not in _filesystems:
        import s3fs

        filesystem = s3fs.S3FileSystem(
            use_listings_cache=False,
            skip_instance_cache=True,
            config_kwargs={
                "retries": {"total_max_attempts": 1},
                "connect_timeout": 10,
                "read_timeout": 60,
                "request_checksum_calculation": "when_required",
                "response_checksum_validation": "when_required",
            },
        )
        filesystem.retries = 1
        _filesystems[key] = filesystem
    return _filesystems[key]


def _response(error: BaseException | None) -> dict[str, Any]:
    while error is not None:
        if isinstance(response := getattr(error, "response", None), dict):
            return response
        error = error.__cause__
    return {}


def _code(error: BaseException) -> str:
    return str(_response(error).get("Error", {}).get("Code", ""))


def _name(error: BaseException) -> str:
    return _code(error) or type(error).__name__


def _is_missing(error: BaseException) -> bool:
    return isinstance(error, FileNotFoundError) or _code(error) in ("404", "NoSuchKey", "NotFound")


def _passes(error: Exception) -> bool:
    """Whether trying again may help."""
    status = int(_response(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if status >= 500 or status == 429 or _code(error) in _PASSING:
        return status != 501
    if isinstance(error, FileNotFoundError | PermissionError):
        return False
    if isinstance(error, OSError) and error.errno in (errno.EBUSY, getattr(errno, "EREMOTEIO", errno.EIO)):
        return True
    return isinstance(error, TimeoutError | ConnectionError) or _is_transport(error)


def _is_transport(error: Exception) -> bool:
    import aiohttp
    from botocore import exceptions as boto
    from botocore.parsers import ResponseParserError

    kinds = (boto.ConnectionError, boto.HTTPClientError, boto.IncompleteReadError, ResponseParserError)
    return isinstance(error, (*kinds, aiohttp.ClientError))
