"""Each fault of a camera is named with its frames, and what varies in a sound plant is not called a fault."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from plants.cameras import Fault, FrameSummary, faults, summary

SIZE, NUM = 96, 80
AT = range(30, 45)


def frame(rng: np.random.Generator, *, has_fixture: bool = False) -> np.ndarray:
    """A part of one material, of a brightness of its own, in a fixture or not; float64."""
    grain = ndimage.gaussian_filter(rng.normal(size=(SIZE, SIZE)), 1.5)
    picture = rng.normal(130, 12) + 22 * grain / grain.std() + rng.normal(0, 2, grain.shape)
    if has_fixture:
        picture[10:20, :] = picture[:, 70:76] = 235
        picture[40:64, 20:44] = 25
    return picture


def line(seed: int, **options) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [frame(rng, **options) for _ in range(NUM)]


def told(frames: list[np.ndarray]) -> list[Fault]:
    return faults([summary(np.clip(one + 0.5, 0, 255).astype(np.uint8)) for one in frames])


def with_run(frames: list[np.ndarray], change) -> list[np.ndarray]:
    return [change(one) if k in AT else one for k, one in enumerate(frames)]


CHANGES = {
    "black": lambda one: np.random.default_rng(0).normal(3, 1, one.shape),
    "saturated": lambda one: one * 4,
    "dimmed": lambda one: one * 0.5,
    "defocused": lambda one: ndimage.gaussian_filter(one, 2),
}


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("seed", range(3))
def test_a_fault_is_named_once_with_its_frames_and_no_other_fault_is(kind, seed):
    (fault,) = told(with_run(line(seed), CHANGES[kind]))
    assert fault.kind == kind
    assert len(set(AT) ^ set(fault.frames)) <= 1


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_a_stuck_camera_is_named_whether_its_noise_differs_or_not(noise):
    frames, rng = line(0), np.random.default_rng(0)
    for k in AT:
        frames[k] = frames[AT[0]] + rng.normal(0, noise, (SIZE, SIZE))
    (fault,) = told(frames)
    assert fault.kind == "stuck"
    assert fault.frames == tuple(AT[1:])


def test_a_camera_that_was_moved_is_named_with_where_it_went():
    frames = with_run(line(0, has_fixture=True), lambda one: np.roll(one, (6, -9), axis=(0, 1)))
    (fault,) = told(frames)
    assert fault.kind == "shifted"
    assert fault.frames == tuple(AT)
    assert "-9.4% of the width and +6.2% of the height" in fault.detail


def test_without_anything_static_in_the_picture_no_shift_is_claimed():
    assert told(with_run(line(0), lambda one: np.roll(one, (6, -9), axis=(0, 1)))) == []


@pytest.mark.parametrize("has_fixture", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_sound_camera_has_no_fault(seed, has_fixture):
    assert told(line(seed, has_fixture=has_fixture)) == []


def in_cheeks(one: np.ndarray) -> np.ndarray:
    """The part between two dark cheeks, alike along their edges and black at any light."""
    return np.hstack([np.full((SIZE, 12), 4.0), one[:, 12:80], np.full((SIZE, 16), 4.0)])


@pytest.mark.parametrize("seed", range(4))
def test_along_the_edges_of_a_fixture_no_shift_is_claimed(seed):
    assert told([in_cheeks(one) for one in line(seed)]) == []


def test_a_part_lost_in_light_is_saturated_though_its_fixture_is_not():
    (fault,) = told([in_cheeks(one) for one in with_run(line(0), CHANGES["saturated"])])
    assert (fault.kind, fault.frames) == ("saturated", tuple(AT))


def test_a_line_whose_parts_hardly_differ_is_not_called_stuck():
    rng = np.random.default_rng(0)
    part = frame(rng)
    assert told([part + rng.normal(0, 1, part.shape) for _ in range(NUM)]) == []


def test_one_dark_part_is_not_called_a_dimmed_lamp():
    frames = line(0)
    frames[40] = frames[40] * 0.5
    assert told(frames) == []


def test_the_darkness_of_a_dark_field_is_not_a_fault_but_its_loss_of_all_light_is():
    def scratched(one: np.ndarray) -> np.ndarray:
        dark = np.random.default_rng(int(one[0, 0] * 1e6)).normal(4, 1, one.shape)
        dark[20:26, 10:80] = one[20:26, 10:80]
        return dark

    frames = [scratched(one) for one in line(0)]
    assert told(frames) == []
    frames[50] = CHANGES["black"](frames[50])
    assert [(one.kind, one.frames) for one in told(frames)] == [("black", (50,))]


def test_two_faults_at_different_times_are_both_named_in_order():
    frames = with_run(line(0), CHANGES["dimmed"])
    frames[60:66] = [CHANGES["black"](one) for one in frames[60:66]]
    assert [one.kind for one in told(frames)] == ["dimmed", "black"]


def test_too_few_frames_have_no_norm_to_be_held_against_but_black_is_black():
    frames = [0.5 * one if k < 3 else one for k, one in enumerate(line(0)[:8])]
    assert told(frames) == []
    assert [(one.kind, one.frames) for one in told([*frames, 0 * frames[0]])] == [("black", (8,))]


def test_no_frames_have_no_faults():
    assert faults([]) == []


def test_a_summary_of_a_colour_frame_is_that_of_its_grey():
    grey = np.clip(frame(np.random.default_rng(0)), 0, 255).astype(np.uint8)
    of_grey, of_colour = summary(grey), summary(np.repeat(grey[:, :, None], 3, axis=2))
    assert of_grey[:5] == of_colour[:5]
    assert np.array_equal(of_grey.thumbnail, of_colour.thumbnail)
    assert isinstance(of_grey, FrameSummary)


def test_sharpness_does_not_change_with_the_light():
    one = frame(np.random.default_rng(0))
    bright, dim = (summary(np.clip(one * gain, 0, 255).astype(np.uint8)).sharpness for gain in (1.0, 0.5))
    assert bright == pytest.approx(dim, abs=0.1)
