from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from serving.repeats import MAX_KEPT, MAX_KEPT_OF_PLANT, Repeats
from serving.schemas import Refusal

Work = Callable[[], Coroutine[Any, Any, Any]]


class Judge:
    """Gives a new number each time; waits or fails when told to."""

    def __init__(self) -> None:
        self.count = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None

    async def __call__(self) -> Any:
        self.count += 1
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return self.count


def run(main: Callable[[Judge, Repeats], Coroutine[Any, Any, None]], **kwargs: Any) -> None:
    async def within() -> None:
        await main(Judge(), Repeats(**kwargs))

    asyncio.run(within())


def test_the_same_key_gets_the_same_answer_and_is_judged_once_also_while_the_first_still_waits():
    async def main(judge: Judge, repeats: Repeats) -> None:
        judge.gate.clear()
        asked = [asyncio.create_task(repeats.once("mill", "k", digest="d", work=judge)) for _ in range(3)]
        await asyncio.sleep(0)
        judge.gate.set()
        assert await asyncio.gather(*asked) == [1, 1, 1]
        assert await repeats.once("mill", "k", digest="d", work=judge) == 1
        assert await repeats.once("mill", "other", digest="d", work=judge) == 2
        assert await repeats.once("foundry", "k", digest="d", work=judge) == 3

    run(main)


def test_a_key_used_for_another_part_is_refused_and_never_gets_that_parts_answer():
    async def main(judge: Judge, repeats: Repeats) -> None:
        await repeats.once("mill", "k", digest="one", work=judge)
        with pytest.raises(Refusal, match="another part") as caught:
            await repeats.once("mill", "k", digest="two", work=judge)
        assert (caught.value.status, caught.value.field) == (422, "Idempotency-Key")

    run(main)


def test_a_sender_that_left_finds_the_answer_when_it_comes_back():
    async def main(judge: Judge, repeats: Repeats) -> None:
        judge.gate.clear()
        first = asyncio.create_task(repeats.once("mill", "k", digest="d", work=judge))
        await asyncio.sleep(0)
        first.cancel()
        judge.gate.set()
        assert await repeats.once("mill", "k", digest="d", work=judge) == 1

    run(main)


def test_a_request_that_was_refused_may_be_sent_again():
    async def main(judge: Judge, repeats: Repeats) -> None:
        judge.error = Refusal("busy", status=503)
        with pytest.raises(Refusal):
            await repeats.once("mill", "k", digest="d", work=judge)
        await asyncio.sleep(0)
        judge.error = None
        assert await repeats.once("mill", "k", digest="d", work=judge) == 2

    run(main)


def test_after_a_minute_and_beyond_its_bounds_nothing_is_kept():
    now = [0.0]

    async def main(judge: Judge, repeats: Repeats) -> None:
        await repeats.once("mill", "k", digest="d", work=judge)
        now[0] = 59.0
        assert await repeats.once("mill", "k", digest="d", work=judge) == 1
        now[0] = 61.0
        assert await repeats.once("mill", "k", digest="d", work=judge) == 2
        for n in range(2 * MAX_KEPT_OF_PLANT):
            await repeats.once("mill", f"k{n}", digest="d", work=judge)
        assert len(repeats) == MAX_KEPT_OF_PLANT
        for n in range(MAX_KEPT):
            await repeats.once(f"plant-{n}", "k", digest="d", work=judge)
        assert len(repeats) == MAX_KEPT

    run(main, clock=lambda: now[0])
