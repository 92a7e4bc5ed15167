"""What KubeRay takes: the fields of ray.io/v1 that its releases 1.5.1, 1.6 and 1.7 share, by type.

Facts of its custom resource definitions and, of pods, those of Kubernetes' core/v1 that a launcher
may need. A field that is not here would be pruned by the API server, without a word.
"""

from collections.abc import Iterator
from typing import Any

TEXTS = "object of strings"
FIELDS: dict[str, dict[str, str]] = {
    "RayCluster": {"apiVersion": "string", "kind": "string", "metadata": "ObjectMeta!",
                   "spec": "RayClusterSpec!"},
    "RayJob": {"apiVersion": "string", "kind": "string", "metadata": "ObjectMeta!",
               "spec": "RayJobSpec!"},
    "RayJobSpec": {
        "activeDeadlineSeconds": "integer", "backoffLimit": "integer",
        "rayClusterSpec": "RayClusterSpec", "submitterPodTemplate": "PodTemplateSpec",
        "metadata": TEXTS, "clusterSelector": TEXTS, "submitterConfig": "SubmitterConfig",
        "managedBy": "string", "entrypoint": "string", "runtimeEnvYAML": "string",
        "jobId": "string", "submissionMode": "K8sJobMode|HTTPMode|InteractiveMode|SidecarMode",
        "entrypointResources": "string", "entrypointNumCpus": "number",
        "entrypointNumGpus": "number", "ttlSecondsAfterFinished": "integer",
        "shutdownAfterJobFinishes": "boolean", "suspend": "boolean",
    },
    "SubmitterConfig": {"backoffLimit": "integer"},
    "RayClusterSpec": {
        "authOptions": "AuthOptions", "suspend": "boolean", "managedBy": "string",
        "headServiceAnnotations": TEXTS, "enableInTreeAutoscaling": "boolean",
        "headGroupSpec": "HeadGroupSpec!", "rayVersion": "string",
        "workerGroupSpecs": "[WorkerGroupSpec]",
    },
    "AuthOptions": {"mode": "disabled|token"},
    "HeadGroupSpec": {
        "template": "PodTemplateSpec!", "enableIngress": "boolean", "resources": TEXTS,
        "labels": TEXTS, "rayStartParams": TEXTS + "!",
        "serviceType": "ClusterIP|NodePort|LoadBalancer",
    },
    "WorkerGroupSpec": {
        "groupName": "string!", "replicas": "integer", "minReplicas": "integer!",
        "maxReplicas": "integer!", "idleTimeoutSeconds": "integer", "numOfHosts": "integer",
        "resources": TEXTS, "labels": TEXTS, "rayStartParams": TEXTS + "!",
        "template": "PodTemplateSpec!",
    },
    "ObjectMeta": {"name": "string!", "namespace": "string", "labels": TEXTS,
                   "annotations": TEXTS},
    "PodTemplateSpec": {"metadata": "TemplateMeta", "spec": "PodSpec!"},
    "TemplateMeta": {"labels": TEXTS, "annotations": TEXTS},
    "PodSpec": {
        "containers": "[Container]!", "initContainers": "[Container]", "volumes": "[Volume]",
        "restartPolicy": "Always|OnFailure|Never", "serviceAccountName": "string",
        "automountServiceAccountToken": "boolean", "securityContext": "PodSecurityContext",
        "nodeSelector": TEXTS, "priorityClassName": "string", "runtimeClassName": "string",
        "terminationGracePeriodSeconds": "integer",
    },
    "PodSecurityContext": {"runAsNonRoot": "boolean", "runAsUser": "integer",
                           "runAsGroup": "integer", "fsGroup": "integer"},
    "Container": {
        "name": "string!", "image": "string", "command": "[string]", "args": "[string]",
        "imagePullPolicy": "Always|IfNotPresent|Never", "env": "[EnvVar]",
        "ports": "[ContainerPort]", "resources": "ResourceRequirements", "workingDir": "string",
        "securityContext": "SecurityContext", "volumeMounts": "[VolumeMount]",
    },
    "SecurityContext": {"allowPrivilegeEscalation": "boolean", "runAsNonRoot": "boolean",
                        "runAsUser": "integer", "privileged": "boolean"},
    "ContainerPort": {"name": "string", "containerPort": "integer!", "protocol": "TCP|UDP|SCTP"},
    "ResourceRequirements": {"requests": TEXTS, "limits": TEXTS},
    "EnvVar": {"name": "string!", "value": "string", "valueFrom": "EnvVarSource"},
    "EnvVarSource": {"secretKeyRef": "SecretKeySelector"},
    "SecretKeySelector": {"name": "string", "key": "string!", "optional": "boolean"},
    "VolumeMount": {"name": "string!", "mountPath": "string!", "subPath": "string",
                    "readOnly": "boolean"},
    "Volume": {"name": "string!", "persistentVolumeClaim": "ClaimSource",
               "emptyDir": "EmptyDir"},
    "ClaimSource": {"claimName": "string!", "readOnly": "boolean"},
    "EmptyDir": {"medium": "string", "sizeLimit": "string"},
    "PersistentVolumeClaim": {"apiVersion": "string", "kind": "string", "metadata": "ObjectMeta!",
                              "spec": "ClaimSpec!"},
    "ClaimSpec": {"accessModes": "[string]!", "resources": "ResourceRequirements!",
                  "storageClassName": "string"},
}  # fmt: skip
PLAIN = {"string": str, "integer": int, "boolean": bool, "number": (int, float)}


def wrong(found: Any, kind: str, where: str) -> Iterator[str]:
    """What of it is no `kind`, a line each: other fields, other types, required ones not there."""
    if kind in PLAIN:
        is_bool = isinstance(found, bool) and kind != "boolean"
        if is_bool or not isinstance(found, PLAIN[kind]):
            yield f"{where}: {found!r} is no {kind}"
    elif "|" in kind:
        if found not in kind.split("|"):
            yield f"{where}: {found!r} is none of {kind}"
    elif kind == TEXTS:
        if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
            yield f"{where}: {found!r} is no {kind}"
    elif kind.startswith("["):
        for number, entry in enumerate(found):
            yield from wrong(entry, kind.strip("[]"), f"{where}[{number}]")
    elif not isinstance(found, dict):
        yield f"{where}: {found!r} is no {kind}"
    else:
        fields = FIELDS[kind]
        for name, entry in found.items():
            if name not in fields:
                yield f"{where}: {kind} has no {name}"
            else:
                yield from wrong(entry, fields[name].rstrip("!"), f"{where}.{name}")
        for name, inner in fields.items():
            if inner.endswith("!") and name not in found:
                yield f"{where}: {kind} needs {name}"
