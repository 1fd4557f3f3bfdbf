"""Asks a plant's endpoint, as `crossplant predict --address` does; for the line's software too: it needs httpx alone.

A request without an answer is sent again with the same `Idempotency-Key`, so the part is judged and counted once by a
replica that has judged it already; another replica judges it again, which is harmless. A replica that is replaced may
drop the requests it holds, and Ray's proxy answers for it with a bare 500: that is tried again too.
"""

from __future__ import annotations

import random
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

from plants.errors import InputError
from plants.names import checked_name

_AGAIN = frozenset({408, 429, 502, 503, 504})
_LONGEST_WAIT_S = 30.0
_IS_IT_RUNNING = "Is `crossplant serve` running at this address?"


@dataclass(frozen=True, slots=True)
class Part:
    """One part to be judged: (name, bytes) of its frames, and what is known of it."""

    images: Sequence[tuple[str, bytes]]
    part_id: str | None = None
    product: str | None = None
    environment: str | None = None
    deadline_ms: float | None = None
    wants_map: bool = False
    """Whether the answer holds a picture of where the verdict comes from, as `map`."""


class Client:
    """Connections to one address with one token, shared by threads. Use it as a context manager.

    Once a request got no answer after all its tries, every further one is tried once, until one gets through.
    Raises InputError for what is no address, and for a token that no header can carry.
    """

    def __init__(
        self,
        address: str,
        *,
        token: str,
        timeout_s: float = 30.0,
        num_tries: int = 5,
        max_connections: int = 16,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._address = _checked(address)
        if not (token.isascii() and token.isprintable()):
            raise InputError("holds signs that no token has", field="CROSSPLANT_TOKEN", remedy="Copy it once more")
        self._timeout_s = timeout_s
        self._num_tries = num_tries
        self._max_connections = max_connections
        self._is_away = False
        self._sleep = sleep
        self._jitter = jitter
        self._http = httpx.Client(
            base_url=self._address,
            timeout=timeout_s,
            transport=transport,
            limits=httpx.Limits(max_connections=max_connections, max_keepalive_connections=max_connections),
            headers={"Authorization": f"Bearer {token}"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """The connection is closed."""
        self._http.close()

    def predict(
        self,
        plant: str,
        images: Sequence[tuple[str, bytes]],
        *,
        part_id: str | None = None,
        product: str | None = None,
        environment: str | None = None,
        deadline_ms: float | None = None,
        wants_map: bool = False,
    ) -> dict[str, Any]:
        """The answer for one part of one or more (name, bytes) frames.

        Within `deadline_ms` the answer is there or the plant's `on_timeout`; where the endpoint itself is away for as
        long, InputError says so, and the line must do what it does without an inspection. Raises InputError for a
        refusal too.
        """
        given = {"part_id": part_id, "product": product, "environment": environment, "deadline_ms": deadline_ms}
        return self._predict(plant, Part(images, **given, wants_map=wants_map))  # type: ignore[arg-type]

    def predict_many(
        self, plant: str, parts: Iterable[Part], *, concurrency: int = 4
    ) -> Iterator[dict[str, Any] | InputError]:
        """The answer for each part, or why it has none, in the order of the parts; `concurrency` are asked at once.

        Parts are taken from the iterable as they are sent, so it may be endless and read its frames from a disk.
        """
        checked_name(plant)
        waiting: deque[Future[dict[str, Any] | InputError]] = deque()
        with ThreadPoolExecutor(min(concurrency, self._max_connections), thread_name_prefix="parts") as pool:
            try:
                for part in parts:
                    waiting.append(pool.submit(self._answer_or_why, plant, part))
                    if len(waiting) >= 2 * concurrency:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _answer_or_why(self, plant: str, part: Part) -> dict[str, Any] | InputError:
        try:
            return self._predict(plant, part)
        except InputError as error:
            return error

    def _predict(self, plant: str, part: Part) -> dict[str, Any]:
        given = {"part_id": part.part_id, "product": part.product, "environment": part.environment}
        given["map"] = "true" if part.wants_map else None
        return self._ask(
            "POST",
            f"/plants/{plant}/predict",
            plant=plant,
            deadline_ms=part.deadline_ms,
            data={name: value for name, value in given.items() if value is not None},
            files=[("image", (name, data, "application/octet-stream")) for name, data in part.images],
            headers={"Idempotency-Key": str(uuid.uuid4())},
        )

    def check(self, plant: str, *, timeout_s: float = 10.0) -> dict[str, Any]:
        """The plant's status, so that a wrong address, token or plant is known before the first part is sent.

        Raises InputError, at once where nobody answers.
        """
        return self._ask("GET", f"/plants/{plant}", plant=plant, is_patient=False, timeout=timeout_s)

    def status(self, plant: str) -> dict[str, Any]:
        """What the plant's endpoint serves. Raises InputError for a refusal."""
        return self._ask("GET", f"/plants/{plant}", plant=plant)

    def metrics(self, plant: str) -> dict[str, Any]:
        """The plant's counters by environment. Raises InputError for a refusal."""
        return self._ask("GET", f"/plants/{plant}/metrics", plant=plant)

    def _ask(
        self,
        method: str,
        path: str,
        *,
        plant: str,
        is_patient: bool = True,
        deadline_ms: float | None = None,
        timeout: float | None = None,
        **content: Any,
    ) -> dict[str, Any]:
        checked_name(plant)
        begun, problem, num_tries = time.monotonic(), "", 1 if self._is_away else self._num_tries
        after_s, left_s = 0.0, timeout or self._timeout_s
        is_silent = True
        for attempt in range(num_tries):
            if attempt:
                self._sleep(self._pause_s(attempt, at_least=after_s))
            if deadline_ms is not None:
                remaining_ms = deadline_ms - 1000 * (time.monotonic() - begun)
                if attempt and remaining_ms <= 0:
                    raise InputError(
                        f"no answer within {deadline_ms:g} ms ({problem})", plant=plant, file=self._address
                    )
                content["data"] = {**content["data"], "deadline_ms": f"{max(remaining_ms, 1):.0f}"}
                left_s = min(self._timeout_s, remaining_ms / 1000 + 1.0)
            try:
                response = self._http.request(method, path, timeout=left_s, **content)
            except httpx.TransportError as error:
                problem, after_s = str(error) or type(error).__name__, 0.0
                if not is_patient:
                    raise InputError(f"nobody answers ({problem})", file=self._address, remedy=_IS_IT_RUNNING) from None
                continue
            self._is_away = is_silent = False
            if response.is_success:
                return self._answer(response)
            problem, after_s = _words(response), _retry_after_s(response)
            is_lost = response.status_code == 500 and not _body(response)
            if response.status_code not in _AGAIN and not is_lost:
                raise _refused(response, plant=plant)
        self._is_away = is_silent
        tries = "1 try" if num_tries == 1 else f"{num_tries} tries"
        raise InputError(f"no answer after {tries} ({problem})", plant=plant, file=self._address, remedy=_IS_IT_RUNNING)

    def _pause_s(self, attempt: int, *, at_least: float) -> float:
        """Before the attempt of this number: what the endpoint asked for or more, and never all clients at once."""
        pause: float = min(5.0, 0.2 * 2**attempt) * (0.75 + 0.5 * self._jitter())
        return max(pause, min(_LONGEST_WAIT_S, at_least) * (1 + 0.25 * self._jitter()))

    def _answer(self, response: httpx.Response) -> dict[str, Any]:
        try:
            found = response.json()
        except ValueError:
            found = None
        if isinstance(found, dict):
            return found
        raise InputError("something else than crossplant answers", file=self._address, remedy=_IS_IT_RUNNING)


def _checked(address: str) -> str:
    """The address without its last slash. Raises InputError for what is none."""
    try:
        url = httpx.URL(address)
        is_one = url.scheme in ("http", "https") and bool(url.host) and (url.port is None or 0 < url.port < 65536)
    except httpx.InvalidURL:
        is_one = False
    if not is_one:
        remedy = "Write it like http://127.0.0.1:8000"
        raise InputError(f"is not the address of an endpoint: {address!r}", field="--address", remedy=remedy)
    return address.rstrip("/")


def _body(response: httpx.Response) -> dict[str, Any]:
    try:
        found = response.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _retry_after_s(response: httpx.Response) -> float:
    text: str = response.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() else 0.0


def _words(response: httpx.Response) -> str:
    return str(_body(response).get("error") or f"status {response.status_code}")


def _refused(response: httpx.Response, *, plant: str) -> InputError:
    body = _body(response)
    field, remedy = body.get("field"), body.get("remedy")
    return InputError(_words(response), plant=str(body.get("plant") or plant), field=field, remedy=remedy)
