"""Asks a plant's endpoint, as `crossplant predict --address` does; an example for the line's own software too.

A replica that is replaced may drop the requests it holds, and Ray's proxy answers for it with a bare 500, so a request
without an answer of ours is sent again: judging a part twice is harmless.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import httpx

from plants.errors import InputError

_AGAIN = frozenset({429, 502, 503, 504})


class Client:
    """A connection to one address with one token. Use it as a context manager."""

    def __init__(
        self,
        address: str,
        *,
        token: str,
        timeout_s: float = 30.0,
        num_tries: int = 5,
        sleep: Callable[[float], None] = time.sleep,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._address = address.rstrip("/")
        self._num_tries = num_tries
        self._sleep = sleep
        self._http = httpx.Client(
            base_url=self._address,
            timeout=timeout_s,
            transport=transport,
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
    ) -> dict[str, Any]:
        """The answer for one part of one or more (name, bytes) frames. Raises InputError for a refusal."""
        given = {"part_id": part_id, "product": product, "environment": environment, "deadline_ms": deadline_ms}
        fields = {name: str(value) for name, value in given.items() if value is not None}
        files = [("image", (name, data, "application/octet-stream")) for name, data in images]
        return self._ask("POST", f"/plants/{plant}/predict", plant=plant, data=fields, files=files)

    def status(self, plant: str) -> dict[str, Any]:
        """What the plant's endpoint serves. Raises InputError for a refusal."""
        return self._ask("GET", f"/plants/{plant}", plant=plant)

    def metrics(self, plant: str) -> dict[str, Any]:
        """The plant's counters by environment. Raises InputError for a refusal."""
        return self._ask("GET", f"/plants/{plant}/metrics", plant=plant)

    def _ask(self, method: str, path: str, *, plant: str, **content: Any) -> dict[str, Any]:
        problem = ""
        for attempt in range(self._num_tries):
            if attempt:
                self._sleep(min(5.0, 0.2 * 2**attempt))
            try:
                response = self._http.request(method, path, **content)
            except httpx.TransportError as error:
                problem = str(error) or type(error).__name__
                continue
            if response.is_success:
                found: dict[str, Any] = response.json()
                return found
            problem = _words(response)
            is_lost = response.status_code == 500 and not _body(response)
            if response.status_code not in _AGAIN and not is_lost:
                raise _refused(response, plant=plant)
        raise InputError(
            f"no answer after {self._num_tries} tries ({problem})",
            plant=plant,
            file=self._address,
            remedy="Is `crossplant serve` running at this address?",
        )


def _body(response: httpx.Response) -> dict[str, Any]:
    try:
        found = response.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _words(response: httpx.Response) -> str:
    return str(_body(response).get("error") or f"status {response.status_code}")


def _refused(response: httpx.Response, *, plant: str) -> InputError:
    body = _body(response)
    field, remedy = body.get("field"), body.get("remedy")
    return InputError(_words(response), plant=str(body.get("plant") or plant), field=field, remedy=remedy)
