"""Who is asking, and what they may do. Tokens and roles live in `cluster.access`; this is what a request meets of it.

A snapshot of the valid tokens is renewed every two seconds, so a revocation is felt on every replica well within ten,
and a request costs no query. A token that the snapshot does not know asks once more, so a new one works at once. While
the database is away the last snapshot holds until its tokens expire, over a restart too: the grants that were used
here (hashes, never tokens) are kept on disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cluster.access import Action, Grant, Grants
from cluster.storage import replaced
from serving.schemas import Refusal, another_plant

log = logging.getLogger("crossplant.serving")

KEEP_S = 0.5
"""How soon the grants used here are written again: a thousand plants that come back at once are a few writes."""
_MIN_BETWEEN_S = 0.2
"""How soon an unknown token may cause another query: guessing must not load the database."""
_MAX_UNKNOWN = 16
"""Requests with unknown tokens that may wait for that query; the others are refused at once, as they hold a slot."""


def authorise(grant: Grant, *, plant: str, action: Action) -> None:
    """Raises Refusal unless the bearer may do this at this plant.

    403 for any plant but the token's own, before anything is looked up: the answer is the same to the byte whether
    such a plant exists, and however its name is written. 403 for a role that may not.
    """
    if grant.plant is not None and grant.plant != plant:
        raise another_plant()
    if not grant.may(action, plant=plant):
        raise Refusal(
            f"a {grant.role} token may not {action}",
            status=403,
            plant=plant,
            field="Authorization",
            remedy="Use a token of a role that may",
        )


def authorise_path(grant: Grant, *, path: str) -> None:
    """Raises Refusal 403 where a plant's token asks for a path below another plant that leads nowhere, as elsewhere."""
    steps = path.strip("/").split("/")
    if grant.plant is not None and (steps[1:2] != [grant.plant] or ".." in steps):
        raise another_plant()


def authorise_fleet(grant: Grant) -> None:
    """Raises Refusal unless the bearer may read about every plant at once."""
    if not grant.may("read"):
        raise Refusal(
            "this tells of every plant",
            status=403,
            field="Authorization",
            remedy="Use an auditor's or a lead's token of the whole fleet",
        )


def who(grant: Grant) -> str:
    """How the journal names the bearer: tokens belong to roles, and a hash's beginning tells them apart."""
    return f"{grant.role} token {grant.sha256[:8]}"


def bearer(header: str | None) -> str:
    """The token of an Authorization header. Raises Refusal 401 where there is none."""
    scheme, _, token = (header or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip() or len(token) > 512:
        raise _no_token("the request carries no bearer token")
    return token.strip()


def _no_token(error: str) -> Refusal:
    return Refusal(error, status=401, field="Authorization", remedy="Send `Authorization: Bearer TOKEN`")


class Gate:
    """Turns a request's header into a grant."""

    def __init__(
        self,
        snapshot: Callable[[], Grants],
        *,
        state: Path,
        renew_s: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._snapshot = snapshot
        self._state = state
        self._renew_s = renew_s
        self._clock = clock
        self._read: tuple[tuple[int, ...], dict[str, Grant]] = (), {}
        self._used = self._kept()
        self._grants = Grants(self._used)
        self._turn = threading.Lock()
        self._renewed_at = -float("inf")
        self._stop, self._wake = threading.Event(), threading.Event()
        self._num_unknown = 0
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="token")
        """Of its own: a database that hangs must not take the threads that read bodies and load branches."""
        self.problem: str | None = None
        """Why the tokens may be out of date, or None."""
        self.renew()
        self._thread = threading.Thread(target=self._work, name="tokens", daemon=True)
        self._thread.start()

    async def grant(self, header: str | None) -> Grant:
        """What the sender of this header is. Raises Refusal 401 for nobody, 503 where nobody can tell."""
        token = bearer(header)
        found = self._grants.check(token)
        if found is None and self._num_unknown < _MAX_UNKNOWN:
            self._num_unknown += 1
            try:
                await self._renew_since(self._clock())
            finally:
                self._num_unknown -= 1
            found = self._grants.check(token)
        if found is not None:
            if found.sha256 not in self._used:
                self._used[found.sha256] = found
                self._wake.set()
            return found
        if self.problem is not None:
            raise Refusal(
                "new tokens cannot be checked at the moment", status=503, field="Authorization", retry_after_s=2
            )
        raise _no_token("the token is unknown, expired or revoked")

    async def _renew_since(self, asked_at: float) -> None:
        """The snapshot is younger than this moment. All who ask within a moment share one query."""
        await asyncio.sleep(max(0.0, self._renewed_at + _MIN_BETWEEN_S - asked_at))
        if self._renewed_at <= asked_at:
            await asyncio.get_running_loop().run_in_executor(self._pool, self.renew, asked_at)

    def renew(self, since: float = float("inf")) -> None:
        """The snapshot is younger than `since`, or the old one while the database is away."""
        with self._turn:
            if self._renewed_at > since:
                return
            now = self._clock()
            try:
                self._grants = self._snapshot()
                self.problem = None
            except Exception as error:  # the line goes on with the tokens it knows
                if self.problem is None:
                    log.warning("tokens cannot be read (%s); those known go on", type(error).__name__)
                self.problem = f"the tokens cannot be read ({type(error).__name__})"
            self._renewed_at = now
            if self.problem is None:
                with contextlib.suppress(OSError):  # a full disk costs what a restart would know, not a request
                    self._forget_dead()

    def close(self) -> None:
        """The thread has ended, and the grants that were used are on disk."""
        self._stop.set()
        self._wake.set()
        self._pool.shutdown(wait=False)
        self._thread.join(timeout=10)

    def _work(self) -> None:
        renew_at = self._clock() + self._renew_s
        while not self._stop.is_set():
            try:
                if self._wake.wait(max(0.0, renew_at - self._clock())):
                    self._wake.clear()
                    self._keep()
                    self._stop.wait(min(KEEP_S, self._renew_s))
                if self._clock() >= renew_at:
                    renew_at = self._clock() + self._renew_s
                    self.renew()
            except Exception as error:  # a thread that ends would let revoked tokens open for ever
                log.warning("tokens were not kept (%s)", type(error).__name__)
        self._keep()

    def _forget_dead(self) -> None:
        """What was revoked, or now ends sooner, is so on disk too: no restart without the database revives it."""
        on_disk = self._kept()
        now = {sha256: self._grants.by_hash(sha256) for sha256 in {**on_disk, **self._used}}
        valid = {sha256: grant for sha256, grant in now.items() if grant is not None}
        self._used = valid
        if valid != on_disk:
            self._write()

    def _keep(self) -> None:
        """What was used here since is on disk, beside what other replicas used."""
        with self._turn, contextlib.suppress(OSError):  # a full disk costs what a restart would know, not a request
            on_disk = self._kept()
            if self._used.keys() - on_disk.keys():
                self._used = {**on_disk, **self._used}
                self._write()

    def _write(self) -> None:
        now = time.time()
        alive = [one.model_dump() for one in list(self._used.values()) if one.expires_at > now]
        with replaced(self._state) as part:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(alive, file)

    def _kept(self) -> dict[str, Grant]:
        """The grants on disk, parsed again only where the file is another one than last time."""
        try:
            now = self._state.stat()
            mark = now.st_ino, now.st_mtime_ns, now.st_size
            if mark != self._read[0]:
                rows = json.loads(self._state.read_text(encoding="utf-8"))
                grants = [Grant.model_validate(one) for one in rows]
                self._read = mark, {grant.sha256: grant for grant in grants}
        except (OSError, ValueError, TypeError):
            return {}
        return dict(self._read[1])
