"""Published bundles get their INT8 files: a new bundle each, whose float files are the old one's byte for byte."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cluster.registry import Bundles
from jobs.int8_gate import Files
from jobs.parity import Evaluator
from plants import bundle
from plants.bundle import Manifest
from plants.variants import BRANCH_INT8, Int8, PlantGate, Shift, shift, worst_loss


@dataclass
class Attaching:
    """Makes bundles with INT8 out of bundles without."""

    bundles: Bundles
    cache: Path
    """Where fetched bundles lie."""
    files: Files
    trunk: str
    """SHA-256 of the INT8 trunk, which is in the store."""
    rung: str
    gates: Mapping[str, Mapping[str, PlantGate]]
    """Model -> plant -> figures."""
    _done: dict[str, str] = field(default_factory=dict)

    def __call__(self, digest: str) -> str:
        """The digest of the bundle that has both variants; members of an ensemble get theirs too."""
        if digest not in self._done:
            self._done[digest] = self._made(digest)
        return self._done[digest]

    def _made(self, digest: str) -> str:
        source = self.bundles.fetch(digest, self.cache)
        manifest, _ = bundle.read(source)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            for name in manifest.files:
                shutil.copyfile(source / name, folder / name)
            branch = self.files.branches.get(manifest.run_id)
            if branch is not None:
                shutil.copyfile(branch, folder / BRANCH_INT8)
            int8 = Int8(
                trunk=self.trunk,
                branch=BRANCH_INT8 if branch is not None else None,
                rung=self.rung,
                probe=self._shift(folder, manifest=manifest),
                gate=dict(self.gates.get(manifest.run_id, {})),
            )
            _add_to_card(folder, int8=int8)
            members = tuple(self(member) for member in manifest.members)
            bundle.write(folder, manifest.model_copy(update={"int8": int8, "members": members, "files": {}}))
            return self.bundles.publish(folder)

    def _shift(self, folder: Path, *, manifest: Manifest) -> Shift | None:
        """INT8 against what float gave for the probe; None where the bundle has none of its own."""
        if "probe.npz" not in manifest.files:
            return None
        with np.load(folder / "probe.npz", allow_pickle=False) as probe:
            inputs, expected = probe["inputs"], probe["logits"]
        evaluator = Evaluator(self.files.trunk)
        activations = evaluator.activations(inputs, batch=8)
        if manifest.kind == "normality":
            return shift(expected, activations[0], is_named=False)
        path = folder / (BRANCH_INT8 if (folder / BRANCH_INT8).exists() else "branch.onnx")
        return shift(expected, evaluator.branch(path, activations[manifest.cut])[0])


def _add_to_card(folder: Path, *, int8: Int8) -> None:
    card = folder / "card.md"
    if not card.is_file():
        return
    lost = worst_loss(int8.gate)
    said = (
        "its figures are those of the ensembles that it is in" if lost is None else f"{100 * lost:.1f} points at most"
    )
    line = f"INT8 beside float ({int8.rung}), served where it is faster: macro-F1 lost on `decide`: {said}."
    card.write_text(f"{card.read_text(encoding='utf-8').rstrip()}\n\n{line}\n", encoding="utf-8")
