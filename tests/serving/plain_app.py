"""The app of a fleet in a process of its own, without Ray: uvicorn around `build_app`. For tests that kill or scrape.

By hand: `python tests/serving/plain_app.py HOME STORE PORT REPLICA`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]


class PlainApp:
    """A running app; `kill` ends it as the system does, `stop` as a person does."""

    def __init__(self, works: Any, *, port: int, replica: str, env: dict[str, str] | None = None) -> None:
        words = [str(works.settings.home), works.store.uri, str(port), replica]
        self.address = f"http://127.0.0.1:{port}"
        self._process = subprocess.Popen(
            [sys.executable, __file__, *words],
            env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.address}/healthz", timeout=2).status_code == 200:
                    return
            time.sleep(0.05)
        self.kill()
        raise RuntimeError("the app did not answer")

    def kill(self) -> None:
        """kill -9."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """SIGTERM, and its end."""
        self._process.terminate()
        self._process.wait(timeout=60)


def main() -> None:
    """Serve until ended."""
    import uvicorn

    from cluster.settings import Settings
    from serving.app import build_app
    from serving.wiring import open_service

    home, store, port, replica = sys.argv[1:]
    service = open_service(Settings(home=Path(home), slots=1), store_uri=store, fleet="toys", replica=replica)
    uvicorn.run(build_app(service), host="127.0.0.1", port=int(port), log_level="error", access_log=False)


if __name__ == "__main__":
    main()
