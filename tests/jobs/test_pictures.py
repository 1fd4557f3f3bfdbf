"""Copies across splits and labels are named, exact ones are not named twice, and a camera's fault names its frames."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from jobs.pictures import Seen, camera_findings, copy_findings, look_at, tone_findings
from plants.geometry import Photometry
from plants.plant import Plant
from plants.tones import MIN_FRAMES
from plants.views import photometry_lut

PLANT = Plant.model_validate(
    {"name": "mill", "images": "unused", "classes": {"good": "ok", "crack": "crack"}, "ok": ["good"]}
)


def picture(seed: int) -> np.ndarray:
    """Grain of its own, uint8 [120, 120]."""
    grain = gaussian_filter(np.random.default_rng(seed).normal(0, 1, (120, 120)), 2)
    return np.clip(128 + 40 * grain / grain.std(), 0, 255).astype(np.uint8)


def seen(pictures: list[np.ndarray], *, plant: Plant = PLANT, **columns) -> Seen:
    """These pictures as frames of the plant, in the order given."""
    files = {}
    for i, pixels in enumerate(pictures):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG")
        files[f"{i:02d}.png"] = buffer.getvalue()
    n = len(pictures)
    rows = pd.DataFrame(
        {
            "frame": list(files),
            "sha256": [f"{hash(data):x}" for data in files.values()],
            "class": pd.Series(["good"] * n, dtype=object),
            "role": ["train"] * n,
            "environment": ["default"] * n,
            "product": pd.Series([None] * n, dtype=object),
            "captured_at": pd.Series([pd.NaT] * n),
        }
        | {name: pd.Series(values, dtype=object) for name, values in columns.items()}
    )
    return look_at(plant, rows, read=files.__getitem__)


def cropped(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels[8:116, 8:116]).resize((120, 120), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(
    ("columns", "kind"),
    [
        ({"role": ["train"] * 6 + ["test"], "class": ["good"] * 6 + [None]}, "straddling_near_duplicates"),
        ({"class": ["good"] * 6 + ["crack"]}, "conflicting_near_duplicates"),
        ({}, "near_duplicates"),
    ],
)
def test_a_crop_is_named_with_what_it_spoils(columns, kind):
    pictures = [picture(seed) for seed in range(6)]
    (finding,) = copy_findings([seen([*pictures, cropped(pictures[2])], **columns)])
    assert (finding.kind, finding.plant) == (kind, "mill")
    assert "mill:02.png (train, good)" in finding.detail
    assert "mill:06.png" in finding.detail
    assert finding.detail.startswith("1 pairs")


@pytest.mark.parametrize(("meaning", "kind"), [("ok", "near_duplicates"), ("crack", "conflicting_near_duplicates")])
def test_a_copy_at_another_plant_is_found_and_its_label_compared_in_the_fleets_words(meaning, kind):
    ok = ["gut"] if meaning == "ok" else []
    yard = Plant.model_validate({"name": "yard", "images": "x", "classes": {"gut": meaning}, "ok": ok})
    other = seen([picture(9), cropped(picture(1))], **{"class": ["gut", "gut"]})
    other = Seen(yard, other.rows, other.signatures, other.summaries, other.tones)
    (finding,) = copy_findings([seen([picture(0), picture(1)]), other])
    assert finding.kind == kind
    assert "mill:01.png" in finding.detail
    assert "yard:01.png" in finding.detail


def test_exact_copies_are_left_to_the_tables_and_other_pictures_are_no_copies():
    pictures = [picture(seed) for seed in range(6)]
    assert copy_findings([seen([*pictures, pictures[0]])]) == []


def test_black_frames_are_named_from_the_first_to_the_last():
    pictures = [picture(seed) for seed in range(30)]
    for i in (10, 11, 12):
        pictures[i] = np.zeros_like(pictures[i])
    finding, unjudged = sorted(camera_findings(seen(pictures)), key=lambda found: found.kind)
    assert (finding.level, finding.kind) == ("warning", "camera_black")
    assert unjudged.kind == "camera_runs_not_judged"
    assert finding.detail.startswith("environment default: 3 frames from 10.png to 12.png")


def with_dark_run() -> tuple[list[np.ndarray], list[pd.Timestamp]]:
    """40 pictures, a dozen of them dark, and when each was taken."""
    pictures = [picture(seed) for seed in range(40)]
    for i in range(15, 27):
        pictures[i] = (pictures[i] * 0.4).astype(np.uint8)
    return pictures, [pd.Timestamp("2026-01-01", tz="UTC") + pd.Timedelta(minutes=i) for i in range(40)]


def test_a_dark_run_is_a_fault_where_times_are_known_and_where_names_only_are_it_is_said_that_nobody_looked():
    pictures, at = with_dark_run()
    (finding,) = camera_findings(seen(pictures, captured_at=at))
    assert finding.kind == "camera_dimmed"
    (unjudged,) = camera_findings(seen(pictures))
    assert (unjudged.level, unjudged.kind) == ("info", "camera_runs_not_judged")
    assert "40 of 40 frames are unknown (40 of 40 in environment default)" in unjudged.detail
    assert "captured_at" in unjudged.remedy


def test_a_missing_time_does_not_keep_the_other_frames_from_being_judged():
    pictures, at = with_dark_run()
    black, dark = np.zeros_like(pictures[0]), pictures[20]
    unjudged, *faults = camera_findings(seen([*pictures, black, dark], captured_at=[*at, pd.NaT, pd.NaT]))
    assert "2 of 42 frames are unknown" in unjudged.detail
    named = {found.kind: found.detail for found in faults}
    assert named.keys() == {"camera_black", "camera_dimmed"}
    assert "40.png" in named["camera_black"]
    assert "12 frames from 15.png to 26.png" in named["camera_dimmed"]


def test_frames_are_judged_in_the_order_in_which_they_were_taken():
    at = [pd.Timestamp("2026-01-01", tz="UTC") + pd.Timedelta(minutes=30 - i) for i in range(5)]
    found = seen([picture(seed) for seed in range(5)], captured_at=at)
    assert found.rows["frame"].tolist() == [f"{i:02d}.png" for i in (4, 3, 2, 1, 0)]


LAMP = Photometry(gain=0.7, offset=-0.02, gamma=1.2)


def two_stations(**columns) -> Seen:
    """Stations day and night, of `MIN_FRAMES` and one frame less by day; the lamp of the night is another."""
    table, station = photometry_lut(LAMP), PLANT.environments["default"]
    plant = PLANT.model_copy(update={"environments": {"day": station, "night": station}})
    days, nights = (
        [picture(seed) for seed in range(at, at + num)] for at, num in ((0, MIN_FRAMES + 1), (50, MIN_FRAMES))
    )
    where = ["day"] * len(days) + ["night"] * len(nights)
    return seen([*days, *(table[pixels] for pixels in nights)], plant=plant, environment=where, **columns)


def test_a_station_under_another_lamp_is_named_with_photometry_that_undoes_it():
    (finding,) = tone_findings(two_stations())
    assert (finding.level, finding.kind) == ("info", "tones_differ")
    assert "environment night" in finding.detail
    assert "photometry: {gain: " in finding.remedy
    looked = two_stations()
    gain, offset, gamma = (
        float(word.split(": ")[1]) for word in finding.remedy.split("{")[1].split("}")[0].split(", ")
    )
    undone = Photometry(gain=gain, offset=offset, gamma=gamma)
    night = looked.plant.environments["night"].model_copy(update={"photometry": undone})
    plant = looked.plant.model_copy(update={"environments": {**looked.plant.environments, "night": night}})
    assert not tone_findings(Seen(plant, looked.rows, looked.signatures, looked.summaries, looked.tones))


@pytest.mark.parametrize(
    "columns",
    [
        {"role": ["train"] * (MIN_FRAMES + 1) + ["test"] * MIN_FRAMES},
        {"class": ["good"] * (MIN_FRAMES + 1) + ["crack"] * MIN_FRAMES},
        {"product": ["dark"] * (MIN_FRAMES + 1) + ["bright"] * MIN_FRAMES},
    ],
)
def test_tones_of_sealed_frames_of_defects_and_of_other_products_say_nothing_of_a_lamp(columns):
    assert not tone_findings(two_stations(**columns))
