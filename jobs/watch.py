"""What a plan's board says, passed on while others work: progress to the terminal, metrics to MLflow."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

from cluster.settings import Settings
from cluster.storage import Store
from jobs.carry_out import Say
from jobs.plan import Plan
from jobs.tracking import Tracker

Events = Sequence[list[dict[str, Any]]]
"""What a board has logged, and how far runs are."""


class Watch:
    """Polls the board for the length of a block."""

    def __init__(
        self, events: Callable[[int], Events], *, plan: Plan, settings: Settings, store: Store, say: Say
    ) -> None:
        """events: what the board has logged since an event's number, and how far runs are within their epochs."""
        self.events, self.plan, self.settings, self.store, self.say = events, plan, settings, store, say
        self.stop = threading.Event()
        self.said: queue.SimpleQueue[list[dict[str, Any]] | None] = queue.SimpleQueue()
        """What is not in MLflow yet, whose start takes seconds that progress does not wait for; at last None."""
        self.threads = [threading.Thread(target=work, daemon=True) for work in (self._watch, self._track)]

    def __enter__(self) -> None:
        for thread in self.threads:
            thread.start()

    def __exit__(self, *error: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(timeout=60)

    def words(self, run_id: str) -> dict[str, Any]:
        """What a finished run says of itself."""
        found: dict[str, Any] = self.store.read_json(f"runs/{self.plan.plan_id}/{run_id}/model.json")
        return found

    def _watch(self) -> None:
        seen, is_last = 0, False
        while not is_last:
            is_last = self.stop.wait(0.5)
            try:
                events, parts = self.events(seen)
            except Exception:
                continue
            seen += len(events)
            for event in [*events, *parts]:
                self.say(event)
            self.said.put(events)
        self.said.put(None)

    def _track(self) -> None:
        tracker = Tracker(self.settings, plan=self.plan, words=self.words)
        while (events := self.said.get()) is not None:
            tracker.log(events)
