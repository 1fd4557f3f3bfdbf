"""In what dtype and memory format a net is fastest here, found by a short probe, once a machine, and kept in the cache.

bfloat16 speeds a ResNet's large convolutions and slows a MobileNet's small ones, differently on every processor: so it
is tried, not assumed. Weights, losses and everything that is judged stay float32.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from plants.hashing import sha256

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
        self.folder, self.model, self.threads = folder, model, threads

    def of_branch(self, cut: int, *, batch: int) -> Compute:
        """How steps of this many images are trained fastest in the stages above a cut."""
        if cut == 0:
            return PLAIN
        found = self._known(f"branch at cut {cut}, batch {batch}", lambda: probe_branch(self.model, cut, batch=batch))
        return Compute(**found)

    def of_trunk(self, exported: Callable[[np.ndarray], Any]) -> Compute | None:
        """How torch computes the trunk, where that is faster than the exported file; else None."""
        found = self._known("trunk", lambda: probe_trunk(self.model, exported))
        return Compute(**found) if found else None

    def _known(self, what: str, probe: Callable[[], Compute | None]) -> Any:
        """What the folder says, or else a probe, which stands there from then on; of two at once the first."""
        machine = [platform.machine(), _cpu(), torch.__version__, self.threads, str(_device(self.model))]
        spec = self.model.spec.model_dump(mode="json", include={"backbone", "options", "size_px"})
        key = sha256(json.dumps([what, spec, machine]).encode())[:32]  # what the weights are does not matter here
        path = self.folder / f"{key}.json"
        if not path.exists():
            found = probe()
            words = {"what": what, "machine": machine, "found": asdict(found) if found else None}
            self.folder.mkdir(parents=True, exist_ok=True)
            part = self.folder / f".{key}.{os.getpid()}"
            part.write_text(json.dumps(words), encoding="utf-8")
            with contextlib.suppress(FileExistsError):
                os.link(part, path)
            part.unlink()
        return json.loads(path.read_text(encoding="utf-8"))["found"]


def probe_branch(model: CutModel, cut: int, *, batch: int, kinds: Sequence[Compute] = KINDS) -> Compute:
    """The fastest way to train the stages above a cut: forward, backward and a step, on inputs that were drawn."""
    device, generator = _device(model), torch.Generator().manual_seed(0)
    inputs = torch.randn(batch, *model.shapes[cut], generator=generator).to(device)
    rates: dict[Compute, float] = {}
    reference: Tensor | None = None
    for kind in kinds:
        branch = model.new_branch(cut, ("a", "b"))
        kind.place(branch)
        optimizer = torch.optim.AdamW(branch.parameters(), lr=0.0, fused=True)
        laid = kind.laid(inputs)

        def step(branch: Any = branch, kind: Compute = kind, laid: Tensor = laid, optimizer: Any = optimizer) -> None:
            with kind.autocast(device):
                logits, _ = branch(laid)
            loss = logits.float().square().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

        with torch.no_grad(), kind.autocast(device):
            features = branch.eval()(laid)[1].float()
        reference = features if reference is None else reference
        branch.train()
        if _is_close(features, reference):
            with torch.enable_grad():
                rates[kind] = _rate(step, device=device)
    return _fastest(rates)


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
    """Times a second of this process's own computing, so that neighbours on the same cores do not decide."""
    on_gpu = device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time

    def once() -> float:
        start = clock()
        work()
        if on_gpu:
            torch.cuda.synchronize(device)
        return max(clock() - start, 1e-9)

    once()
    took = [once()]
    while sum(took) < BUDGET_S and len(took) < 50:
        took.append(once())
    return 1 / min(took)


def _device(model: CutModel) -> torch.device:
    return model.trunk.scale.device


def _cpu() -> str:
    """What this processor is and can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    named = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return hashlib.sha256("|".join(named.get(k, "") for k in ("model name", "flags", "Features")).encode()).hexdigest()
