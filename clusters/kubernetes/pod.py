"""The pod of a node: one container, that of the image; its root file system is read-only, and it is nobody special."""

from __future__ import annotations

from typing import Any

from clusters.kubernetes.inside import CACHE, CONFIG_FOLDER, RUNS
from clusters.kubernetes.request import Request
from run.errors import EXIT_STOPPED, EXIT_USER

Manifest = dict[str, Any]
CONTAINER = "node"
"""Kubeflow's name for it."""
USER = 10001
"""The Dockerfile's UID."""
PORT = 29500
GPU = "nvidia.com/gpu"
SECRETS = "/secrets/wandb"
TMP_GIB = 10


def labels(request: Request) -> dict[str, str]:
    return {"app.kubernetes.io/name": "sparse-generalists", "app.kubernetes.io/instance": request.name}


def failure_policy() -> Manifest:
    """What a pod's end means for its job; any other code counts as a failure."""
    code = {"containerName": CONTAINER, "operator": "In"}
    return {
        "rules": [
            {"action": "FailJob", "onExitCodes": {**code, "values": [EXIT_USER]}},
            {"action": "Ignore", "onExitCodes": {**code, "values": [EXIT_STOPPED]}},
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        ]
    }


def meeting_place(request: Request, address: str) -> list[Manifest]:
    """Variables in torchrun's words. Kubeflow sets them itself, and an Indexed Job the number of the node."""
    return [
        {"name": "PET_NNODES", "value": str(request.nodes)},
        {"name": "PET_NPROC_PER_NODE", "value": str(request.per_node)},
        {"name": "PET_MASTER_ADDR", "value": address},
        {"name": "PET_MASTER_PORT", "value": str(PORT)},
    ]


def variables(request: Request) -> list[Manifest]:
    values = {"HOME": "/tmp", "OMP_NUM_THREADS": str(request.threads), "NETRC": f"{SECRETS}/netrc"}
    if request.interface:
        values |= {"NCCL_SOCKET_IFNAME": request.interface, "GLOO_SOCKET_IFNAME": request.interface}
    return [{"name": name, "value": value} for name, value in values.items()]


def resources(request: Request) -> Manifest:
    """No limit of CPU time: it would stop ranks in the middle of a step."""
    memory = {"memory": f"{request.memory_gib}Gi"}
    gpus = {GPU: str(request.gpus)} if request.gpus else {}
    return {"requests": {"cpu": str(request.cores), **memory, **gpus}, "limits": {**memory, **gpus}}


def pod_spec(request: Request, more_variables: list[Manifest]) -> Manifest:
    data = [("data", request.data_path, {"persistentVolumeClaim": {"claimName": request.data_claim, "readOnly": True}})]
    cache = (
        {"hostPath": {"path": request.cache_path, "type": "DirectoryOrCreate"}}
        if request.cache_path
        else {"emptyDir": {"sizeLimit": f"{request.cache_gib}Gi"}}
    )
    places: list[tuple[str, str, Manifest]] = [
        ("config", CONFIG_FOLDER, {"configMap": {"name": f"{request.name}-config"}}),
        ("runs", RUNS, {"persistentVolumeClaim": {"claimName": request.runs_claim}}),
        *(data if request.data_claim else []),
        ("cache", CACHE, cache),
        ("shm", "/dev/shm", {"emptyDir": {"medium": "Memory", "sizeLimit": f"{request.shm_gib}Gi"}}),
        ("tmp", "/tmp", {"emptyDir": {"sizeLimit": f"{TMP_GIB}Gi"}}),
        ("wandb", SECRETS, {"secret": {"secretName": request.wandb_secret, "optional": True, "defaultMode": 0o440}}),
    ]
    read_only = {"config", "data", "wandb"}
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": request.grace_s,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **({"tolerations": [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]} if request.gpus else {}),
        "containers": [
            {
                "name": CONTAINER,
                "image": request.image,
                "command": ["tini", "--", "python", "-m", "clusters.kubernetes.ranks"],
                "args": list(request.words),
                "env": [*more_variables, *variables(request)],
                "resources": resources(request),
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                    "readOnlyRootFilesystem": True,
                },
                "volumeMounts": [
                    {"name": name, "mountPath": path, **({"readOnly": True} if name in read_only else {})}
                    for name, path, _ in places
                ],
            }
        ],
        "volumes": [{"name": name, **source} for name, _, source in places],
    }
