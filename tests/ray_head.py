"""A real head node of Ray for tests, with a HOME, ports and a temporary folder of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import requests

from tests.processes import descendants

PORTS = (
    "port",
    "dashboard-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
    "node-manager-port",
    "object-manager-port",
    "ray-client-server-port",
)


@dataclass(frozen=True, slots=True)
class Node:
    pid: int
    address: str
    """What a driver joins, host:port."""
    dashboard: str
    """Where jobs are submitted to."""


@contextlib.contextmanager
def started(*, token: str, variables: Mapping[str, str] = {}) -> Iterator[Node]:
    """A head with token authentication for the length of a block."""
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    with tempfile.TemporaryDirectory(prefix="cps-", ignore_cleanup_errors=True) as short:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "CROSSPLANT_"))}
        env |= {"HOME": short, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "OMP_NUM_THREADS": "1"}
        env |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "RAY_USAGE_STATS_ENABLED": "0"}
        env |= variables
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2"]
        command += ["--node-ip-address=127.0.0.1", "--include-dashboard=true", "--object-store-memory=100000000"]
        command += [f"--temp-dir={short}/ray", *(f"--{name}={port}" for name, port in ports.items())]
        log = Path(short) / "start.log"
        node = f"127.0.0.1:{ports['port']}", f"http://127.0.0.1:{ports['dashboard-port']}"
        with log.open("wb") as file:
            process = subprocess.Popen(command, env=env, cwd=short, stdout=file, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 90
            while not answers(node[1], token=token):
                assert process.poll() is None, log.read_text("utf-8", "replace")[-3000:]
                assert time.monotonic() < deadline, "ray start --head took more than 90 s"
                time.sleep(0.2)
            yield Node(process.pid, *node)
        finally:
            end(process, folder=Path(short))


def answers(dashboard: str, *, token: str) -> bool:
    """Whether jobs can be submitted there."""
    try:
        headers = {"Authorization": f"Bearer {token}"}
        return requests.get(f"{dashboard}/api/jobs/", headers=headers, timeout=5).status_code == 200
    except requests.RequestException:
        return False


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def end(process: subprocess.Popen[bytes], *, folder: Path) -> None:
    """The head and what it started are gone, by their own process ids; nothing else is touched."""
    ours = descendants(process.pid)
    process.terminate()
    try:
        process.wait(timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(timeout=15)
    for pid in ours:
        try:
            if str(folder).encode() in Path(f"/proc/{pid}/environ").read_bytes():
                os.kill(pid, signal.SIGKILL)
        except OSError:
            continue
