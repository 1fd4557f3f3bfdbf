"""What a bundle is: a folder whose manifest names what was learned and the digest of every file in it.

The digest of `manifest.json` is the bundle's name, so one changed byte anywhere is another bundle or a refused one.
Thresholds, prices and prevalence are not in here: they are the policy's, and may change without learning.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, StringConstraints, ValidationError, model_validator

from plants.config import Config
from plants.ensembles import Rule
from plants.errors import InputError
from plants.geometry import Environment, Interpolation
from plants.governance import Governance
from plants.hashing import sha256
from plants.variants import Int8

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
ADAPTER = "adapter.safetensors"
FACTORS = "factors.npz"
"""What an adapter brings to the stages that plants share: a plain table of numbers, which serving reads."""
EVIDENCE = "evidence.onnx"
"""Turns the `map` of a trunk or branch into a map for each leaf; absent where the head is not linear on a pooled map,
and in bundles made before there were any."""
SEVERITY = "severity.npz"
"""How grave a defect is, see `plants.severity`; absent where that was not labelled, or is not worth asking."""
MAP = "map"
"""The output of a trunk or a branch that is pooled to its features."""

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Kind = Literal["frozen", "own", "pooled", "warm", "sister", "average", "ensemble", "normality"]


class TrunkRef(Config):
    """The exported trunk a branch was learned on."""

    sha256: Digest
    """Of `trunk.onnx`, which the fleet's bundles share."""
    backbone: str
    weights_digest: str
    size_px: int = Field(ge=1)
    interpolation: Interpolation = "bilinear"
    cuts: tuple[int, ...]


class PlantView(Config):
    """A plant as the bundle serves it."""

    classes: tuple[str, ...] = Field(min_length=1)
    """The plant's annotated classes, the order of every probability vector."""
    ok: tuple[str, ...] = ()
    leaf_sets: dict[str, tuple[str, ...]]
    environments: dict[str, Environment] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        lacking = [name for name in self.classes if name not in self.leaf_sets]
        if lacking:
            raise ValueError(f"leaf_sets lacks {', '.join(lacking)}")
        strange = [name for name in self.ok if name not in self.classes]
        if strange:
            raise ValueError(f"ok names {', '.join(strange)}, which is not among classes")
        return self


class Manifest(Config):
    """What was learned, from which plants, how, on which trunk, and the digest of every file of the bundle."""

    schema_version: Literal[1] = 1
    kind: Kind
    run_id: str
    name: str
    plants: tuple[str, ...]
    """The plants it learned from."""
    leaves: tuple[str, ...] = Field(min_length=1)
    trunk: TrunkRef
    """Of an ensemble: the trunk that all members share."""
    cut: int = Field(default=0, ge=0)
    tier: Literal["head", "adapter", "branch", "whole"] = "head"
    """What it has of its own: a head; with it an `adapter.safetensors` for the pretrained stages; or stages; or all.

    `branch.onnx` holds all of it at every tier; an adapter is served from it without `stages`, or where a host says so.
    """
    stages: Digest | None = None
    """Of the pretrained stages that an adapter's plants share; with `factors.npz` they answer as `branch.onnx`."""
    branch_inputs: Literal["features", "map"] = "features"
    serves: dict[str, PlantView] = Field(min_length=1)
    governance: dict[str, Governance] = Field(default_factory=dict)
    """The flags of every plant it learned from or serves, when it was written."""
    seed: int
    recipe: dict[str, Any] = Field(default_factory=dict)
    splits_digest: str = ""
    data: dict[str, Digest] = Field(default_factory=dict)
    """Plant -> the snapshot of the label rows that were learned from."""
    parent: str | None = None
    members: tuple[Digest, ...] = ()
    weights: tuple[float, ...] = ()
    rule: Rule = "mean"
    """How an ensemble joins its members, see `plants.ensembles`."""
    int8: Int8 | None = None
    """The INT8 files beside the float ones, where `crossplant compress` kept them. Float remains the reference."""
    code_version: str
    created_at: str
    files: dict[str, Digest] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        faults = [f"files: {name!r} is not a plain name" for name in self.files if not _is_plain(name)]
        if self.kind == "ensemble":
            if not self.members or len(self.members) != len(self.weights):
                faults.append("an ensemble needs members and as many weights")
            elif min(self.weights) < 0 or sum(self.weights) <= 0:
                faults.append("weights: none is negative and not all are 0")
        else:
            if self.members or self.weights:
                faults.append("members and weights belong to an ensemble")
            if self.rule != "mean":
                faults.append("rule belongs to an ensemble")
            if self.cut not in self.trunk.cuts:
                faults.append(f"cut: {self.cut} is not an output of the trunk")
        if self.int8 and self.int8.branch and self.kind in ("ensemble", "normality"):
            faults.append(f"int8: {self.kind} has no branch of its own")
        if faults:
            raise ValueError("; ".join(faults))
        return self


class Bundle(NamedTuple):
    """A manifest and its name."""

    manifest: Manifest
    digest: str


def canonical(manifest: Manifest) -> bytes:
    """The bytes of `manifest.json`: sorted keys, no spaces, UTF-8, so that equal manifests have equal digests.

    What stands at its default is not written, of fields that came later: it is what readers that know of none do.
    """
    unwritten = {
        name for name, value in (("rule", "mean"), ("int8", None), ("stages", None)) if getattr(manifest, name) == value
    }
    document = manifest.model_dump(mode="json", exclude=unwritten)
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def write(folder: str | Path, manifest: Manifest) -> Bundle:
    """The folder is a bundle: its manifest names every file now in it. Returns the manifest with them, and its digest.

    Raises InputError for a folder that lacks what its kind needs.
    """
    root = Path(folder)
    part = root / f".{MANIFEST}.part"
    names = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file() and p != part)
    odd = [name for name in names if not _is_plain(name)]
    if odd:
        raise InputError("a bundle holds plain files only, no folders or hidden files", file=str(root / odd[0]))
    files = {name: sha256((root / name).read_bytes()) for name in names if name != MANIFEST}
    needed = {"ensemble": None, "normality": "normality.npz"}.get(manifest.kind, "branch.onnx")
    if needed and needed not in files:
        raise InputError(f"a bundle of kind {manifest.kind} needs {needed}", file=str(root))
    if manifest.tier == "adapter" and ADAPTER not in files:
        raise InputError(f"a bundle of tier adapter needs {ADAPTER}", file=str(root))
    if manifest.stages and FACTORS not in files:
        raise InputError(f"a bundle on shared stages needs {FACTORS}", file=str(root))
    if manifest.int8 and manifest.int8.branch and manifest.int8.branch not in files:
        raise InputError(f"a bundle whose branch has INT8 needs {manifest.int8.branch}", file=str(root))
    complete = Manifest.model_validate({**manifest.model_dump(), "files": files})
    data = canonical(complete)
    part.write_bytes(data)
    part.replace(root / MANIFEST)
    return Bundle(complete, sha256(data))


def read(folder: str | Path) -> Bundle:
    """The bundle in a folder, after every file's digest was checked.

    Raises InputError naming the first file that is missing or not what the manifest says.
    """
    root = Path(folder)
    try:
        data = (root / MANIFEST).read_bytes()
    except OSError:
        raise InputError(f"is not a bundle: it has no {MANIFEST}", file=str(root)) from None
    manifest = parse(data, source=str(root / MANIFEST))
    for name, expected in sorted(manifest.files.items()):
        path = root / name
        if not path.is_file():
            raise InputError("is missing from the bundle", file=str(path), remedy="Fetch the bundle again")
        actual = sha256(path.read_bytes())
        if actual != expected:
            raise InputError(
                f"is not the file the bundle was made with (sha256 {actual[:12]} instead of {expected[:12]})",
                file=str(path),
                remedy="Fetch the bundle again",
            )
    return Bundle(manifest, sha256(data))


def parse(data: bytes, *, source: str = MANIFEST) -> Manifest:
    """The manifest in these bytes. Raises InputError for another schema version and for anything else."""
    try:
        document = json.loads(data)
    except ValueError:
        raise InputError("is not JSON", file=source, remedy="Fetch the bundle again") from None
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(
            f"schema version {version!r} is not {SCHEMA_VERSION}", file=source, remedy="Use a matching crossplant"
        )
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(step) for step in first["loc"])
        raise InputError(first["msg"].removeprefix("Value error, "), file=source, field=field or None) from None


def _is_plain(name: str) -> bool:
    return bool(name) and name[0] != "." and "/" not in name and "\\" not in name
