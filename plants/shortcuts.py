"""Metadata that predicts the class: a model may learn the camera, the file or the annotator instead of the defect.

Each column is judged alone, by a small tree on lots it has not seen. Not every shortcut is a fault: a product may truly
have defects of its own. It is named so that somebody says which.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from plants.tables import OTHER

COLUMNS = (
    *("environment", "product", "pose", "annotator", "source", "width_px", "height_px"),
    *("day", "hour"),  # of `captured_at`
    *("suffix", "folder", "number"),  # of the frame's path
)
"""Besides those of the customer's own. Not `sample_prob`: parts are sampled by what the line said of them, so it tells
the class by design.
"""
MIN_ROWS = 30
MIN_LOTS = 10
NUM_FOLDS = 5
MANY_VALUES = 16
"""Numbers of more values are told of by the tenth."""
MIN_LEAF, MAX_WORDS = 3, 128
"""Rows of a value, and most frequent values, that a tree may split by."""
NOTABLE = 0.3
"""Share of the way from guessing to certainty that a column alone must go to be named."""
NOTABLE_OF_ONE, MIN_OF_ONE = 0.5, 20
"""The same for a single class against all others, of at least so many rows: there are many classes to be lucky with."""
ERRORS_OF_OWN = 3
"""Standard errors that a column of the customer's own must go as well: there may be many to be lucky with."""

ALL = "the class"
EPOCH = pd.Timestamp(0, tz="UTC")

Folds = list[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]]


class Shortcut(NamedTuple):
    """A column that tells the class."""

    column: str
    strength: float
    """0: no better than guessing. 1: it tells every class. Balanced over classes, on lots that were not seen."""
    what: str
    """What is told: the class, or which frames are of one."""
    words: str
    """The value that tells most, and what it tells."""


def shortcuts(rows: pd.DataFrame) -> list[Shortcut]:
    """The columns of label rows that predict their class, strongest first. Rows without a class are left out."""
    known = rows[rows["class"].notna()]
    counts = known["class"].value_counts()
    known = known[known["class"].isin(counts.index[counts >= NUM_FOLDS])]
    if known["class"].nunique() < 2 or len(known) < MIN_ROWS or known["lot"].nunique() < MIN_LOTS:
        return []
    truth = known["class"].to_numpy(dtype=object)
    folds = _folds(truth, lots=known["lot"].to_numpy())
    found = []
    for name in (*COLUMNS, *(name for name in rows.columns if name.startswith(OTHER))):
        column = _column(known, name)
        if column is not None and column.nunique(dropna=False) > 1:
            strength, of_one = _strength(column, truth=truth, folds=folds)
            notable = NOTABLE if of_one is None else NOTABLE_OF_ONE
            if name.startswith(OTHER):
                notable = max(notable, ERRORS_OF_OWN * _standard_error(known, of_one=of_one))
            if strength >= notable:
                what = ALL if of_one is None else f"which frames are {of_one!r}"
                words = _told(column, known["class"], show=_shown(known, name))
                found.append(Shortcut(name.removeprefix(OTHER), round(strength, 3), what, words))
    return sorted(found, key=lambda one: -one.strength)


def class_in_path(rows: pd.DataFrame) -> tuple[int, int]:
    """How many frames with a class have a folder or a file name that is that class, but for digits, and of how many."""
    known = rows[rows["class"].notna()]
    pairs = zip(known["frame"].astype(str), known["class"].astype(str), strict=True)
    return sum(_word(name) in {_word(part) for part in _parts(path)} for path, name in pairs), len(known)


def _parts(path: str) -> list[str]:
    """Folders and the file's name without its ending."""
    *folders, file = path.split("/")
    return [*folders, file.rpartition(".")[0]]


def _word(text: str) -> str:
    """What is the same in `Scratch 12` and `scratch_12-3`; a text without letters stays as it is."""
    composed = unicodedata.normalize("NFC", text).casefold()
    return "".join(letter for letter in composed if letter.isalpha()) or composed


def _folders(rows: pd.DataFrame) -> pd.Series:
    """Where each frame lies, but for folders that are a class: those are how it was labelled."""
    classes = {_word(name) for name in rows["class"].astype(str).unique()}
    kept = [
        "/".join(folder for folder in _parts(path)[:-1] if _word(folder) not in classes)
        for path in rows["frame"].astype(str)
    ]
    return pd.Series(kept, index=rows.index, dtype=object).replace("", "no folder")


def _numbers(rows: pd.DataFrame) -> list[int]:
    """The longest number in each file's name, the last of equals; -1 where there is none."""
    found = [re.findall(r"[0-9]+", _parts(path)[-1]) for path in rows["frame"].astype(str)]
    return [int(max(reversed(numbers), key=len)) if numbers else -1 for numbers in found]


def _column(rows: pd.DataFrame, name: str) -> pd.Series | None:
    if name == "suffix":
        return rows["frame"].str.rpartition(".")[2].str.lower()
    if name == "folder":
        return _folders(rows)
    if name == "number":
        return pd.Series(np.unique(np.array(_numbers(rows), dtype=object), return_inverse=True)[1], index=rows.index)
    if name in ("day", "hour"):
        if "captured_at" not in rows or rows["captured_at"].isna().all():
            return None
        at = pd.to_datetime(rows["captured_at"], utc=True)
        return (at - EPOCH).dt.days if name == "day" else at.dt.hour
    if name.startswith(OTHER) and (read := _as_numbers(rows[name])) is not None:
        return read.rank(method="dense") - 1
    return rows.get(name)


def _as_numbers(texts: pd.Series) -> pd.Series | None:
    """The numbers that stand in a column, None where a cell is none."""
    read = pd.to_numeric(texts, errors="coerce")
    is_all = (np.isfinite(read) | texts.isna()).all()
    return read if is_all else None


def _folds(truth: npt.NDArray[np.object_], *, lots: npt.NDArray[np.object_]) -> Folds:
    """Rows to fit and rows to judge, lots whole; the same for every column."""
    from sklearn.model_selection import StratifiedGroupKFold

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class of fewer lots than folds
        return list(StratifiedGroupKFold(NUM_FOLDS, shuffle=True, random_state=0).split(truth, truth, lots))


def _strength(column: pd.Series, *, truth: npt.NDArray[np.object_], folds: Folds) -> tuple[float, str | None]:
    """How far the column goes, and towards which class: None is all of them, else the one told best, if notable."""
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import cross_val_predict
    from sklearn.tree import DecisionTreeClassifier

    tree = DecisionTreeClassifier(max_leaf_nodes=16, min_samples_leaf=MIN_LEAF, class_weight="balanced", random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class of a single lot is missing from a fold
        said = cross_val_predict(tree, _coded(column), truth, cv=folds)
        score = float(balanced_accuracy_score(truth, said))
    names, counts = np.unique(truth.astype(str), return_counts=True)
    strength = (score - 1 / len(names)) / (1 - 1 / len(names))
    if strength >= NOTABLE:
        return strength, None
    of_one = {
        name: float((said[truth == name] == name).mean() - (said[truth != name] == name).mean())
        for name, n in zip(names.tolist(), counts, strict=True)
        if n >= MIN_OF_ONE
    }
    best = max(of_one, key=of_one.__getitem__, default=None)
    return (of_one[best], best) if best is not None and of_one[best] >= NOTABLE_OF_ONE else (strength, None)


def _standard_error(rows: pd.DataFrame, *, of_one: str | None) -> float:
    """Of the strength of a column that tells nothing, each lot of a class counted once: recalls are binomial."""
    asked = rows["class"] if of_one is None else rows["class"] == of_one
    num_lots = rows["lot"].groupby(asked).nunique()
    return float(np.sqrt((1 / num_lots).sum() / (len(num_lots) - 1)) / len(num_lots))


def _coded(column: pd.Series) -> npt.NDArray[np.float64]:
    """One column [N, 1]: numbers as they are, words one column each [N, V]."""
    if pd.api.types.is_numeric_dtype(column):
        return column.to_numpy(dtype=np.float64, na_value=-1.0)[:, None]
    words = column.fillna("")
    counts = words.value_counts()
    frequent = counts.index[counts >= MIN_LEAF][:MAX_WORDS]
    return np.asarray(pd.get_dummies(words.where(words.isin(frequent)), dummy_na=True), dtype=np.float64)


def _shown(rows: pd.DataFrame, name: str) -> Callable[[float], str]:
    """How a value of the column is written; numbers may stand there by their rank, as a tree takes no long ones."""
    if name == "number":
        by_rank = sorted(set(_numbers(rows)))
        return lambda rank: str(by_rank[int(rank)])
    if name == "day":
        return lambda days: str((EPOCH + pd.Timedelta(days=days)).date())
    if name.startswith(OTHER) and (read := _as_numbers(rows[name])) is not None:
        in_order = np.sort(read.dropna().unique())
        return lambda rank: f"{in_order[int(rank)]:.15g}"
    return "{:.12g}".format


def _told(column: pd.Series, classes: pd.Series, *, show: Callable[[float], str]) -> str:
    """The frequent value, or tenth of many numbers, whose rows are most of one class."""
    named = column.fillna("missing")
    if pd.api.types.is_numeric_dtype(column):
        tenths = column if column.nunique() <= MANY_VALUES else pd.qcut(column.rank(method="first"), 10, labels=False)
        ends = column.groupby(tenths).agg(["min", "max"])
        spans = {at: " to ".join(dict.fromkeys(map(show, pair))) for at, *pair in ends.itertuples()}
        named = tenths.map(spans).fillna("missing")
    table = pd.crosstab(named, classes)
    table = table[table.sum(axis=1) >= min(NUM_FOLDS, table.sum(axis=1).max())]
    share = table.max(axis=1) / table.sum(axis=1)
    value = share.idxmax()
    return f"{table.loc[value].max()} of {table.loc[value].sum()} with {value} are {table.loc[value].idxmax()!r}"
