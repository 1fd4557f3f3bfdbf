from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest

from serving.batcher import Batcher, Busy


class Gated:
    """Doubles numbers, once the gate is open; remembers its batches."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.batches: list[list[int]] = []

    def __call__(self, jobs: Sequence[int]) -> list[int | Exception]:
        self.gate.wait(5)
        self.batches.append(list(jobs))
        return [ValueError(f"odd {job}") if job % 2 else 2 * job for job in jobs]


def test_requests_that_wait_together_are_handled_together_and_each_gets_its_own_result():
    handle = Gated()
    batcher: Batcher[int, int] = Batcher(handle, max_batch=8)

    async def main() -> list[int]:
        first = asyncio.create_task(batcher.submit(0))
        await asyncio.sleep(0.05)  # the worker has taken up the first and waits at the gate
        rest = [asyncio.create_task(batcher.submit(2 * n)) for n in range(1, 6)]
        await asyncio.sleep(0.01)
        handle.gate.set()
        return list(await asyncio.gather(first, *rest))

    assert asyncio.run(main()) == [0, 4, 8, 12, 16, 20]
    assert handle.batches == [[0], [2, 4, 6, 8, 10]]


def test_one_bad_job_fails_alone():
    handle = Gated()
    handle.gate.set()
    batcher: Batcher[int, int] = Batcher(handle)

    async def main() -> list[int | BaseException]:
        return list(await asyncio.gather(*(batcher.submit(n) for n in (2, 3, 4)), return_exceptions=True))

    good, bad, also_good = asyncio.run(main())
    assert (good, also_good) == (4, 8)
    assert str(bad) == "odd 3"


def test_a_client_that_leaves_neither_ends_the_loop_nor_costs_work():
    handle = Gated()
    batcher: Batcher[int, int] = Batcher(handle)

    async def main() -> int:
        running = asyncio.create_task(batcher.submit(0))
        await asyncio.sleep(0.05)
        waiting = asyncio.create_task(batcher.submit(2))
        await asyncio.sleep(0.01)
        running.cancel()
        waiting.cancel()
        await asyncio.sleep(0.01)
        handle.gate.set()
        return await asyncio.wait_for(batcher.submit(10), timeout=5)

    assert asyncio.run(main()) == 20
    assert [2] not in handle.batches


def test_a_crash_of_the_handler_is_told_to_every_waiting_request_and_the_next_is_served():
    crashes = [True, False]

    def handle(jobs: Sequence[int]) -> list[int]:
        if crashes.pop(0):
            raise RuntimeError("out of memory")
        return list(jobs)

    batcher: Batcher[int, int] = Batcher(handle)

    async def main() -> int:
        with pytest.raises(RuntimeError, match="out of memory"):
            await batcher.submit(1)
        return await batcher.submit(7)

    assert asyncio.run(main()) == 7


def test_a_full_queue_refuses_instead_of_growing():
    handle = Gated()
    batcher: Batcher[int, int] = Batcher(handle, max_waiting=2)

    async def main() -> None:
        tasks = [asyncio.create_task(batcher.submit(0))]
        await asyncio.sleep(0.05)
        tasks += [asyncio.create_task(batcher.submit(2)), asyncio.create_task(batcher.submit(4))]
        await asyncio.sleep(0.01)
        assert batcher.num_waiting == 2
        with pytest.raises(Busy):
            await batcher.submit(6)
        handle.gate.set()
        assert await asyncio.gather(*tasks) == [0, 4, 8]

    asyncio.run(main())


def test_closing_answers_what_waits_and_accepts_nothing_more():
    handle = Gated()
    handle.gate.set()
    batcher: Batcher[int, int] = Batcher(handle)

    async def main() -> None:
        assert await batcher.submit(2) == 4
        batcher.close()
        with pytest.raises(Busy):
            await batcher.submit(2)

    asyncio.run(main())


def test_a_plant_that_was_idle_goes_before_the_backlog_of_one_that_floods():
    handle = Gated()
    batcher: Batcher[int, int] = Batcher(handle)
    large = 2 << 20

    async def main() -> None:
        flood = [asyncio.create_task(batcher.submit(2 * n, lane="flood", weight=large)) for n in range(20)]
        await asyncio.sleep(0.05)
        other = asyncio.create_task(batcher.submit(1000, lane="other", weight=large))
        await asyncio.sleep(0.01)
        handle.gate.set()
        await asyncio.gather(other, *flood)

    asyncio.run(main())
    assert handle.batches[:2] == [[0], [1000]]
    assert [job for batch in handle.batches for job in batch if job < 1000] == list(range(0, 40, 2))


def test_one_that_comes_to_a_flood_again_and_again_is_next_every_time():
    gate, handled = threading.Semaphore(0), []

    def handle(jobs: Sequence[str]) -> list[str | Exception]:
        gate.acquire(timeout=5)
        handled.extend(jobs)
        return list(jobs)

    async def main() -> None:
        batcher: Batcher[str, str] = Batcher(handle, max_batch=1)
        flood = [asyncio.create_task(batcher.submit("flood", lane="flood", weight=2 << 20)) for _ in range(40)]
        for num_visits in range(6):
            async with asyncio.timeout(5):
                while batcher.num_waiting != 39 - 3 * num_visits:  # one of the flood is at the gate
                    await asyncio.sleep(0.001)
            visit = asyncio.create_task(batcher.submit("visit", lane="visitor", weight=2 << 20))
            await asyncio.sleep(0)
            gate.release(4)
            await visit
        gate.release(40)
        await asyncio.gather(*flood)
        batcher.close()

    asyncio.run(main())
    assert handled[:24] == ["flood", "visit", "flood", "flood"] * 6


def test_plants_that_all_flood_get_turns_by_weight_and_none_starves():
    handle = Gated()
    batcher: Batcher[int, int] = Batcher(handle, max_batch=1)

    async def main() -> None:
        heavy = [asyncio.create_task(batcher.submit(0, lane="heavy", weight=4 << 20)) for _ in range(10)]
        light = [asyncio.create_task(batcher.submit(2, lane="light", weight=1 << 20)) for _ in range(40)]
        await asyncio.sleep(0.05)
        handle.gate.set()
        await asyncio.gather(*heavy, *light)

    asyncio.run(main())
    order = [job for (job,) in handle.batches]
    assert all(2 <= sum(order[at : at + 20]) / 2 - 12 <= 6 for at in (0, 5, 10, 20))


def test_one_that_comes_again_among_many_that_come_once_waits_for_those_in_line_and_no_more():
    handled: list[str] = []

    def handle(jobs: Sequence[str]) -> list[str | Exception]:
        handled.extend(jobs)
        return list(jobs)

    async def main() -> None:
        batcher: Batcher[str, str] = Batcher(handle, max_batch=1)
        visitors = itertools.count()

        async def line() -> None:
            for _ in range(60):
                name = f"visitor-{next(visitors)}"
                await batcher.submit(name, lane=name)

        async def regular() -> None:
            for n in range(12):
                await batcher.submit(f"regular-{n}", lane="regular")

        await asyncio.gather(*(line() for _ in range(7)), regular())
        batcher.close()

    asyncio.run(main())
    turns = [at for at, name in enumerate(handled) if name.startswith("regular")]
    assert max(np.diff(turns)) <= 24  # seven others are in line; until no other came it were hundreds


def test_a_plant_whose_parts_were_too_late_gets_its_turns_again():
    handled: list[str] = []

    def handle(jobs: Sequence[str]) -> list[str | Exception]:
        time.sleep(0.002)
        handled.extend(jobs)
        return list(jobs)

    async def main() -> None:
        batcher: Batcher[str, str] = Batcher(handle, max_batch=1, max_waiting=200)
        is_over = False

        async def busy() -> None:
            while not is_over:
                await batcher.submit("busy", lane="busy", weight=1 << 20)

        others = [asyncio.create_task(busy()) for _ in range(4)]
        await asyncio.sleep(0.02)
        late = [asyncio.create_task(batcher.submit("late", lane="hasty", weight=1 << 20)) for _ in range(150)]
        await asyncio.sleep(0.02)
        for task in late:
            task.cancel()
        await asyncio.sleep(0.1)
        async with asyncio.timeout(1):  # had the late ones counted, some 150 others would go before
            for _ in range(5):
                await batcher.submit("hasty", lane="hasty", weight=1 << 20)
        is_over = True
        await asyncio.gather(*others)
        batcher.close()

    asyncio.run(main())
    first, last = handled.index("hasty"), len(handled) - 1 - handled[::-1].index("hasty")
    assert last - first < 40


def test_jobs_of_a_lane_keep_their_order_when_earlier_ones_were_given_up():
    handle = Gated()
    batcher: Batcher[int, int] = Batcher(handle, max_batch=1)

    async def main() -> None:
        first = asyncio.create_task(batcher.submit(0, lane="other"))
        await asyncio.sleep(0.02)  # the worker waits at the gate
        jobs = [asyncio.create_task(batcher.submit(2 * n, lane="line")) for n in range(1, 11)]
        await asyncio.sleep(0.01)
        for job in jobs[:6]:
            job.cancel()
        rivals = [asyncio.create_task(batcher.submit(100 + 2 * n, lane="other")) for n in range(3)]
        await asyncio.sleep(0.01)
        handle.gate.set()
        late = [asyncio.create_task(batcher.submit(2 * n, lane="line")) for n in range(11, 14)]
        await asyncio.gather(first, *jobs[6:], *rivals, *late)

    asyncio.run(main())
    assert [job for batch in handle.batches for job in batch if 0 < job < 100] == [2 * n for n in range(7, 14)]


def test_frames_of_two_megabytes_are_judged_one_by_one_and_small_ones_together():
    handle = Gated()
    batcher: Batcher[int, int] = Batcher(handle)

    async def main() -> None:
        jobs = [(0, 2 << 20), (2, 2 << 20), *((2 * n, 50_000) for n in range(2, 12))]
        tasks = [asyncio.create_task(batcher.submit(job, weight=weight)) for job, weight in jobs]
        await asyncio.sleep(0.05)
        handle.gate.set()
        await asyncio.gather(*tasks)

    asyncio.run(main())
    assert handle.batches == [[0], [2], list(range(4, 24, 2))]


def test_a_job_whose_deadline_passed_while_it_waited_is_not_judged():
    handle = Gated()
    batcher: Batcher[int, int] = Batcher(handle)

    async def main() -> None:
        first = asyncio.create_task(batcher.submit(0))
        await asyncio.sleep(0.05)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await batcher.submit(2)
        handle.gate.set()
        assert await first == 0
        assert await batcher.submit(4) == 8

    asyncio.run(main())
    assert handle.batches == [[0], [4]]


def test_jobs_whose_senders_left_hold_no_place_in_a_full_queue():
    handle = Gated()
    batcher: Batcher[int, int] = Batcher(handle, max_waiting=8)

    async def main() -> int:
        running = asyncio.create_task(batcher.submit(0, lane="flood"))
        await asyncio.sleep(0.05)  # the worker waits at the gate
        gone = [asyncio.create_task(batcher.submit(2, lane="flood")) for _ in range(8)]
        await asyncio.sleep(0.01)
        with pytest.raises(Busy):
            await batcher.submit(4, lane="quiet")
        for task in gone:
            task.cancel()
        await asyncio.sleep(0.01)
        quiet = asyncio.create_task(batcher.submit(4, lane="quiet"))
        await asyncio.sleep(0.01)
        handle.gate.set()
        await running
        return await quiet

    assert asyncio.run(main()) == 8
    assert handle.batches == [[0], [4]]
