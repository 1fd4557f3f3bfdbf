"""How fast this machine is at a plan's arithmetic, measured in a second or two and remembered.

What computes later is what is measured: the trunk as lanes run it, branches with their optimiser at the recipe's batch.
A figure is kept in the cache under all that it depends on, so that it is measured once a machine.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Collection

import numpy as np
import torch

from jobs import measured
from jobs.augment import WAY, augment
from jobs.compute import stepping
from jobs.estimate import Rates, Sizes
from jobs.head import HeadFit, Lesson
from jobs.material import Material
from jobs.measured import Measured

PROBE_S = 0.25
"""Of each figure, beside its warm-up."""
LEAVES = ("a", "b", "c", "d")
NUM_ROWS = 256
Clock = Callable[[], float]


def per_second(
    work: Callable[[int], object], *, batch: int, budget_s: float = PROBE_S, clock: Clock | None = None
) -> float:
    """Images a second of `work`, which takes a number of images, in batches after one image to warm up.

    Where a batch alone would take longer than the budget, fewer images are timed.
    """
    clock, wait = clock or measured.clock(), torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    work(1)
    wait()
    begun = clock()
    work(1)
    wait()
    first = max(clock() - begun, 1e-9)
    size = min(batch, max(1, int(budget_s / first)))
    num, begun = 0, clock()
    while num == 0 or clock() - begun < budget_s:
        work(size)
        wait()
        num += size
    return num / max(clock() - begun, 1e-9)


def rates(material: Material, *, threads: int, cuts: Collection[int] = ()) -> Rates:
    """The rates of one lane with so many threads on this machine, from the cache where they were measured before."""
    model, recipe, known = material.model, material.recipe, Measured(material.cache / "rates")
    spec = model.spec.model_dump(mode="json", include={"backbone", "options", "size_px", "cuts"})
    about = {"spec": spec, "threads": threads, "compute": recipe.compute}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        size, rng = model.spec.size_px, np.random.default_rng(0)
        images = torch.from_numpy(rng.integers(0, 256, (64, size, size, 3), dtype=np.uint8)).to(material.runner.device)
        seeds = [b"%d" % i for i in range(len(images))]
        trunk = known(
            {**about, "what": "trunk"},
            lambda: per_second(lambda n: material.runner.activations(images[:n]), batch=len(images)),
        )
        policy = recipe.augment
        augmented = known(
            {**about, "what": "augment", "policy": policy.model_dump(mode="json"), "way": WAY},
            lambda: per_second(lambda n: augment(images[:n], policy=policy, seeds=seeds[:n]), batch=len(images)),
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
    recipe, compute = material.recipe, material.compute(cut)
    branch = material.learner.new_branch(cut, LEAVES, dropout=recipe.dropout, freeze_norm=recipe.freeze_norm)
    compute.place(branch)
    values = torch.randn(recipe.batch, *material.model.shapes[cut], generator=torch.Generator().manual_seed(0))
    values = values.to(branch.head.weight.device)

    @functools.cache
    def of(num: int) -> Callable[[], None]:
        return stepping(branch, compute.laid(values[: max(num, 2)]), compute=compute)

    def step(num: int) -> None:
        of(num)()

    return per_second(step, batch=recipe.batch)


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
