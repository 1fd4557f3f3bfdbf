"""A connection to the database of routes and tokens: SQLite by default, Postgres on a cluster, through SQLAlchemy.

Only plain SQL that both speak. A Database is picklable and opens itself anew in every process.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc

from plants.errors import InputError

WAIT_S = 30
"""How long a writer waits for another writer of the same SQLite file."""


class DatabaseAway(InputError):
    """The database does not answer; what was read before still holds."""


class Database:
    """One database and the tables that are made in it when they are not there."""

    def __init__(self, url: str, tables: sa.MetaData) -> None:
        try:
            self._url = sa.make_url(url)
        except exc.ArgumentError:
            raise InputError(
                "is not a database address",
                field="CROSSPLANT_JOURNAL_URL",
                remedy="Write sqlite:////absolute/file.db or postgresql+psycopg://user:password@host/name",
            ) from None
        self._tables = tables
        self._opened: tuple[int, sa.Engine] | None = None

    @contextlib.contextmanager
    def begin(self) -> Iterator[sa.Connection]:
        """A transaction: committed when the block ends well, else undone. Raises DatabaseAway.

        A violated constraint goes on as sqlalchemy's IntegrityError.
        """
        try:
            with self._engine().begin() as connection:
                yield connection
        except (exc.OperationalError, exc.InterfaceError) as error:
            raise DatabaseAway(
                f"the database does not answer ({type(error.orig).__name__})",
                file=self._url.render_as_string(hide_password=True),
                remedy="See that it is up and that its address, user and rights are right",
            ) from None

    def close(self) -> None:
        """Afterwards no connection is held."""
        if self._opened is not None and self._opened[0] == os.getpid():
            self._opened[1].dispose()
        self._opened = None

    def _engine(self) -> sa.Engine:
        if self._opened is None or self._opened[0] != os.getpid():
            engine = self._connected()
            try:
                self._tables.create_all(engine)
            except exc.DBAPIError:  # another process made them between the look and the making
                self._tables.create_all(engine)
            self._opened = (os.getpid(), engine)
        return self._opened[1]

    def _connected(self) -> sa.Engine:
        options: dict[str, Any] = {"pool_pre_ping": True}
        if self._url.get_backend_name() == "sqlite":
            options["connect_args"] = {"timeout": WAIT_S}
            if self._url.database and self._url.database != ":memory:":
                _make(Path(self._url.database).parent)
        try:
            return sa.create_engine(self._url, **options)
        except (exc.NoSuchModuleError, ModuleNotFoundError):
            raise InputError(
                f"there is no driver for {self._url.drivername}",
                field="CROSSPLANT_JOURNAL_URL",
                remedy="Install one, for Postgres `pip install psycopg[binary]`, and write postgresql+psycopg://",
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def __repr__(self) -> str:
        return f"Database({self._url.render_as_string(hide_password=True)!r})"


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"the folder cannot be made ({(error.strerror or type(error).__name__).lower()})",
            file=str(folder),
            field="CROSSPLANT_HOME",
            remedy="Set CROSSPLANT_HOME to a folder that can be written, or CROSSPLANT_JOURNAL_URL to another database",
        ) from None
