"""How grave a defect is, 0 to 1 as a plant's people label it: an affine map of a view's pooled features.

Fitted by ridge regression after everything else, so that it cannot harm what tells classes apart. It is asked only
about parts that do not pass, and served only where it was shown to be nearer to the labels than the trivial answer, the
median severity of the class that the model names.
"""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from plants.errors import InputError
from plants.normality import Place
from plants.stats import Lots, bootstrap, paired_bootstrap

Floats = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]

STRENGTHS = (10.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""L2 on standardised features, of which the best out of fold is taken."""
FEWEST = 40
"""Views with a labelled severity below which none is fitted."""
NUM_FOLDS = 5


@dataclass(frozen=True, eq=False)
class SeverityHead:
    """severity = features @ weight + bias, held within 0 and 1; weight float32 [F]."""

    weight: Floats
    bias: float
    plants: frozenset[str] = frozenset()
    """Where it was shown to be worth asking."""

    @classmethod
    def fit(
        cls, features: npt.NDArray[np.floating], severities: Wide, *, lots: npt.NDArray[Any], weights: Wide
    ) -> SeverityHead:
        """The head of the lowest absolute error out of fold, by lot, on these views [N, F] with their labels [N].

        weights [N]: how much each view counts, at mean 1. Labels that are missing (NaN) teach nothing. Raises
        InputError where fewer than `FEWEST` are left, and for broken features.
        """
        known = np.isfinite(severities)
        if known.sum() < FEWEST:
            raise InputError(f"severity needs {FEWEST} labelled views, there are {int(known.sum())}")
        wide, truth, share = np.asarray(features, dtype=np.float64)[known], severities[known], weights[known]
        if not np.isfinite(wide).all():
            raise InputError("features of labelled defects hold values that are not numbers")
        fold = np.unique(np.asarray(lots, dtype=object)[known].astype(str), return_inverse=True)[1] % NUM_FOLDS
        errors = np.zeros(len(STRENGTHS))
        for k in np.unique(fold) if len(np.unique(fold)) > 1 else ():
            at = fold == k
            path, bias = _ridge(wide[~at], truth[~at], share[~at])
            said = np.clip(wide[at] @ path.T + bias, 0, 1)
            errors += share[at] @ np.abs(said - truth[at][:, None])
        best = int(np.argmin(errors))
        path, bias = _ridge(wide, truth, share)
        return cls(path[best].astype(np.float32), float(bias[best]))

    def of(self, features: npt.NDArray[np.floating]) -> Floats:
        """Severities [N] of features [N, F], 0 to 1; NaN for broken features."""
        found: Floats = np.clip(features @ self.weight + np.float32(self.bias), 0, 1).astype(np.float32)
        return found

    def at(self, features: npt.NDArray[np.floating], places: Sequence[Place]) -> Floats:
        """As `of`, each view taken at its place; NaN at a plant where it is not worth asking."""
        is_known = np.fromiter((plant in self.plants for plant, _ in places), dtype=bool, count=len(places))
        return np.where(is_known, self.of(features), np.float32(np.nan))

    def serving(self, plants: Collection[str]) -> SeverityHead:
        """The same for these plants."""
        return SeverityHead(self.weight, self.bias, frozenset(plants))

    def save(self, path: str | Path) -> None:
        """The file at `path` holds the head, as arrays only; equal heads give equal bytes."""
        with Path(path).open("wb") as file:
            np.savez(file, weight=self.weight, bias=np.float64(self.bias), plants=np.array(sorted(self.plants), str))

    @classmethod
    def load(cls, path: str | Path) -> SeverityHead:
        """What `save` wrote. Raises InputError for anything else."""
        try:
            with np.load(path, allow_pickle=False) as found:
                weight, bias = np.asarray(found["weight"], np.float32), float(found["bias"])
                plants = frozenset(found["plants"].tolist())
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            raise InputError("holds no severity head", file=str(path), remedy="Fetch the bundle again") from None
        if weight.ndim != 1 or not np.isfinite(weight).all() or not np.isfinite(bias):
            raise InputError("holds no severity head", file=str(path), remedy="Fetch the bundle again")
        return cls(weight, bias, plants)


def _ridge(features: Wide, truth: Wide, weights: Wide) -> tuple[Wide, Wide]:
    """Weights [S, F] and biases [S] of every strength, on features [N, F] standardised by these rows."""
    weights = weights / weights.sum()
    mean, level = weights @ features, float(weights @ truth)
    scale = np.sqrt(weights @ (features - mean) ** 2)
    scale = np.where(scale > 1e-6 * max(float(scale.max(initial=0.0)), 1e-12), scale, np.inf)
    rows = (features - mean) / scale * np.sqrt(weights)[:, None]
    towards = np.sqrt(weights) * (truth - level)
    is_long = len(rows) > rows.shape[1]
    values, vectors = np.linalg.eigh(rows.T @ rows if is_long else rows @ rows.T)
    along = vectors.T @ (rows.T @ towards if is_long else towards)
    found = [vectors @ (along / (np.maximum(values, 0) + strength)) for strength in STRENGTHS]
    path = np.stack([one if is_long else rows.T @ one for one in found]) / scale
    return path, level - path @ mean


def medians(classes: npt.NDArray[Any], severities: Wide) -> dict[str, float]:
    """Class -> the median of its labelled severities [N]; under "" that of all."""
    known = np.isfinite(severities)
    found = {str(name): float(np.median(severities[known & (classes == name)])) for name in set(classes[known])}
    return {**found, "": float(np.median(severities[known]))} if known.any() else {}


def trivial(named: Sequence[str], known: Mapping[str, float]) -> Wide:
    """What would be said without looking [N]: the median severity of the class that is named."""
    return np.array([known.get(name, known[""]) for name in named])


def figures(truth: Wide, said: Wide, *, trivially: Wide, lots: npt.NDArray[Any], seed: int) -> dict[str, Any]:
    """Both answers' mean absolute error, the first's rank correlation, and the gain, with intervals over lots.

    truth, said, trivially: of parts [P] whose severity is labelled, at least one. `is_shown`: the gain's interval lies
    above 0. Ranks are those among all these parts.
    """
    errors = np.abs(said - truth), np.abs(trivially - truth)
    ranks = pd.Series(said).rank().to_numpy(), pd.Series(truth).rank().to_numpy()

    def mean(values: Wide) -> Any:
        return lambda draws: draws @ values / draws.sum(1)

    def alike(draws: Wide) -> Wide:
        shares = draws / draws.sum(1, keepdims=True)
        a, b = (one[None, :] - (shares @ one)[:, None] for one in ranks)
        spread = np.sqrt((shares * a**2).sum(1) * (shares * b**2).sum(1))
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(spread > 0, (shares * a * b).sum(1) / spread, np.nan)

    def spanned(statistic: Any) -> dict[str, float | None]:
        value = float(statistic(np.ones((1, len(truth))))[0])
        found = bootstrap(lots, statistic, seed=seed) if np.isfinite(value) else None
        return {
            "value": value if np.isfinite(value) else None,
            "low": found.low if found else None,
            "high": found.high if found else None,
        }

    gain = paired_bootstrap(lots, mean(errors[1]), mean(errors[0]), seed=seed)
    return {
        "mae": spanned(mean(errors[0])),
        "trivial_mae": spanned(mean(errors[1])),
        "spearman": spanned(alike),
        "gain": {"value": gain.diff, "low": gain.low, "high": gain.high},
        "is_shown": gain.low is not None and gain.low > 0,
        "n": len(truth),
        "n_lots": Lots(lots).num,
    }


def words(found: Mapping[str, Any]) -> str:
    """Whether the head is worth asking, and why, from `figures`."""
    gain = found["gain"]
    said = f"mean error {found['mae']['value']:.3f} against {found['trivial_mae']['value']:.3f} of the class's median"
    if gain["low"] is None:
        return f"{said}; not served: {found['n_lots']} lots are too few to show that it is better"
    span = f"gain {gain['low']:+.3f} to {gain['high']:+.3f}"
    return f"{said} ({span})" if found["is_shown"] else f"{said} ({span}); not served: it is not shown to be better"
