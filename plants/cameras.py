"""Camera faults in the frames of one environment, before anything is learned from them.

A dimmed lamp or a knocked lens is a fault of the picture, not of the part; learned from, it becomes a class. Every
judgement is against the environment's own median and spread (MAD), in the order the frames were taken, and never finer
than a floor. Call it for each environment, and for each product where products differ in brightness: a lot of dark
parts looks like a dimmed lamp. A fault that holds for more than half of the frames is the norm and is not seen; slow
ageing is no fault here.

Black, saturated and stuck are seen in single frames; dimmed, defocused and shifted in runs of a few.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

Kind = Literal["black", "saturated", "stuck", "dimmed", "defocused", "shifted"]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

SIDE_PX = 32
BLACK_LEVEL, SATURATED_LEVEL = 10, 250
MAX_BLACK, MAX_SATURATED = 0.9, 0.65
"""Share of black or saturated pixels from which a frame may be lost; a fixture around the part does not saturate."""
MAX_REMAINDER = 0.4
"""And what it still shows is at most this share of what the environment's frames show."""
STUCK_RMS = 1.0
"""Grey levels between thumbnails; sensor noise of sigma 1 gives 0.2 for a frame of 200 x 200."""
STUCK_RATIO = 0.25
"""And at most this share of what usually lies between one frame and the next."""
DIMMED_RATIO, DEFOCUSED_SPREADS = 0.75, 2.5
"""What the median of a run must come to: this share of the norm's brightness, or so far below the norm's sharpness."""
DIMMED_FLOOR, DEFOCUSED_FLOOR = 0.1, 0.25
"""The least spread of a logarithm of brightness, and of sharpness, that is believed."""
SHIFT_FLOOR_PX = 1.0
"""Of the thumbnail: 3 % of the frame."""
MIN_LIKENESS = 0.5
"""Median correlation with the environment's median frame from which there is static structure to have moved."""
MIN_GAIN = 0.1
"""How much more alike a frame must be where it has moved to: along an edge every place is as good as another."""
MIN_FRAMES = 20
"""Sound frames below which an environment has no norm."""
DRIFT, MAX_STEP, ALARM = 1.5, 3.0, 9.0
"""Of the cumulative sum, in spreads; a step is capped: no frame alarms alone. Source: Page, Biometrika 41, 1954."""


class FrameSummary(NamedTuple):
    """What is kept of a frame to judge its camera, about 2 KiB."""

    mean: float
    """0..255"""
    bright: float
    """The 99th percentile, 0..255."""
    black: float
    """Share of pixels at or below `BLACK_LEVEL`."""
    saturated: float
    """Share of pixels at or above `SATURATED_LEVEL`."""
    sharpness: float
    """Logarithm of the Laplacian's variance over the squared differences of pixels 4 px apart: free of gain."""
    thumbnail: npt.NDArray[np.float16]
    """Grey [32, 32], sides squeezed."""


class Fault(NamedTuple):
    """What is wrong with a camera, and in which frames."""

    kind: Kind
    frames: tuple[int, ...]
    """Places in the order given, consecutive."""
    detail: str


def summary(image: npt.NDArray[np.uint8]) -> FrameSummary:
    """What of a frame uint8 [H, W] or [H, W, 3] tells of its camera."""
    picture = Image.fromarray(image).convert("L")
    grey = np.asarray(picture)
    small = picture.convert("F").resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX)
    return FrameSummary(
        mean=float(grey.mean()),
        bright=float(np.percentile(grey, 99)),
        black=float((grey <= BLACK_LEVEL).mean()),
        saturated=float((grey >= SATURATED_LEVEL).mean()),
        sharpness=_sharpness(grey.astype(np.float32)),
        thumbnail=np.asarray(small, dtype=np.float16),
    )


def _sharpness(grey: npt.NDArray[np.float32]) -> float:
    coarse = sum(float(np.square(d).mean()) for d in (grey[4:] - grey[:-4], grey[:, 4:] - grey[:, :-4]) if d.size)
    return float(np.log((ndimage.laplace(grey).var() + 0.5) / (coarse + 0.1)))


def faults(summaries: Sequence[FrameSummary], *, is_timed: Flags | None = None) -> list[Fault]:
    """Every fault of one environment's frames, given in the order they were taken; a run of frames is one fault.

    is_timed: Whose place in that order is known, all when absent; others are judged only by what a frame shows itself,
        as by name a class that looks dark would be taken for a lamp that failed.
    """
    if not summaries:
        return []
    frames = _Frames(summaries)
    timed = np.ones(len(summaries), dtype=np.bool_) if is_timed is None else is_timed
    found = list(frames.lost())
    found += frames.stuck(frames.without(found) & timed)
    sound = frames.without(found) & timed
    if sound.sum() >= MIN_FRAMES:
        found += [*frames.dimmed(sound), *frames.defocused(sound), *frames.shifted(sound)]
    return sorted(found, key=lambda fault: (fault.frames[0], fault.kind))


class _Frames:
    """The frames of one environment as columns."""

    def __init__(self, summaries: Sequence[FrameSummary]) -> None:
        self.mean, self.bright, self.black, self.saturated, self.sharpness = (
            np.array([one[column] for one in summaries], dtype=np.float64) for column in range(5)
        )
        self.thumbnails = np.stack([one.thumbnail for one in summaries]).astype(np.float32)

    def without(self, found: list[Fault]) -> Flags:
        """Which frames no fault names."""
        sound = np.ones(len(self.mean), dtype=np.bool_)
        for fault in found:
            sound[list(fault.frames)] = False
        return sound

    def lost(self) -> Iterator[Fault]:
        """Frames that show next to nothing: black, or white."""
        kinds: tuple[tuple[Kind, Floats, float], ...] = (
            ("black", self.black, MAX_BLACK),
            ("saturated", self.saturated, MAX_SATURATED),
        )
        for kind, share, limit in kinds:
            shown = 1 - share
            usual = float(np.median(shown))
            flat = self.thumbnails.std(axis=(1, 2)) < 1
            bad = (share >= limit) & ((shown <= MAX_REMAINDER * usual) | flat)
            for run in _runs(bad):
                words = f"{np.median(share[run]):.0%} of the pixels are {kind}; {1 - usual:.0%} are usual here"
                yield Fault(kind, tuple(run), words)

    def stuck(self, sound: Flags) -> Iterator[Fault]:
        """Frames that show what the frame before them showed; the first of a run is not among them."""
        if len(self.mean) < 2:
            return
        apart = np.sqrt(np.square(np.diff(self.thumbnails, axis=0)).mean(axis=(1, 2))).astype(np.float64)
        both = sound[1:] & sound[:-1]
        usual = float(np.median(apart[both])) if both.any() else 0.0
        same = np.concatenate([[False], both & (apart <= min(STUCK_RMS, STUCK_RATIO * usual))])
        for run in _runs(same):
            words = (
                f"the same image as frame {run[0] - 1}: {apart[run[0] - 1]:.2f} grey levels apart, {usual:.1f} usual"
            )
            yield Fault("stuck", tuple(run), words)

    def dimmed(self, sound: Flags) -> Iterator[Fault]:
        """Runs in which both the mean and the brightest parts are much below the norm."""
        (mean_low, spread), (bright_low, _) = (
            _below(np.log(column + 1), sound=sound, floor=DIMMED_FLOOR) for column in (self.mean, self.bright)
        )
        drift = min(DRIFT, np.log(2) / 2 / spread)
        usual = float(np.median(self.mean[sound]))
        for run in _changes(np.minimum(mean_low, bright_low), sound=sound, drift=drift):
            mean = float(np.median(self.mean[run]))
            if mean <= DIMMED_RATIO * usual:
                yield Fault("dimmed", tuple(run), f"mean grey level {mean:.0f}; {usual:.0f} is usual here")

    def defocused(self, sound: Flags) -> Iterator[Fault]:
        """Runs in which fine structure is missing beside coarse structure."""
        low, _ = _below(self.sharpness, sound=sound, floor=DEFOCUSED_FLOOR)
        for run in _changes(low, sound=sound):
            if np.median(low[run]) >= DEFOCUSED_SPREADS:
                ratio = np.exp(np.median(self.sharpness[run]) - np.median(self.sharpness[sound]))
                yield Fault("defocused", tuple(run), f"fine structure is {ratio:.0%} of what is usual here")

    def shifted(self, sound: Flags) -> Iterator[Fault]:
        """Runs in which what all frames share lies elsewhere; none where frames share nothing."""
        template = _flat(np.median(self.thumbnails[sound], axis=0, keepdims=True))
        places, likeness = _places(_flat(self.thumbnails), template=template[0])
        at_rest = _correlation(_flat(self.thumbnails), template)
        if np.median(at_rest[sound]) < MIN_LIKENESS:
            return
        away = places - np.median(places[sound], axis=0)
        far = np.hypot(away[:, 0], away[:, 1])
        spread = max(SHIFT_FLOOR_PX / 3, 1.4826 * float(np.median(far[sound])))
        far[(likeness < MIN_LIKENESS) | (likeness < at_rest + MIN_GAIN)] = 0
        for run in _changes(far / spread, sound=sound):
            y, x = np.median(away[run], axis=0) / SIDE_PX
            if np.hypot(y, x) * SIDE_PX >= SHIFT_FLOOR_PX:
                yield Fault("shifted", tuple(run), f"moved by {x:+.1%} of the width and {y:+.1%} of the height")


def _below(values: Floats, *, sound: Flags, floor: float) -> tuple[Floats, float]:
    """How many spreads each value lies below the norm, and the spread."""
    middle = np.median(values[sound])
    spread = max(1.4826 * float(np.median(np.abs(values[sound] - middle))), floor)
    return np.asarray((middle - values) / spread), spread


def _runs(flags: Flags) -> Iterator[list[int]]:
    """Unbroken stretches of true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    for first, end in edges.reshape(-1, 2).tolist():
        yield list(range(first, end))


def _changes(spreads: Floats, *, sound: Flags, drift: float = DRIFT) -> Iterator[list[int]]:
    """Stretches whose cumulative sum of spreads beyond `drift` reaches `ALARM`, to its peak; sound frames only."""
    steps = np.clip(spreads - drift, -MAX_STEP, MAX_STEP)
    total, peak, first, last = 0.0, 0.0, 0, 0
    for i in [*np.flatnonzero(sound).tolist(), None]:
        total = total + float(steps[i]) if i is not None else -1.0
        if total <= 0 or total < peak - ALARM:
            if peak >= ALARM:
                yield [k for k in range(first, last + 1) if sound[k]]
            total, peak = 0.0, 0.0
        elif peak == 0.0:
            total, peak, first, last = total, total, int(i or 0), int(i or 0)
        elif total > peak:
            peak, last = total, int(i or 0)


def _flat(thumbnails: npt.NDArray[np.float32]) -> Floats:
    """Thumbnails without their shading, of mean 0 and length 1."""
    even = thumbnails - ndimage.gaussian_filter(thumbnails, (0, SIDE_PX / 8, SIDE_PX / 8))
    even = even - even.mean(axis=(1, 2), keepdims=True)
    return np.asarray(
        even / np.maximum(np.sqrt(np.square(even).sum(axis=(1, 2), keepdims=True)), 1e-6), dtype=np.float64
    )


def _correlation(a: Floats, b: Floats) -> Floats:
    return np.asarray((a * b).sum(axis=(1, 2)))


def _places(even: Floats, *, template: Floats) -> tuple[Floats, Floats]:
    """Where the template lies in each frame, y and x in px [N, 2], and its correlation there [N]."""
    both = np.conj(np.fft.rfft2(template)) * np.fft.rfft2(even)
    surface = np.fft.irfft2(both, s=template.shape)
    peak = surface.reshape(len(even), -1).argmax(axis=1)
    at = np.stack(np.unravel_index(peak, template.shape), axis=1)
    likeness = surface.reshape(len(even), -1).max(axis=1)
    return ((at + SIDE_PX / 2) % SIDE_PX - SIDE_PX / 2).astype(np.float64), np.asarray(likeness)
