"""What a machine or a cluster has to offer, and whether a request can ever be met. Pure: Ray's answers come in.

Ray lets a request that no node can meet wait in silence, so the question is asked before anything is submitted.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from plants.errors import InputError

Resources = Mapping[str, float]


def usable_cpus(cgroup: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """The cores this process may use: its affinity, cut by the container's quota. At least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = cgroup.read_text(encoding="ascii").split()
        limit = int(quota) / int(period)
    except (OSError, ValueError):
        return affinity
    return max(1, min(affinity, int(limit)))


def fits(demand: Resources, nodes: Sequence[Resources]) -> int:
    """How many copies of a demand the nodes can hold at once, each copy on one node."""
    wanted = {name: amount for name, amount in demand.items() if amount > 0}
    if not wanted:
        return len(nodes)
    return sum(int(min(node.get(name, 0.0) / amount + 1e-9 for name, amount in wanted.items())) for node in nodes)


def shortage(demand: Resources, nodes: Sequence[Resources], *, copies: int = 1) -> str | None:
    """Why the nodes cannot hold that many copies of a demand, in one line; None when they can."""
    held = fits(demand, nodes)
    if held >= copies:
        return None
    wanted = _words(demand)
    largest = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in demand}
    lacking = [name for name, amount in demand.items() if largest[name] < amount]
    if lacking:
        return f"no node has {wanted}: the largest has {_words({name: largest[name] for name in lacking})}"
    return f"{copies} times {wanted} are needed at once, the {len(nodes)} node(s) hold {held}"


def check(demand: Resources, nodes: Sequence[Resources], *, copies: int = 1) -> None:
    """Raise InputError when a demand can never be met."""
    fault = shortage(demand, nodes, copies=copies)
    if fault is not None:
        raise InputError(fault, field="resources", remedy="Ask for less, add nodes, or raise CROSSPLANT_SLOTS")


def _words(resources: Resources) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in resources.items()) or "nothing"
