from __future__ import annotations

import contextlib
import random

import pytest

from plants.limits import Limits
from serving.limits import MB, Bucket, Ingress, Ticket, drawn, has_room, refilled, wait_s
from serving.schemas import Refusal


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def enter(ingress: Ingress, plant: str = "mill", *, length: int = 0, **limits: float) -> Ticket:
    return ingress.enter(plant, length=length, limits=Limits.model_validate(limits))


def refusal(ingress: Ingress, plant: str = "mill", **kwargs: float) -> Refusal:
    with pytest.raises(Refusal) as caught:
        enter(ingress, plant, **kwargs)  # type: ignore[arg-type]
    return caught.value


@pytest.mark.parametrize(
    ("level", "after_s", "level_then", "wait"),
    [
        (5.0, 0.0, 5.0, 0.0),
        (5.0, 10.0, 10.0, 0.0),
        (-3.0, 1.0, -1.0, 0.5),
        (-3.0, 2.0, 1.0, 0.0),
        (5.0, -9.0, 5.0, 0.0),
    ],
)
def test_a_bucket_fills_at_its_rate_up_to_its_burst_and_a_debt_takes_time(
    level: float, after_s: float, level_then: float, wait: float
):
    bucket = refilled(Bucket(level, 50.0), rate=2.0, burst=10.0, now_s=50.0 + after_s)
    assert bucket.level == level_then
    assert wait_s(bucket, rate=2.0) == wait
    assert drawn(bucket, 4).level == level_then - 4


@pytest.mark.parametrize("seed", range(10))
def test_over_any_time_no_more_comes_in_than_the_rate_and_one_burst(clock: Clock, seed: int):
    chance, ingress, num_in = random.Random(seed), Ingress(clock=clock), 0
    for _ in range(3000):
        clock.now += chance.expovariate(300)
        with contextlib.suppress(Refusal), enter(ingress, requests_per_s=20, burst=5):
            num_in += 1
    assert 20 * (clock.now - 100) <= num_in <= 20 * (clock.now - 100) + 6


def test_a_plant_beyond_its_rate_is_told_when_to_come_back_and_then_is_let_in(clock: Clock):
    ingress = Ingress(clock=clock)
    for _ in range(4):
        enter(ingress, length=50 * MB, mb_per_s=10, burst=100).__exit__(None, None, None)
        clock.now += 5.0
    enter(ingress, length=50 * MB, mb_per_s=10).__exit__(None, None, None)
    refused = refusal(ingress, length=1, mb_per_s=10)
    assert (refused.status, refused.field) == (429, "costs.limits.mb_per_s")
    assert refused.headers["Retry-After"] == str(refused.retry_after_s)
    clock.now += refused.retry_after_s or 0
    enter(ingress, length=1, mb_per_s=10)


def test_a_plant_at_its_bound_is_refused_until_one_of_its_requests_is_answered(clock: Clock):
    ingress = Ingress(clock=clock)
    first, _ = enter(ingress, in_flight=2), enter(ingress, in_flight=2)
    refused = refusal(ingress, in_flight=2)
    assert (refused.status, refused.retry_after_s) == (503, 1)
    with first:
        pass
    enter(ingress, in_flight=2)


@pytest.mark.parametrize("num_floods", [1, 2, 3, 8, 40])
def test_however_many_plants_flood_a_quiet_one_comes_in(clock: Clock, num_floods: int):
    ingress = Ingress(clock=clock)
    for _ in range(100):
        for plant in range(num_floods):
            with contextlib.suppress(Refusal):
                enter(ingress, f"flood-{plant}")
    assert ingress.total <= ingress.capacity
    enter(ingress, "quiet")
    enter(ingress, "quiet as well")


def test_one_plant_alone_may_have_all_that_its_own_bound_allows():
    assert all(has_room(n, limit=64, total=n, num_plants=1, capacity=64) for n in range(48))
    assert not has_room(63, limit=64, total=63, num_plants=1, capacity=64)


def test_bodies_are_held_up_to_a_bound_of_which_one_plant_may_have_half(clock: Clock):
    ingress = Ingress(clock=clock, max_held_bytes=100 * MB)
    mine = enter(ingress)
    mine.hold(40 * MB)
    with pytest.raises(Refusal) as caught:
        mine.hold(11 * MB)
    assert (caught.value.status, caught.value.retry_after_s) == (503, 1)
    assert refusal(ingress, length=11 * MB).status == 503
    other = enter(ingress, "other", length=50 * MB)
    other.hold(50 * MB)
    assert refusal(ingress, "third", length=20 * MB).status == 503
    with mine, other:
        pass
    assert (ingress.held, ingress.total) == (0, 0)
    enter(ingress, "third", length=20 * MB)


def test_a_body_of_unknown_length_is_paid_for_when_it_is_known(clock: Clock):
    ingress = Ingress(clock=clock)
    with ingress.enter("mill", length=None):
        ingress.charge("mill", 500 * MB)
    assert refusal(ingress).status == 429
