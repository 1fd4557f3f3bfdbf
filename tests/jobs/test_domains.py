"""Distances are one table in words and numbers; the pretraining is looked at once, and only where it can be drawn."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from torch import Tensor

from jobs import domains
from jobs.domains import PRETRAINING, distances_html, pretraining_look


class Runner:
    """Features that are the mean colours, and how many images were seen."""

    def __init__(self) -> None:
        self.num_seen = 0

    def activations(self, images: Tensor) -> dict[int, Tensor]:
        self.num_seen += len(images)
        return {0: images.float().mean((1, 2))}


def material(folder: Path, *, weights: str = "embedded") -> SimpleNamespace:
    trunk = SimpleNamespace(weights=weights, size_px=32)
    return SimpleNamespace(trunk=trunk, trunk_path=folder / "trunk.onnx", runner=Runner())


def test_images_of_the_pretraining_are_drawn_once_a_trunk_and_are_the_same_again(tmp_path, monkeypatch):
    monkeypatch.setattr(domains, "NUM_IMAGES", 64)
    first, again = material(tmp_path), material(tmp_path)
    look = pretraining_look(first)
    assert look.features.shape == (64, 3)
    assert 10 < len(set(look.lots)) <= 64
    assert np.array_equal(pretraining_look(again).features, look.features)
    assert (first.runner.num_seen, again.runner.num_seen) == (64, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["pretraining.npz"]


@pytest.mark.parametrize("weights", ["hub", "none", "resnet18.safetensors"])
def test_other_weights_come_without_their_images(tmp_path, weights):
    assert pretraining_look(material(tmp_path, weights=weights)) is None


def test_the_table_has_a_row_for_each_plant_seen_from_and_marks_what_is_far():
    found = {(PRETRAINING, "a"): 1.04, (PRETRAINING, "b"): 1.2, ("a", "b"): 2.0, ("b", "a"): None}
    html = distances_html({**found, ("a", PRETRAINING): 3.0, ("b", PRETRAINING): 4.0})
    assert html.count("<tr>") == 4
    assert html.count('class="chosen"') == 1
    assert '<span class="chosen">2.0</span>' in html
    assert "not enough lots" in html
    assert html.count("<th ") == 3
    assert distances_html({}) == ""
