"""The parity certificate: on this kind of host a bundle answers as it did where it was judged, and in time.

The same inputs go through torch (recorded at export), the float files, INT8 where that serves, and the staged live
route. It holds for one bundle, policy, kind of host, runtime and variant; without one no route is live there. How it is
made is in `serving.certify`.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import Field

from plants.config import Config
from plants.hashing import sha256
from plants.variants import Pair, Shift, Variant

FLAGS = frozenset(
    {"avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx_vnni", "avx512_bf16"}
    | {"avx512_fp16", "avx_vnni_int8", "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve"}
)
"""The abilities of a CPU by which a runtime picks its kernels."""

EXPORT_TOLERANCE = 1e-2
"""Largest difference of a logit, as a fraction of the largest, between torch and the float files on any host."""
LIVE_TOLERANCE = 1e-3
"""Of a probability, between a model asked directly and the staged route, which batches."""
INT8_SLACK = 0.05
"""INT8 may be this much farther from float, as a fraction of the largest logit, than where it was judged."""
INT8_FLIPS = 1 / 16
"""This share of the probe may flip beyond those that flipped where INT8 was judged: drawn inputs lie near ties."""


class Host(Config):
    """A kind of host: what decides which kernels run. Two machines of one kind give the same answers."""

    cpu: str
    flags: tuple[str, ...] = ()
    """Those of `FLAGS` that it has."""
    runtime: str
    """Name and version of what runs the files."""

    @property
    def kind(self) -> str:
        """A short name, the same for all hosts of the kind."""
        return _digest(self.model_dump(mode="json"))[:16]


class Stage(Config):
    """One step of the way from torch to the line."""

    name: Literal["float", "int8", "live"]
    """float: the float files against torch; int8: INT8 against float; live: the staged route against its own files."""
    found: Shift
    allowed_flips: int = Field(ge=0)
    allowed: float = Field(ge=0)

    @property
    def faults(self) -> list[str]:
        """Why this step does not hold."""
        what = {"float": "the float files", "int8": "INT8", "live": "the live route"}[self.name]
        if self.found.flips > self.allowed_flips:
            counted = f"{self.found.flips} of {self.found.n} probe inputs flip, {self.allowed_flips} are allowed"
            return [f"{what}: {counted}"]
        if self.found.largest > self.allowed:
            far = f"answers differ by {self.found.largest:.3g} on the probe, {self.allowed:.3g} is allowed"
            return [f"{what}: {far}"]
        return []


class Certificate(Config):
    """What was found when a bundle was staged on a host."""

    plant: str
    bundle: str
    policy: str
    variant: Variant
    host: Host
    stages: tuple[Stage, ...]
    recall: dict[str, Pair] = Field(default_factory=dict)
    """By class, float against INT8 on `decide`, where INT8 was judged; empty where there is no INT8."""
    p99_ms: float | None = None
    """Of one part of one frame on the staged route; None where it was not timed."""
    num_timed: int = Field(default=0, ge=0)
    takt_ms: float | None = None
    """What the line gives a part; None where `parts_per_hour` is not known."""
    made_at: str
    is_merged: bool = False
    """Whether an adapter was served as a branch of its own here, which is quicker than from shared stages."""

    @property
    def key(self) -> str:
        """Its name in the store."""
        return key(
            bundle=self.bundle, policy=self.policy, host=self.host, variant=self.variant, is_merged=self.is_merged
        )

    @property
    def faults(self) -> list[str]:
        """Why no route may be live by it; nothing where one may."""
        found = [fault for stage in self.stages for fault in stage.faults]
        if self.takt_ms is not None and self.p99_ms is not None and self.p99_ms > self.takt_ms:
            found.append(f"p99 of a part is {self.p99_ms:.3g} ms, the line's takt is {self.takt_ms:.3g} ms")
        return found

    def to_json(self) -> str:
        """Canonical JSON."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=1, ensure_ascii=False)


def key(*, bundle: str, policy: str, host: Host, variant: Variant, is_merged: bool = False) -> str:
    """Where the certificate lies in the store."""
    about: dict[str, Any] = {"bundle": bundle, "policy": policy, "variant": variant}
    about |= {"host": host.model_dump(mode="json"), **({"is_merged": True} if is_merged else {})}
    return f"certificates/{bundle}/{_digest(about)}.json"


def float_stage(found: Shift) -> Stage:
    """The float files against torch: no flip but ties, and the rounding of another kernel."""
    return Stage(name="float", found=found, allowed_flips=0, allowed=EXPORT_TOLERANCE)


def int8_stage(found: Shift, *, judged: Shift) -> Stage:
    """INT8 against float, allowed what it was where it was judged, and a little for other kernels.

    Without VNNI 8-bit products saturate, which moves answers by far more.
    """
    flips = judged.flips + round(INT8_FLIPS * found.n)
    return Stage(name="int8", found=found, allowed_flips=flips, allowed=judged.largest + INT8_SLACK)


def live_stage(found: Shift) -> Stage:
    """The staged route against the same files asked directly."""
    return Stage(name="live", found=found, allowed_flips=0, allowed=LIVE_TOLERANCE)


def takt_ms(parts_per_hour: float | None) -> float | None:
    """Milliseconds that the line gives a part."""
    return None if parts_per_hour is None else 3_600_000 / parts_per_hour


def _digest(document: Any) -> str:
    return sha256(json.dumps(document, sort_keys=True, ensure_ascii=False).encode())
