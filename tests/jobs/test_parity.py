"""Parity notices what went wrong in a file: one number, a missing layer, another trunk."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from jobs.compress import BranchExporter, agrees, parity
from jobs.parity import compared
from tests.jobs.nets import model_of, randomise


@pytest.fixture(scope="module")
def model():
    return model_of(cuts=(0,))


@pytest.fixture
def branch(model):
    branch = model.new_branch(0, ["ok", "crack", "scale"])
    randomise(branch)
    return branch


@pytest.fixture
def file(model, branch, tmp_path):
    path = tmp_path / "branch.onnx"
    BranchExporter(model, 0).write(branch, path)
    return path


@pytest.fixture
def activations(model):
    return np.random.default_rng(0).normal(size=(20, model.feature_dim)).astype(np.float32)


def corrupt(path, name, change):
    model = onnx.load(path)
    for initializer in model.graph.initializer:
        if initializer.name == name:
            array = numpy_helper.to_array(initializer).copy()
            initializer.raw_data = change(array).astype(array.dtype).tobytes()
    onnx.save(model, path)


def test_an_honest_file_agrees(branch, file, activations):
    report = parity(branch, file, activations, batch=7)
    assert agrees(report)
    assert report["flips"] == 0
    assert report["n"] == 20


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("head.bias", lambda a: a + np.array([0, 0.1, 0])),
        ("head.weight", lambda a: np.where(np.arange(a.size).reshape(a.shape) == 5, a + 0.5, a)),
        ("head.weight", lambda a: a[::-1]),
        ("head.bias", lambda a: a * np.nan),
    ],
)
def test_a_corrupted_initialiser_is_caught(branch, file, activations, name, change):
    corrupt(file, name, change)
    report = parity(branch, file, activations)
    assert not agrees(report)
    assert report["max_abs_diff"] > 0.01


def test_features_that_differ_are_caught_though_every_decision_is_the_same():
    logits, features = np.array([[2.0, 1.0]]), np.array([[1.0, 2.0]])
    report = compared((logits, features), (logits, features * 1.01))
    assert report["max_abs_diff"] == 0
    assert not agrees(report)


def test_a_changed_decision_is_counted_but_a_tie_is_not():
    features = np.zeros((2, 1))
    expected = np.array([[1.0, 0.9999999, 0.0], [1.0, 0.9, 0.0]])
    found = np.array([[0.9999999, 1.0, 0.0], [0.9, 1.0, 0.0]])
    assert compared((expected, features), (found, features))["flips"] == 1


def test_one_leaf_and_no_rows_are_no_special_case():
    one = (np.array([[0.5]]), np.array([[1.0]]))
    none = (np.zeros((0, 2)), np.zeros((0, 3)))
    assert agrees(compared(one, one))
    assert compared(none, none)["n"] == 0
