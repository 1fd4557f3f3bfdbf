"""Weights that were asked for are loaded whole or refused in one line that says what to do."""

from __future__ import annotations

import json
import socket

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save, save_file

from jobs.backbone import load_backbone, trained_px
from plants.errors import InputError
from plants.plant import Trunk
from tests.jobs.nets import MOBILENET_035


def trunk(**values):
    return Trunk(**{"backbone": "test_resnet", "weights": "none", "size_px": 32, "cuts": (0,), **values})


def state_of(backbone="test_resnet", *, num_classes=7, seed=5):
    torch.manual_seed(seed)
    return timm.create_model(backbone, num_classes=num_classes).state_dict()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(state_of(), path)
    return path


def test_a_file_is_loaded_whole_and_its_classifier_is_left_out(file):
    net = load_backbone(trunk(weights=str(file))).net
    expected = state_of()
    assert all(torch.equal(value, expected[name]) for name, value in net.state_dict().items())


def test_a_file_without_classifier_or_in_half_precision_is_taken(tmp_path):
    path = tmp_path / "half.safetensors"
    state = {k: v.half() if v.is_floating_point() else v for k, v in state_of(num_classes=0).items()}
    save_file(state, path)
    net = load_backbone(trunk(weights=str(path))).net
    assert all(value.dtype == torch.float32 for value in net.parameters())
    assert torch.equal(net.state_dict()["layer4.0.conv1.weight"], state["layer4.0.conv1.weight"].float())


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_a_file_that_differs_beyond_the_classifier_is_refused(tmp_path, change):
    state, name = state_of(), "layer4.0.conv1.weight"
    if change == "missing":
        del state[name]
    elif change == "extra":
        state["layer5.weight"] = torch.zeros(3)
    else:
        state[name] = torch.zeros(1)
    path = tmp_path / "wrong.safetensors"
    save_file(state, path)
    with pytest.raises(InputError, match=r"wrong\.safetensors.*holds no weights for test_resnet: 1 tensors do not fit"):
        load_backbone(trunk(weights=str(path)))


def test_a_file_of_another_backbone_is_refused_and_names_both(tmp_path):
    path = tmp_path / "vit.safetensors"
    save_file(state_of("test_vit"), path)
    with pytest.raises(InputError, match=r"vit\.safetensors: field trunks\.weights: holds no weights for test_resnet"):
        load_backbone(trunk(weights=str(path)))


def test_position_embeddings_of_another_input_size_are_resampled(tmp_path):
    path = tmp_path / "vit.safetensors"
    save_file(state_of("vit_tiny_patch16_224"), path)
    net = load_backbone(trunk(backbone="vit_tiny_patch16_224", size_px=64, weights=str(path))).net
    assert net.pos_embed.shape[1] == 1 + 4 * 4


@pytest.mark.parametrize("content", [b"", b"\x00", b"version https://git-lfs", b"\xff" * 64])
def test_what_is_no_safetensors_file_is_refused(tmp_path, content):
    path = tmp_path / "text.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not a safetensors file"):
        load_backbone(trunk(weights=str(path)))


def test_a_missing_file_is_refused_with_the_offline_choices(tmp_path):
    with pytest.raises(InputError, match=r"no such file\. Offline choices: weights: embedded"):
        load_backbone(trunk(weights=str(tmp_path / "none.safetensors")))


def test_weights_in_a_store_come_through_the_reader(file):
    asked = []

    def read(uri):
        asked.append(uri)
        return file.read_bytes()

    net = load_backbone(trunk(weights="s3://bucket/w.safetensors"), read=read).net
    assert asked == ["s3://bucket/w.safetensors"]
    assert torch.equal(net.state_dict()["layer1.0.conv1.weight"], state_of()["layer1.0.conv1.weight"])
    with pytest.raises(InputError, match="need a reader"):
        load_backbone(trunk(weights="s3://bucket/w.safetensors"))


def test_normalisation_is_the_files_own_then_timms_and_the_fleet_may_overrule(tmp_path):
    path = tmp_path / "own.safetensors"
    path.write_bytes(save(state_of(), metadata={"mean": json.dumps([0.1, 0.2, 0.3])}))
    own = load_backbone(trunk(weights=str(path)))
    assert own.mean == (0.1, 0.2, 0.3)
    assert own.std == (0.5, 0.5, 0.5)
    assert load_backbone(trunk(backbone="resnet18")).mean == (0.485, 0.456, 0.406)
    assert load_backbone(trunk(weights=str(path), mean=(0.4, 0.4, 0.4))).mean == (0.4, 0.4, 0.4)


def test_resizing_is_the_files_own_then_timms_and_the_fleet_may_overrule(tmp_path):
    path = tmp_path / "own.safetensors"
    path.write_bytes(save(state_of(), metadata={"interpolation": "bicubic"}))
    assert load_backbone(trunk(weights=str(path))).interpolation == "bicubic"
    assert load_backbone(trunk(weights=str(path), interpolation="bilinear")).interpolation == "bilinear"
    assert load_backbone(trunk(backbone="resnet18")).interpolation == "bicubic"
    assert load_backbone(trunk(weights="embedded", size_px=96)).interpolation == "bilinear"


def test_weights_that_were_resized_in_a_way_unknown_here_are_refused_unless_the_fleet_says_how(tmp_path):
    path = tmp_path / "own.safetensors"
    path.write_bytes(save(state_of(), metadata={"interpolation": "random"}))
    with pytest.raises(
        InputError, match=r"trunks\.interpolation: .* with random resizing\. Set one of bilinear, bicubic"
    ):
        load_backbone(trunk(weights=str(path)))
    assert load_backbone(trunk(weights=str(path), interpolation="bicubic")).interpolation == "bicubic"


@pytest.mark.parametrize(
    ("backbone", "weights", "expected"),
    [("test_resnet", "embedded", 96), ("resnet18", "hub", 224), ("vit_base_patch16_384", "a.safetensors", 384)],
)
def test_the_input_size_of_weights_is_known_without_loading_them(backbone, weights, expected):
    assert trained_px(trunk(backbone=backbone, weights=weights)) == expected
    assert trained_px(trunk(backbone=backbone)) is None


def test_the_embedded_weights_are_for_one_backbone_and_load_into_it():
    embedded = load_backbone(trunk(weights="embedded", size_px=96)).net
    random = load_backbone(trunk(size_px=96)).net
    assert not torch.equal(embedded.state_dict()["layer1.0.conv1.weight"], random.state_dict()["layer1.0.conv1.weight"])
    with pytest.raises(InputError, match="embedded weights are for test_resnet"):
        load_backbone(trunk(backbone="resnet18", weights="embedded"))


def test_random_weights_follow_the_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first, again = load_backbone(trunk(), seed=3).net, load_backbone(trunk(), seed=3).net
    assert torch.equal(torch.rand(1), expected)
    other = load_backbone(trunk(), seed=4).net
    name = "layer1.0.conv1.weight"
    assert torch.equal(first.state_dict()[name], again.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_hub")
def test_an_unreachable_hub_is_one_line_that_names_the_offline_choices():
    with pytest.raises(InputError, match=r"the hub cannot be reached\. Offline choices: weights: embedded") as caught:
        load_backbone(trunk(backbone="resnet18", weights="hub", size_px=64))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"backbone": "resnet19"}, "timm knows no backbone 'resnet19'. Similar names: resnet18"),
        ({"backbone": "resnet18.nonsense"}, "Invalid pretrained tag.*Without the tag: resnet18"),
        ({"backbone": "resnet18.nonsense", "weights": "hub"}, "Invalid pretrained tag"),
        ({"options": {"colour": 3}}, r"does not take options \['colour'\]"),
        ({"backbone": "vit_tiny_patch16_224", "size_px": 90}, "patches of 16 px, and 90 is no multiple"),
        ({"backbone": "resnet10t.untrained", "weights": "hub"}, "Invalid pretrained tag|has no weights"),
    ],
)
def test_a_backbone_that_cannot_be_made_is_refused_by_field(values, words):
    with pytest.raises(InputError, match=words) as caught:
        load_backbone(trunk(**values))
    assert "field trunks." in str(caught.value)


def test_a_header_that_asks_for_another_padding_or_states_nonsense_is_refused(tmp_path):
    path = tmp_path / "own.safetensors"
    path.write_bytes(save(state_of(), metadata={"pad_type": "same"}))
    with pytest.raises(
        InputError, match=r"own\.safetensors.*trained with pad_type 'same'.*Set options: {pad_type: same}"
    ):
        load_backbone(trunk(weights=str(path)))
    path.write_bytes(save(state_of(), metadata={"std": "wide"}))
    with pytest.raises(InputError, match="states a mean or std that is no number"):
        load_backbone(trunk(weights=str(path)))


@pytest.mark.skipif(not MOBILENET_035.exists(), reason=f"no {MOBILENET_035} (set CROSSPLANT_WEIGHTS)")
def test_imagenet_weights_from_disk_load_into_stock_timm_with_their_own_normalisation():
    options = {"pad_type": "same"}
    loaded = load_backbone(trunk(backbone="mobilenetv2_035", weights=str(MOBILENET_035), options=options))
    assert loaded.net.state_dict()["bn2.running_var"].std() > 0
    assert loaded.mean == loaded.std == (0.5, 0.5, 0.5)
