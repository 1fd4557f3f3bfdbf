"""A real PostgreSQL for tests: Debian's, installed where this process may, on a loopback port, as another user if root.

Its data lie in a folder of its own below the system's temporary one, which the server's user must be able to reach.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from object_store import free_port

USER, NAME = "crossplant", "routes"
_SUPERVISED = """\
owner=$1; shift; "$@" & server=$!
trap 'kill -QUIT $server; wait $server; exit' TERM
while [ -d "/proc/$owner" ] && kill -0 $server; do sleep 1 & wait $!; done 2>/dev/null
kill -QUIT $server; wait $server
"""
"""A server that ends when the tests do, also when they are killed."""


class PostgresUnavailable(RuntimeError):
    """There is no PostgreSQL and none could be installed; says why."""


def binaries() -> Path:
    """Where `initdb` and `postgres` lie; installed from Debian where this process may. Raises PostgresUnavailable."""
    found = _newest()
    if found is not None:
        return found
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise PostgresUnavailable("PostgreSQL is not installed: apt-get install postgresql")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update"], ["install", "-y", "--no-install-recommends", "postgresql"]):
        done = subprocess.run(["apt-get", "-q", *words], capture_output=True, text=True, env=env, check=False)
        if done.returncode:
            raise PostgresUnavailable(f"apt-get {words[0]} failed: {done.stderr.strip()[-200:]}")
    found = _newest()
    if found is None:
        raise PostgresUnavailable("the package postgresql holds no initdb")
    return found


def _newest() -> Path | None:
    there = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if there:
        return max(there, key=lambda path: int(path.parent.name.partition(".")[0]))
    path = shutil.which("initdb")
    return Path(path).resolve().parent if path else None


class Postgres:
    """A server with one database. `stop` ends it as a crash does, `start` has it recover. Use it as a context manager.

    Raises PostgresUnavailable where it cannot be had.
    """

    def __init__(self) -> None:
        self._bin = binaries()
        self._port = free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="crossplant-postgres-"))
        self._as: dict[str, Any] = {"cwd": self._folder}
        if os.geteuid() == 0:  # which it refuses to run as
            self._as |= {"user": "nobody", "group": "nogroup", "extra_groups": []}
            shutil.chown(self._folder, "nobody", "nogroup")
        self._process: subprocess.Popen[bytes] | None = None
        words = ["--auth=trust", f"--username={USER}", "--encoding=UTF8", "--no-sync", "--no-locale"]
        made = subprocess.run(
            [str(self._bin / "initdb"), "-D", str(self._folder / "data"), *words],
            **self._as,
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            raise PostgresUnavailable(f"initdb failed: {made.stderr.strip()[-200:]}")
        self.start()
        create = [str(self._bin / "createdb"), "-h", "127.0.0.1", "-p", str(self._port), "-U", USER, NAME]
        subprocess.run(create, **self._as, check=True, capture_output=True)

    @property
    def url(self) -> str:
        """For SQLAlchemy."""
        return f"postgresql+psycopg://{USER}@127.0.0.1:{self._port}/{NAME}"

    def start(self) -> None:
        """It takes connections."""
        options = ["-D", str(self._folder / "data"), "-p", str(self._port), "-k", str(self._folder)]
        options += ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", "shared_buffers=8MB"]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["sh", "-c", _SUPERVISED, "postgres", str(os.getpid()), str(self._bin / "postgres"), *options],
                **self._as,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 30
        ready = [str(self._bin / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self._port)]
        while subprocess.run(ready, check=False).returncode:
            if time.monotonic() > deadline or self._process.poll() is not None:
                self.stop()
                raise PostgresUnavailable(f"it did not start: {(self._folder / 'log').read_text()[-300:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Nobody is served any more; connections are cut, nothing is written down first."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait()
            self._process = None
            with socket.socket() as probe:
                assert probe.connect_ex(("127.0.0.1", self._port)) != 0

    def __enter__(self) -> Postgres:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)
