"""What is left out is named plainly, and nothing of it is learned from."""

from __future__ import annotations

import pandas as pd
import pytest

from jobs.leave_out import ALL, LeftOut, named, parse
from plants.errors import InputError
from plants.plant import Fleet

FLEET = Fleet.model_validate(
    {
        "fleet": "f",
        "store": "s",
        "plants": [
            {"name": "mill", "images": "i", "classes": {"d": "d"}, "environments": {"cam1": {}, "Kamera Süd/2": {}}}
        ],
    }
)
ROWS = pd.DataFrame(
    {
        "environment": ["cam1", "cam1", "cam2", "cam2"],
        "product": ["A", "B7", "B7", None],
        "role": ["train", "decide", "train", "train"],
    }
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mill", LeftOut("mill")),
        ("mill/cam1", LeftOut("mill", "environment", "cam1")),
        ("mill/Kamera Süd/2", LeftOut("mill", "environment", "Kamera Süd/2")),
        ("mill:product=B7 / x:y", LeftOut("mill", "product", "B7 / x:y")),
    ],
)
def test_plants_environments_and_products_are_told_apart_and_written_as_they_are_read(text, expected):
    assert parse(text, fleet=FLEET) == expected
    assert str(expected) == text
    assert parse(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("press", "plant press: there is no such plant"),
        ("press/cam1", "plant press: there is no such plant"),
        ("mill/cam3", "plant mill: field --leave-out: has no environment 'cam3'. There are: cam1, Kamera Süd/2"),
        ("mill/", "plant mill: field --leave-out: 'mill/' names no environment and no product"),
        ("mill:B7", "plant mill: field --leave-out: 'mill:B7' names no environment and no product"),
        ("mill:product=", "plant mill: field --leave-out: 'mill:product=' names no"),
    ],
)
def test_what_the_fleet_does_not_know_is_refused_in_one_line(text, words):
    with pytest.raises(InputError) as error:
        parse(text, fleet=FLEET)
    assert str(error.value).startswith(words)


def test_rows_of_the_environment_or_product_are_left_out_and_no_others():
    assert parse("mill").holds(ROWS).all()
    assert parse("mill/cam2").holds(ROWS).tolist() == [False, False, True, True]
    assert parse("mill:product=B7").holds(ROWS).tolist() == [False, True, True, False]


def test_something_must_be_left_out_and_something_left_to_learn_from():
    parse("mill/cam2").check(ROWS)
    with pytest.raises(InputError, match=r"no frame is of product 'C'. There are: A, B7"):
        parse("mill:product=C").check(ROWS)
    with pytest.raises(InputError, match="without environment 'cam2' nothing is left to learn from"):
        parse("mill/cam2").check(ROWS.assign(role=["decide", "test", "train", "train"]))


def test_names_of_runs_are_plain_and_different_for_different_values():
    slugs = [parse(text).slug for text in ("mill", "mill/Kamera Süd", "mill/Kamera Sud", "mill/kamera-süd")]
    assert len(set(slugs)) == 4
    assert all(slug.replace("-", "").replace("_", "").isalnum() and slug.isascii() for slug in slugs)


def test_all_is_no_name_of_its_own():
    assert named(["mill/cam1", ALL, "mill/cam1"], fleet=FLEET) == [LeftOut("mill", "environment", "cam1")]
