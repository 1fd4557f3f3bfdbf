"""What is wrong, thin or unsaid about a plant's data, before anything is learned from it.

Reads open label rows only: the answers of the sealed test are blank here and stay so. With a finding at level error
`crossplant audit` ends with exit 1, which a script may heed; no other verb reads findings. A warning is for people to
weigh; info is written down for auditors.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
import pandas as pd

from plants import incumbent
from plants.balance import classes
from plants.findings import LEVELS, Finding, Found, Level
from plants.geometry import Environment, Geometry
from plants.labels import RETURN
from plants.plant import Fleet, Plant, Shares
from plants.representation import unrepresented
from plants.shortcuts import class_in_path, shortcuts
from plants.splits import ROLES
from plants.views import is_judged, scale

MIN_DEFECT_PX = 8.0
"""The longer side of a defect at the model's input below which nothing can be learned. Source: PRACTICE.md, G2."""
MAX_SMALL_SHARE = 0.1
"""Share of a class's located defects that may be smaller; above it, and with two or more, the finding is an error."""
MIN_LOTS = 10
MAX_SHARE_ERROR = 0.1
PATHS_TELL = 0.9
"""Share of frames whose path names their class, from which it is said."""


def audit(plant: Plant, rows: pd.DataFrame, *, fleet: Fleet, trunk_size_px: int) -> list[Finding]:
    """Every finding about one plant's label rows (with `role` where they were dealt), errors first."""
    shares = plant.shares or fleet.shares
    found = [
        Finding(level, kind, plant.name, detail, remedy)
        for check in (
            _sizes(plant, rows, size_px=trunk_size_px),
            classes(plant, rows),
            unrepresented(plant, rows, is_by_time=shares.order == "time"),
            _lots(rows),
            _duplicates(rows),
            _roles(rows, shares=shares),
            _shortcuts(rows),
            _returned(rows),
            incumbent.findings(plant, rows),
            _sisters(plant, fleet=fleet),
        )
        for level, kind, detail, remedy in check
    ]
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))


# --- geometry --------------------------------------------------------------------------------------------------------


def _sizes(plant: Plant, rows: pd.DataFrame, *, size_px: int) -> Found:
    for name, environment in plant.environments.items():
        here = rows[rows["environment"] == name]
        if len(here):
            yield from _declared_size(name, environment, here, size_px=size_px)
            located = here[here["box"].notna() & here["class"].isin(plant.defects)]
            judged = _are_judged(located, environment)
            yield from _unjudged(name, located[~judged], num=len(located))
            yield from _located_sizes(name, environment, located[judged], size_px=size_px)
            several = located[located["smallest_box"].notna()]
            several = several[_are_judged(several, environment, column="smallest_box")]
            yield from _small_beside_large(name, environment, several, size_px=size_px)


def _are_judged(rows: pd.DataFrame, environment: Environment, *, column: str = "box") -> npt.NDArray[np.bool_]:
    """Whether anything within each row's box is judged [len(rows)]."""
    cells = zip(rows[column], rows["width_px"], rows["height_px"], strict=True)
    found = [is_judged(list(box)[:4], int(w), int(h), geometry=environment.geometry) for box, w, h in cells]
    return np.array(found, dtype=bool)


def _unjudged(name: str, rows: pd.DataFrame, *, num: int) -> Found:
    if len(rows):
        yield (
            "warning",
            "unjudged_defects",
            f"environment {name}: {len(rows)} of {num} located defects lie where nothing is judged, "
            f"e.g. in {rows['frame'].iloc[0]}: nothing in the picture will tell them",
            "Correct roi, mask or ignore, or the boxes",
        )


def _declared_size(name: str, environment: Environment, rows: pd.DataFrame, *, size_px: int) -> Found:
    geometry = environment.geometry
    if (smallest_px := geometry.smallest_px) is None:
        return
    in_mm = f" ({geometry.min_defect_mm:g} mm)" if geometry.min_defect_mm else ""
    width, height = (int(rows[column].median()) for column in ("width_px", "height_px"))
    at_input = smallest_px * max(scale(width, height, geometry=geometry, size_px=size_px))
    if at_input < MIN_DEFECT_PX:
        yield (
            "error",
            "small_defects",
            f"environment {name}: the smallest defect to be found, {smallest_px:g} px{in_mm} in a frame of "
            f"{width} x {height}, is {at_input:.1f} px at the model's {size_px} px input with fit: {geometry.fit}; "
            f"{MIN_DEFECT_PX:.0f} px are needed",
            _tiles_remedy(geometry, smallest_px=smallest_px, size_px=size_px),
        )


def _located_sizes(name: str, environment: Environment, rows: pd.DataFrame, *, size_px: int) -> Found:
    level: Level = "warning"
    words, smallest_px = [], np.inf
    for defect, group in rows.groupby("class", sort=True):
        in_frame, at_input = _box_sizes(group, geometry=environment.geometry, size_px=size_px)
        num_small = int((at_input < MIN_DEFECT_PX).sum())
        if not num_small:
            continue
        if num_small > MAX_SMALL_SHARE * len(group) and (num_small > 1 or len(group) == 1):
            level = "error"
        words.append(
            f"{num_small} of {len(group)} of class {defect!r} "
            f"(median {np.median(in_frame):.0f} px in the frame, {np.median(at_input):.1f} px at the input)"
        )
        smallest_px = min(smallest_px, float(np.quantile(in_frame, 0.05)))
    if words:
        width, height = (int(rows[column].median()) for column in ("width_px", "height_px"))
        yield (
            level,
            "small_defects",
            f"environment {name}, frames of {width} x {height}: located defects are under {MIN_DEFECT_PX:.0f} px at "
            f"the model's {size_px} px input with fit: {environment.geometry.fit}: {'; '.join(words)}",
            _tiles_remedy(environment.geometry, smallest_px=smallest_px, size_px=size_px),
        )


def _small_beside_large(name: str, environment: Environment, rows: pd.DataFrame, *, size_px: int) -> Found:
    """Of frames with several boxes: a larger defect decides on them, but a part may have nothing but the small one."""
    if rows.empty:
        return
    sizes = functools.partial(_box_sizes, rows, geometry=environment.geometry, size_px=size_px)
    _, of_large = sizes()
    in_frame, at_input = sizes(column="smallest_box")
    is_small = (at_input < MIN_DEFECT_PX) & (of_large >= MIN_DEFECT_PX)
    if is_small.any():
        yield (
            "warning",
            "small_defects",
            f"environment {name}: {is_small.sum()} of {len(rows)} frames with several boxes have beside a larger one a "
            f"defect under {MIN_DEFECT_PX:.0f} px at the model's {size_px} px input with fit: "
            f"{environment.geometry.fit} (median {np.median(in_frame[is_small]):.0f} px in the frame, "
            f"{np.median(at_input[is_small]):.1f} px at the input): a part with nothing but such a one may pass",
            _tiles_remedy(environment.geometry, smallest_px=np.quantile(in_frame[is_small], 0.05), size_px=size_px),
        )


def _box_sizes(
    rows: pd.DataFrame, *, geometry: Geometry, size_px: int, column: str = "box"
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The longer side of each row's box, in pixels of the frame and of the model's input."""
    boxes = np.array([list(box)[:4] for box in rows[column]], dtype=np.float64)
    sides = boxes[:, 2:] - boxes[:, :2]
    frames = list(zip(rows["width_px"].tolist(), rows["height_px"].tolist(), strict=True))
    scales = {size: scale(*size, geometry=geometry, size_px=size_px) for size in set(frames)}
    return sides.max(axis=1), (sides * np.array([scales[size] for size in frames])).max(axis=1)


def _tiles_remedy(geometry: Geometry, *, smallest_px: float, size_px: int) -> str:
    tile = int(smallest_px * size_px / MIN_DEFECT_PX) // 8 * 8
    if tile < 16:
        return "Defects this small need a camera that sees them larger, or a trunk with a larger size_px"
    overlap = min(tile // 2, -(-int(smallest_px) // 8) * 8)
    change = "a smaller" if geometry.fit == "tiles" else "fit: tiles with"
    return f"Set {change} tile_px: {tile}, overlap_px: {overlap}"


# --- lots, duplicates and roles --------------------------------------------------------------------------------------


def _lots(rows: pd.DataFrame) -> Found:
    num_unknown = int((~rows["lot_known"].astype(bool)).sum())
    if not num_unknown:
        return
    which = (
        "no lot is known" if num_unknown == len(rows) else f"the lot of {num_unknown} of {len(rows)} images is unknown"
    )
    yield (
        "warning",
        "unknown_lots",
        f"{which}: each such image is its own lot, so images of one part or batch may lie on both sides of a split, "
        "and every figure is flattered",
        "Set lot_pattern or part_pattern, or add a column lot",
    )


def _duplicates(rows: pd.DataFrame) -> Found:
    copies = rows[rows["sha256"].duplicated(keep=False)]
    if not len(copies):
        return
    groups = copies.groupby("sha256", sort=True)
    if "role" in rows.columns:
        roles = groups["role"].nunique()
        for digest in roles.index[roles > 1]:
            same = copies[copies["sha256"] == digest]
            where = ", ".join(f"{f} in {r}" for f, r in zip(same["frame"], same["role"], strict=True))
            yield (
                "error",
                "straddling_duplicates",
                f"the same image lies on both sides of a split: {where}",
                "Remove the copies; their lots are recorded wrongly or overlap",
            )
    extra = len(copies) - copies["sha256"].nunique()
    yield "info", "duplicates", f"{extra} images are exact copies of others", "Remove the copies"


def _roles(rows: pd.DataFrame, *, shares: Shares) -> Found:
    if "role" not in rows.columns:
        yield "warning", "not_dealt", "the lots have no roles yet", "Run import"
        return
    num_lots = rows.groupby("role")["lot"].nunique().reindex(ROLES, fill_value=0)
    held = rows["role"].value_counts(normalize=True).reindex(ROLES, fill_value=0.0)
    words = ", ".join(
        f"{role} {held[role]:.1%} of {getattr(shares, role):.0%} ({num_lots[role]} lots)" for role in ROLES
    )
    how = "lot by lot" + (", oldest first" if shares.order == "time" else ", rarest class first")
    last = f", generations to {rows['generation'].max()}" if "generation" in rows.columns else ""
    detail = f"realised of declared shares of {len(rows)} images, dealt {how}{last}: {words}"
    yield "info", "shares", detail, "None; for the record"
    few = [f"{role} ({num_lots[role]})" for role in ROLES if num_lots[role] < MIN_LOTS]
    if few:
        yield (
            "warning",
            "few_lots",
            f"not enough lots for an interval (under {MIN_LOTS}) in: {', '.join(few)}",
            "Import more lots; until then thresholds are chosen out of fold by lot and figures lack intervals",
        )
    off = [role for role in ROLES if abs(held[role] - getattr(shares, role)) > MAX_SHARE_ERROR]
    if off:
        yield (
            "warning",
            "shares_off",
            f"far from their declared share: {', '.join(off)}; lots are few or of very different size",
            "Import more lots; a lot never moves",
        )


def _shortcuts(rows: pd.DataFrame) -> Found:
    for one in shortcuts(rows):
        yield (
            "warning",
            "shortcut",
            f"{one.column} alone goes {one.strength:.0%} of the way from guessing {one.what} to knowing it "
            f"({one.words}): "
            "a model may learn it instead of the defect",
            "Take images of every class under every value, or say why the two belong together",
        )
    named, known = class_in_path(rows)
    if named >= PATHS_TELL * max(known, 1):
        yield (
            "info",
            "paths_tell_class",
            f"the path of {named} of {known} frames names their class, so the paths of the sealed test may tell its "
            "answers: the seal keeps honest people honest, and no others",
            "Where it must hold against people: a table with neutral file names, and sealed/ under its own credentials",
        )


def _returned(rows: pd.DataFrame) -> Found:
    back = rows[rows["source"].astype(str).str.strip().str.lower() == RETURN].drop_duplicates("part_id")
    if len(back):
        known = ", ".join(f"{name!r} ({n})" for name, n in back["class"].value_counts().items())
        yield (
            "info",
            "returned",
            f"{len(back)} parts came back from customers, the only direct count of escapes; they are: "
            f"{known or 'sealed'}",
            "Weigh `costs.miss` against what they cost; they are learned from, and no defect rate is told from them",
        )


def _sisters(plant: Plant, *, fleet: Fleet) -> Found:
    if len(fleet.plants) > 1 and not fleet.sisters(plant):
        yield (
            "info",
            "no_sister",
            "shares no defect class with any other plant: there is nothing to pool or to warm-start from",
            "Map its classes to the fleet's where they mean the same",
        )
