"""What every benchmark shares: which machine this is, and measured work in child processes of its own.

A side of a comparison is a child process, so that imports and start-up are counted and nothing of one side is left
running while the other is measured. Ray's workers run at nice 15; every peer is given the same by `even_niceness`.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib.metadata
import json
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RAY_NICENESS = 15
MARK = "BENCH_ROLE"
"""The environment variable by which the processes of a role are known."""
_PR_SET_PDEATHSIG = 1
FLAGS = ("avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
PACKAGES = ("ray", "torch", "timm", "onnxruntime", "numpy", "Pillow", "fastapi", "uvicorn")


def machine(*, threads: Mapping[str, Any]) -> dict[str, Any]:
    """The machine and the thread counts a figure was measured with; `load_1min` says whether others were at work."""
    words = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    parts = [line.partition(":") for line in words.splitlines()]
    lines = {key.strip(): value.strip() for key, _, value in parts if value}
    known = set(lines.get("flags", "").split())
    return {
        "cpu": lines.get("model name", platform.processor()),
        "cpu_flags": [flag for flag in FLAGS if flag in known],
        "cores": len(os.sched_getaffinity(0)),
        "threads": dict(threads),
        "niceness": RAY_NICENESS,
        "load_1min": round(os.getloadavg()[0], 2),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def even_niceness() -> None:
    """This process yields as Ray's workers do."""
    os.nice(max(0, RAY_NICENESS - os.nice(0)))


class Child:
    """A role of a benchmark in a process group of its own; its result is what the role's function returned."""

    def __init__(self, script: str, role: str, task: Mapping[str, Any], *, folder: Path, env: Mapping[str, str] = {}):
        folder.mkdir(parents=True, exist_ok=True)
        self.role, self._result = role, folder / f"{role}.result.json"
        self._result.unlink(missing_ok=True)
        given = folder / f"{role}.task.json"
        self.started_at = time.time()
        words = {**task, "result": str(self._result), "begun_at": self.started_at}
        self._mark = f"{MARK}={uuid.uuid4().hex}"
        given.write_text(json.dumps(words), encoding="utf-8")
        self._process = subprocess.Popen(
            [sys.executable, script, "--child", role, "--task", str(given)],
            stdin=subprocess.PIPE,
            stdout=sys.stderr.fileno(),
            env={**_clean_environment(), **env, **dict([self._mark.split("=")])},
            cwd=folder,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """Of its first process."""
        return self._process.pid

    def result(self, *, timeout_s: float) -> dict[str, Any]:
        """What the role returned, with `seconds` from the start of its process to `ended_at`."""
        try:
            code = self._process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise SystemExit(f"{self.role} did not end within {timeout_s:g} s") from None
        if code != 0 or not self._result.exists():
            raise SystemExit(f"{self.role} ended with {code}")
        found: dict[str, Any] = json.loads(self._result.read_text(encoding="utf-8"))
        if "ended_at" in found:
            found["seconds"] = found["ended_at"] - self.started_at
        return found

    def ready(self, file: Path, *, timeout_s: float) -> dict[str, Any]:
        """What the role wrote into a file to say that it is ready."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self._process.poll() is None:
            if file.exists():
                found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
                return found
            time.sleep(0.05)
        self.kill()
        raise SystemExit(f"{self.role} was not ready within {timeout_s:g} s")

    def release(self, *, timeout_s: float) -> None:
        """The role is told to end, by the end of its input, and has ended."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def cpu_s(self) -> float:
        """Seconds of CPU that the role's processes took so far, as long as they live: all that know its mark (Linux).

        On a machine that others use, what a request costs says more than how many were answered.
        """
        return sum(_cpu_s(one) for one in Path("/proc").glob("[0-9]*") if _is_marked(one, self._mark))

    def kill(self) -> None:
        """The process and its group have ended."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _is_marked(process: Path, mark: str) -> bool:
    try:
        return mark.encode() in (process / "environ").read_bytes().split(b"\0")
    except OSError:  # it has ended, or is another user's
        return False


def _cpu_s(process: Path) -> float:
    try:
        words = (process / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _clean_environment() -> dict[str, str]:
    """The environment without settings that would make one side other than it says."""
    dropped = ("CROSSPLANT_", "OMP_", "MKL_", "OPENBLAS_", "RAY_SERVE_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
    return {**kept, "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)])}


def say_ready(file: str, **what: Any) -> None:
    """The parent's `Child.ready` returns; then wait until it lets go."""
    part = Path(f"{file}.part")
    part.write_text(json.dumps(what), encoding="utf-8")
    part.replace(file)
    sys.stdin.buffer.read()


def entry(
    roles: Mapping[str, Callable[[dict[str, Any]], dict[str, Any] | None]],
    *,
    parser: argparse.ArgumentParser,
    compare: Callable[[argparse.Namespace], dict[str, Any]],
) -> None:
    """Run the comparison and print its figures as one JSON object last, or play one role of it."""
    parser.add_argument("--child", choices=sorted(roles), help=argparse.SUPPRESS)
    parser.add_argument("--task", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is None:
        print(json.dumps(compare(given)))
        return
    _end_with_parent()
    gc.set_threshold(100_000, 50, 100)  # on every side: the front door does so too
    task = json.loads(given.task.read_text(encoding="utf-8"))
    found = roles[given.child](task)
    if found is not None:
        part = Path(f"{task['result']}.part")
        part.write_text(json.dumps(found), encoding="utf-8")
        part.replace(task["result"])


def _end_with_parent() -> None:
    """A role does not outlive the comparison that asked for it (Linux); its Ray ends with it."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def note(text: str) -> None:
    """A line for the person who waits; figures go to standard output."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def mean(values: Sequence[float]) -> float | None:
    """The mean, None of nothing."""
    return sum(values) / len(values) if values else None


def student_over_seeds(values: Sequence[float], *, level: float = 0.95) -> dict[str, float | None]:
    """Mean, and where there are two seeds and more the interval of it by Student's t: seeds are drawn, lots are not."""
    from scipy.special import stdtrit

    if len(values) < 2:
        return {"mean": mean(values), "low": None, "high": None, "n": len(values)}
    half = float(stdtrit(len(values) - 1, 0.5 + level / 2)) * statistics.stdev(values) / math.sqrt(len(values))
    middle = statistics.fmean(values)
    return {"mean": middle, "low": middle - half, "high": middle + half, "n": len(values)}


def percentile(values: Sequence[float], q: float) -> float | None:
    """The value below which q percent of the values lie, None of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * q / 100))] if ordered else None
