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
from plants.plant import checked_name

_AGAIN = frozenset({429, 502, 503, 504})
_IS_IT_RUNNING = "Is `crossplant serve` running at this address?"


class Client:
    """A connection to one address with one token. Use it as a context manager.

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
        sleep: Callable[[float], None] = time.sleep,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._address = _checked(address)
        if not (token.isascii() and token.isprintable()):
            raise InputError("holds signs that no token has", field="CROSSPLANT_TOKEN", remedy="Copy it once more")
        self._num_tries = num_tries
        self._is_away = False
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

    def _ask(self, method: str, path: str, *, plant: str, is_patient: bool = True, **content: Any) -> dict[str, Any]:
        checked_name(plant)
        problem, num_tries = "", 1 if self._is_away else self._num_tries
        for attempt in range(num_tries):
            if attempt:
                self._sleep(min(5.0, 0.2 * 2**attempt))
            try:
                response = self._http.request(method, path, **content)
            except httpx.TransportError as error:
                problem = str(error) or type(error).__name__
                if not is_patient:
                    raise InputError(f"nobody answers ({problem})", file=self._address, remedy=_IS_IT_RUNNING) from None
                continue
            self._is_away = False
            if response.is_success:
                return self._answer(response)
            problem = _words(response)
            is_lost = response.status_code == 500 and not _body(response)
            if response.status_code not in _AGAIN and not is_lost:
                raise _refused(response, plant=plant)
        self._is_away = True
        tries = "1 try" if num_tries == 1 else f"{num_tries} tries"
        raise InputError(f"no answer after {tries} ({problem})", plant=plant, file=self._address, remedy=_IS_IT_RUNNING)

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


def _words(response: httpx.Response) -> str:
    return str(_body(response).get("error") or f"status {response.status_code}")


def _refused(response: httpx.Response, *, plant: str) -> InputError:
    body = _body(response)
    field, remedy = body.get("field"), body.get("remedy")
    return InputError(_words(response), plant=str(body.get("plant") or plant), field=field, remedy=remedy)
