"""The severity in an answer: of parts that do not pass, where the bundle has a head for the plant."""

from __future__ import annotations

import numpy as np
import pytest

from plants.severity import SeverityHead
from serving.intake import Frame, PartRequest
from serving.predictions import log_row
from serving.predictor import Predictor, judge
from serving.router import Target
from serving.wiring import Shelf
from tests.serving.toys import BLUE, GREEN, RED, Works, plant_view, png

REDNESS = SeverityHead(np.array([1, 0, 0], np.float32), 0.0, frozenset({"mill"}))
"""As grave as it is red: the toy trunk's features are mean colours."""
HALF_RED = (120, 20, 20)


def predictor(works: Works, bundle: str, *, plant: str = "mill") -> Predictor:
    shelf = Shelf(works.store, folder=works.root / "shelf")
    return shelf.predictor(plant, Target(bundle, works.policy(plant), 1))


def part(*colours: tuple[int, int, int], plant: str = "mill") -> PartRequest:
    frames = tuple(Frame(f"{n}.png", png(colour, size=(40, 40))) for n, colour in enumerate(colours))
    return PartRequest(plant, frames, environment="cam-1")


@pytest.mark.parametrize("cut", [0, 1])
def test_a_part_that_does_not_pass_says_how_grave_it_is_and_one_that_passes_does_not(works: Works, cut: int):
    one = predictor(works, works.bundle("grave", cut=cut, severity=REDNESS))
    assert one.predict(part(RED)).severity == pytest.approx(220 / 255, abs=1e-3)
    assert one.predict(part(BLUE)).severity == pytest.approx(20 / 255, abs=1e-3)
    passed = one.predict(part(GREEN))
    assert passed.decision.verdict == "ok"
    assert passed.severity is None


def test_of_several_frames_the_one_that_speaks_for_the_part_is_asked(works: Works):
    one = predictor(works, works.bundle("grave", severity=REDNESS))
    assert one.predict(part(GREEN, RED, GREEN)).severity == pytest.approx(220 / 255, abs=1e-3)


def test_a_bundle_without_a_head_or_of_another_plant_says_nothing(works: Works):
    assert predictor(works, works.bundle("plain")).predict(part(RED)).severity is None
    both = works.bundle("both", severity=REDNESS, serves={"mill": plant_view(), "foundry": plant_view()})
    assert predictor(works, both, plant="foundry").predict(part(RED, plant="foundry")).severity is None


def test_parts_of_many_plants_at_once_are_as_grave_as_they_are_alone(works: Works):
    grave = predictor(works, works.bundle("grave", severity=REDNESS))
    plain = predictor(works, works.bundle("plain"))
    deep = predictor(works, works.bundle("deep", cut=1, severity=REDNESS))
    work = [([grave, plain, deep][n % 3], part([RED, HALF_RED, BLUE, GREEN][n % 4])) for n in range(24)]
    together = [one.severity for one in judge(work)]
    for value, one in zip(together, work, strict=True):
        (alone,) = judge([one])
        assert value == (None if alone.severity is None else pytest.approx(alone.severity, abs=1e-4))
    assert sum(value is not None for value in together) == 12


@pytest.mark.parametrize("cut", [0, 1])
def test_an_ensemble_says_what_its_members_with_a_head_say_by_their_weights(works: Works, cut: int):
    blueness = SeverityHead(np.array([0, 0, 1], np.float32), 0.0, frozenset({"mill"}))
    heads = {"a": REDNESS, "b": blueness, "c": None}
    members = tuple(works.bundle(name, cut=cut, severity=head) for name, head in heads.items())
    both = predictor(works, works.ensemble(members, (3.0, 1.0, 4.0)))
    assert both.predict(part(RED)).severity == pytest.approx((3 * 220 + 20) / 4 / 255, abs=1e-3)


def test_a_bundle_whose_severities_are_others_here_serves_on_without_them(
    works: Works, caplog: pytest.LogCaptureFixture
):
    found = predictor(works, works.bundle("moved", severity=REDNESS, recorded=0.2)).predict(part(RED))
    assert (found.decision.verdict, found.severity) == ("reject", None)
    assert "gives other severities here" in caplog.text


def test_the_answer_and_the_prediction_log_carry_it(works: Works):
    from serving.answers import answered
    from serving.schemas import ModelRef

    judgement = predictor(works, works.bundle("grave", severity=REDNESS)).predict(part(RED))
    model = ModelRef(bundle="b", policy="p", arm="champion")
    answer = answered(part(RED), judgement, request_id="r-1", model=model, latency_ms=1.0)
    assert answer.severity == judgement.severity == log_row(answer, product=None)["severity"] is not None
