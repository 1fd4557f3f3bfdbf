"""Where a part's defect is: evidence over the one view that speaks loudest, for parts that do not pass.

Parts that pass cost nothing. The view goes through its branch once more, also through the trunk where a part had many
views or the map is coarse, and the bundle's small file of evidence turns what is pooled there into a map for each
leaf; see `jobs.evidence`. A verdict never fails for want of a map: why
there is none is said instead.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from plants.bundle import MAP, PlantView
from plants.heatmaps import Heat, heat
from plants.plant import is_ok
from serving.ensemble import Ensemble
from serving.heads import Slot
from serving.intake import Frame
from serving.schemas import Location
from serving.scoring import Floats, Model, Scored, Scorer, Trunk, output

log = logging.getLogger("crossplant.serving")

COARSE = 7
"""A map of fewer rows is taken from four views: the embedded backbone's has four, of a ResNet at 224 px seven."""

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Found:
    """Where to look, and the map that says so."""

    location: Location | None = None
    heat: Heat | None = None
    problem: str | None = None
    """Why there is no map."""


class Part(Protocol):
    """What is needed of `serving.predictor.Prepared`."""

    @property
    def environment(self) -> str:
        """Where its frames were taken."""

    @property
    def pixels(self) -> Pixels:
        """Views of all frames, [N, S, S, 3]."""

    @property
    def boxes(self) -> npt.NDArray[np.int32]:
        """Of the views in their frames, [N, 4]."""

    @property
    def owner(self) -> npt.NDArray[np.int64]:
        """The frame of each view, [N]."""

    @property
    def frames(self) -> tuple[Frame, ...]:
        """As they came."""


class NoMap(Exception):
    """There is no map, for this reason."""


def find(scorer: Scorer, part: Part, *, view: PlantView, scored: Scored, row: int, defect: str | None) -> Found:
    """Where the part's loudest view, in this row, shows the defect, or what is least ok where none is named.

    Without a map it is the tile, where the frame was cut into tiles.
    """
    at, geometry = int(part.owner[row]), view.environments[part.environment].geometry
    try:
        if not part.frames[at].data:
            raise NoMap("there is no frame")
        wanted = Wanted(view, defect)
        found = heat(
            evidence(scorer, part.pixels[row : row + 1], said=scored.rows(row, row + 1), wanted=wanted),
            data=part.frames[at].data,
            frame=at,
            view=row - int(np.searchsorted(part.owner, at)),
            geometry=geometry,
            size_px=scorer.trunk.size_px,
        )
        if (box := found.box) is not None:
            return Found(Location(frame=at, box=box, found_by="map"), found)
        problem = "no place speaks more for it than another"
    except NoMap as reason:
        problem = str(reason)
    except Exception as error:  # a part that is rejected must not fail for want of a picture
        log.warning("no map (%s: %s)", type(error).__name__, " ".join(str(error).split())[:200])
        problem = "the map could not be computed, see the replica's log"
    if geometry.fit != "tiles":
        return Found(problem=problem)
    x0, y0, x1, y1 = part.boxes[row].tolist()
    return Found(Location(frame=at, box=(x0, y0, x1, y1), found_by="tile"), problem=problem)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a map is to show: a defect of the plant, or what is least ok."""

    view: PlantView
    defect: str | None

    def sides(self, names: Sequence[str], probs: Floats) -> Floats | None:
        """How much the map of each of these leaves counts [L], given their probabilities; None where none is meant.

        What is meant counts for, what is good against: a class is told from good parts by its defect, from other
        classes by much else. Where no leaf is good all others count against.
        """
        good = np.array([is_ok(name) for name in names], dtype=bool)
        if self.defect is not None:
            meant = np.isin(names, self.view.leaf_sets[self.defect])
        else:
            meant = ~good if good.any() and not good.all() else np.arange(len(names)) == int(np.argmax(probs))
        against = good & ~meant if (good & ~meant).any() else ~meant
        sides: Floats = _shares(probs, meant) - _shares(probs, against)
        return sides if meant.any() else None


def _shares(probs: Floats, which: Mask) -> Floats:
    """Each one's share of the probability of those [L], 0 of the others."""
    mass = np.where(which, np.asarray(probs, np.float64) + 1e-9, 0.0)
    return np.asarray(mass / max(mass.sum(), 1e-12), dtype=np.float32)


def evidence(scorer: Scorer, pixels: Pixels, *, said: Scored, wanted: Wanted) -> Floats:
    """What speaks for what is wanted over one view [1, S, S, 3]: a map [h, w] in logits.

    said: of this view. Of an ensemble the members' maps are added by their weights, of those that have one. Coarse maps
    are taken from four views, a quarter of a cell off, which gives them twice as many rows and columns. Raises NoMap
    where there is none.
    """
    members = scorer.members if isinstance(scorer, Ensemble) else (scorer,)
    each = [said.probabilities[0]] if said.members is None else list(said.members[0])
    at, able = {name: i for i, name in enumerate(scorer.leaves)}, []
    for model, probs, weight in zip(members, each, scorer.weights, strict=True):
        if isinstance(model, Model) and model.gives_map:
            sides = wanted.sides(model.leaves, probs[[at[name] for name in model.leaves]])
            able += [] if sides is None else [(model, weight * sides)]
    if not able:
        raise NoMap("the bundle gives no map: its backbone has none, or it was exported before there were maps")
    side = _side(able[0][0])
    views = shifted(pixels[0], by=round(pixels.shape[1] / side / 4)) if side < COARSE else pixels
    return interleaved(
        _added(able, _outputs(scorer.trunk, able, views, kept=said.outputs if views is pixels else None))
    )


def shifted(view: Pixels, *, by: int) -> Pixels:
    """The view [S, S, 3] moved by so many pixels to all four corners, mirrored at its borders, [4, S, S, 3]."""
    size, wide = len(view), np.pad(view, ((by, by), (by, by), (0, 0)), mode="symmetric")
    return np.stack([wide[y : y + size, x : x + size] for y in (0, 2 * by) for x in (0, 2 * by)])


def interleaved(maps: Floats) -> Floats:
    """One map of those [N, h, w] of `shifted` views, [2 h, 2 w]; the only one as it is."""
    if len(maps) == 1:
        only: Floats = maps[0]
        return only
    _, high, wide = maps.shape
    found: Floats = maps.reshape(2, 2, high, wide).transpose(2, 0, 3, 1).reshape(2 * high, 2 * wide)
    return found


def _outputs(
    trunk: Trunk, able: Sequence[tuple[Model, Floats]], views: Pixels, *, kept: Mapping[int, Floats] | None
) -> Mapping[int, Floats]:
    """What the members' maps are made of: what was kept of the verdict, or of another pass."""
    cuts = {model.evidence_cut for model, _ in able}
    if kept is not None and cuts <= kept.keys():
        return kept
    wanted = sorted(cuts)
    return dict(zip(wanted, trunk.session.run([output(cut) for cut in wanted], {"images": views}), strict=True))


def _added(able: Sequence[tuple[Model, Floats]], outputs: Mapping[int, Floats]) -> Floats:
    """The members' maps of every view as one, [N, h, w]."""
    found = [np.einsum("l,nlhw->nhw", sides, _maps(model, outputs[model.evidence_cut])) for model, sides in able]
    return np.asarray(np.sum(found, axis=0), dtype=np.float32)


_SIDES: weakref.WeakKeyDictionary[Model, int] = weakref.WeakKeyDictionary()


def _side(model: Model) -> int:
    """Rows of the model's map; asked once."""
    if model not in _SIDES:
        blank = np.zeros((1, model.trunk.size_px, model.trunk.size_px, 3), dtype=np.uint8)
        source = model.trunk.session.run([output(model.evidence_cut)], {"images": blank})[0]
        _SIDES[model] = _maps(model, source).shape[2]
    return _SIDES[model]


def _maps(model: Model, source: Floats) -> Floats:
    """A map for each leaf, [N, L, h, w]."""
    assert model.evidence is not None
    if not isinstance(model.branch, Slot) and model.manifest.cut:
        (source,) = model.branch.run([MAP], {"activation": source})
    (found,) = model.evidence.run(["evidence"], {MAP: source})
    return np.asarray(found, dtype=np.float32)
