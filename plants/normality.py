"""What the plant's good parts look like in pooled features, and how far from them a view is.

Needs no labelled defect, so it judges on the first day and sees kinds of defects no class exists for. Fit it on the
views of good parts; a part's novelty is the largest distance of its views. Not a classifier: a new batch of perfectly
good but different parts is far away as well, and should be looked at.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from plants.errors import InputError

Floats = npt.NDArray[np.float32]

MAX_COMPONENTS = 256
FLOOR = 0.01
"""No direction varies less than this fraction of the mean variance: a feature that is constant among the good parts
seen must not make everything else infinitely far."""
_FIELDS = ("mean", "components", "variances", "rest")


@dataclass(frozen=True, eq=False)
class Normality:
    """Mahalanobis distance to good parts, divided by sqrt(F): about 1 for a good part.

    The covariance is shrunk towards a ball as Ledoit and Wolf found best for few samples (J. Multivariate Analysis 88,
    2004), and kept as its leading directions and one variance for all the rest.
    """

    mean: Floats
    """[F]"""
    components: Floats
    """[K, F], orthonormal."""
    variances: Floats
    """[K], along the components."""
    rest: float
    """Variance in every direction outside the components."""

    @classmethod
    def fit(cls, features: npt.NDArray[np.floating], *, max_components: int = MAX_COMPONENTS) -> Normality:
        """The normality of these good views [N, F]. Raises InputError for fewer than two, or for broken features."""
        from sklearn.covariance import ledoit_wolf_shrinkage

        wide = np.asarray(features, dtype=np.float64)
        if wide.ndim != 2 or len(wide) < 2:
            raise InputError("normality needs the features of at least two good parts")
        if not np.isfinite(wide).all():
            raise InputError("features of good parts hold values that are not numbers")
        mean = wide.mean(axis=0)
        centered = wide - mean
        average = float((centered**2).mean())
        if average == 0:
            raise InputError("the features of all good parts are equal", remedy="Check that the frames differ")
        shrinkage = float(ledoit_wolf_shrinkage(centered, assume_centered=True))
        _, singular, directions = np.linalg.svd(centered, full_matrices=False)
        variances = singular**2 / len(wide)
        kept = min(max_components, int((variances > 1e-12 * variances[0]).sum()))
        left = wide.shape[1] - kept
        outside = float(variances[kept:].sum()) / left if left else 0.0
        least = FLOOR * average
        return cls(
            mean=mean.astype(np.float32),
            components=directions[:kept].astype(np.float32),
            variances=np.maximum((1 - shrinkage) * variances[:kept] + shrinkage * average, least).astype(np.float32),
            rest=max((1 - shrinkage) * outside + shrinkage * average, least),
        )

    def score(self, features: npt.NDArray[np.floating]) -> Floats:
        """Distances [N] of features [N, F] from the good parts; NaN for broken features."""
        centered = np.asarray(features, dtype=np.float32) - self.mean
        along = centered @ self.components.T
        outside = np.maximum((centered**2).sum(axis=1) - (along**2).sum(axis=1), 0)
        squared = (along**2 / self.variances).sum(axis=1) + outside / np.float32(self.rest)
        distance: Floats = np.sqrt(squared / np.float32(len(self.mean))).astype(np.float32)
        return distance

    def save(self, path: str | Path) -> None:
        """The file at `path` holds this normality, as arrays only."""
        with Path(path).open("wb") as file:
            np.savez(
                file,
                mean=self.mean,
                components=self.components,
                variances=self.variances,
                rest=np.float64(self.rest),
            )

    @classmethod
    def load(cls, path: str | Path) -> Normality:
        """The normality in a file. Raises InputError for anything else; nothing is unpickled."""
        file = Path(path)
        try:
            with np.load(file, allow_pickle=False) as arrays:
                mean, components, variances, rest = (arrays[name] for name in _FIELDS)
        except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
            raise InputError(
                f"is no normality file ({type(error).__name__})", file=str(file), remedy="Fetch the bundle again"
            ) from None
        if components.shape != (len(variances), len(mean)) or rest.shape:
            raise InputError("its arrays do not fit together", file=str(file), remedy="Export the bundle again")
        return cls(mean, components, variances, float(rest))
