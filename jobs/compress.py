"""Exported files: one trunk for the fleet, a branch a model, and the proof that they answer as torch does.

torch's exporter takes seconds and a fleet has dozens of branches of one shape. So a shape is exported once and a branch
is written by filling in its numbers (jobs.template). The form is tried on other numbers when it is made; where that
fails (a backbone whose graph mixes parameters), each branch is exported plainly.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import os
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from jobs.compute import PLAIN
from jobs.evidence import with_map
from jobs.model import Branch, CutModel, TrunkNet
from jobs.parity import (
    TOLERANCE,
    Evaluator,
    agrees,
    compared,
    open_session,
    parity,
    parity_full,
    run_branch,
    torch_answers,
)
from jobs.template import Template, bare, head_only

__all__ = ["TOLERANCE", "BranchExporter", "Evaluator", "agrees", "export_trunk", "parity", "parity_full"]


def export_trunk(model: CutModel, path: str | Path) -> str:
    """The trunk is one ONNX file; returns its sha256.

    Input `images` uint8 [batch, S, S, 3], normalisation inside; a float32 output for each cut: `cut0` [batch, F], ...
    and `map` [batch, C, h, w], where `cut0` is pooled of one, see `jobs.evidence`.
    """
    trunk = copy.deepcopy(model.trunk).cpu()
    trunk.compute_in(PLAIN)
    size = model.spec.size_px
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    names = [f"cut{cut}" for cut in model.cuts]
    exported = _export(_AsTuple(trunk), example, input_name="images", outputs=names, optimize=True)
    return _write(with_map(exported, features="cut0"), path)


class BranchExporter:
    """Writes branches at one cut of a backbone as ONNX, milliseconds each, whatever their leaves. Can be pickled.

    Input `activation`; outputs `logits` [batch, L] and `features` [batch, F], float32; and `map` [batch, C, h, w] where
    features are pooled of one. The form is made once a model and cut; num_leaves, where given, is only checked.
    """

    def __init__(self, model: CutModel, cut: int, num_leaves: int | None = None) -> None:
        self.cut, self.num_leaves, self.shape = cut, num_leaves, model.shapes[cut]
        known = _TEMPLATES.setdefault(model, {})
        if cut not in known:
            known[cut] = _template(model, cut)
        self.template = known[cut]

    @property
    def is_fast(self) -> bool:
        """Whether branches are filled into a form; otherwise each is exported plainly."""
        return self.template is not None

    def write(self, branch: Branch, path: str | Path) -> str:
        """The branch is one ONNX file, in evaluation mode; returns its sha256. The branch is left as it was."""
        if branch.cut != self.cut or self.num_leaves not in (None, len(branch.leaves)):
            raise ValueError(
                f"the branch has cut {branch.cut} and {len(branch.leaves)} leaves, not those exported here"
            )
        if self.template is not None and isinstance(branch.align, nn.Identity):
            return _write(self.template.filled(_arrays(branch)), path)
        plain = _exported(copy.deepcopy(branch).cpu().eval(), self.shape, optimize=True)
        return _write(with_map(plain, features="features"), path)


_TEMPLATES: weakref.WeakKeyDictionary[CutModel, dict[int, Template | None]] = weakref.WeakKeyDictionary()


def _template(model: CutModel, cut: int) -> Template | None:
    """The form of branches at a cut, or None where the graph does not keep parameters apart."""
    branch = model.new_branch(cut, ["a", "b", "c"]).eval()
    if cut == 0:
        graph = head_only(feature_dim=model.feature_dim, num_leaves=3)
    else:
        graph = _exported(branch, model.shapes[cut], optimize=False)
    template = Template.of(graph, state=_arrays(branch))
    other = model.new_branch(cut, ["a", "b", "c", "d", "e"]).eval()
    return template if _is_exact(template, other, shape=model.shapes[cut]) else None


def _is_exact(template: Template, branch: Branch, *, shape: Sequence[int]) -> bool:
    """Whether the template, filled with other numbers, answers as torch does. Changes the branch."""
    generator = torch.Generator().manual_seed(1)
    _jitter(branch, generator=generator)
    activation = torch.randn(3, *shape, generator=generator).numpy()
    session = open_session(template.filled(_arrays(branch)).SerializeToString())
    report = compared(torch_answers(branch, activation, batch=3), run_branch(session, activation, batch=3))
    return agrees(report)


class _AsTuple(nn.Module):
    """torch.export wants tuples where the trunk gives a dict."""

    def __init__(self, trunk: TrunkNet) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.trunk(images).values())


def _exported(branch: Branch, shape: Sequence[int], *, optimize: bool) -> onnx.ModelProto:
    example = torch.zeros(2, *shape)
    return _export(branch, example, input_name="activation", outputs=["logits", "features"], optimize=optimize)


def _export(
    module: nn.Module, example: Tensor, *, input_name: str, outputs: Sequence[str], optimize: bool
) -> onnx.ModelProto:
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            (example,),
            dynamo=True,
            input_names=[input_name],
            output_names=list(outputs),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
            optimize=optimize,
            verbose=False,
        )
    assert program is not None, "with dynamo=True torch gives a program"
    return bare(program.model_proto)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's notes to developers are not for users."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _write(model: onnx.ModelProto, path: str | Path) -> str:
    data = model.SerializeToString(deterministic=True)
    target = Path(path)
    part = target.with_name(f".{target.name}.{os.getpid()}")
    part.write_bytes(data)
    os.replace(part, target)
    return hashlib.sha256(data).hexdigest()


def _arrays(branch: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().cpu().numpy() for name, value in branch.state_dict().items()}


@torch.no_grad()
def _jitter(branch: nn.Module, *, generator: torch.Generator) -> None:
    """Every parameter and statistic is a little different, variances still positive."""
    for value in branch.state_dict().values():
        if value.is_floating_point():
            value.mul_(0.9 + 0.2 * torch.rand(value.shape, generator=generator))
            if value.ndim <= 1:
                value.add_(0.05 * torch.rand(value.shape, generator=generator))
