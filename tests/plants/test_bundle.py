"""A bundle is its manifest's digest: any other byte is another bundle, or none."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from plants import bundle
from plants.bundle import Manifest, PlantView, TrunkRef
from plants.errors import InputError
from plants.geometry import Environment
from plants.hashing import sha256


def manifest(**changes) -> Manifest:
    fields = {
        "kind": "own",
        "run_id": "own-a-0",
        "name": "own a",
        "plants": ("a",),
        "leaves": ("ok", "dent"),
        "trunk": TrunkRef(sha256="0" * 64, backbone="test_resnet", weights_digest="1" * 64, size_px=96, cuts=(0, 1)),
        "cut": 1,
        "tier": "branch",
        "branch_inputs": "map",
        "serves": {
            "a": PlantView(
                classes=("gut", "Kratzer groß"),
                ok=("gut",),
                leaf_sets={"gut": ("ok",), "Kratzer groß": ("dent",)},
                environments={"default": Environment()},
            )
        },
        "seed": 0,
        "recipe": {"rate": 1e-3},
        "code_version": "0.1.0",
        "created_at": "2026-01-01T00:00:00Z",
    }
    return Manifest(**(fields | changes))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "branch.onnx").write_bytes(b"branch")
    (tmp_path / "card.md").write_bytes(b"# card")
    return tmp_path


def test_what_is_written_is_read_back_under_the_same_digest(folder):
    written = bundle.write(folder, manifest())
    assert bundle.read(folder) == written
    assert written.digest == sha256((folder / "manifest.json").read_bytes())
    assert written.manifest.files == {"branch.onnx": sha256(b"branch"), "card.md": sha256(b"# card")}


def test_a_manifest_from_before_resizing_was_recorded_means_bilinear(folder):
    bundle.write(folder, manifest())
    file = folder / "manifest.json"
    document = json.loads(file.read_bytes())
    assert document["trunk"].pop("interpolation") == "bilinear"
    file.write_text(json.dumps(document))
    assert bundle.read(folder).manifest.trunk.interpolation == "bilinear"
    document["trunk"]["interpolation"] = "lanczos"
    file.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"trunk\.interpolation: Input should be 'bilinear' or 'bicubic'"):
        bundle.read(folder)


def test_a_bundle_of_tier_adapter_holds_one(folder):
    with pytest.raises(InputError, match=r"a bundle of tier adapter needs adapter\.safetensors"):
        bundle.write(folder, manifest(tier="adapter"))
    (folder / "adapter.safetensors").write_bytes(b"factors")
    assert "adapter.safetensors" in bundle.write(folder, manifest(tier="adapter")).manifest.files


def test_equal_bundles_have_equal_digests_and_a_changed_file_another(folder):
    first = bundle.write(folder, manifest())
    assert bundle.write(folder, first.manifest).digest == first.digest
    (folder / "card.md").write_bytes(b"# another card")
    assert bundle.write(folder, manifest()).digest != first.digest


@pytest.mark.parametrize("name", ["branch.onnx", "card.md"])
def test_one_changed_byte_is_refused_and_the_file_named(folder, name):
    bundle.write(folder, manifest())
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(InputError, match=name):
        bundle.read(folder)


def test_a_missing_file_is_refused_and_named(folder):
    bundle.write(folder, manifest())
    (folder / "card.md").unlink()
    with pytest.raises(InputError, match=r"card\.md: is missing"):
        bundle.read(folder)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path):
    with pytest.raises(InputError, match=r"no manifest\.json"):
        bundle.read(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "schema version None"),
        ('{"schema_version": 2}', "schema version 2"),
        ('{"schema_version": 1}', "kind"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(tmp_path, text, words):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=words):
        bundle.read(tmp_path)


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/b", ".hidden", "a\\b", ""])
def test_a_manifest_cannot_point_outside_its_folder(folder, name):
    bundle.write(folder, manifest())
    document = json.loads((folder / "manifest.json").read_text())
    document["files"][name] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="not a plain name"):
        bundle.read(folder)


def test_folders_in_a_bundle_and_a_bundle_without_a_branch_are_refused(folder):
    (folder / "deep").mkdir()
    (folder / "deep" / "file").write_bytes(b"")
    with pytest.raises(InputError, match="deep/file"):
        bundle.write(folder, manifest())
    (folder / "deep" / "file").unlink()
    (folder / "branch.onnx").unlink()
    with pytest.raises(InputError, match=r"needs branch\.onnx"):
        bundle.write(folder, manifest())


def test_an_ensemble_names_its_members_and_needs_no_branch(tmp_path):
    ensemble = manifest(kind="ensemble", members=("2" * 64, "3" * 64), weights=(0.5, 0.5))
    assert bundle.write(tmp_path, ensemble).manifest.members == ("2" * 64, "3" * 64)


def test_a_mean_is_written_as_it_always_was_and_another_rule_by_its_name(tmp_path):
    given = {"kind": "ensemble", "members": ("2" * 64, "3" * 64), "weights": (0.5, 0.9)}
    for rule in ("mean", "log"):
        bundle.write(tmp_path, manifest(**given, rule=rule))
        document = json.loads((tmp_path / "manifest.json").read_text())
        assert document.get("rule") == (None if rule == "mean" else "log"), "readers of before know of no rule"
        assert bundle.read(tmp_path).manifest.rule == rule


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rule": "log"}, "rule belongs to an ensemble"),
        ({"kind": "ensemble"}, "needs members"),
        ({"kind": "ensemble", "members": ("2" * 64,), "weights": (0.0,)}, "not all are 0"),
        ({"members": ("2" * 64,), "weights": (1.0,)}, "belong to an ensemble"),
        ({"cut": 2}, "cut: 2 is not an output"),
        ({"kind": "magic"}, "kind"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(changes, words):
    with pytest.raises(ValidationError, match=words):
        manifest(**changes)


def test_a_view_must_know_the_leaves_of_its_classes_and_its_good_ones():
    environments = {"default": Environment()}
    with pytest.raises(ValidationError, match="lacks dent"):
        PlantView(classes=("dent",), leaf_sets={}, environments=environments)
    with pytest.raises(ValidationError, match="ok names gut"):
        PlantView(classes=("dent",), ok=("gut",), leaf_sets={"dent": ("dent",)}, environments=environments)


INT8 = {"trunk": "a" * 64, "branch": "branch.int8.onnx", "rung": "int8 minmax"}


def test_a_bundle_without_int8_is_written_as_it_always_was_and_one_with_it_names_both(folder):
    (folder / "branch.int8.onnx").write_bytes(b"int8")
    plain = bundle.write(folder, manifest())
    assert b'int8":' not in bundle.canonical(plain.manifest)
    both = bundle.write(folder, manifest(int8=INT8))
    assert bundle.read(folder) == both
    assert both.manifest.int8.trunk == "a" * 64
    assert both.manifest.trunk == plain.manifest.trunk, "float remains the reference"
    assert both.digest != plain.digest


def test_int8_of_a_branch_is_a_file_of_the_bundle_and_an_ensemble_has_none_of_its_own(folder):
    with pytest.raises(InputError, match=r"a bundle whose branch has INT8 needs branch\.int8\.onnx"):
        bundle.write(folder, manifest(int8=INT8))
    with pytest.raises(ValidationError, match="int8: ensemble has no branch of its own"):
        manifest(int8=INT8, kind="ensemble", members=("a" * 64,), weights=(1.0,))
