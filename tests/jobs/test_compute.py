"""In what a net is computed: fast, close to float32, and the same for every process of a machine."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch

from jobs import compute
from jobs.compute import KINDS, PLAIN, Compute, Computes, probe_branch, probe_trunk
from jobs.recipe import Recipe, Stage
from jobs.train import fit
from tests.jobs.nets import model_of
from tests.jobs.toys import ToyModel, toy_run

FAST = Compute("bfloat16", "channels_last")


@pytest.mark.parametrize(("rate", "chosen"), [(10.0, PLAIN), (11.9, PLAIN), (12.1, FAST)])
def test_another_way_is_taken_only_where_it_is_a_fifth_faster(rate, chosen):
    assert compute._fastest({PLAIN: 10.0, FAST: rate}) == chosen


def test_what_gives_other_features_is_not_taken_however_fast_it_is(monkeypatch):
    rates = itertools.count(1)
    monkeypatch.setattr(compute, "_rate", lambda work, *, device: 100.0 ** next(rates))
    assert probe_branch(model_of(), 1, batch=2) == FAST
    assert probe_trunk(model_of(), lambda images: None, batch=2) == FAST
    monkeypatch.setattr(compute, "CLOSE", 1e-4)
    assert probe_branch(model_of(), 1, batch=2).dtype == "float32"
    assert probe_trunk(model_of(), lambda images: None, batch=2) != FAST


def test_a_probe_leaves_the_trunk_in_plain_float32_and_its_weights_unmoved():
    model = model_of()
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    assert probe_branch(model, 1, batch=4) in KINDS
    probe_trunk(model, lambda images: None, batch=2)
    assert model.trunk.compute == PLAIN
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())


def test_what_was_found_once_is_asked_of_the_folder_and_not_measured_again(tmp_path):
    model = model_of()
    first = Computes(tmp_path, model=model, threads=1)
    first.of_branch(1, batch=4)
    (path,) = tmp_path.glob("*.json")
    words = json.loads(path.read_text())
    path.write_text(json.dumps({**words, "found": {"dtype": "bfloat16", "layout": "channels_last"}}))
    assert Computes(tmp_path, model=model, threads=1).of_branch(1, batch=4) == FAST
    Computes(tmp_path, model=model, threads=2).of_branch(1, batch=4)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_head_alone_is_computed_plainly(tmp_path):
    assert Computes(tmp_path, model=model_of(), threads=1).of_branch(0, batch=16) == PLAIN
    assert not list(tmp_path.iterdir())


def test_a_run_in_bfloat16_learns_what_one_in_float32_learns_and_keeps_float32(tmp_path):
    recipe = Recipe(stages=(Stage(cut=1, epochs=4),), views=2)
    given = toy_run(tmp_path, num_train=128, num_select=64)
    found = {
        kind: fit(ToyModel(), **given, recipe=recipe, seed=0, compute=lambda cut, kind=kind: kind)
        for kind in (PLAIN, FAST)
    }
    assert {value.dtype for value in found[FAST].state.values() if value.is_floating_point()} == {torch.float32}
    losses = {kind: [row["loss"] for row in fitted.history[1:]] for kind, fitted in found.items()}
    assert losses[PLAIN] != losses[FAST]
    np.testing.assert_allclose(losses[FAST], losses[PLAIN], rtol=0.02)
    assert found[FAST].score.nll == pytest.approx(found[PLAIN].score.nll, rel=0.05)
