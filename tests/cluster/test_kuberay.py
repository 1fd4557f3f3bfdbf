from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from cluster.kuberay import Size, fleet_manifest, manifests, rayjob_manifest, to_yaml
from plants.errors import InputError

IMAGE = "crossplant-train:0.1.0"


@pytest.mark.parametrize(
    "args",
    [
        ["train", "--fleet", "/home/me/steel.yaml", "--seed", "3"],
        ["train", "--fleet=steel.yaml", "--seed", "3"],
        ["train", "--seed", "3"],
    ],
)
def test_the_fleet_named_on_the_desk_becomes_the_file_that_the_pod_mounts(args: list[str]):
    job = rayjob_manifest(args, name="steel", image=IMAGE)
    assert job["spec"]["entrypoint"] == "python -m crossplant train --seed 3 --fleet /etc/crossplant/fleet.yaml"


def test_only_the_verbs_that_go_on_from_storage_are_tried_again():
    tries = {
        verb: rayjob_manifest([verb], name="job", image=IMAGE)["spec"]["backoffLimit"]
        for verb in ("import", "audit", "train", "tune", "compare", "evaluate", "publish")
    }
    assert {verb for verb, count in tries.items() if count} == {"train", "tune"}


def test_a_size_with_gpus_asks_for_them_and_tolerates_their_taint():
    job = rayjob_manifest(["train"], name="job", image=IMAGE, slots=Size(cpus=8, memory_gb=64, disk_gb=90, gpus=2))
    pod = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert pod["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert "namespace" not in job["metadata"]
    assert rayjob_manifest(["train"], name="job", image=IMAGE, namespace="mills")["metadata"]["namespace"] == "mills"


@pytest.mark.parametrize(
    "image", ["crossplant-train", "crossplant-train:latest", "host:5000/crossplant-train", "", "a b:1"]
)
def test_an_image_that_is_not_pinned_is_refused(image: str):
    with pytest.raises(InputError, match=r"field image: .*is not pinned"):
        rayjob_manifest(["train"], name="job", image=image)


@pytest.mark.parametrize("image", ["host:5000/crossplant-train:0.1.0", f"crossplant-train@sha256:{'0' * 64}"])
def test_an_image_with_a_version_or_a_digest_is_taken(image: str):
    assert image in to_yaml(rayjob_manifest(["train"], image=image))


@pytest.mark.parametrize("name", [" ", "Train", "1-train", "a" * 48, "train-", "a_b"])
def test_a_name_that_kuberay_would_refuse_is_refused(name: str):
    with pytest.raises(InputError, match="no name of a RayJob"):
        rayjob_manifest(["train"], name=name, image=IMAGE)


def test_a_job_without_a_verb_is_refused():
    with pytest.raises(InputError, match="no verb"):
        rayjob_manifest([], name="job", image=IMAGE)


def test_the_yaml_stream_holds_the_fleet_file_word_for_word_and_the_job(tmp_path: Path):
    file = tmp_path / "fleet.yaml"
    file.write_text("fleet: größe\n# kept\n", "utf-8")
    stream = to_yaml(*manifests(["train", "--fleet", str(file)], image=IMAGE, namespace="mills"))
    fleet, job = yaml.safe_load_all(stream)
    assert fleet["data"]["fleet.yaml"] == file.read_text("utf-8")
    assert fleet["metadata"]["namespace"] == "mills"
    assert (job["kind"], job["metadata"]["name"]) == ("RayJob", "crossplant-train")
    assert manifests(["train", f"--fleet={file}"], image=IMAGE)[0]["data"] == fleet["data"]
    assert [found["kind"] for found in manifests(["train"], image=IMAGE)] == ["RayJob"]
    assert not re.search(r"[&*]id\d", stream)


def test_a_fleet_file_that_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"gone\.yaml: field fleet: cannot be read"):
        fleet_manifest(tmp_path / "gone.yaml")
