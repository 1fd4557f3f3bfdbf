"""What is measured of a machine, and that it is measured once."""

from __future__ import annotations

import pytest
import torch

from cluster.settings import Settings
from jobs import probe
from jobs.material import Material
from jobs.recipe import Recipe, Stage
from tests.fleets import drawn_fleet, imported

RECIPE = Recipe(stages=(Stage(cut=1, epochs=2),), views=2)


@pytest.mark.parametrize(("image_s", "sizes"), [(0.001, [1, 1, 64, 64, 64, 64]), (0.1, [1, 1, 2, 2]), (9.0, [1, 1, 1])])
def test_a_rate_is_of_whole_batches_or_of_fewer_images_where_one_takes_long(image_s, sizes):
    now, asked = 0.0, []

    def work(num: int) -> None:
        nonlocal now
        now += num * image_s
        asked.append(num)

    found = probe.per_second(work, batch=64, budget_s=0.25, clock=lambda: now)
    assert found == pytest.approx(1 / image_s)
    assert asked == sizes


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    folder = tmp_path_factory.mktemp("probe")
    return Material(imported(drawn_fleet(folder, "mill")), cache=Settings(home=folder / "home").cache, recipe=RECIPE)


@pytest.mark.slow
def test_a_machine_is_measured_once_at_each_setting_and_keeps_its_threads(material: Material, monkeypatch):
    before = torch.get_num_threads()
    first = probe.rates(material, threads=1)
    assert torch.get_num_threads() == before
    assert min(first.trunk, first.augment, first.steps[1], first.head) > 0

    def refuse(*_: object, **__: object) -> float:
        raise AssertionError("it is measured again")

    monkeypatch.setattr(probe, "per_second", refuse)
    monkeypatch.setattr(probe, "head_rate", refuse)
    assert probe.rates(material, threads=1) == first
    for changed in ({"threads": 2}, {"recipe": RECIPE.model_copy(update={"batch": 8})}):
        other = Material(material.fleet, cache=material.cache, recipe=changed.get("recipe", RECIPE))
        with pytest.raises(AssertionError, match="measured again"):
            probe.rates(other, threads=changed.get("threads", 1))


@pytest.mark.slow
def test_sizes_are_those_of_what_is_written(material: Material):
    sizes = probe.sizes(material)
    assert sizes.input == 3 * material.trunk.size_px**2
    branch = material.model.new_branch(1, ("a", "b", "c"))
    assert sizes.branches[1] + 3 * sizes.head == sum(value.nbytes for value in branch.state_dict().values())
