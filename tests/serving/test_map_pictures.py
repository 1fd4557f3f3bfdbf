"""Pictures are made beside the verdicts: they end in time, are bounded in number, and cost nobody a verdict."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from plants.geometry import Geometry
from plants.heatmaps import Heat
from plants.views import seen
from serving.answers import Said
from serving.intake import Frame, PartRequest
from serving.pictures import MAX_IN_LINE, Pictures
from serving.schemas import Answer, MapPicture, ModelRef
from tests.serving.toys import GREEN, png

PART = PartRequest("mill", (Frame("a.png", png(GREEN, size=(64, 64))),), wants_map=True)


@pytest.fixture
def pictures() -> Iterator[Pictures]:
    made = Pictures()
    yield made
    made.close()


def said(heat: Heat | None = None, *, problem: str | None = None) -> Said:
    answer = Answer(
        request_id="r",
        plant="mill",
        environment="cam-1",
        part_id="p",
        model=ModelRef(bundle="b" * 64, policy="c" * 64),
        verdict="reject",
        defect="dent",
        confidence=0.9,
        why="likely enough",
        probabilities={"ok": 0.1, "dent": 0.9},
        impossible=0.0,
        novelty=None,
        disagreement=None,
        location=None,
        severity=None,
        frames=[],
        latency_ms=5.0,
    )
    return Said(answer, heat, problem)


def heat(kind: type[Heat] = Heat) -> Heat:
    geometry, values = Geometry(fit="whole"), np.zeros((4, 4), np.float32)
    values[1, 2] = 3.0
    return kind(values, 0, 64, seen(64, 64, view=0, geometry=geometry, size_px=64), geometry)


class Slow(Heat):
    """Is drawn when it may be."""

    may = threading.Event()

    def picture(self, data: bytes) -> bytes:
        assert Slow.may.wait(10)
        return super().picture(data)


class Broken(Heat):
    def picture(self, data: bytes) -> bytes:
        raise MemoryError


def shown(answer: Answer) -> MapPicture:
    assert answer.map is not None
    return answer.map


def test_a_picture_comes_with_the_answer_where_it_was_asked_for(pictures: Pictures):
    found = shown(asyncio.run(pictures.shown(said(heat()), PART)))
    assert (found.frame, found.problem) == (0, None)
    assert found.png
    plain = PartRequest("mill", PART.frames)
    assert asyncio.run(pictures.shown(said(heat()), plain)).map is None


def test_without_a_map_it_is_said_why(pictures: Pictures):
    assert shown(asyncio.run(pictures.shown(said(problem="it is so"), PART))).problem == "it is so"


@pytest.mark.parametrize("within_s", [-1.0, 0.0, 0.05])
def test_the_verdict_does_not_wait_for_a_picture_longer_than_its_time(pictures: Pictures, within_s: float):
    Slow.may.clear()
    found = asyncio.run(pictures.shown(said(heat(Slow)), PART, within_s=within_s))
    Slow.may.set()
    assert found.verdict == "reject"
    assert shown(found).problem == "there was no time for a picture"


def test_more_pictures_than_may_wait_are_refused_and_the_others_are_made(pictures: Pictures):
    async def asked() -> list[Any]:
        Slow.may.clear()
        tasks = [asyncio.ensure_future(pictures.shown(said(heat(Slow)), PART)) for _ in range(MAX_IN_LINE + 3)]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        problems = [shown(task.result()).problem for task in done]
        Slow.may.set()
        return [problems, [shown(one).problem for one in await asyncio.gather(*tasks)]]

    early, every = asyncio.run(asked())
    assert set(early) == {"too many pictures are asked for at once"}
    assert every.count(None) == MAX_IN_LINE
    assert shown(asyncio.run(pictures.shown(said(heat()), PART))).png


def test_a_picture_that_fails_costs_nobody_the_verdict(pictures: Pictures):
    found = asyncio.run(pictures.shown(said(heat(Broken)), PART))
    assert found.verdict == "reject"
    assert shown(found).problem == "the picture could not be made, see the replica's log"
