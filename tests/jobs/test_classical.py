"""Hand-made features: what they see, and a linear model of them on the rows of the frozen baseline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.classical import NUM_LAYOUT, NUM_TEXTURE, HandMade, features
from jobs.fit import fit_run
from jobs.fleet import planned
from jobs.material import Material
from jobs.recipe import Recipe
from jobs.scoring import Exports, role_inputs
from plants.metrics import report
from tests.fleets import drawn_fleet, imported

WHOLE = NUM_TEXTURE + NUM_LAYOUT
GREYS = slice(2 * 36 + 2 * 30, 2 * 36 + 2 * 30 + 2 * 16)
COLOURS = slice(NUM_TEXTURE - 48, NUM_TEXTURE)


def blotted(*, at: tuple[int, int], size_px: int = 64) -> np.ndarray:
    """A grey image [1, S, S, 3] with one black square of 8 px."""
    image = np.full((1, size_px, size_px, 3), 200, dtype=np.uint8)
    image[:, at[0] : at[0] + 8, at[1] : at[1] + 8] = 0
    return image


def test_a_blot_in_another_place_is_the_same_texture_and_another_layout():
    here, there = (features(blotted(at=at), num=WHOLE)[0] for at in ((20, 20), (36, 36)))
    assert np.allclose(here[:NUM_TEXTURE], there[:NUM_TEXTURE], atol=1e-6)
    assert not np.allclose(here[NUM_TEXTURE:], there[NUM_TEXTURE:], atol=0.1)


def test_greys_are_counted_in_every_cell_and_the_fullest_cell_is_kept():
    mean, fullest = features(blotted(at=(20, 20)), num=WHOLE)[0, GREYS].reshape(2, 16)
    assert mean[0] == pytest.approx(64 / 64**2)
    assert fullest[0] == pytest.approx(64 / 16**2)
    assert mean[200 // 16] == pytest.approx(1 - 64 / 64**2)
    assert fullest[200 // 16] == 1


def test_colours_are_told_apart():
    red = np.zeros((1, 40, 40, 3), dtype=np.uint8)
    red[..., 0] = 255
    shares = features(red, num=NUM_TEXTURE)[0, COLOURS].reshape(3, 16)
    assert shares[0, 15] == shares[1, 0] == shares[2, 0] == 1
    assert shares.sum() == 3


@pytest.mark.parametrize("size_px", [32, 45, 100])
def test_every_size_of_input_gives_as_many_finite_features(size_px: int):
    images = torch.randint(256, (2, size_px, size_px, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = HandMade().activations(images)
    assert {cut: tuple(value.shape) for cut, value in found.items()} == {0: (2, NUM_TEXTURE), 1: (2, WHOLE)}
    assert all(value.isfinite().all() and value.dtype == torch.float32 for value in found.values())
    assert HandMade().activations(images[:0])[1].shape == (0, WHOLE)


@pytest.mark.slow
def test_a_classical_run_learns_on_the_rows_of_the_frozen_one_and_is_judged_as_it_is_kept(tmp_path: Path):
    fleet = imported(drawn_fleet(tmp_path, "mill"))
    deep = fleet.trunks[0].model_copy(update={"cuts": (0, 5), "size_px": 32})
    fleet = fleet.model_copy(update={"trunks": (deep,)})
    recipe = Recipe(stages=(), views=1)
    material = Material(fleet, cache=tmp_path / "cache", recipe=recipe)
    plan = planned(fleet, material=material, recipe=recipe, baselines=True)
    fitted = fit_run(plan.run("classical-mill-s0"), material=material, plan=plan)
    assert fitted.notes[0].startswith("linear model of hand-made features of texture")
    assert set(fitted.state) == {"head.weight", "head.bias"}
    exports = Exports(material, plan=plan)
    inputs = role_inputs("mill", role="decide", exports=exports)
    assert inputs is not None
    probs, leaves = inputs.probabilities("classical-mill-s0")
    assert leaves == fitted.leaves
    assert np.allclose(probs.sum(1), 1, atol=1e-5)
    scores = inputs.scores([(probs, leaves)], leaf_sets=fleet.leaf_sets(fleet.plant("mill")))
    assert report(scores, n_boot=1)["macro_f1"]["value"] == 1, "cracked frames are bluer"
    again = fit_run(plan.run("classical-mill-s0"), material=material, plan=plan)
    assert all((again.state[name] == value).all() for name, value in fitted.state.items())
