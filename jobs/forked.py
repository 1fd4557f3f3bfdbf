"""Work on one machine in forks, where starting Ray's workers takes longer than most plans' runs.

They are forked from a process that does nothing but import what they need, as one that has trained cannot be forked
(autograd's threads). Of a plan's lanes the board stays here and answers over pipes; a lane whose pipe is closed, as
this process was killed, ends. Not for a cluster, nor for runs that all lanes fit together.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from cluster import session
from cluster.packs import MapTasks
from cluster.settings import Settings
from jobs.carry_out import Say, lanes_of
from jobs.lanes import Board, lane_of
from jobs.plan import Plan
from jobs.watch import Events, Watch
from plants.errors import CheckFailed, NoSpace

if TYPE_CHECKING:
    from jobs.material import Material


def warm_up(*modules: str) -> None:
    """The process that others are forked from is there, and goes on importing, these too, while this one works."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(["jobs.imported", *modules])
    forkserver.ensure_running()


@contextlib.contextmanager
def mapping(settings: Settings) -> Iterator[MapTasks]:
    """For the length of a block, what maps a function over items: forks on one machine, Ray's tasks on a cluster.

    Raises CheckFailed where a fork is killed.
    """
    if not settings.is_embedded:
        session.start(settings)
        yield session.map_tasks
        return
    context = multiprocessing.get_context("forkserver")
    given: dict[str, Any] = {"mp_context": context, "initializer": _begin, "initargs": (dict(os.environ), False)}
    with ProcessPoolExecutor(settings.slots, **given) as pool:
        try:
            yield pool.map
        except BrokenProcessPool:
            why = "one of the processes that share the work was ended from outside, as for want of memory"
            raise CheckFailed(f"{why}. Run the same command again, with fewer CROSSPLANT_SLOTS") from None


def is_forked(plan: Plan, *, settings: Settings) -> bool:
    """Whether the plan's lanes are forked here: on one machine, if they fit no run together. A refresh's never do."""
    lanes, _ = lanes_of(plan, settings=settings)
    return settings.is_embedded and (bool(plan.base) or not plan.shared(lanes=lanes))


def run_forked(plan: Plan, *, material: Material, settings: Settings, say: Say) -> None:
    """All runs of the plan are over. A lane that dies is begun again; what it was at counts a strike.

    Raises NoSpace where a disk is full: what is not over then waits for the same command.
    """
    order = material.largest_first([plant.name for plant in material.fleet.plants])
    board = Board(plan.to_json(), material.fleet.store, order)
    context = multiprocessing.get_context("forkserver")
    config = {**material.to_config(), "plan": plan.to_json(), "threads": settings.threads}
    num_lanes, _ = lanes_of(plan, settings=settings)
    lanes: dict[Connection, tuple[int, Any]] = {}

    def start(rank: int) -> None:
        ours, theirs = context.Pipe()
        given = (theirs, rank, num_lanes, config, dict(os.environ))
        process = context.Process(target=_lane, args=given, name=f"lane-{rank}")
        process.start()
        theirs.close()
        lanes[ours] = (rank, process)

    def events(since: int) -> Events:
        return board.events(since), board.within()

    for rank in range(num_lanes):
        start(rank)
    num_deaths = 0
    try:
        with Watch(events, plan=plan, settings=settings, store=material.store, say=say):
            while lanes:
                for pipe in wait(list(lanes)):
                    assert isinstance(pipe, Connection)
                    try:
                        _answer(board, pipe)
                    except (EOFError, OSError):
                        rank, process = lanes.pop(pipe)
                        pipe.close()
                        process.join()
                        if process.exitcode:
                            num_deaths += 1
                            _check_deaths(num_deaths, plan=plan, cause=f"lane {rank} ended with {process.exitcode}")
                            board.blame({rank: f"it ended with {process.exitcode}"})
                            start(rank)
    finally:
        for pipe, (_, process) in lanes.items():
            pipe.close()
            process.terminate()
            process.join()
    if why := board.why_halted():
        raise NoSpace(why)


def _answer(board: Board, pipe: Connection) -> None:
    """The lane has what the board says, or what it raised, as it would from an actor."""
    method, args, more = pipe.recv()
    try:
        answer = (True, getattr(board, method)(*args, **more))
    except Exception as error:
        answer = (False, error)
    pipe.send(answer)


def _check_deaths(count: int, *, plan: Plan, cause: str) -> None:
    """Raises CheckFailed where lanes die more often than runs could be to blame for."""
    if count > 2 * len(plan.runs):
        raise CheckFailed(f"lanes could not be kept at work: {cause}. The same command goes on where this one was")


def _begin(environment: Mapping[str, str], is_left: bool) -> None:
    """A fork has the environment that its command has now, not when `warm_up` was called.

    is_left: by Ctrl-C, which goes to all processes of a terminal, to its command, which ends it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN if is_left else signal.SIG_DFL)
    os.environ.update(environment)


def _lane(pipe: Connection, rank: int, num_lanes: int, config: dict[str, Any], environment: Mapping[str, str]) -> None:
    _begin(environment, is_left=True)
    import torch

    from jobs.material import Material

    def call(method: str, *args: Any, **more: Any) -> Any:
        try:
            pipe.send((method, args, more))
            is_said, answer = pipe.recv()
        except (EOFError, OSError):  # that process is gone, and with it the board
            sys.exit(1)
        if not is_said:
            raise answer
        return answer

    if count := torch.cuda.device_count():
        torch.cuda.set_device(rank % count)

    lane_of(
        call,
        rank=rank,
        num_lanes=num_lanes,
        size=1,
        plan=Plan.from_json(config["plan"]),
        material=Material.from_config(config),
        threads=config["threads"],
    )
