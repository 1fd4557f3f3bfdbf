from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from plants.variants import FASTER, Pair, PlantGate, Speed, faults, shift, speed, worst_loss


def gate(
    *,
    f1: tuple[float | None, float | None] = (0.9, 0.9),
    caught: tuple[float, float] = (1.0, 1.0),
    floor: float = 0.0,
    has_ok: bool = True,
) -> PlantGate:
    pair = Pair(float32=caught[0], int8=caught[1])
    return PlantGate(
        n=100,
        macro_f1=Pair(float32=f1[0], int8=f1[1]),
        cost=Pair(float32=None, int8=None),
        recall={"dent": pair},
        caught={"dent": pair} if has_ok else {},
        floors={"dent": floor} if floor else {},
    )


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (gate(), []),
        (gate(f1=(0.9, 0.88)), []),
        (gate(f1=(0.9, 0.879)), ["macro-F1 loses 2.1 points, 2 are allowed"]),
        (gate(f1=(0.8, 0.95)), []),
        (gate(f1=(None, None)), []),
        (gate(caught=(1.0, 0.5)), []),
        (gate(caught=(1.0, 0.98), floor=0.98), []),
        (gate(caught=(1.0, 0.97), floor=0.98), ["recall of dent falls from 1.000 to 0.970, its floor is 0.98"]),
        (gate(caught=(0.9, 0.9), floor=0.98), []),
        (gate(caught=(0.9, 0.8), floor=0.98), ["recall of dent falls from 0.900 to 0.800, its floor is 0.98"]),
        (gate(caught=(1.0, 0.9), floor=0.95, has_ok=False), ["recall of dent falls from 1.000 to 0.900, its floor is"]),
    ],
    ids=[
        "the same",
        "two points lost",
        "more than two",
        "gained",
        "no macro-F1",
        "no floor",
        "at the floor",
        "under it",
        "float was under it too",
        "float was under it and INT8 lower",
        "no class is good",
    ],
)
def test_int8_may_judge_where_it_loses_two_points_at_most_and_no_class_falls_under_its_floor(
    found: PlantGate, expected: list[str]
):
    said = faults(found)
    assert len(said) == len(expected)
    assert all(line.startswith(start) for line, start in zip(said, expected, strict=True))


def test_the_worst_loss_is_of_the_plant_that_loses_most():
    assert worst_loss({"a": gate(f1=(0.9, 0.89)), "b": gate(f1=(0.5, 0.6)), "c": gate(f1=(None, None))}) == (
        pytest.approx(0.01)
    )
    assert worst_loss({"c": gate(f1=(None, None))}) is None


def ticks(*durations: float) -> Callable[[], float]:
    """A clock by which works take these times in turn, for ever."""

    def moments() -> Iterator[float]:
        now = 0.0
        while True:
            yield now
            now += durations[0]
            yield now
            now += durations[1]
            yield now

    found = moments()
    return lambda: next(found)


def test_speed_is_of_rounds_in_turns_in_milliseconds():
    calls: list[str] = []
    found = speed(lambda: calls.append("f"), lambda: calls.append("q"), rounds=3, clock=ticks(0.004, 0.002))
    assert found == Speed(pytest.approx(4), pytest.approx(2), pytest.approx(2))
    assert "".join(calls) == "fqfqfqfqfq"


@pytest.mark.parametrize(("ratio", "expected"), [(FASTER, True), (FASTER - 0.01, False), (0.5, False), (3.0, True)])
def test_int8_that_is_hardly_faster_is_not_faster(ratio: float, expected: bool):
    assert Speed(1.0, 1.0, ratio).is_faster is expected


def test_a_tie_may_fall_either_way_and_a_difference_is_a_share_of_the_largest_logit():
    expected = np.array([[2.0, 1.0], [1.0, 1.0], [0.0, 4.0]])
    found = np.array([[1.0, 2.0], [0.999999, 1.0], [0.0, 4.0]])
    said = shift(expected, found)
    assert (said.n, said.flips, said.largest) == (3, 1, pytest.approx(0.25))
    assert shift(expected, found, is_named=False).flips == 0
    assert shift(expected[:0], found[:0]).n == 0


def test_a_number_that_is_none_is_far_away():
    assert shift(np.array([[1.0, 0.0]]), np.array([[np.nan, 0.0]])).largest == 1e9
