"""In what dtype and memory format a net is fastest here, found by a short probe, once a machine, and kept in the cache.

bfloat16 speeds a ResNet's large convolutions and slows a MobileNet's small ones, differently on every processor: so it
is tried, not assumed. Weights, losses and everything that is judged stay float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from jobs.measured import Measured, clock

if TYPE_CHECKING:
    from jobs.model import CutModel

MARGIN = 1.2
"""Anything but plain float32 must be this many times faster."""
BUDGET_S = 0.15
"""Of each way to compute, after a pass to warm up."""
CLOSE = 0.05
"""What a way to compute gives may be this far from plain float32, as a share of its norm."""


@dataclass(frozen=True, slots=True)
class Compute:
    """A dtype for matrix products and convolutions, and a memory format for images and weights."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    layout: Literal["contiguous", "channels_last"] = "contiguous"

    def __str__(self) -> str:
        return f"{self.dtype} {self.layout}"

    @property
    def memory_format(self) -> torch.memory_format:
        """As torch names the layout."""
        return torch.channels_last if self.layout == "channels_last" else torch.contiguous_format

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """The block computes in the dtype."""
        if self.dtype == "float32":
            return contextlib.nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16)

    def laid(self, value: Tensor) -> Tensor:
        """The tensor in the layout, where it has one."""
        return value.contiguous(memory_format=self.memory_format) if value.ndim == 4 else value

    def place(self, net: nn.Module) -> None:
        """The net's weights lie in the layout."""
        net.to(memory_format=self.memory_format)


PLAIN = Compute()
KINDS = (PLAIN, Compute("float32", "channels_last"), Compute("bfloat16", "channels_last"))


class Computes:
    """Remembers in a folder what was found on this machine: every process that shares the folder computes alike."""

    def __init__(self, folder: Path, *, model: CutModel, threads: int) -> None:
        self.known, self.model, self.threads = Measured(folder), model, threads

    def of_branch(self, cut: int, *, batch: int) -> Compute:
        """How steps of this many images are trained fastest in the stages above a cut."""
        if cut == 0:
            return PLAIN
        about = {**self._about("branch"), "cut": cut, "batch": batch}
        return Compute(**self.known(about, lambda: asdict(probe_branch(self.model, cut, batch=batch))))

    def of_trunk(self, exported: Callable[[np.ndarray], Any]) -> Compute | None:
        """How torch computes the trunk, where that is faster than the exported file; else None."""

        def probe() -> dict[str, Any] | None:
            found = probe_trunk(self.model, exported)
            return asdict(found) if found else None

        found = self.known(self._about("trunk"), probe)
        return Compute(**found) if found else None

    def _about(self, what: str) -> dict[str, Any]:
        """The shape of the net, as what its weights are does not matter here."""
        spec = self.model.spec.model_dump(mode="json", include={"backbone", "options", "size_px", "cuts"})
        return {"what": what, "spec": spec, "threads": self.threads}


def probe_branch(model: CutModel, cut: int, *, batch: int, kinds: Sequence[Compute] = KINDS) -> Compute:
    """The fastest way to train the stages above a cut: forward, backward and a step, on inputs that were drawn."""
    device, generator = _device(model), torch.Generator().manual_seed(0)
    inputs = torch.randn(batch, *model.shapes[cut], generator=generator).to(device)
    rates: dict[Compute, float] = {}
    reference: Tensor | None = None
    for kind in kinds:
        branch = model.new_branch(cut, ("a", "b"))
        kind.place(branch)
        laid = kind.laid(inputs)
        with torch.no_grad(), kind.autocast(device):
            features = branch.eval()(laid)[1].float()
        reference = features if reference is None else reference
        branch.train()
        if _is_close(features, reference):
            rates[kind] = _rate(stepping(branch, laid, compute=kind), device=device)
    return _fastest(rates)


def stepping(branch: Any, inputs: Tensor, *, compute: Compute) -> Callable[[], None]:
    """What trains the branch by one step on these inputs, without moving it: forward, backward, optimiser."""
    optimizer = torch.optim.AdamW(branch.parameters(), lr=0.0, fused=True)

    @torch.enable_grad()
    def step() -> None:
        with compute.autocast(inputs.device):
            logits, _ = branch(inputs)
        optimizer.zero_grad(set_to_none=True)
        logits.float().square().mean().backward()
        nn.utils.clip_grad_norm_(branch.parameters(), 1.0)
        optimizer.step()

    return step


@torch.inference_mode()
def probe_trunk(model: CutModel, exported: Callable[[np.ndarray], Any], *, batch: int = 16) -> Compute | None:
    """The fastest way for torch to compute the trunk, where it beats the exported file by the margin; else None."""
    device, size = _device(model), model.spec.size_px
    images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    tensor = torch.from_numpy(images).to(device)
    exported_rate = _rate(lambda: exported(images), device=device)
    reference = model.trunk(tensor)
    rates: dict[Compute, float] = {}
    for kind in KINDS[1:]:
        model.trunk.compute_in(kind)
        found = model.trunk(tensor)
        if all(_is_close(found[cut], reference[cut]) for cut in reference):
            rates[kind] = _rate(lambda: model.trunk(tensor), device=device)
    model.trunk.compute_in(PLAIN)
    best = max(rates, key=lambda kind: rates[kind], default=None)
    return best if best and rates[best] > MARGIN * exported_rate else None


def _fastest(rates: dict[Compute, float]) -> Compute:
    """Plain float32 unless another is faster by the margin."""
    best = max(rates, key=lambda kind: rates[kind])
    return best if rates[best] > MARGIN * rates[PLAIN] else PLAIN


def _is_close(found: Tensor, reference: Tensor) -> bool:
    return bool((found - reference).norm() <= CLOSE * reference.norm())


def _rate(work: Callable[[], Any], *, device: torch.device) -> float:
    """Times a second, as `jobs.measured` times."""
    now = clock()

    def once() -> float:
        start = now()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return max(now() - start, 1e-9)

    once()
    took = [once()]
    while sum(took) < BUDGET_S and len(took) < 50:
        took.append(once())
    return 1 / min(took)


def _device(model: CutModel) -> torch.device:
    return model.trunk.scale.device
