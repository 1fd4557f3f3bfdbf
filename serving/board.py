"""Where the counters of several replicas meet: a Ray actor, so that the answer of any one replica speaks for all."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from serving.telemetry import Snapshot

log = logging.getLogger("crossplant.serving")

APP = "crossplant"


class Board:
    """A Ray actor that keeps the newest snapshot of every replica, also of those that are gone."""

    def __init__(self) -> None:
        self._snapshots: dict[str, Snapshot] = {}

    def post(self, replica: str, snapshot: Snapshot) -> None:
        """This replica's counters are on the board."""
        self._snapshots[replica] = snapshot

    def others(self, replica: str) -> list[Snapshot]:
        """The counters of every other replica."""
        return [snapshot for name, snapshot in self._snapshots.items() if name != replica]


def _board(fleet: str) -> Any:
    import ray

    return (
        ray.remote(Board)
        .options(name=f"{APP}-board-{fleet}", namespace=APP, get_if_exists=True, lifetime="detached", num_cpus=0)
        .remote()
    )


class Poster:
    """Posts a replica's counters on the board, and reads the others'. A board that is away costs nothing but news."""

    def __init__(self, fleet: str, *, replica: str, snapshot: Callable[[], Snapshot]) -> None:
        self._fleet = fleet
        self._replica = replica
        self._snapshot = snapshot
        threading.Thread(target=self._work, name="board", daemon=True).start()

    def others(self) -> list[Snapshot]:
        """The other replicas' counters, nothing while the board is away."""
        import ray

        try:
            found: list[Snapshot] = ray.get(_board(self._fleet).others.remote(self._replica), timeout=2)
            return found
        except Exception as error:
            log.warning("the counters of other replicas are missing (%s)", type(error).__name__)
            return []

    def _work(self) -> None:
        import ray

        posted: Snapshot = {}
        while True:
            time.sleep(0.5)
            snapshot = self._snapshot()
            if snapshot == posted:
                continue
            with contextlib.suppress(Exception):  # the next post carries everything again
                ray.get(_board(self._fleet).post.remote(self._replica, snapshot), timeout=5)
                posted = snapshot


def end_board(fleet: str) -> None:
    """The board is gone, if there was one."""
    import ray

    with contextlib.suppress(ValueError):  # no replica has counted anything yet
        ray.kill(ray.get_actor(f"{APP}-board-{fleet}", namespace=APP))
