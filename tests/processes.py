"""Processes that a test has started: which they are, and their end."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path


def descendants(pid: int) -> list[int]:
    """Process ids below a process, from /proc."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text("utf-8", "replace").rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found, todo = [], [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def kill_driver(process: subprocess.Popen[bytes]) -> None:
    """kill -9 of a driver. What it has started ends by itself in seconds; Ray's agents, which take a minute, here."""
    children = {pid: cmdline(pid) for pid in descendants(process.pid)}
    process.kill()
    process.wait()
    begun = time.monotonic()
    while left := [pid for pid, name in children.items() if name and cmdline(pid) == name]:
        if all(children[pid].rstrip().endswith("Agent") for pid in left):
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        assert time.monotonic() - begun < 30, [children[pid] for pid in left]
        time.sleep(0.1)


def cmdline(pid: int) -> str:
    """What the process calls itself; nothing once it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""
