"""Who may do what: bearer tokens kept as SHA-256, expiring, revocable, each for one role and at most one plant.

A server takes a snapshot (`Access.grants()`, one query) every few seconds and checks requests against that, so a
revoked token is dead everywhere within the poll, and a database that is away does not stop a line.

A token is looked up by the SHA-256 of what was sent. How long that takes can tell of hashes at most, and whoever steers
a hash to a known beginning still lacks what it is the hash of: 256 random bits. The last comparison is constant-time.
"""

from __future__ import annotations

import hmac
import os
import secrets
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, get_args

import sqlalchemy as sa

from cluster.database import Database
from cluster.storage import replaced
from plants.config import Config
from plants.errors import InputError
from plants.hashing import sha256

Role = Literal["plant", "reviewer", "lead", "auditor"]
Action = Literal["predict", "read", "feedback", "queue", "promote"]

_MAY: Mapping[Role, frozenset[Action]] = {
    "plant": frozenset(("predict", "read")),
    "reviewer": frozenset(("read", "queue", "feedback")),
    "lead": frozenset(("read", "queue", "feedback", "promote")),
    "auditor": frozenset(("read",)),
}

REREAD_S = 60.0
"""How often all tokens are read though none seems to have changed: somebody may have edited the table by hand."""

_tables = sa.MetaData()
_tokens = sa.Table(
    "tokens",
    _tables,
    sa.Column("sha256", sa.String(64), primary_key=True),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("plant", sa.String(63)),
    sa.Column("issued_at", sa.Float, nullable=False),
    sa.Column("expires_at", sa.Float, nullable=False),
    sa.Column("revoked_at", sa.Float),
)


class Grant(Config):
    """What the bearer of one token is."""

    sha256: str
    role: Role
    plant: str | None = None
    """The only plant it opens; every plant when None."""
    expires_at: float
    """Seconds since 1970."""

    def may(self, action: Action, *, plant: str | None = None) -> bool:
        """Whether the bearer may do this at that plant, or fleet-wide when `plant` is None."""
        return action in _MAY[self.role] and (self.plant is None or self.plant == plant)


class Grants:
    """The valid tokens at one moment. Immutable; shared by threads."""

    def __init__(self, grants: Mapping[str, Grant]) -> None:
        self._grants = dict(grants)

    def check(self, token: str, *, now: datetime | None = None) -> Grant | None:
        """The grant of a token, or None when it is unknown, expired or was revoked before the snapshot."""
        digest = sha256(token.encode("utf-8", "surrogatepass"))
        grant = self._grants.get(digest)
        if grant is None or not hmac.compare_digest(grant.sha256, digest):
            return None
        return grant if _seconds(now) < grant.expires_at else None

    def by_hash(self, sha256: str) -> Grant | None:
        """The grant of the token with this SHA-256, expired or not, or None."""
        return self._grants.get(sha256)

    def __len__(self) -> int:
        return len(self._grants)


class Access:
    """The tokens of a fleet."""

    def __init__(self, url: str) -> None:
        self._database = Database(url, _tables)
        self._read: tuple[Any, float, Grants] | None = None

    def issue(self, role: Role, *, ttl: timedelta, plant: str | None = None, now: datetime | None = None) -> str:
        """A new token, seen this once: only its SHA-256 is kept. A `plant` token needs its plant."""
        if role not in get_args(Role):
            raise InputError("is not a role", field=f"role {role}", remedy=f"Roles: {', '.join(get_args(Role))}")
        if role == "plant" and plant is None:
            raise InputError("a token of role plant opens one plant only", field="plant", remedy="Name the plant")
        if ttl <= timedelta(0):
            raise InputError("must be positive", field="ttl")
        token = f"cp_{secrets.token_urlsafe(32)}"
        issued = _seconds(now)
        values = {"sha256": sha256(token.encode()), "role": role, "plant": plant, "issued_at": issued}
        with self._database.begin() as connection:
            connection.execute(_tokens.insert().values(**values, expires_at=issued + ttl.total_seconds()))
        return token

    def rotate(
        self,
        role: Role,
        *,
        ttl: timedelta,
        overlap: timedelta,
        plant: str | None = None,
        now: datetime | None = None,
    ) -> tuple[str, int]:
        """A new token, and how many older ones of this role and plant are dead after `overlap` at the latest.

        Until then old and new both open, so a line can change over without a stop.
        """
        if overlap < timedelta(0):
            raise InputError("must not be negative", field="overlap")
        moment = now or datetime.now(UTC)
        ends = moment.timestamp() + overlap.total_seconds()
        same_plant = _tokens.c.plant.is_(None) if plant is None else _tokens.c.plant == plant
        alive = sa.and_(_tokens.c.revoked_at.is_(None), _tokens.c.expires_at > moment.timestamp())
        with self._database.begin() as connection:
            old = list(
                connection.execute(
                    sa.select(_tokens.c.sha256).where(_tokens.c.role == role, same_plant, alive)
                ).scalars()
            )
        token = self.issue(role, ttl=ttl, plant=plant, now=moment)  # first: a crash between leaves two, not none
        sooner = sa.and_(_tokens.c.sha256.in_(old), _tokens.c.expires_at > ends)
        with self._database.begin() as connection:
            connection.execute(_tokens.update().where(sooner).values(expires_at=ends))
        return token, len(old)

    def grants(self, *, now: datetime | None = None) -> Grants:
        """Every token that is valid now, in one query; read anew only where one came, ends otherwise or is dead."""
        valid = sa.and_(_tokens.c.revoked_at.is_(None), _tokens.c.expires_at > _seconds(now))
        query = sa.select(_tokens.c.sha256, _tokens.c.role, _tokens.c.plant, _tokens.c.expires_at).where(valid)
        ends = (sa.func.min(_tokens.c.expires_at), sa.func.sum(_tokens.c.expires_at))
        mark = sa.select(sa.func.count(), sa.func.max(_tokens.c.issued_at), *ends).where(valid)
        dead = sa.select(sa.func.count(_tokens.c.revoked_at), sa.func.max(_tokens.c.revoked_at))
        with self._database.begin() as connection:
            found = (*connection.execute(mark).one(), *connection.execute(dead).one())
            if self._read and self._read[0] == found and time.monotonic() - self._read[1] < REREAD_S:
                return self._read[2]
            rows = [Grant.model_validate(dict(row._mapping)) for row in connection.execute(query)]
        grants = Grants({grant.sha256: grant for grant in rows})
        self._read = found, time.monotonic(), grants
        return grants

    def check(self, token: str, *, now: datetime | None = None) -> Grant | None:
        """The grant of a token, asked of the database itself."""
        return self.grants(now=now).check(token, now=now)

    def revoke(
        self,
        token: str | None = None,
        *,
        plant: str | None = None,
        role: Role | None = None,
        now: datetime | None = None,
    ) -> int:
        """Afterwards a token, or all of a plant or of a fleet-wide role, are dead. Returns how many were alive."""
        if [token, plant, role].count(None) != 2:
            raise InputError("name a token, a plant or a role of the fleet", field="revoke")
        if token is not None:
            chosen = _tokens.c.sha256 == sha256(token.encode())
        elif plant is not None:
            chosen = _tokens.c.plant == plant
        else:
            chosen = sa.and_(_tokens.c.role == role, _tokens.c.plant.is_(None))
        alive = sa.and_(chosen, _tokens.c.revoked_at.is_(None))
        with self._database.begin() as connection:
            return connection.execute(_tokens.update().where(alive).values(revoked_at=_seconds(now))).rowcount


def keep_token(home: Path, plant: str, token: str) -> Path:
    """Afterwards `home/tokens/{plant}.token` holds the token, readable by its owner alone."""
    target = home / "tokens" / f"{plant}.token"
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with replaced(target) as part, os.fdopen(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(f"{token}\n")
    return target


def forget_token(home: Path, plant: str) -> None:
    """No token is kept for a plant any more."""
    (home / "tokens" / f"{plant}.token").unlink(missing_ok=True)


def kept_token(home: Path, plant: str) -> str:
    """The token kept for a plant. Raises InputError when there is none."""
    path = home / "tokens" / f"{plant}.token"
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        raise InputError(
            "no token is kept for this plant", plant=plant, file=str(path), remedy="Run `crossplant serve` first"
        ) from None


def _seconds(now: datetime | None) -> float:
    return (now or datetime.now(UTC)).timestamp()
