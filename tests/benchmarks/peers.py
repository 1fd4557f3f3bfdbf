"""The servers that `bench_serving.py` compares with, each started as its documentation says and asked as it expects."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plain_model import TASK
from served import PLANT

HERE = Path(__file__).parent
NEEDS = {"litserve": ["litserve", "python-multipart"], "bentoml": ["bentoml"]}
SHARED = ("numpy", "onnxruntime", "Pillow", "pydantic", "pandas", "pyarrow", "PyYAML")
"""What `plain_model` needs, in this environment's own versions."""


@contextlib.contextmanager
def running(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The peer `task["side"]` answers at the `url` of what is yielded, which also says which form it expects."""
    side, port = task["side"], _free_port()
    command, path, form = _command(side, port=port, task=task)
    env = {**os.environ, TASK: json.dumps(task), "BENTOML_DO_NOT_TRACK": "True"}
    server = subprocess.Popen(command, env=env, cwd=HERE, stdout=sys.stderr, start_new_session=True)
    try:
        _wait(server, port=port)
        headers = [f"Authorization: Bearer {task['token']}"]
        yield {"url": f"http://127.0.0.1:{port}{path}", "form": form, "headers": headers}
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


def _command(side: str, *, port: int, task: dict[str, Any]) -> tuple[list[str], str, str | None]:
    """How the peer is started, where it answers, and the form's field for the image where it takes no plain body."""
    if side == "litserve":
        python = environment(Path(task["peers"]), side) / "bin" / "python"
        return [str(python), str(HERE / "plain_litserve.py"), str(port)], "/predict", "content"
    if side == "bentoml":
        program = environment(Path(task["peers"]), side) / "bin" / "bentoml"
        options = ["--host", "127.0.0.1", "--port", str(port), "--working-dir", str(HERE)]
        return [str(program), "serve", "plain_bentoml:Judge", *options], "/predict", "image"
    factory, path = ("make_our_app", f"/plants/{PLANT}/predict") if side == "bare" else ("make_app", "/predict")
    options = ["--workers", str(task["replicas"]), "--port", str(port), "--log-level", "error", "--no-access-log"]
    return [sys.executable, "-m", "uvicorn", "--factory", f"plain_serving:{factory}", *options], path, None


def environment(folder: Path, side: str) -> Path:
    """The peer's virtual environment, made when it is not there."""
    from importlib.metadata import version

    target = folder / side
    if not (target / "whole").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(target)], check=True)
        pinned = [f"{name}=={version(name)}" for name in SHARED]
        pip = [str(target / "bin" / "python"), "-m", "pip", "install", "-q", *NEEDS[side], *pinned]
        subprocess.run(pip, check=True, stdout=sys.stderr)
        (target / "whole").touch()
    return target


def _wait(server: subprocess.Popen[bytes], *, port: int, timeout_s: float = 120) -> None:
    """Something listens at the port, and its workers have had their time to load."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            time.sleep(6)
            return
        time.sleep(0.1)
    raise SystemExit(f"the server did not listen within {timeout_s:g} s")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
