"""What stands in k8s/: built as kubectl builds it, valid for the API it goes to, and safe to apply."""

from __future__ import annotations

import copy
import functools
import importlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.kuberay import SLOTS, Size, rayjob_manifest
from cluster.settings import Settings
from plants.plant import load_fleet

ROOT = Path(__file__).parents[1]
K8S = ROOT / "k8s"
OVERLAYS = ("cpu", "cpu/jobs", "gpu", "gpu/jobs")
VERBS = {"import", "audit", "train", "tune", "compare", "evaluate", "publish"}
SECRETS = {"crossplant-store", "crossplant-sealed", "crossplant-database"}
CRDS = Path(os.environ.get("CROSSPLANT_KUBERAY_CRDS", ROOT.parent / "shared" / "kuberay"))
KUBERNETES = "1.31.0"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
Object = dict[str, Any]

pytestmark = pytest.mark.slow


def builder() -> list[str]:
    """The command that builds a kustomization; skips the test with the reason where there is none."""
    if shutil.which("kubectl"):
        return ["kubectl", "kustomize"]
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    pytest.skip("neither kubectl nor kustomize is installed (kubectl 1.21 or newer; Debian's 1.20 is too old)")


@functools.cache
def text_of(overlay: str) -> str:
    done = subprocess.run([*builder(), str(K8S / "overlays" / overlay)], capture_output=True, text=True, timeout=60)
    if "unknown field" in done.stderr and "labels" in done.stderr:
        pytest.skip(f"this kubectl is too old for k8s/: {done.stderr.strip()[:200]}")
    assert done.returncode == 0, done.stderr
    return done.stdout


@functools.cache
def built(overlay: str) -> list[Object]:
    """The manifests of an overlay; shared, so copy before changing one."""
    return list(yaml.load_all(text_of(overlay), LOADER))


def jobs(overlay: str) -> dict[str, Object]:
    return {found["metadata"]["labels"]["crossplant/verb"]: found for found in built(overlay)}


@functools.cache
def schema_of(kind: str) -> Object:
    """KubeRay's own schema of a kind, closed: a field that it does not name is refused, as a strict API server does."""
    file = CRDS / f"ray.io_{kind.lower()}s.yaml"
    if not file.is_file():
        pytest.skip(f"no CRD schema {file.name}: set CROSSPLANT_KUBERAY_CRDS to the folder of KubeRay's CRDs")
    versions = yaml.load(file.read_text("utf-8"), LOADER)["spec"]["versions"]
    schema: Object = next(v for v in versions if v["name"] == "v1")["schema"]["openAPIV3Schema"]
    _close(schema)
    schema["properties"]["metadata"] = {"type": "object"}  # the API server's own, checked with the pods below
    return schema


def _close(schema: Any) -> None:
    if isinstance(schema, list):
        for inner in schema:
            _close(inner)
    elif isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
        for inner in schema.values():
            _close(inner)


def faults(manifest: Object) -> list[str]:
    """What the API server would say against a manifest of KubeRay or of Kubernetes."""
    import jsonschema
    import kubernetes_validate

    if manifest["apiVersion"].startswith("ray.io/"):
        check = jsonschema.Draft202012Validator(schema_of(manifest["kind"]))
        return [f"{'.'.join(map(str, e.absolute_path))}: {e.message}"[:300] for e in check.iter_errors(manifest)]
    try:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [str(error)[:300]]
    return []


def templates(node: Any) -> Iterator[Object]:
    """Every pod template in a manifest."""
    if isinstance(node, dict):
        if "containers" in node.get("spec", {}) if isinstance(node.get("spec"), dict) else False:
            yield node
        for inner in node.values():
            yield from templates(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from templates(inner)


def pods(overlay: str) -> list[Object]:
    found = [template["spec"] for manifest in built(overlay) for template in templates(manifest)]
    assert found
    return found


def containers(overlay: str) -> list[Object]:
    return [container for pod in pods(overlay) for container in pod["containers"] + pod.get("initContainers", [])]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_manifest_is_valid_for_kuberay_and_kubernetes_with_no_unknown_field(overlay: str):
    found = {f"{m['kind']} {m['metadata']['name']}": faults(m) for m in built(overlay)}
    assert {name: said for name, said in found.items() if said} == {}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_a_valid_pod_of_kubernetes(overlay: str):
    for pod in pods(overlay):
        assert faults({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": pod}) == []


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("spec", "entrypont"), "x", "entrypont"),
        (("spec", "backoffLimit"), "two", "backoffLimit"),
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0, "resourcess"), {}, "resourc"),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "open", "authOptions.mode"),
    ],
)
def test_a_field_that_kuberay_does_not_know_or_a_wrong_value_is_refused(path: tuple[Any, ...], value: Any, said: str):
    job = copy.deepcopy(jobs("cpu/jobs")["train"])
    functools.reduce(lambda node, key: node[key], path[:-1], job)[path[-1]] = value
    assert any(said in fault for fault in faults(job))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_container_is_held_to_limits_of_cpu_and_memory(overlay: str):
    for container in containers(overlay):
        for bound in ("requests", "limits"):
            assert {"cpu", "memory"} <= set(container["resources"][bound]), container["name"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_container_runs_as_a_plain_user_without_rights(overlay: str):
    for pod in pods(overlay):
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] >= 1000
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert not any("hostPath" in volume for volume in pod.get("volumes", []))
    for container in containers(overlay):
        security = container["securityContext"]
        assert (security["allowPrivilegeEscalation"], security["privileged"]) == (False, False)
        assert security["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_image_has_the_version_of_this_project(overlay: str):
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text("utf-8"), re.M)
    assert version
    images = {container["image"] for container in containers(overlay)}
    assert images == {f"crossplant-{'train' if 'jobs' in overlay else 'serve'}:{version[1]}"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_manifest_holds_the_value_of_a_secret_and_every_secret_is_one_that_is_documented(overlay: str):
    assert not [m for m in built(overlay) if m["kind"] == "Secret"]
    assert not re.search(r"://[^/\s:]+:[^/\s@]+@", text_of(overlay))
    wanted = set()
    for container in containers(overlay):
        for variable in container.get("env", []):
            assert not (re.search(r"KEY|SECRET|TOKEN|PASSWORD|_URL|_URI", variable["name"]) and "value" in variable)
        sources = [variable.get("valueFrom", {}).get("secretKeyRef") for variable in container.get("env", [])]
        sources += [source.get("secretRef") for source in container.get("envFrom", [])]
        wanted |= {source["name"] for source in sources if source}
    assert wanted <= SECRETS
    words = (K8S / "base" / "settings" / "kustomization.yaml").read_text("utf-8")
    assert all(f"create secret generic {name}" in words for name in wanted)
    settings = [m["data"] for m in built(overlay) if m["metadata"]["name"] == "crossplant-settings"]
    assert not any(re.search(r"KEY|SECRET|TOKEN|PASSWORD|_URL|_URI", name) for data in settings for name in data)


def test_the_keys_of_the_sealed_test_reach_the_verbs_that_deal_and_open_it_and_no_other():
    holders = {verb for verb, job in jobs("cpu/jobs").items() if "crossplant-sealed" in str(job)}
    assert holders == {"import", "evaluate"}
    assert "crossplant-sealed" not in str(built("cpu"))


@pytest.mark.parametrize("overlay", ["cpu/jobs", "gpu/jobs"])
def test_every_job_runs_a_verb_of_the_command_with_options_that_it_has(overlay: str):
    import typer

    import crossplant

    command = typer.main.get_command(crossplant.app)
    assert set(jobs(overlay)) == VERBS
    for verb, job in jobs(overlay).items():
        python, flag, module, *args = job["spec"]["entrypoint"].split()
        assert (python, flag, module, args[0]) == ("python", "-m", "crossplant", verb)
        found = command.get_command(None, verb)  # type: ignore[attr-defined, arg-type]
        assert found is not None, verb
        context = found.make_context(verb, args[1:], resilient_parsing=False)
        assert str(context.params["fleet"]) == "/etc/crossplant/fleet.yaml"
        assert job["metadata"]["name"] == f"crossplant-{verb}"


@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_the_slots_are_as_many_as_the_workers_cpus_or_gpus(overlay: str):
    (settings,) = (m["data"] for m in built(overlay) if m["metadata"]["name"] == "crossplant-settings")
    for job in jobs(f"{overlay}/jobs").values():
        for group in job["spec"]["rayClusterSpec"].get("workerGroupSpecs", []):
            limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            assert settings["CROSSPLANT_SLOTS"] == limits["cpu" if overlay == "cpu" else "nvidia.com/gpu"]


def test_a_gpu_is_held_by_the_verbs_that_learn_or_infer_and_only_on_the_gpu_overlay():
    holders = {
        overlay: {v for v, j in jobs(overlay).items() if "nvidia.com/gpu" in str(j)} for overlay in OVERLAYS[1::2]
    }
    assert holders == {"cpu/jobs": set(), "gpu/jobs": {"train", "tune", "compare", "evaluate"}}


def test_the_settings_and_the_fleet_of_the_manifests_are_read_without_a_fault():
    lines = (K8S / "base" / "settings" / "settings.env").read_text("utf-8").splitlines()
    settings = Settings.load(dict(line.split("=", 1) for line in lines if line and not line.startswith("#")))
    assert (settings.ray_address, settings.slots) == ("auto", SLOTS.cpus)
    assert len(load_fleet(K8S / "base" / "settings" / "fleet.yaml").plants) == 2


@pytest.mark.parametrize("verb", sorted(VERBS))
@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_the_job_that_submit_writes_is_the_one_of_the_folder(verb: str, overlay: str):
    found = copy.deepcopy(jobs(f"{overlay}/jobs")[verb])
    args = found["spec"]["entrypoint"].split()[3:]
    slots = Size(cpus=SLOTS.cpus, memory_gb=SLOTS.memory_gb, disk_gb=SLOTS.disk_gb, gpus=int(overlay == "gpu"))
    written = rayjob_manifest(
        args, name=f"crossplant-{verb}", image="crossplant-train:0.1.0", namespace="crossplant", slots=slots
    )
    for job in (found, written):
        job["spec"]["entrypoint"] = sorted(job["spec"]["entrypoint"].split())
    assert written == found


def test_the_service_imports_an_app_that_is_there_and_names_its_deployment_and_port():
    (service,) = (m for m in built("cpu") if m["kind"] == "RayService")
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    (app,) = config["applications"]
    module, _, name = app["import_path"].partition(":")
    bound = getattr(importlib.import_module(module), name)({"fleet": str(K8S / "base" / "settings" / "fleet.yaml")})
    assert [deployment["name"] for deployment in app["deployments"]] == [bound._bound_deployment.name]
    (policy,) = (m for m in built("cpu") if m["kind"] == "NetworkPolicy")
    assert config["http_options"]["port"] in [
        p["port"] for rule in policy["spec"]["ingress"] for p in rule.get("ports", [])
    ]


def test_the_service_config_is_one_that_ray_serve_takes():
    from ray.serve.schema import ServeDeploySchema

    (service,) = (m for m in built("cpu") if m["kind"] == "RayService")
    config = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    assert config.applications[0].deployments[0].ray_actor_options.num_cpus == 2  # type: ignore[union-attr]


def test_ray_is_the_same_version_in_the_manifests_as_in_the_constraints():
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.M)
    assert pinned
    versions = {m[1] for overlay in OVERLAYS for m in re.finditer(r"rayVersion: (\S+)", text_of(overlay))}
    assert versions == {pinned[1]}


def test_monitoring_is_added_to_an_overlay_by_one_line_with_its_rules_scrape_and_dashboards(tmp_path: Path):
    (tmp_path / "kustomization.yaml").write_text(
        f"namespace: crossplant\nresources: [{os.path.relpath(K8S / 'overlays' / 'cpu', tmp_path)}]\n"
        f"components: [{os.path.relpath(K8S / 'monitoring', tmp_path)}]\n"
    )
    done = subprocess.run([*builder(), str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = {(m["kind"], m["metadata"]["name"]): m for m in yaml.load_all(done.stdout, LOADER)}
    assert {(m["kind"], m["metadata"]["name"]) for m in built("cpu")} < set(found)
    dashboards = found["ConfigMap", "crossplant-dashboards"]
    assert dashboards["metadata"]["labels"]["grafana_dashboard"] == "1"
    for name, text in dashboards["data"].items():
        board = json.loads(text)
        assert board["uid"] == f"crossplant-{name.removesuffix('.json')}"
        assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"]) >= 10
    assert found["PrometheusRule", "crossplant"]["metadata"]["namespace"] == "crossplant"
    (target,) = found["ScrapeConfig", "crossplant"]["spec"]["staticConfigs"][0]["targets"]
    assert target == "crossplant-serve-svc.crossplant.svc:8000"


def test_the_log_is_compacted_every_hour_by_one_job_at_a_time_with_the_serving_image():
    (job,) = (m for m in built("cpu") if m["kind"] == "CronJob")
    assert job["spec"]["concurrencyPolicy"] == "Forbid"
    (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["python", "-m", "crossplant", "log", "--compact"]


@pytest.mark.parametrize(
    "file", sorted(str(p.relative_to(ROOT)) for p in K8S.rglob("*") if p.suffix in (".yaml", ".env"))
)
def test_every_file_opens_with_how_to_apply_check_read_and_clean_it(file: str):
    text = (ROOT / file).read_text("utf-8")
    head = re.match(r"(#.*\n)+", text)
    assert head
    assert re.findall(r"^# (\w+):  ", head[0], re.M) == ["Apply", "Check", "Logs", "Clean"]
