"""A bundle on disk becomes a scorer, and a route becomes a predictor.

Every digest is checked before anything is loaded, and the bundle's own probe inputs must give the outputs that were
recorded at export: a bundle that answers differently on this machine is refused here, not discovered on the line.
Several threads may load at once; each bundle is loaded by one of them.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from plants import bundle
from plants.bundle import EVIDENCE, FACTORS, MANIFEST, MAP, SEVERITY, Manifest, TrunkRef
from plants.certificate import int8_stage
from plants.errors import InputError
from plants.hashing import sha256
from plants.normality import Normalities
from plants.severity import SeverityHead
from plants.variants import Shift, Variant, shift
from serving.adapters import Adapter, read_factors
from serving.ensemble import Ensemble
from serving.heads import Heads, Slot, affine
from serving.known import NOBODY, Known, KnownFile
from serving.scoring import Floats, GoodParts, Model, Scorer, Trunk
from serving.sessions import (
    BRANCH_MB,
    MB,
    Counts,
    FileRef,
    KeptSession,
    Recency,
    Session,
    Shared,
    checked,
    open_branch,
    open_session,
    output_names,
)
from serving.variants import Choose, always_float, files_of
from serving.words import Vocabulary

log = logging.getLogger("crossplant.serving")

PROBE_TOLERANCE = 1e-2
"""Largest difference of a logit from the recorded one; float32 kernels of two machines differ by less."""
NORMALITY_MB = 256.0
"""What is kept in memory of what good parts look like; what was not used for longest is read from disk again."""
EVIDENCE_MB = 16.0
"""What is kept open of the files that make maps, as large as a head each; only parts that do not pass need them."""
_EVIDENCE_LEAST_MB = 0.4
"""A session takes so much, however small its file."""
_NUM_PROBES = 4
_NUM_PASSES = 8
NORMALITY = "normality.npz"


@dataclass(frozen=True, slots=True)
class Files:
    """The files of a bundle that are opened to serve it: here, and nowhere else, they are chosen."""

    trunk: str
    """SHA-256."""
    branch: FileRef | None
    normality: FileRef | None
    evidence: FileRef | None = None
    factors: FileRef | None = None
    """Of an adapter, in float: INT8 has it merged."""

    @classmethod
    def of(cls, folder: Path, manifest: Manifest, *, variant: Variant = "float") -> Files:
        """Those of a bundle in a folder. An ensemble has no branch of its own, nor has a normality."""
        trunk, branch = files_of(manifest, variant)

        def at(name: str) -> FileRef | None:
            return FileRef(folder / name, manifest.files[name]) if name in manifest.files else None

        return cls(trunk, at(branch), at(NORMALITY), at(EVIDENCE), at(FACTORS) if variant == "float" else None)


class Loader:
    """Scorers by digest, shared by every plant that asks for the same bundle, and freed with the last of them."""

    def __init__(
        self,
        *,
        folder_of: Callable[[str], Path],
        trunk_of: Callable[[str], Path],
        again: Callable[[str], Path] | None = None,
        branch_mb: float = BRANCH_MB,
        merge_adapters: bool = False,
        choose: Choose = always_float,
    ) -> None:
        """`folder_of` gives a bundle's folder by its digest, `trunk_of` a trunk's file by its SHA-256.

        again: gives the folder after what is missing or damaged in it was fetched; None where there is nowhere to ask.
        branch_mb: what the sessions of branches and whole models may take together.
        merge_adapters: those are served as branches, a session each, instead of on the stages that they share.
        choose: says which variant of a bundle is served, see `serving.variants`.
        """
        self._choose = choose
        self._merge_adapters = merge_adapters
        self._chosen: dict[str, Variant] = {}
        self._folder_of, self._trunk_of, self._again = folder_of, trunk_of, again
        self._branches: Recency[Session] = Recency(open_branch, bound_mb=branch_mb)
        self._evidence: Recency[Session] = Recency(open_session, bound_mb=EVIDENCE_MB)
        self._normalities = Recency(Normalities.load, bound_mb=NORMALITY_MB)
        self._heads, self._vocabulary, self._probes = Heads(), Vocabulary(), Probes()
        self._trunks: Shared[Trunk] = Shared()
        self._stages: Shared[Session] = Shared()
        self._scorers: Shared[Scorer] = Shared()

    def scorer(self, digest: str, variant: Variant | None = None) -> Scorer:
        """The bundle of this digest, loaded and probed, in the variant that is served unless one is named.

        Raises InputError for one that is not what it says.
        """
        if variant is not None:
            return self._scorers.get(f"{digest} {variant}", lambda: self._opened(digest, variant))
        if digest not in self._chosen:
            self._chosen[digest] = self._choose(digest, self.manifest(digest), self.scorer)
        if self._chosen[digest] == "int8":
            try:
                return self.scorer(digest, "int8")
            except InputError as error:
                log.warning("bundle %s is served in float: %s", digest[:12], error)
                self._chosen[digest] = "float"
        return self.scorer(digest, "float")

    def prefer_float(self, digest: str) -> None:
        """From now on the bundle is served in float."""
        self._chosen[digest] = "float"

    def folder(self, digest: str) -> Path:
        """Where the bundle lies, whose files were checked when it was loaded."""
        return self._folder_of(digest)

    def manifest(self, digest: str) -> Manifest:
        """The bundle's manifest. Raises InputError for another."""
        path = self._folder_of(digest) / MANIFEST
        data = path.read_bytes() if path.is_file() else b""
        return bundle.parse(data, source=str(path)) if sha256(data) == digest else self._read(digest)[1]

    def let_go(self, scorer: Scorer) -> None:
        """The sessions of its branches are not held any more, unless somebody pins them: it was asked once."""
        for part in scorer.parts:
            if isinstance(part, KeptSession):
                self._branches.drop(part.file.sha256)

    def pin(self, plant: str, scorer: Scorer) -> None:
        """What the plant's scorer has open stays open, until the plant is pinned to another."""
        files = [part.file.sha256 for part in scorer.parts if isinstance(part, KeptSession)]
        self._branches.pin(plant, digests=frozenset(files))

    @property
    def branches(self) -> Counts:
        """The sessions of branches and whole models: how many, how large, how often loaded."""
        return self._branches.counts

    def _opened(self, digest: str, variant: Variant) -> Scorer:
        folder, manifest = self._read(digest)
        files = Files.of(folder, manifest, variant=variant)
        words = self._vocabulary.words(manifest, variant=variant)
        known = self._known(files)
        if manifest.kind == "ensemble":
            members = [self.scorer(member, variant) for member in manifest.members]
            models = tuple(member for member in members if isinstance(member, Model))
            if len(models) != len(members):
                raise InputError("an ensemble's members must be single models", file=str(folder), field="members")
            return Ensemble(digest, words, models, manifest.weights, known)
        trunk = self._trunk(manifest.trunk, digest=files.trunk)
        model: Model | GoodParts
        if manifest.kind == "normality":
            model = GoodParts(digest, words, trunk, known)
        elif files.branch is None:
            raise InputError("has no branch.onnx", file=str(folder), remedy="Export the bundle again")
        else:
            branch = self._branch(files, manifest, digest=digest, trunk=trunk)
            maps = None
            if files.evidence is not None:
                # never fetched again: that takes a while in the inference thread, and no verdict needs a map
                maps = KeptSession(files.evidence, self._evidence, again=lambda: None, least_mb=_EVIDENCE_LEAST_MB)
            model = Model(digest, words, trunk, branch, known, evidence=maps)
        if "probe.npz" in manifest.files:
            judged = manifest.int8.probe if manifest.int8 and variant == "int8" else None
            self._probes.check(model, file=folder / "probe.npz", judged=judged)
            if SEVERITY in manifest.files and variant == "float" and isinstance(model, Model):
                model = self._with_severity(model, folder=folder)
        return model

    def _with_severity(self, model: Model, *, folder: Path) -> Model:
        """The model with its severity head, where that answers here as at export: no verdict needs one.

        In float, in which it was proven.
        """
        try:
            graver = replace(model, severity=SeverityHead.load(folder / SEVERITY))
            self._probes.check_severity(graver, file=folder / "probe.npz")
        except InputError as error:
            log.warning("bundle of %s is served without severities: %s", model.manifest.name, error)
            return model
        return graver

    def _read(self, digest: str) -> tuple[Path, Manifest]:
        folder = self._folder_of(digest)
        try:
            manifest, actual = bundle.read(folder)
        except InputError:
            if self._again is None:
                raise
            manifest, actual = bundle.read(self._again(digest))
        if actual != digest:
            raise InputError(f"holds bundle {actual[:12]} instead of {digest[:12]}", file=str(folder))
        return folder, manifest

    def _trunk(self, ref: TrunkRef, *, digest: str) -> Trunk:
        def made() -> Trunk:
            session = open_session(checked(FileRef(self._trunk_of(digest), digest)))
            return Trunk(digest, ref.size_px, session, ref.interpolation, has_map=MAP in output_names(session))

        return self._trunks.get(f"{digest} {ref.size_px} {ref.interpolation}", made)

    def _branch(self, files: Files, manifest: Manifest, *, digest: str, trunk: Trunk) -> KeptSession | Slot | Adapter:
        """A head among the others where the branch is one, factors on shared stages where it has any, or a session."""
        file = files.branch
        assert file is not None
        if files.factors is not None and not self._merge_adapters and (session := self._shared_stages(manifest)):
            return Adapter(session, read_factors(files.factors.path, stages=session))
        if manifest.cut == 0:
            head = affine(open_session(checked(file)), num_features=trunk.num_features)
            if head is not None:
                return self._heads.put(*head)
        return KeptSession(file, self._branches, again=self._fetching(digest))

    def _shared_stages(self, manifest: Manifest) -> Session | None:
        """The session that adapters share; None where the stages cannot be had, as `branch.onnx` answers the same."""
        if manifest.stages is None:
            return None
        digest = manifest.stages
        try:
            return self._stages.get(digest, lambda: open_branch(checked(FileRef(self._trunk_of(digest), digest))))
        except Exception as error:  # the store is away, or has them no more
            log.warning("bundle of %s is served from a branch of its own: %s", manifest.name, error)
            return None

    def _fetching(self, digest: str) -> Callable[[], object]:
        return lambda: self._again and self._again(digest)

    def _known(self, files: Files) -> Known:
        if files.normality is None:
            return NOBODY
        size_mb = files.normality.path.stat().st_size / MB
        normality = self._normalities.get(files.normality, size_mb=size_mb)
        plants = frozenset(plant for plant, _ in normality.by_place)
        return KnownFile(files.normality, size_mb, plants, self._normalities) if plants else NOBODY


class Probes:
    """Checks models against the outputs recorded at export.

    A fleet's bundles are probed with the same inputs, so that the trunk sees them once and not for every plant.
    """

    def __init__(self) -> None:
        self._passes: OrderedDict[tuple[str, str, frozenset[int]], dict[int, Floats]] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, model: Model | GoodParts, *, file: Path, judged: Shift | None = None) -> None:
        """Raises InputError unless the model gives what is recorded in the file for the first inputs there.

        judged: of INT8, how far it was from float where it was judged; it may be as far here.
        """
        with np.load(file, allow_pickle=False) as probe:
            inputs, expected = probe["inputs"][:_NUM_PROBES], probe["logits"][:_NUM_PROBES]
        logits = model.logits(self._activations(model.trunk, inputs, cuts=model.cuts))
        if judged is not None:
            stage = int8_stage(shift(expected, logits, is_named=isinstance(model, Model)), judged=judged)
            if stage.faults:
                what = f"answers otherwise here than where INT8 was judged: {stage.faults[0]}"
                raise InputError(what, file=str(file))
            return
        worst = float(np.abs(logits - expected).max(initial=0.0))
        if not worst <= PROBE_TOLERANCE * max(1.0, float(np.abs(expected).max(initial=0.0))):
            raise InputError(
                f"gives other outputs here than where it was exported (a logit differs by {worst:.3g})",
                file=str(file),
                remedy="Export the bundle again, with this runtime",
            )

    def check_severity(self, model: Model, *, file: Path) -> None:
        """Raises InputError unless the model gives the severities that are recorded in the file."""
        assert model.severity is not None
        with np.load(file, allow_pickle=False) as probe:
            if "severity" not in probe:
                raise InputError("the probe has no severities", file=str(file))
            inputs, expected = probe["inputs"][:_NUM_PROBES], probe["severity"][:_NUM_PROBES]
        _, features = model.answers(self._activations(model.trunk, inputs, cuts=model.cuts))
        if features.shape[1:] != model.severity.weight.shape:
            raise InputError("the severity head is of other features", file=str(file))
        far = float(np.abs(model.severity.of(features) - expected).max(initial=0.0))
        if not far <= PROBE_TOLERANCE:
            raise InputError(f"gives other severities here than where it was exported ({far:.3g})", file=str(file))

    def _activations(self, trunk: Trunk, inputs: npt.NDArray[np.uint8], *, cuts: frozenset[int]) -> dict[int, Floats]:
        key = trunk.sha256, sha256(inputs.tobytes()), cuts
        with self._lock:
            if key not in self._passes:
                self._passes[key] = trunk.activations(inputs, cuts=cuts)
            self._passes.move_to_end(key)
            while len(self._passes) > _NUM_PASSES:
                self._passes.popitem(last=False)
            return self._passes[key]
