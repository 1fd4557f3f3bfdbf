"""Which bundle judges which plant, and where bundles lie.

`Journal` is an append-only table with one row a decision, unique in (plant, sequence): of two promoters one wins and
the other is told who did. Nothing is ever changed or deleted; a rollback is a new row that repeats an older one.
`Bundles` keeps what was learned, named by the digest of its manifest.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydantic import Field
from sqlalchemy import exc

from cluster.database import Database
from cluster.storage import Store, file_sha256
from plants.config import Config
from plants.errors import InputError
from plants.hashing import sha256 as sha256_of

_tables = sa.MetaData()
_routes = sa.Table(
    "routes",
    _tables,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("plant", sa.String(63), nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("bundle", sa.String(64), nullable=False),
    sa.Column("policy", sa.String(64), nullable=False),
    sa.Column("challenger", sa.String(64)),
    sa.Column("shares", sa.Text, nullable=False),
    sa.Column("action", sa.String(16), nullable=False),
    sa.Column("basis", sa.Integer, nullable=False),
    sa.Column("who", sa.String(255), nullable=False),
    sa.Column("at", sa.String(40), nullable=False),
    sa.UniqueConstraint("plant", "sequence", name="one_route_a_step"),
)


class Route(Config):
    """One row of the journal: who decided what judges a plant from then on."""

    plant: str
    sequence: int
    bundle: str
    policy: str
    challenger: str | None = None
    shares: Mapping[str, Any] = Field(default_factory=dict)
    action: str
    basis: int
    """The sequence of the row whose bundle and policy this one repeats; its own unless it is a rollback."""
    who: str
    at: str

    @property
    def state(self) -> tuple[str, str, str | None]:
        """What judges: bundle, policy and challenger."""
        return self.bundle, self.policy, self.challenger


class RouteTaken(InputError):
    """Somebody else changed the route first: nothing is wrong with the input."""

    exit_code = 1


class Journal:
    """The routes of all plants, now and ever."""

    def __init__(self, url: str) -> None:
        self._database = Database(url, _tables)

    def promote(
        self,
        plant: str,
        *,
        bundle: str,
        policy: str,
        who: str,
        challenger: str | None = None,
        shares: Mapping[str, Any] | None = None,
        expected: int | None = None,
        action: str = "promote",
    ) -> Route:
        """Afterwards this bundle and policy judge the plant.

        `expected` is the sequence the decision was made on (0 for none yet). Raises RouteTaken, which names who came
        first, when the plant's route is another by now.
        """
        now = self.route(plant)
        sequence = (now.sequence if now else 0) + 1
        if expected is not None and expected != sequence - 1:
            raise self._taken(plant)
        route = Route(
            plant=plant,
            sequence=sequence,
            bundle=bundle,
            policy=policy,
            challenger=challenger,
            shares=dict(shares or {}),
            action=action,
            basis=sequence,
            who=who,
            at=_now(),
        )
        return self._append(route)

    def challenge(
        self, plant: str, *, challenger: str | None, shares: Mapping[str, Any], who: str, expected: int | None = None
    ) -> Route:
        """Afterwards a challenger stands beside the plant's bundle, or none when `challenger` is None."""
        now = self._existing(plant)
        return self.promote(
            plant,
            bundle=now.bundle,
            policy=now.policy,
            who=who,
            challenger=challenger,
            shares=shares,
            expected=now.sequence if expected is None else expected,
            action="canary",
        )

    def rollback(self, plant: str, *, who: str, expected: int | None = None) -> Route:
        """Afterwards the plant is judged as before its current route; repeated, it walks further back.

        A challenger is never brought back. Raises InputError when nothing lies before, RouteTaken as `promote` does.
        """
        history = self.history(plant)
        if not history:
            raise _no_route(plant)
        now = history[-1]
        if expected is not None and expected != now.sequence:
            raise self._taken(plant)
        target = before(history)
        if target is None:
            raise InputError("there is no earlier route to roll back to", plant=plant, remedy="Promote another bundle")
        update: dict[str, Any] = {
            "sequence": now.sequence + 1,
            "challenger": None,
            "shares": {},
            "action": "rollback",
            "basis": target.basis,
            "who": who,
            "at": _now(),
        }
        return self._append(target.model_copy(update=update))

    def current(self) -> dict[str, Route]:
        """The route of every plant that has one, in one query."""
        last = sa.select(_routes.c.plant, sa.func.max(_routes.c.sequence).label("sequence")).group_by(_routes.c.plant)
        newest = last.subquery()
        is_newest = sa.and_(_routes.c.plant == newest.c.plant, _routes.c.sequence == newest.c.sequence)
        query = sa.select(_routes).join(newest, is_newest).order_by(_routes.c.plant)
        with self._database.begin() as connection:
            return {row.plant: _route(row) for row in connection.execute(query)}

    def since(self, after: int) -> list[tuple[int, Route]]:
        """The rows numbered above `after` with their numbers, oldest first: what `cluster.following` asks for."""
        query = sa.select(_routes).where(_routes.c.id > after).order_by(_routes.c.id)
        with self._database.begin() as connection:
            return [(row.id, _route(row)) for row in connection.execute(query)]

    def last(self) -> int:
        """The number of the newest row, 0 in an empty journal."""
        with self._database.begin() as connection:
            return int(connection.execute(sa.select(sa.func.max(_routes.c.id))).scalar() or 0)

    def route(self, plant: str) -> Route | None:
        """The plant's route now, or None."""
        query = sa.select(_routes).where(_routes.c.plant == plant).order_by(_routes.c.sequence.desc()).limit(1)
        with self._database.begin() as connection:
            row = connection.execute(query).first()
        return _route(row) if row else None

    def history(self, plant: str) -> list[Route]:
        """Every route the plant ever had, oldest first."""
        query = sa.select(_routes).where(_routes.c.plant == plant).order_by(_routes.c.sequence)
        with self._database.begin() as connection:
            return [_route(row) for row in connection.execute(query)]

    def _append(self, route: Route) -> Route:
        values = {**route.model_dump(), "shares": json.dumps(dict(route.shares), sort_keys=True)}
        try:
            with self._database.begin() as connection:
                connection.execute(_routes.insert().values(**values))
        except exc.IntegrityError:
            raise self._taken(route.plant) from None
        return route

    def _existing(self, plant: str) -> Route:
        route = self.route(plant)
        if route is None:
            raise _no_route(plant)
        return route

    def _taken(self, plant: str) -> InputError:
        winner = self.route(plant)
        if winner is None:
            return _no_route(plant)
        return RouteTaken(
            f"{winner.who} was first: {winner.action} of bundle {winner.bundle[:12]} as route {winner.sequence} "
            f"at {winner.at}",
            plant=plant,
            remedy="Look at the new route, then decide again",
        )


def before(history: list[Route]) -> Route | None:
    """The route to which a rollback returns: the nearest earlier one that judges differently, or None.

    Earlier than the row that the newest row repeats, so that rollbacks walk back instead of to and fro.
    """
    now = history[-1]
    for route in reversed([row for row in history if row.sequence < now.basis]):
        if (route.bundle, route.policy, None) != now.state:
            return route
    return None


class Bundles:
    """Published bundles, at `bundles/{digest}/`, and trunks, at `trunks/{sha256}.onnx`."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def publish(self, folder: Path | str) -> str:
        """Afterwards the bundle in a local folder lies in the store, whole. Returns its digest.

        The manifest goes last, so that a bundle with a manifest is a complete one. Raises InputError for a file that
        is not what the manifest says.
        """
        root = Path(folder)
        data = _manifest_bytes(root)
        digest = sha256_of(data)
        for name, sha256 in _files(data, where=str(root)).items():
            if file_sha256(root / name) != sha256:
                raise InputError("is not what the manifest says", file=str(root / name), remedy="Export it again")
            self.store.upload(root / name, f"bundles/{digest}/{name}")
        self.store.write(f"bundles/{digest}/manifest.json", data)
        return digest

    def fetch(self, digest: str, into: Path | str) -> Path:
        """The folder `into/digest`, which holds the bundle, every file checked. Raises InputError."""
        target = Path(into) / digest
        if _is_whole(target, digest):
            return target
        part = target.with_name(f".{digest}.{uuid.uuid4().hex}")
        try:
            data = self.store.read_checked(f"bundles/{digest}/manifest.json", digest)
            for name, sha256 in _files(data, where=self.store.at(f"bundles/{digest}")).items():
                self.store.download(f"bundles/{digest}/{name}", part / name, sha256=sha256)
            part.mkdir(parents=True, exist_ok=True)
            (part / "manifest.json").write_bytes(data)
            _move(part, target, digest)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return target

    def exists(self, digest: str) -> bool:
        """Whether the store holds the bundle, complete."""
        return self.store.exists(f"bundles/{digest}/manifest.json")

    def publish_trunk(self, path: Path | str) -> str:
        """Afterwards the trunk lies in the store under its digest, which is returned."""
        sha256 = file_sha256(path)
        if not self.store.exists(f"trunks/{sha256}.onnx"):
            self.store.upload(path, f"trunks/{sha256}.onnx")
        return sha256

    def fetch_trunk(self, sha256: str, into: Path | str) -> Path:
        """The file `into/sha256.onnx`, checked."""
        target = Path(into) / f"{sha256}.onnx"
        if not target.is_file() or file_sha256(target) != sha256:
            self.store.download(f"trunks/{sha256}.onnx", target, sha256=sha256)
        return target


def _manifest_bytes(root: Path) -> bytes:
    try:
        return (root / "manifest.json").read_bytes()
    except OSError:
        raise InputError("is not a bundle: it has no manifest.json", file=str(root)) from None


def _files(manifest: bytes, *, where: str) -> dict[str, str]:
    try:
        files = json.loads(manifest)["files"]
        named = {str(name): str(sha256) for name, sha256 in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError("the manifest names no files", file=where, remedy="Export the bundle again") from None
    if any("/" in name or "\\" in name or name.startswith(".") for name in named):
        raise InputError("the manifest names a file outside the bundle", file=where)
    return named


def _is_whole(folder: Path, digest: str) -> bool:
    try:
        data = (folder / "manifest.json").read_bytes()
        return sha256_of(data) == digest and all(
            file_sha256(folder / name) == sha256 for name, sha256 in _files(data, where=str(folder)).items()
        )
    except OSError:
        return False


def _move(part: Path, target: Path, digest: str) -> None:
    for _ in range(2):
        if _is_whole(target, digest):
            return
        shutil.rmtree(target, ignore_errors=True)
        try:
            part.rename(target)
        except OSError:  # another process put it there in between
            continue
        return
    if not _is_whole(target, digest):
        raise InputError("could not be put in place", file=str(target), remedy="Delete the folder and repeat")


def _route(row: sa.Row[Any]) -> Route:
    values = {name: value for name, value in row._mapping.items() if name != "id"}
    return Route.model_validate({**values, "shares": json.loads(values["shares"])})


def _no_route(plant: str) -> InputError:
    return InputError("has no route yet", plant=plant, remedy="Publish and promote a bundle first")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
