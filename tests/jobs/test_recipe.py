"""Recipes refuse nonsense."""

import pytest

from jobs.recipe import Recipe, Stage, load_recipe, save_recipe
from plants.errors import InputError


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stages: [{cut: 1, lr_backbone: 0.01}]", "pretrained layers"),
        ("stages: [{cut: 2}, {cut: 1}]", "deeper"),
        ("stages: [{cut: 1, epochs: 2, warmup_epochs: 2}]", "warm-up"),
        ("augment: {rotate_deg: 45}", "augment.rotate_deg"),
        ("stages: [{cut: 1}, {cut: 2, lr_backbone: 0.01}]", "lr_backbone 0.01 at cut 2 is above 0.001"),
        ("{lora_rank: 8, stages: [{cut: 1, lr_backbone: 0.2}]}", "stages.0.lr_backbone"),
        ("lora_rank: 3", "lora_rank 3 is outside 4..32: take 8, or leave it out"),
        ("lora_rank: 33", "lora_rank 33 is outside 4..32: take 8, or leave it out"),
        ("{lora_rank: 8, freeze_norm: false}", "freeze_norm must be true"),
        ("{average_epochs: true, freeze_norm: false}", "freeze_norm must be true"),
        ("dropuot: 0.3", "dropuot"),
        ("loss: hinge", "loss"),
        ("balance: oversampling", "balance"),
        ("on_jump: panic", "on_jump"),
        ("gamma: -1", "gamma"),
        ("init: random", "train --baselines"),
        ("stages: [{cut: 1, lr_backbone: 0.2}]", "stages.0.lr_backbone"),
        ("[1, 2", "cannot be read"),
    ],
)
def test_a_senseless_recipe_is_refused_in_one_line_that_names_the_field(tmp_path, text, words):
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        load_recipe(file)
    assert words in str(caught.value)
    assert str(file) in str(caught.value)


def test_all_faults_of_a_recipe_are_reported_at_once(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("dropout: 2\nviews: 0\nbatch: -1\n")
    with pytest.raises(InputError) as caught:
        load_recipe(file)
    assert len(caught.value.faults) == 3


def test_a_recipe_survives_its_file(tmp_path):
    recipe = Recipe(dropout=0.1, weight_decay=0.01)
    save_recipe(recipe, tmp_path / "r.yaml", header="found by a search\nof 12 trials")
    assert load_recipe(tmp_path / "r.yaml") == recipe
    assert load_recipe(tmp_path / "r.yaml").digest == recipe.digest


def test_a_stage_says_all_its_faults_and_what_to_write_instead(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("stages: [{cut: 1, epochs: 2, warmup_epochs: 2, lr_backbone: 0.01}]")
    with pytest.raises(InputError, match=r"stages\.0: .*write warmup_epochs 1"):
        load_recipe(file)


def test_a_recipe_says_all_its_faults_and_what_to_write_instead(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("stages: [{cut: 2}, {cut: 1}]\nbatch: 8\naccumulate: 16\n")
    with pytest.raises(InputError, match=r"cuts strictly increasing; accumulate 16 is more than the batch \(8\)"):
        load_recipe(file)


def test_what_knows_nothing_yet_has_one_stage_and_nothing_to_stay_near_to():
    with pytest.raises(ValueError, match="needs one stage and freeze_norm: false"):
        Recipe(init="random", stages=())
    with pytest.raises(ValueError, match="leave out l2_sp and replay"):
        Recipe(init="random", freeze_norm=False, l2_sp=0.1)


def test_what_knows_nothing_yet_may_learn_fast_and_long_without_a_warning():
    stage = Stage(cut=5, epochs=60, lr_backbone=0.01)
    recipe = Recipe(init="random", freeze_norm=False, patience=60, stages=(stage,))
    assert recipe.stages[0].lr_backbone == 0.01
    with pytest.raises(ValueError, match=r"0\.01 at cut 5 is above 0\.001 on pretrained layers"):
        Recipe(stages=(stage,))


@pytest.mark.parametrize("rank", [4, 32])
def test_adapters_may_learn_faster_than_pretrained_layers(rank):
    assert Recipe(lora_rank=rank, stages=(Stage(cut=1, lr_backbone=0.01),)).lora_rank == rank
