"""A real S3 store for tests: OpenStack Swift with its s3api on free loopback ports, in an environment of its own.

The environment is made once and kept under `~/.cache/crossplant-tests`; data live where the caller says.
By hand: `python tests/object_store.py DIR` starts a store, prints the exports s3fs and boto3 read, and waits.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
from pathlib import Path

SWIFT = "2.38.3"
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
"""Looked up at import: tests that start Ray have a home of their own."""
KEY_ID, SECRET = "fleet:operator", "operator-secret"
TRAINER_ID, TRAINER_SECRET = "fleet:trainer", "trainer-secret"
"""A second user of the account, who reaches the buckets that were opened for it and no others."""

_BASE = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
swift_dir = {conf}
workers = 0
user = {user}
log_level = WARNING
"""
_SERVER = """\
devices = {devices}
mount_check = false
disable_fallocate = true
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""
_FILTERS = ("s3api", "tempauth", "catch_errors", "proxy_logging", "listing_formats", "copy", "slo", "dlo")
_OPTIONS = {
    "s3api": "location = us-east-1\n",
    "tempauth": f"user_fleet_operator = {SECRET} .admin\nuser_fleet_trainer = {TRAINER_SECRET}\n",
}
_PROXY = """\
[pipeline:main]
pipeline = catch_errors proxy_logging listing_formats s3api tempauth copy slo dlo proxy_logging proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
"""
_INTERNAL = """\
[DEFAULT]
swift_dir = {conf}
[pipeline:main]
pipeline = catch_errors proxy-server
[app:proxy-server]
use = egg:swift#proxy
swift_owner_headers = none
[filter:catch_errors]
use = egg:swift#catch_errors
"""
_RIGHTS = """\
import sys
from swift.common.internal_client import InternalClient
from swift.common.utils import set_swift_dir
folder, account, container, user = sys.argv[1:]
set_swift_dir(folder)
rights = {"X-Container-Read": user, "X-Container-Write": user}
client = InternalClient(f"{folder}/internal.conf", "tests", 1)
for name in (container, f"{container}+segments"):  # where Swift keeps the parts of multipart uploads
    client.create_container(account, name)
    client.set_container_metadata(account, name, rights)
"""
_RINGS = """\
import sys
from swift.common.ring import RingBuilder
for kind, port in (name.split(":") for name in sys.argv[1:]):
    builder = RingBuilder(8, 1, 1)
    where = {"region": 1, "zone": 1, "ip": "127.0.0.1", "port": int(port), "device": "d1", "weight": 1.0, "meta": ""}
    builder.add_dev({**where, "replication_ip": "127.0.0.1", "replication_port": int(port)})
    builder.rebalance()
    builder.get_ring().save(f"{kind}.ring.gz")
"""
_SUPERVISED = """\
owner=$1; shift; "$@" & server=$!
trap 'kill -9 $server; exit' TERM
while kill -0 "$owner" && kill -0 $server; do sleep 1 & wait $!; done 2>/dev/null
kill -9 $server
"""
"""A server that ends when the tests do, also when they are killed."""
_SWIFT = """\
[swift-hash]
swift_hash_path_suffix = crossplant
swift_hash_path_prefix = crossplant
[storage-policy:0]
name = default
default = yes
[swift-constraints]
max_header_size = 16384
"""


class StoreUnavailable(RuntimeError):
    """The store could not be installed or did not start; says why."""


def free_port() -> int:
    """A loopback port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def install(folder: Path) -> Path:
    """The bin folder of a virtual environment that holds Swift; made once, also when several processes ask."""
    folder.mkdir(parents=True, exist_ok=True)
    home = folder / f"swift-{SWIFT}-py{sys.version_info[0]}{sys.version_info[1]}"
    with (folder / "install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "complete").exists():
            venv.create(home, with_pip=True, clear=True)
            pip = [str(home / "bin/python"), "-m", "pip", "install", "-q", f"swift=={SWIFT}", "setuptools<81"]
            done = subprocess.run(pip, capture_output=True, text=True, check=False)
            if done.returncode:
                raise StoreUnavailable(f"swift {SWIFT} could not be installed: {done.stderr.strip()[-300:]}")
            (home / "complete").touch()
    return home / "bin"


def cache_folder(fallback: Path) -> Path:
    """Where the environment is kept between test runs; `fallback` where the user's cache cannot be written."""
    folder = _CACHE / "crossplant-tests"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return fallback
    return folder if os.access(folder, os.W_OK) else fallback


class ObjectStore:
    """One proxy, one account, one container and one object server; one replica."""

    def __init__(self, folder: Path, *, bin_folder: Path) -> None:
        self.folder, self.conf, self.bin = folder, folder / "conf", bin_folder
        self.ports = {kind: free_port() for kind in ("proxy", "object", "container", "account")}
        self.endpoint = f"http://127.0.0.1:{self.ports['proxy']}"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._buckets = 0

    @property
    def env(self) -> dict[str, str]:
        """What s3fs, botocore and boto3 read."""
        return {
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
        }

    def new_bucket(self) -> str:
        """A fresh, empty bucket as `s3://name`."""
        import s3fs

        self._buckets += 1
        name = f"bucket-{os.getpid()}-{self._buckets}"
        s3fs.S3FileSystem(key=KEY_ID, secret=SECRET, client_kwargs={"endpoint_url": self.endpoint}).mkdir(name)
        return f"s3://{name}"

    @property
    def trainer_env(self) -> dict[str, str]:
        """The same for the second user."""
        return {**self.env, "AWS_ACCESS_KEY_ID": TRAINER_ID, "AWS_SECRET_ACCESS_KEY": TRAINER_SECRET}

    def open_to_trainer(self, bucket: str) -> None:
        """Afterwards the second user may read and write a bucket."""
        words = [str(self.conf), f"AUTH_{KEY_ID.partition(':')[0]}", bucket.removeprefix("s3://")]
        subprocess.run([str(self.bin / "python"), "-c", _RIGHTS, *words, TRAINER_ID], check=True, capture_output=True)

    def configure(self) -> None:
        """Write configuration and rings."""
        devices = self.folder / "devices"
        for folder in (self.conf, devices / "d1", self.folder / "log"):
            folder.mkdir(parents=True, exist_ok=True)
        (self.conf / "swift.conf").write_text(_SWIFT)
        for kind, port in self.ports.items():
            text = _BASE.format(port=port, conf=self.conf, user=_user())
            if kind == "proxy":
                text += _PROXY + "".join(f"[filter:{n}]\nuse = egg:swift#{n}\n{_OPTIONS.get(n, '')}" for n in _FILTERS)
            else:
                text += _SERVER.format(devices=devices, kind=kind)
            (self.conf / f"{kind}.conf").write_text(text)
        (self.conf / "internal.conf").write_text(_INTERNAL.format(conf=self.conf))
        ports = [f"{kind}:{port}" for kind, port in self.ports.items() if kind != "proxy"]
        subprocess.run([str(self.bin / "python"), "-c", _RINGS, *ports], cwd=self.conf, check=True, capture_output=True)

    def start(self, *kinds: str) -> None:
        """Start the servers (all by default) and wait until the proxy answers."""
        for kind in kinds or tuple(reversed(self.ports)):
            with (self.folder / "log" / f"{kind}.log").open("ab") as log:
                self._processes[kind] = subprocess.Popen(
                    ["sh", "-c", _SUPERVISED, kind, str(os.getpid()), *self._command(kind)],
                    env={**os.environ, "SWIFT_DIR": str(self.conf), "PATH": f"{self.bin}:{os.environ['PATH']}"},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{self.endpoint}/info"):
                return
            time.sleep(0.05)
        raise StoreUnavailable(f"the store did not answer; see {self.folder / 'log'}")

    def _command(self, kind: str) -> list[str]:
        return [str(self.bin / f"swift-{kind}-server"), str(self.conf / f"{kind}.conf"), "-v"]

    def stop(self, *kinds: str) -> None:
        """Kill the servers (all by default)."""
        for kind in kinds or tuple(self._processes):
            process = self._processes.pop(kind, None)
            if process is not None:
                process.terminate()
                process.wait()


def _user() -> str:
    import getpass

    return getpass.getuser()


def started(folder: Path) -> ObjectStore:
    """A store that runs. Raises StoreUnavailable with the reason."""
    store = ObjectStore(folder, bin_folder=install(cache_folder(folder)))
    store.configure()
    store.start()
    return store


if __name__ == "__main__":
    running = started(Path(sys.argv[1]))
    print("export", " ".join(f"{name}={value}" for name, value in running.env.items()), flush=True)
    try:
        time.sleep(1e9)
    except KeyboardInterrupt:
        running.stop()
