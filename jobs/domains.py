"""What plants look like to the fleet's trunk, beside one another and beside the images its backbone was taught on.

Only the embedded backbone's pretraining can be drawn again (`jobs.procedural`); of all other weights the images are
elsewhere, and nothing is said about them.
"""

from __future__ import annotations

import os
from html import escape

import numpy as np

from jobs.material import Material
from jobs.page import table
from jobs.pretrain import STEPS, Course
from jobs.procedural import World, draw_batch
from plants.distance import FAR, Look, Table

PRETRAINING = "(pretraining)"
"""No plant may be called so."""
NUM_IMAGES, BLOCK = 192, 32
SEED = 1 << 41
"""Of images that neither training nor its exam drew."""


def pretraining_look(material: Material) -> Look | None:
    """Pooled features of fresh images of the embedded backbone's pretraining, a lot each texture; None for others."""
    if material.trunk.weights != "embedded":
        return None
    path = material.trunk_path.with_name("pretraining.npz")
    if not path.exists():
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        with part.open("wb") as file:
            np.savez(file, **_drawn(material))
        os.replace(part, path)
    with np.load(path, allow_pickle=False) as arrays:
        return Look(PRETRAINING, arrays["features"], arrays["lots"].astype(object))


def _drawn(material: Material) -> dict[str, np.ndarray]:
    course = Course(seed=0, steps=STEPS)
    world, size_px = World.draw(course.num_textures, seed=course.seed), material.trunk.size_px
    features, lots = [], []
    for step in range(NUM_IMAGES // BLOCK):
        batch = draw_batch(world, seed=SEED, step=step, num_images=BLOCK, size_px=size_px)
        features.append(material.runner.activations(batch.images)[0].cpu().numpy())
        lots.append(batch.texture.numpy())
    return {"features": np.concatenate(features), "lots": np.concatenate(lots)}


def distances_html(found: Table) -> str:
    """The distances as one table, empty where there are none; a row is the plant seen from."""
    names = list(dict.fromkeys(a for a, _ in found))
    if len(names) < 2:
        return ""
    rows = [[escape(a), *(_cell(a, b, found=found) for b in names if b != PRETRAINING)] for a in names]
    return "<h2>Distance between plants</h2>" + (
        '<p class="small">How far the images of the column lie from those of the row, in the trunk\'s pooled features: '
        f"1 is as far as the row's own unseen lots. From {FAR:.0f} on a plant is far (bold).</p>"
        + table(["seen from", *(name for name in names if name != PRETRAINING)], rows, caption="Distance")
    )


def _cell(a: str, b: str, *, found: Table) -> str:
    if a == b:
        return "1"
    value = found.get((a, b))
    if value is None:
        return '<span class="none">not enough lots</span>'
    return f'<span class="chosen">{value:.1f}</span>' if value >= FAR else f"{value:.1f}"
