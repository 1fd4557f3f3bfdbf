"""Golden parts are judged as they were, and shots of one part alike; what is not so is said, part by part."""

from __future__ import annotations

import json

import pytest

from plants.errors import InputError
from serving.golden import changed, load_predictions, unlike


def row(image: str, verdict: str = "ok", defect: str | None = None, **more: object) -> dict[str, object]:
    return {"image": image, "verdict": verdict, "defect": defect, "model": {"bundle": "a"}, **more}


def test_golden_parts_that_are_judged_as_before_are_not_named_whatever_their_order_and_confidence():
    before = [row("a.png", "reject", "dent", confidence=0.9), row("b.png")]
    assert changed([row("b.png"), row("a.png", "reject", "dent", confidence=0.8)], before=before) == []


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (row("a.png", "review", "dent"), "a.png: review dent, before reject dent"),
        (row("a.png", "reject", "crack"), "a.png: reject crack, before reject dent"),
        (row("a.png", model={"bundle": "b"}), "a.png: ok, before reject dent, by another model or policy"),
        ({"image": "a.png", "error": "broken"}, "a.png: could not be judged, before reject dent, by another model"),
        (row("b.png"), "a.png: was not shown, before reject dent"),
    ],
)
def test_a_golden_part_that_is_not_is_named_with_both_results(now, said):
    assert changed([now], before=[row("a.png", "reject", "dent")])[0].startswith(said)


def test_a_part_that_was_never_judged_before_is_named():
    assert changed([row("new.png")], before=[]) == ["new.png: ok, and was not judged before"]


def test_shots_of_one_part_that_are_judged_otherwise_than_most_are_named():
    shots = [row(f"{i}.png", "reject", "dent") for i in range(9)] + [row("9.png")]
    assert unlike(shots) == ["9.png: ok, but 9 of 10 shots are reject dent"]
    assert unlike(shots[:9]) == []


@pytest.mark.parametrize("num", [0, 1])
def test_too_few_shots_are_refused_and_not_called_alike(num):
    with pytest.raises(InputError, match="field --repeats: needs two shots or more"):
        unlike([row("0.png")][:num])


def test_two_frames_of_one_name_are_refused_on_either_side():
    twice = [row("1.png"), row("1.png", "reject", "dent")]
    for sides in ({"now": twice, "before": [row("1.png")]}, {"now": [row("1.png")], "before": twice}):
        with pytest.raises(InputError, match=r"two frames are named 1\.png"):
            changed(**sides)


def test_a_shot_that_could_not_be_judged_is_unlike_the_others():
    assert unlike([row("0.png"), row("1.png"), {"image": "2.png", "error": "broken"}]) == [
        "2.png: could not be judged, but 2 of 3 shots are ok"
    ]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"predictions": [{}]}', '{"predictions": 3}', "[" * 100_000])
def test_a_file_without_predictions_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "golden.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"--expect.*holds no predictions"):
        load_predictions(path)


def test_a_file_that_is_missing_or_names_an_image_twice_is_refused(tmp_path):
    path = tmp_path / "golden.json"
    with pytest.raises(InputError, match="No such file"):
        load_predictions(path)
    path.write_text(json.dumps({"predictions": [row("a.png"), row("a.png")]}))
    with pytest.raises(InputError, match=r"golden\.json: field --expect: two frames are named a\.png"):
        load_predictions(path)
