"""Who is to blame when a worker dies. Apart from the lanes, as importing Ray Train takes longer than some plans."""

from __future__ import annotations

from typing import Any

from ray.train import UserCallback


class Blame(UserCallback):
    """Ray Train's controller tells the board whose worker has died, before it starts the group again."""

    def __init__(self, board: str) -> None:
        self.board = board

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """The first line of each cause goes to the board."""
        import ray

        causes = {rank: getattr(error, "health_check_failure", error) for rank, error in worker_exceptions.items()}
        deaths = {rank: (str(cause).strip() or repr(cause)).splitlines()[0] for rank, cause in causes.items()}
        ray.get(ray.get_actor(self.board).blame.remote(deaths), timeout=120)
