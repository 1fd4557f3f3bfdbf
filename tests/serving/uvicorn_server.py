"""crossplant's app in a uvicorn process, for what a test client cannot show: kills, slow and broken senders."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[2]
WORKS, REPLICA, BODY_S = "TEST_WORKS", "TEST_REPLICA", "TEST_BODY_S"


def make_app() -> Any:
    """The app of the fleet that `toys.Works` made; called by uvicorn in the process of its own."""
    from cluster.settings import Settings
    from serving.app import build_app
    from serving.wiring import open_service

    root = Path(os.environ[WORKS])
    service = open_service(
        Settings(home=root / "home", slots=1),
        store_uri=str(root / "store"),
        fleet="toys",
        replica=os.environ[REPLICA],
    )
    service.body_s = float(os.environ[BODY_S])
    return build_app(service)


class Server:
    """A process that answers. Use it as a context manager."""

    def __init__(self, root: Path, *, replica: str = "r1", port: int = 0, body_s: float = 2.0) -> None:
        self.port = port or free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.log = root / f"{replica}.log"
        self._env = {**os.environ, WORKS: str(root), REPLICA: replica, BODY_S: str(body_s)}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """The process is there; it may not listen yet."""
        words = ["uvicorn", "--factory", "tests.serving.uvicorn_server:make_app", "--port", str(self.port)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *words, "--log-level", "debug"], cwd=ROOT, env=self._env, stdout=log, stderr=log
            )

    def wait(self, timeout_s: float = 60.0) -> None:
        """It answers."""
        begun = time.monotonic()
        while True:
            try:
                if httpx.get(f"{self.address}/healthz", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                assert time.monotonic() - begun < timeout_s, self.log.read_text()[-3000:]
                assert self._process is not None
                assert self._process.poll() is None, self.log.read_text()[-3000:]
                time.sleep(0.1)

    def kill(self) -> None:
        """kill -9, and what is left of it is gone."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def memory_mb(self) -> float:
        """Resident."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def __enter__(self) -> Server:
        self.start()
        self.wait()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                self.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
