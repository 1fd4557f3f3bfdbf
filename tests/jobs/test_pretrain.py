"""The embedded backbone: its generator, its course, and the file that ships."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open

from jobs import pretrain as school
from jobs import weights
from jobs.procedural import ANOMALIES, NONLINEARITIES, World, draw_batch
from plants.errors import InputError

FOLDER = Path(weights.__file__).parent
REAL_DATA = Path(os.environ.get("CROSSPLANT_REAL_DATA", "../shared/data"))


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def batch(*, seed=0, step=0, num_images=24, size_px=32):
    return draw_batch(World.draw(10, seed=0), seed=seed, step=step, num_images=num_images, size_px=size_px)


def test_same_seed_and_step_draw_the_same_images_and_another_step_draws_others():
    first, again, next_step, other_seed = batch(), batch(), batch(step=1), batch(seed=1)
    for name in ("images", "texture", "anomaly", "mask"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.images, next_step.images)
    assert not torch.equal(first.images, other_seed.images)


def test_drawing_neither_reads_nor_moves_the_global_random_state():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = batch()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(first.images, batch().images)


def test_images_are_uint8_of_the_size_asked_for_with_labels_in_range():
    drawn = batch(num_images=64, size_px=48)
    assert drawn.images.shape == (64, 48, 48, 3)
    assert drawn.images.dtype == torch.uint8
    assert set(drawn.texture.tolist()) <= set(range(10))
    assert set(drawn.anomaly.tolist()) == set(range(len(ANOMALIES)))
    assert 0 <= float(drawn.mask.min()) <= float(drawn.mask.max()) <= 1


def test_a_mask_is_empty_exactly_where_there_is_no_anomaly():
    drawn = batch(num_images=200)
    covered = drawn.mask.flatten(1).max(dim=1).values > 0.1
    assert not covered[drawn.anomaly == 0].any()
    assert covered[drawn.anomaly > 0].float().mean() > 0.95


def test_no_nonlinearity_makes_a_number_that_is_not_finite():
    field, strength = torch.linspace(-8, 8, 64).reshape(1, 8, 8), torch.ones(1, 1, 1)
    assert all(bool(torch.isfinite(function(field, strength)).all()) for function in NONLINEARITIES)


def test_two_worlds_share_no_texture():
    one, other = World.draw(20, seed=0), World.draw(20, seed=1)
    assert not torch.equal(one.slope, other.slope)
    assert torch.equal(one.slope, World.draw(20, seed=0).slope)


def test_cells_are_named_ignored_or_empty_by_how_far_the_anomaly_reaches_into_them():
    mask = torch.zeros(1, 4, 4)
    mask[0, 0, 0], mask[0, 3, 3] = 1.0, 0.3
    assert school.cell_targets(mask, torch.tensor([5]), cells=2).tolist() == [[[5, 0], [0, -100]]]


@pytest.mark.parametrize(
    ("step", "size_px", "rate"), [(0, 64, 6e-4), (4, 64, 3e-3), (5, 64, 3e-3), (52, 64, 1.5370e-3), (99, 96, 8.2e-7)]
)
def test_the_course_warms_up_falls_to_zero_and_ends_with_large_images(step, size_px, rate):
    course = school.Course(seed=0, steps=100)
    assert course.size_at(step) == size_px
    assert course.rate_at(step) == pytest.approx(rate, rel=0.02)


def test_a_folder_as_output_is_refused_before_the_training_and_not_after(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        school.pretrain(tmp_path, steps=1)


@pytest.mark.parametrize("arguments", [{"steps": 1, "minutes": 1.0}, {"steps": 0}, {"minutes": 0.0}])
def test_a_course_that_cannot_be_is_refused_before_anything_is_written(tmp_path, arguments):
    with pytest.raises(InputError, match=r"steps|minutes"):
        school.pretrain(tmp_path / "w.safetensors", **arguments)
    assert not list(tmp_path.iterdir())


TINY = {"steps": 6, "num_textures": 4, "batch_size": 8}


@pytest.fixture
def _short_exam(monkeypatch):
    monkeypatch.setattr(school, "EXAM_IMAGES", 128)


@pytest.mark.slow
@pytest.mark.usefixtures("_short_exam")
def test_an_interrupted_run_goes_on_to_the_same_file_and_leaves_nothing_else(tmp_path, monkeypatch):
    whole = school.pretrain(tmp_path / "whole.safetensors", **TINY)
    stopped = tmp_path / "stopped.safetensors"
    monkeypatch.setattr(school, "STATE_EVERY_S", 0.0)

    def stop_at_the_fourth(line: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(school, "REPORT_EVERY_STEPS", 4)
    with pytest.raises(KeyboardInterrupt):
        school.pretrain(stopped, progress=stop_at_the_fourth, **TINY)
    assert [f.name for f in tmp_path.glob("stopped*")] == ["stopped.safetensors.state.pt"]
    with pytest.raises(InputError, match="another course"):
        school.pretrain(stopped, seed=1, **TINY)
    assert school.pretrain(stopped, **TINY)["sha256"] == whole["sha256"]
    assert sorted(f.name for f in tmp_path.iterdir()) == ["stopped.safetensors", "whole.safetensors"]


@pytest.mark.slow
@pytest.mark.usefixtures("_short_exam")
def test_a_few_steps_already_know_textures_better_than_chance(tmp_path):
    result = school.pretrain(tmp_path / "w.safetensors", steps=60, num_textures=8, batch_size=24)
    assert result["texture_accuracy"] > 0.4  # chance is 0.125
    assert result["images"] == 60 * 24


@pytest.mark.slow
@pytest.mark.usefixtures("_short_exam")
def test_minutes_plan_a_course_this_machine_can_afford(tmp_path):
    result = school.pretrain(tmp_path / "w.safetensors", minutes=0.02, num_textures=4, batch_size=8)
    assert 1 <= result["course"]["steps"] < 200


def test_the_shipped_file_fits_timms_model_strictly_and_is_small_and_half_precision():
    net = timm.create_model(weights.EMBEDDED["backbone"], num_classes=0)
    state = weights.load_embedded(weights.EMBEDDED["backbone"])
    net.load_state_dict(state, strict=True)
    file = FOLDER / weights.EMBEDDED["file"]
    assert file.stat().st_size < 4 << 20
    with safe_open(file, framework="pt") as stored:
        kinds = {stored.get_tensor(name).dtype for name in stored.keys()}  # noqa: SIM118 - not a mapping
    assert kinds == {torch.float16, torch.int64}
    assert all(value.dtype != torch.float16 for value in state.values())


def test_digest_backbone_mean_and_deviation_agree_between_card_constant_and_file():
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert weights.EMBEDDED["sha256"] in card
    assert f"--steps {school.STEPS}" in card
    with safe_open(FOLDER / weights.EMBEDDED["file"], framework="pt") as stored:
        about = stored.metadata()
    assert about["backbone"] == weights.EMBEDDED["backbone"]
    assert tuple(json.loads(about["mean"])) == weights.EMBEDDED["mean"]
    assert tuple(json.loads(about["std"])) == weights.EMBEDDED["std"]
    assert json.loads(about["course"])["steps"] == school.STEPS
    config = timm.get_pretrained_cfg(weights.EMBEDDED["backbone"])
    assert (config.mean, config.std) == (weights.EMBEDDED["mean"], weights.EMBEDDED["std"])


def test_embedded_weights_are_refused_for_another_backbone():
    with pytest.raises(InputError, match="for test_resnet, not resnet18"):
        weights.load_embedded("resnet18")


def test_an_embedded_file_with_one_byte_changed_or_missing_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(weights.resources, "files", lambda _: tmp_path)
    with pytest.raises(InputError, match="not installed"):
        weights.load_embedded("test_resnet")
    data = bytearray((FOLDER / weights.EMBEDDED["file"]).read_bytes())
    data[-1] ^= 1
    (tmp_path / weights.EMBEDDED["file"]).write_bytes(data)
    with pytest.raises(InputError, match="digest"):
        weights.load_embedded("test_resnet")


@pytest.mark.slow
def test_embedded_features_tell_anomalous_from_whole_surfaces_never_seen_in_training():
    from sklearn.linear_model import LogisticRegression

    world = World.draw(40, seed=77)
    drawn = draw_batch(world, seed=77, step=0, num_images=600, size_px=96)
    net = timm.create_model("test_resnet", num_classes=0).eval()
    net.load_state_dict(weights.load_embedded("test_resnet"))
    with torch.no_grad():
        features = net(school.normalise(drawn.images)).numpy()
    features = (features - features.mean(0)) / features.std(0)
    is_bad = (drawn.anomaly > 0).numpy()
    model = LogisticRegression(C=0.1, max_iter=500, class_weight="balanced").fit(features[:400], is_bad[:400])
    guess = model.predict(features[400:])
    recalls = [float((guess == value)[is_bad[400:] == value].mean()) for value in (False, True)]
    print("balanced accuracy", np.mean(recalls))
    assert np.mean(recalls) > 0.65  # a coin reaches 0.5


def real_images(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """All images of class folders, stretched to 96 px, and their class."""
    images, classes = [], []
    for label, group in enumerate(sorted(p for p in folder.iterdir() if p.is_dir())):
        for file in sorted(group.iterdir()):
            images.append(np.asarray(Image.open(file).convert("RGB").resize((96, 96), Image.Resampling.BILINEAR)))
            classes.append(label)
    return np.stack(images), np.array(classes)


def linear_probe(folder: Path, *, num_splits: int = 3) -> list[float]:
    """Macro-F1 of frozen embedded features and logistic regression on random stratified 60/40 splits."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.model_selection import StratifiedShuffleSplit
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    images, classes = real_images(folder)
    net = timm.create_model("test_resnet", num_classes=0).eval()
    net.load_state_dict(weights.load_embedded("test_resnet"))
    with torch.no_grad():
        chunks = torch.from_numpy(images).split(256)
        features = torch.cat([net(school.normalise(chunk)) for chunk in chunks]).numpy()
    scores = []
    for train, test in StratifiedShuffleSplit(num_splits, train_size=0.6, random_state=0).split(features, classes):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=2000))
        guess = model.fit(features[train], classes[train]).predict(features[test])
        scores.append(100 * float(f1_score(classes[test], guess, average="macro")))
    return scores


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize(("plant", "floor"), [("steel/neu", 97.5), ("steel/xsdd", 87.0), ("magnetic", 60.0)])
def test_embedded_features_reach_what_the_card_says_on_real_plants(plant, floor):
    folder = REAL_DATA / plant
    if not folder.is_dir():
        pytest.skip(f"{plant} is not under {REAL_DATA}: set CROSSPLANT_REAL_DATA")
    scores = linear_probe(folder)
    print(plant, [round(score, 1) for score in scores])
    assert np.mean(scores) > floor
