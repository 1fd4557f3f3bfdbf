"""How fast this machine is at a plan's arithmetic, measured in a second or two and remembered.

What computes later is what is measured: the trunk as lanes run it, branches with their optimiser at the recipe's batch.
A figure is kept in the cache under all that it depends on, so that it is measured once a machine.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cluster.storage import replaced
from jobs.augment import augment
from jobs.estimate import Rates, Sizes
from jobs.head import HeadFit, Lesson
from jobs.material import Material
from plants.hashing import sha256

PROBE_S = 0.25
"""Of each figure, beside its warm-up."""
LEAVES = ("a", "b", "c", "d")
NUM_ROWS = 256
Clock = Callable[[], float]


def per_second(
    work: Callable[[int], object], *, batch: int, budget_s: float = PROBE_S, clock: Clock | None = None
) -> float:
    """Images a second of `work`, which takes a number of images, in batches after one image to warm up.

    Where a batch alone would take longer than the budget, fewer images are timed. Without a GPU this process's own
    computing counts, as neighbours on the same cores will not be there for ever.
    """
    clock = clock or (time.perf_counter if torch.cuda.is_available() else time.process_time)
    work(1)
    begun = clock()
    work(1)
    first = max(clock() - begun, 1e-9)
    size = min(batch, max(1, int(budget_s / first)))
    num, begun = 0, clock()
    while num == 0 or clock() - begun < budget_s:
        work(size)
        num += size
    return num / max(clock() - begun, 1e-9)


def rates(material: Material, *, threads: int, cuts: Collection[int] = ()) -> Rates:
    """The rates of one lane with so many threads on this machine, from the cache where they were measured before."""
    model, recipe, known = material.model, material.recipe, _Known(material.cache / "rates")
    about = {"weights": model.weights_digest, "cuts": list(model.cuts), "device": device_name(), "threads": threads}
    about |= {"compute": recipe.compute}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        size, rng = model.spec.size_px, np.random.default_rng(0)
        images = rng.integers(0, 256, (64, size, size, 3), dtype=np.uint8)
        trunk = known(
            {**about, "what": "trunk"},
            lambda: per_second(lambda n: material.runner.activations(images[:n]), batch=len(images)),
        )
        policy = recipe.augment
        augmented = known(
            {**about, "what": "augment", "policy": policy.model_dump(mode="json")},
            lambda: per_second(lambda n: augment(images[:n], policy=policy, forbid=frozenset(), seed=0), batch=64),
        )
        steps = {
            cut: known(
                {**about, "what": "branch", "cut": cut, "batch": recipe.batch, "freeze_norm": recipe.freeze_norm},
                lambda cut=cut: branch_rate(material, cut=cut),  # type: ignore[misc]
            )
            for cut in sorted({*cuts, *(stage.cut for stage in recipe.stages)})
        }
        for cut in {*material.streamed, model.max_cut} & set(steps) if steps else ():
            passes = 0 if cut == model.max_cut else 1 / trunk
            steps[cut] = 1 / (1 / steps[cut] + 1 / augmented + passes)
        head = known({**about, "what": "head"}, lambda: head_rate(model.feature_dim))
    finally:
        torch.set_num_threads(before)
    return Rates(trunk=trunk, augment=augmented, steps=steps, head=head)


def branch_rate(material: Material, *, cut: int) -> float:
    """Images/s of training steps of a branch at a cut, at the recipe's batch."""
    recipe = material.recipe
    branch = material.learner.new_branch(cut, LEAVES, dropout=recipe.dropout, freeze_norm=recipe.freeze_norm)
    compute, device = material.compute(cut), branch.head.weight.device
    compute.place(branch)
    optimizer = torch.optim.AdamW(branch.parameters(), fused=True)
    values = torch.randn(recipe.batch, *material.model.shapes[cut], generator=torch.Generator().manual_seed(0))
    values = compute.laid(values.to(device))

    def step(num: int) -> float:
        with compute.autocast(device):
            logits, _ = branch(values[:num])
        optimizer.zero_grad(set_to_none=True)
        logits.float().logsumexp(1).sum().backward()
        nn.utils.clip_grad_norm_(branch.parameters(), 1.0)
        optimizer.step()
        return float(logits.detach().sum())  # waits for a GPU

    return per_second(lambda num: step(max(num, 2)), batch=recipe.batch)


def head_rate(num_features: int) -> float:
    """Rows x leaves/s of one fit of a head to features that tell nothing, which takes longest."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.eye(len(LEAVES), dtype=torch.bool)[torch.arange(NUM_ROWS) % len(LEAVES)]
    features = torch.randn(NUM_ROWS, num_features, generator=generator)
    lesson = Lesson(features, targets, torch.ones_like(targets), torch.ones(NUM_ROWS))
    fit = HeadFit(lesson)
    list(fit.path((0.01,)))
    begun = time.perf_counter()
    list(fit.path((0.01,)))
    return NUM_ROWS * len(LEAVES) / (time.perf_counter() - begun)


def sizes(material: Material, *, cuts: Collection[int] = ()) -> Sizes:
    """Bytes of one input's activations and pixels, and of one branch."""
    model = material.model
    half, single = np.dtype(np.float16).itemsize, np.dtype(np.float32).itemsize
    branches = {cut: model.new_branch(cut, LEAVES[:1]) for cut in {*cuts, *material.cuts}}
    return Sizes(
        activations={cut: half * math.prod(model.shapes[cut]) for cut in material.cached_cuts},
        input=3 * model.spec.size_px**2,
        branches={
            cut: sum(value.nbytes for name, value in branch.state_dict().items() if not name.startswith("head."))
            for cut, branch in branches.items()
        },
        head=single * (model.feature_dim + 1),
    )


def device_name() -> str:
    """What computes here: the GPU's name where there is one, and the CPU's."""
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return gpu + (models[0] if models else platform.processor() or platform.machine())


class _Known:
    """Figures in a folder, by the digest of what they depend on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, about: Mapping[str, Any], measure: Callable[[], float]) -> float:
        path = self.folder / f"{sha256(json.dumps(about, sort_keys=True).encode())[:32]}.json"
        if path.exists():
            return float(json.loads(path.read_text(encoding="utf-8"))["per_s"])
        value = measure()
        with replaced(path) as part:
            part.write_text(json.dumps({**about, "per_s": value}, sort_keys=True), encoding="utf-8")
        return value
