"""A verb as a KubeRay RayJob written out: what `crossplant submit --kuberay` prints, for `kubectl apply -f -`.

The same pods as in `k8s/base/rayjob`, a test holds the two together. Use the folder where jobs are kept in a
repository, this where one is wanted once, with other sizes. Keys stand by the name of their Secret only.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from plants.errors import InputError

RAY_VERSION = "2.60.0"
FLEET = "/etc/crossplant/fleet.yaml"
HOME = "/var/lib/crossplant"
SEALED_VERBS = frozenset({"import", "evaluate"})
"""The verbs that write or read the labels of the sealed test, and so have its keys."""
HEAD_VERBS = frozenset({"import", "audit", "publish"})
"""The verbs that need no slots."""
RETRIED_VERBS = frozenset({"train", "tune"})
"""The verbs that go on from storage when they are started again."""

_LABELS = {"app.kubernetes.io/name": "crossplant", "crossplant/part": "job"}
_POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "runAsGroup": 1000,
    "fsGroup": 1000,
    "seccompProfile": {"type": "RuntimeDefault"},
}
_SECURITY = {"allowPrivilegeEscalation": False, "privileged": False, "capabilities": {"drop": ["ALL"]}}
_IMAGE = re.compile(r"^(?P<name>[^\s@]+?)(:(?P<tag>[\w][\w.-]{0,127}))?(?P<digest>@sha256:[0-9a-f]{64})?$")
_NAME = re.compile(r"^[a-z]([a-z0-9-]{0,45}[a-z0-9])?$")
_GPU = "nvidia.com/gpu"


@dataclass(frozen=True, slots=True)
class Size:
    """What one container may use; asked for and held to."""

    cpus: int
    memory_gb: int
    disk_gb: int
    gpus: int = 0

    @property
    def resources(self) -> dict[str, dict[str, str]]:
        """Kubernetes' requests and limits, which are the same: nothing is evicted for what it was promised."""
        amounts = {
            "cpu": str(self.cpus),
            "memory": f"{self.memory_gb}Gi",
            "ephemeral-storage": f"{self.disk_gb}Gi",
        } | ({_GPU: str(self.gpus)} if self.gpus else {})
        return {"requests": dict(amounts), "limits": dict(amounts)}


HEAD = Size(cpus=2, memory_gb=8, disk_gb=20)
SLOTS = Size(cpus=4, memory_gb=16, disk_gb=60)


def manifests(
    verb_args: Sequence[str], *, image: str, name: str | None = None, namespace: str | None = None
) -> list[dict[str, Any]]:
    """All that `kubectl apply` needs for a verb: the fleet file that its `--fleet` names as a ConfigMap, and the job.

    Raises InputError as `fleet_manifest` and `rayjob_manifest` do.
    """
    job = rayjob_manifest(verb_args, name=name, image=image, namespace=namespace)
    fleet = [after for before, after in pairwise(verb_args) if before == "--fleet"]
    fleet += [arg.removeprefix("--fleet=") for arg in verb_args if arg.startswith("--fleet=")]
    return [*(fleet_manifest(Path(file), namespace=namespace) for file in fleet[-1:]), job]


def rayjob_manifest(
    verb_args: Sequence[str],
    *,
    image: str,
    name: str | None = None,
    namespace: str | None = None,
    head: Size = HEAD,
    slots: Size = SLOTS,
    deadline_s: int = 86_400,
    kept_s: int = 3_600,
) -> dict[str, Any]:
    """A RayJob that runs the verb on a cluster of its own; its `--fleet` is the ConfigMap `crossplant-fleet`.

    Named `crossplant-<verb>` where no name is given. Raises InputError for a name that KubeRay refuses and for an image
    that is not pinned.
    """
    if not verb_args:
        raise InputError("no verb was given", field="submit", remedy="Say e.g. crossplant submit --kuberay train")
    verb = verb_args[0]
    name = _checked(name or f"crossplant-{verb}", image=image)
    cluster: dict[str, Any] = {
        "rayVersion": RAY_VERSION,
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            "rayStartParams": {} if verb in HEAD_VERBS else {"num-cpus": "0"},
            "template": _pod("ray-head", verb=verb, image=image, size=head, home=_claimed_home()),
        },
    }
    if verb not in HEAD_VERBS:
        worker = _pod("ray-worker", verb=verb, image=image, size=slots, home=_own_home(slots))
        worker["spec"] |= {"terminationGracePeriodSeconds": 120}
        if slots.gpus:
            worker["spec"]["tolerations"] = [{"key": _GPU, "operator": "Exists", "effect": "NoSchedule"}]
        group = {"groupName": "slots", "replicas": 1, "minReplicas": 1, "maxReplicas": 1, "rayStartParams": {}}
        cluster["workerGroupSpecs"] = [group | {"template": worker}]
    metadata: dict[str, Any] = {"name": name, "labels": {**_LABELS, "crossplant/verb": verb}}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": metadata | ({"namespace": namespace} if namespace else {}),
        "spec": {
            "entrypoint": shlex.join(["python", "-m", "crossplant", *_with_fleet(verb_args)]),
            "submissionMode": "K8sJobMode",
            "backoffLimit": 2 if verb in RETRIED_VERBS else 0,
            "activeDeadlineSeconds": deadline_s,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": kept_s,
            "submitterPodTemplate": _submitter(image),
            "rayClusterSpec": cluster,
        },
    }


def fleet_manifest(file: Path, *, name: str = "crossplant-fleet", namespace: str | None = None) -> dict[str, Any]:
    """The ConfigMap that a RayJob mounts as its fleet. Raises InputError when the file cannot be read."""
    try:
        text = file.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read ({type(error).__name__})", file=str(file), field="fleet") from None
    metadata: dict[str, Any] = {"name": name, "labels": {"app.kubernetes.io/name": "crossplant"}}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata | ({"namespace": namespace} if namespace else {}),
        "data": {"fleet.yaml": text},
    }


def to_yaml(*documents: Mapping[str, Any]) -> str:
    """The manifests as one YAML stream, for `kubectl apply -f -`."""
    return str(
        yaml.dump_all(
            [dict(document) for document in documents], Dumper=_Plain, sort_keys=False, width=120, allow_unicode=True
        )
    )


class _Plain(yaml.SafeDumper):
    """Writes what stands twice twice: people read these files."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _checked(name: str, *, image: str) -> str:
    if not _NAME.match(name):
        raise InputError(
            f"{name!r} is no name of a RayJob", field="name", remedy="Use at most 47 of a-z, 0-9 and -, a letter first"
        )
    found = _IMAGE.match(image)
    if not found or not (found["digest"] or (found["tag"] and found["tag"] != "latest")):
        raise InputError(f"{image!r} is not pinned", field="image", remedy="Name a version or a digest, never latest")
    return name


def _with_fleet(verb_args: Sequence[str]) -> list[str]:
    """The arguments with the pod's fleet file in place of the one named."""
    kept, skip = [], False
    for arg in verb_args:
        if not skip and arg != "--fleet" and not arg.startswith("--fleet="):
            kept.append(arg)
        skip = arg == "--fleet"
    return [*kept, "--fleet", FLEET]


def _pod(container: str, *, verb: str, image: str, size: Size, home: Mapping[str, Any]) -> dict[str, Any]:
    secrets = ["crossplant-store", *(["crossplant-sealed"] if verb in SEALED_VERBS else [])]
    return {
        "metadata": {"labels": dict(_LABELS)},
        "spec": {
            **_identity(),
            "containers": [
                {
                    "name": container,
                    "image": image,
                    "envFrom": [
                        {"configMapRef": {"name": "crossplant-settings"}},
                        *({"secretRef": {"name": secret}} for secret in secrets),
                    ],
                    "env": [_from_database("CROSSPLANT_JOURNAL_URL"), _from_database("CROSSPLANT_TRACKING_URI")],
                    "resources": size.resources,
                    "securityContext": dict(_SECURITY),
                    "volumeMounts": [
                        {"name": "fleet", "mountPath": str(Path(FLEET).parent), "readOnly": True},
                        {"name": "home", "mountPath": HOME},
                    ],
                }
            ],
            "volumes": [{"name": "fleet", "configMap": {"name": "crossplant-fleet"}}, {"name": "home", **home}],
        },
    }


def _submitter(image: str) -> dict[str, Any]:
    container = {
        "name": "submitter",
        "image": image,
        "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}},
        "securityContext": dict(_SECURITY),
    }
    return {
        "metadata": {"labels": dict(_LABELS)},
        "spec": {"restartPolicy": "Never", **_identity(), "containers": [container]},
    }


def _identity() -> dict[str, Any]:
    return {
        "serviceAccountName": "crossplant",
        "automountServiceAccountToken": False,
        "securityContext": dict(_POD_SECURITY),
    }


def _from_database(variable: str) -> dict[str, Any]:
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": "crossplant-database", "key": variable}}}


def _claimed_home() -> dict[str, Any]:
    return {"persistentVolumeClaim": {"claimName": "crossplant-home"}}


def _own_home(size: Size) -> dict[str, Any]:
    return {"emptyDir": {"sizeLimit": f"{size.disk_gb - 10}Gi"}}
