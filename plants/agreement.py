"""Do people agree on what they see: the annotators of a plant, and plants on a golden set that circulates.

The labels themselves hold one row a frame, so agreement has a table of its own, `golden` in the fleet file: `frame`,
`class` and `annotator`, a row for each judgement, and `sha256` where the frame is not among the plant's labels. It is
read by the audit alone; nothing is learned from it. Plants are compared where they judged the same picture (the same
bytes), in the fleet's classes. Answers about frames of a sealed test are left out.

Cohen's kappa of every pair who judged the same images, averaged by how many those were; with more than two annotators
of the same images that is Light's (Psychological Bulletin 76, 1971).
"""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pandas as pd

from plants.cells import is_blank
from plants.errors import InputError, ManyInputErrors
from plants.findings import Finding, Level
from plants.plant import Fleet, Plant
from plants.stats import Interval, bootstrap, never_seen
from plants.tables import Files, raw_rows

MIN_KAPPA = 0.6
"""Below it, agreement is moderate at best. Source: Landis and Koch, Biometrics 33, 1977."""
NUM_NAMED = 3
COLUMNS = ("image", "frame", "lot", "class", "annotator")

Codes = npt.NDArray[np.intp]
Floats = npt.NDArray[np.float64]
Pairs = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Golden:
    """What a plant's annotators said about the same images."""

    plant: Plant
    judgements: pd.DataFrame
    """One row each: `image` (its SHA-256), `frame`, `lot`, `class`, `annotator`."""
    num_sealed: int
    """Judgements of sealed test frames, left out."""


@dataclass(frozen=True)
class Agreement:
    """Kappa over all classes, and of each class against all others."""

    num_images: int
    overall: float | None
    interval: Interval | None
    by_class: dict[str, tuple[float | None, Interval | None]]

    @property
    def is_poor(self) -> bool:
        """Whether kappa is too low, over all classes or of any."""
        every = [self.overall, *(value for value, _ in self.by_class.values())]
        return any(value is not None and value < MIN_KAPPA for value in every)


def read_golden(plant: Plant, *, files: Files, rows: pd.DataFrame, sealed: Collection[str]) -> Golden:
    """The plant's golden table; rows: its label rows. sealed: SHA-256 of every sealed test frame of the fleet.

    Raises InputError with every fault at once: a table that cannot be read, an unknown frame or class, no annotator.
    """
    address = str(plant.golden)
    try:
        raw = raw_rows(plant.model_copy(update={"labels": address}), listed={}, files=files).table
    except InputError as error:
        remedy = "Correct `golden` in the fleet file: a table with the columns frame, class and annotator"
        raise InputError(error.detail, plant=plant.name, file=address, field="golden", remedy=remedy) from None
    known = rows.drop_duplicates("frame").set_index("frame")
    declared = {unicodedata.normalize("NFC", name): name for name in plant.classes}
    judgements, faults = [], []
    for record in raw.to_dict("records"):
        cells = {str(key): str(value) for key, value in record.items() if not is_blank(value)}
        frame, word, who = cells.get("frame", ""), cells.get("class"), cells.get("annotator")
        image = cells.get("sha256") or (str(known.at[frame, "sha256"]) if frame in known.index else None)
        lot = str(known.at[frame, "lot"]) if frame in known.index else image
        fault = None
        name = declared.get(unicodedata.normalize("NFC", word or ""))
        if name is None:
            fault = f"unknown class {word!r}; known: {', '.join(plant.classes)}"
        elif not who:
            fault = "the row names no annotator"
        elif not image:
            fault = "is not among the plant's labels; add its sha256"
        if fault:
            faults.append(f"plant {plant.name}: file {address}: field golden: frame {frame}: {fault}")
        judgements.append((image, frame, lot, name, who))
    table = pd.DataFrame(judgements, columns=list(COLUMNS))
    for row in table[table.duplicated(["image", "frame", "annotator"])].itertuples():
        faults.append(f"plant {plant.name}: file {address}: field golden: {row.annotator} judges {row.frame} twice")
    words = table.groupby(["image", "annotator"])["class"].transform("nunique")
    for (_, rater), rows in table[words > 1].groupby(["image", "annotator"]):
        if rows["frame"].nunique() > 1:
            frames = ", ".join(rows["frame"].unique())
            what = f"{rater} judges the same picture differently under the names {frames}"
            faults.append(f"plant {plant.name}: file {address}: field golden: {what}")
    if faults:
        raise ManyInputErrors(faults)
    table = table.drop_duplicates(["image", "annotator"])  # under several names, judged alike: once
    is_sealed = table["image"].isin(list(sealed))
    return Golden(plant, table[~is_sealed].reset_index(drop=True), int(is_sealed.sum()))


def kappa(codes: Codes, *, pairs: Pairs) -> float:
    """Kappa of codes [N, R], -1 where a rater said nothing, over these pairs of raters; NaN where it is undefined."""
    from sklearn.metrics import cohen_kappa_score

    values, sums = [], []
    for a, b in pairs:
        both = (codes[:, a] >= 0) & (codes[:, b] >= 0)
        if both.any():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # undefined where both always say the same one class
                values.append(cohen_kappa_score(codes[both, a], codes[both, b]))
            sums.append(both.sum())
    return float(np.average(values, weights=sums)) if values else float("nan")


def drawn_kappa(codes: Codes, *, pairs: Pairs, weights: Floats) -> Floats:
    """`kappa` for many weightings [B, N] of the images at once [B]: one at a time, 1,200 took 2.4 s."""
    num, total, count = int(codes.max()) + 1, np.zeros(len(weights)), np.zeros(len(weights))
    for a, b in pairs:
        both = (codes[:, a] >= 0) & (codes[:, b] >= 0)
        cells = np.eye(num * num)[codes[both, a] * num + codes[both, b]]
        tables = (weights[:, both] @ cells).reshape(-1, num, num)
        of = tables.sum(axis=(1, 2))
        seen = np.trace(tables, axis1=1, axis2=2) * of
        by_chance = (tables.sum(axis=1) * tables.sum(axis=2)).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            value = (seen - by_chance) / (of**2 - by_chance)
        total += np.where(of > 0, of * value, 0)
        count += of
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(total / count)


def agreement(
    codes: Codes, *, pairs: Pairs, lots: npt.NDArray[np.object_], names: Sequence[str], seed: int
) -> Agreement:
    """How far raters agree; codes [N, R] index `names`, -1 where a rater said nothing; lots [N]."""
    judged = np.zeros(len(codes), dtype=np.bool_)
    for a, b in pairs:
        judged |= (codes[:, a] >= 0) & (codes[:, b] >= 0)
    codes, lots = codes[judged], lots[judged]
    overall, interval = _with_interval(codes, pairs=pairs, lots=lots, seed=seed)
    by_class = {
        name: _with_interval(np.where(codes < 0, -1, codes == k), pairs=pairs, lots=lots, seed=seed)
        for k, name in enumerate(names)
        if (codes == k).any()
    }
    return Agreement(len(codes), overall, interval, by_class)


def _with_interval(
    codes: Codes, *, pairs: Pairs, lots: npt.NDArray[np.object_], seed: int
) -> tuple[float | None, Interval | None]:
    value = kappa(codes, pairs=pairs)
    if not np.isfinite(value):
        return None, None

    found = bootstrap(lots, lambda weights: drawn_kappa(codes, pairs=pairs, weights=weights), seed=seed)
    if found is None:
        return value, None
    low = found.low
    if value == 1:  # no draw disagrees where nobody does, but so few lots show only that it is rare
        shares = np.bincount(codes[codes >= 0]) / (codes >= 0).sum()
        low = 1 - never_seen(len(set(lots))) / (1 - float(shares @ shares))
    return value, Interval(max(low, -1.0), min(found.high, 1.0), found.level)


# --- findings --------------------------------------------------------------------------------------------------------


def agreement_findings(fleet: Fleet, golden: Mapping[str, Golden], *, names: Sequence[str]) -> list[Finding]:
    """What the golden sets of these plants say, within each plant and between them; `golden` holds those that exist."""
    found = []
    for name in names:
        if name in golden:
            found += _within(golden[name], seed=fleet.seed)
        else:
            detail = "no golden set is named: nobody can tell how far its annotators agree, or models could"
            remedy = "Let two people label the same hundred images, and name the table as `golden`"
            found.append(Finding("info", "agreement_unknown", name, detail, remedy))
    here = [golden[name] for name in names if name in golden]
    return found + [f for a, b in combinations(here, 2) for f in _between(a, b, seed=fleet.seed)]


def _within(golden: Golden, *, seed: int) -> list[Finding]:
    raters = sorted(set(golden.judgements["annotator"]))
    found = _agreement(golden.judgements, raters=raters, pairs=list(combinations(range(len(raters)), 2)), seed=seed)
    if not found.num_images:
        detail = f"no image of the golden set was judged by two annotators{_sealed(golden)}"
        remedy = "Let two people judge the same images, outside the sealed test"
        return [Finding("warning", "agreement_unknown", golden.plant.name, detail, remedy)]
    detail = f"{len(raters)} annotators ({', '.join(raters)}) on {_said(found)}{_differing(golden.judgements)}"
    return [_finding(found, who="annotators", plant=golden.plant.name, detail=detail + _sealed(golden))]


def _between(a: Golden, b: Golden, *, seed: int) -> list[Finding]:
    """How two plants agree in the fleet's classes on the pictures that both judged; nothing where there are none."""
    both = pd.concat(
        one.judgements.assign(
            annotator=one.plant.name + ":" + one.judgements["annotator"],
            **{"class": [one.plant.classes[word].fleet for word in one.judgements["class"]]},
        )
        for one in (a, b)
    )
    raters = sorted(set(both["annotator"]))
    pairs = [(i, j) for i, j in combinations(range(len(raters)), 2) if _plant(raters[i]) != _plant(raters[j])]
    found = _agreement(both, raters=raters, pairs=pairs, seed=seed)
    if not found.num_images:
        return []
    detail = f"with plant {b.plant.name}, in the fleet's classes, on {_said(found)}{_differing(both)}"
    return [_finding(found, who="plants", plant=a.plant.name, detail=detail)]


def _plant(rater: str) -> str:
    return rater.partition(":")[0]


def _agreement(judgements: pd.DataFrame, *, raters: Sequence[str], pairs: Pairs, seed: int) -> Agreement:
    if judgements.empty:
        return Agreement(0, None, None, {})
    names = sorted(set(judgements["class"]))
    wide = judgements.pivot(index="image", columns="annotator", values="class").reindex(columns=list(raters))
    codes = np.stack([pd.Categorical(wide[rater], categories=names).codes for rater in raters], axis=1)
    lots = judgements.drop_duplicates("image").set_index("image")["lot"].reindex(wide.index).to_numpy(dtype=object)
    return agreement(codes.astype(np.intp), pairs=pairs, lots=lots, names=names, seed=seed)


def _finding(found: Agreement, *, who: str, plant: str, detail: str) -> Finding:
    level: Level = "warning" if found.is_poor else "info"
    kind = f"{who}_disagree" if found.is_poor else f"{who}_agree"
    remedy = "Look at these images together and write down what tells the classes apart" if found.is_poor else "None"
    return Finding(level, kind, plant, detail, remedy)


def _said(found: Agreement) -> str:
    by_class = ", ".join(f"{name!r} {_number(*one)}" for name, one in found.by_class.items())
    return f"{found.num_images} images: kappa {_number(found.overall, found.interval)}; by class: {by_class}"


def _number(value: float | None, interval: Interval | None) -> str:
    if value is None:
        return "undefined, as nobody names another class"
    return f"{value:.2f} ({f'{interval.low:.2f} to {interval.high:.2f}' if interval else 'not enough lots'})"


def _differing(judgements: pd.DataFrame) -> str:
    """How many images people differ on, and the first of them."""
    apart = judgements[judgements.groupby("image")["class"].transform("nunique") > 1]
    if apart.empty:
        return ""
    first = []
    for _, group in list(apart.groupby("image", sort=False))[:NUM_NAMED]:
        said = ", ".join(f"{who} {word!r}" for who, word in zip(group["annotator"], group["class"], strict=True))
        first.append(f"{group['frame'].iloc[0]} ({said})")
    return f"; they differ on {apart['image'].nunique()}, first {'; '.join(first)}"


def _sealed(golden: Golden) -> str:
    return f"; {golden.num_sealed} judgements of sealed test frames are left out" if golden.num_sealed else ""
