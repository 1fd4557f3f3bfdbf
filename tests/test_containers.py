"""What the Dockerfile would put into the images. Built nowhere here; what can be held without a builder is held."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.test_layering import closure_of, imports, plain

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
SERVING = [line for line in (ROOT / "k8s" / "serving.txt").read_text("utf-8").splitlines() if line[:1] not in ("", "#")]


def stages() -> dict[str, str]:
    """Stage name -> its instructions."""
    parts = re.split(r"^FROM (\S+) AS (\S+)\n", DOCKERFILE, flags=re.M)
    return dict(zip(parts[2::3], parts[3::3], strict=True))


def test_every_image_starts_from_a_pinned_version_or_an_earlier_stage():
    sources = re.findall(r"^FROM (\S+) AS \S+$", DOCKERFILE, re.M)
    assert len(sources) == len(re.findall(r"^FROM", DOCKERFILE, re.M))
    outside = {source for source in sources if source not in stages()}
    assert len(outside) == 1
    assert all(re.search(r":\d+\.\d+\.\d+-", source) for source in outside)


@pytest.mark.parametrize("stage", ["train", "serve"])
def test_an_image_runs_as_the_user_of_the_manifests(stage: str):
    assert re.findall(r"^USER (\S+)$", stages()[stage], re.M) == ["1000:1000"]


def test_every_package_is_installed_at_the_version_of_the_constraints():
    installs = [line for line in DOCKERFILE.splitlines() if "pip install" in line]
    assert len(installs) == 3
    assert all("--constraint constraints.txt" in line or line.endswith("--no-deps .") for line in installs)


def test_everything_copied_is_there_and_is_sent_to_the_builder():
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    copied = {name for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.M) for name in line.split()}
    assert copied == sent
    assert [name for name in sorted(copied) if not (ROOT / name).exists()] == []


def test_the_serving_image_holds_no_torch_and_not_the_room_that_learns():
    found = closure_of(SERVING)
    assert found & {"torch", "torchvision", "timm", "onnx", "optuna"} == set()
    assert not re.search(r"^COPY .*\bjobs\b", stages()["serve"], re.M)
    assert {"ray", "onnxruntime", "fastapi"} <= found


@pytest.mark.slow
def test_the_serving_image_holds_all_that_serving_and_the_rooms_below_import():
    import importlib.metadata

    held = {*closure_of(SERVING), "crossplant"}
    owners = importlib.metadata.packages_distributions()
    missing = set()
    for room in ("plants", "cluster", "serving"):
        for path in sorted((ROOT / room).rglob("*.py")):
            for found in imports(path.read_text("utf-8"), file=path.relative_to(ROOT)):
                top = found.name.partition(".")[0]
                if top in owners and not {plain(owner) for owner in owners[top]} & held:
                    missing.add(f"{found.place} imports {top}")
    assert sorted(missing) == []


def test_the_serving_list_names_no_version_of_its_own():
    assert [line for line in SERVING if not re.fullmatch(r"[A-Za-z0-9-]+(\[[a-z,]+\])?", line)] == []
