"""Activations that are computed when they are asked for."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.fit import fit_run
from jobs.fleet import planned
from jobs.material import Material
from jobs.recipe import Recipe, Stage
from jobs.scoring import Exports
from jobs.stream import DRAWS, streamed_cuts
from plants.plant import Fleet

SHAPES = {0: (100,), 1: (10, 10, 10), 2: (10, 20, 20), 5: (3, 32, 32)}
# bytes of 1,000 inputs in 4 views, float16: cut 0 0.8 MB, cut 1 8 MB, cut 2 32 MB


@pytest.mark.parametrize(
    ("cuts", "budget_mb", "source", "streamed"),
    [
        ((0, 1, 2), 100, "auto", ()),
        ((0, 1, 2), 40, "auto", (2,)),
        ((0, 1, 2), 5, "auto", (1, 2)),
        ((0, 1, 2), 0, "auto", (1, 2)),
        ((0, 1, 2, 5), 1000, "auto", (5,)),
        ((0, 5), 1000, "auto", (5,)),
        ((0, 1, 2, 5), 0, "cache", (5,)),
        ((0, 1, 2), 1000, "stream", (1, 2)),
    ],
)
def test_shallow_cuts_are_cached_as_long_as_they_fit_and_the_deepest_never_is(cuts, budget_mb, source, streamed):
    found = streamed_cuts(
        SHAPES, cuts=cuts, inputs=1000, views=4, deepest=5, budget_bytes=budget_mb * 1e6, source=source
    )
    assert found == streamed


def _material(works, *, source="auto", cuts=(0, 1), stages=(1,), epochs=2, **more):
    trunk = works.fleet.trunks[0].model_copy(update={"cuts": cuts})
    fleet = Fleet.model_validate(works.fleet.model_copy(update={"trunks": (trunk,)}).model_dump())
    recipe = Recipe(stages=tuple(Stage(cut=cut, epochs=epochs) for cut in stages), views=2, source=source, **more)
    return Material(fleet, cache=works.settings.cache, recipe=recipe), recipe


@pytest.mark.slow
def test_a_streamed_row_is_what_the_cache_holds_of_it_and_every_seed_shows_it_otherwise(works):
    cached = _material(works, source="cache")[0].data("arden")
    streamed = _material(works, source="stream")[0].data("arden")
    assert (cached.num_views(1), streamed.num_views(1), streamed.num_views(0)) == (2, DRAWS, 2)
    ids = np.array([5, 0, 3])
    plain = streamed.fetch(1, ids=ids, views=np.zeros(3, dtype=np.int64))
    np.testing.assert_allclose(plain, cached.fetch(1, ids=ids, views=np.zeros(3, dtype=np.int64)), atol=2e-2, rtol=2e-3)
    one, other = (streamed.fetch(1, ids=ids, views=np.array([seed, 0, seed])) for seed in (7, 8))
    np.testing.assert_array_equal(one, streamed.fetch(1, ids=ids, views=np.array([7, 0, 7])))
    np.testing.assert_array_equal(one[1], plain[1])
    assert not np.allclose(one[0], other[0])
    alone = streamed.fetch(1, ids=ids[2:], views=np.array([7]))
    np.testing.assert_allclose(alone[0], one[2], atol=1e-4)


@pytest.mark.slow
def test_a_streamed_run_is_resumed_and_repeated_to_the_same_numbers(works):
    material, recipe = _material(works, source="stream")
    plan = planned(material.fleet, material=material, recipe=recipe)
    losses = [
        [row["loss"] for row in fit_run(plan.run("own-arden-s0"), material=material, plan=plan).history[1:]]
        for _ in range(2)
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 2


@pytest.mark.slow
def test_a_whole_net_is_trained_exported_and_answers_as_torch_does(works):
    deepest = _material(works)[0].model.max_cut
    material, recipe = _material(works, cuts=(0, deepest), stages=(deepest,), epochs=3)
    assert material.streamed == (deepest,)
    plan = planned(material.fleet, material=material, recipe=recipe)
    fitted = fit_run(plan.run("own-arden-s0"), material=material, plan=plan)
    assert [row["stage"] for row in fitted.history] == [0, 1, 1, 1]
    # the deepest stage may lose on select; what it learned is looked at all the same
    start = {name: value for name, value in material.model.backbone.state_dict().items() if "conv" in name}
    branch = material.model.new_branch(deepest, fitted.leaves)
    if fitted.cut == deepest:
        branch.load_state(fitted.state)
        assert any(not np.array_equal(branch.state_dict()[f"body.{name}"], value) for name, value in start.items())
    exports = Exports(material, plan=plan)
    data = material.data("arden")
    pixels = data.stream.pixels.take(np.arange(8))
    report = exports.check_parity("own-arden-s0", activations=exports.evaluator.activations(pixels))
    assert report
