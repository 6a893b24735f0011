"""All resources of a run, in the order in which they are needed. docs/kubernetes.md says what each is for."""

from __future__ import annotations

from clusters.kubernetes.pod import (
    CONTAINER,
    Manifest,
    failure_policy,
    labels,
    meeting_place,
    pod_spec,
    resources,
)
from clusters.kubernetes.request import Request

JOBSET, TRAINER = "jobset.x-k8s.io/v1alpha2", "trainer.kubeflow.org/v1alpha1"
STEP = "trainer.kubeflow.org/trainjob-ancestor-step"
"""By this label Kubeflow finds the job whose container it completes."""


def manifests(request: Request) -> list[Manifest]:
    shared = [*([_runs_claim(request)] if request.runs_gib else []), _config_map(request), _network_policy(request)]
    if request.variant == "jobset":
        return [*shared, _jobset(request)]
    if request.variant == "trainjob":
        return [*shared, _runtime(request), _trainjob(request)]
    return [*shared, _service(request), _job(request)]


def _resource(version: str, kind: str, name: str, request: Request, **rest: object) -> Manifest:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "labels": labels(request)}, **rest}


def _runs_claim(request: Request) -> Manifest:
    """Not of one run: others write and read there too."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": request.runs_claim, "labels": {"app.kubernetes.io/name": "sparse-generalists"}},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": f"{request.runs_gib}Gi"}},
        },
    }


def _config_map(request: Request) -> Manifest:
    return _resource("v1", "ConfigMap", f"{request.name}-config", request, data=dict(request.files))


def _network_policy(request: Request) -> Manifest:
    mine = {"podSelector": {"matchLabels": labels(request)}}
    names = {"ports": [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]}
    outside = {"ports": [{"protocol": "TCP", "port": port} for port in request.ports]}
    spec = {
        **mine,
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [mine]}],
        "egress": [{"to": [mine]}, names, *([outside] if request.ports else [])],
    }
    return _resource("networking.k8s.io/v1", "NetworkPolicy", request.name, request, spec=spec)


def _service(request: Request) -> Manifest:
    """Names for pods, also before they are ready."""
    spec = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": labels(request)}
    return _resource("v1", "Service", request.name, request, spec=spec)


def _job_spec(request: Request, backoff_limit: int, pod: Manifest) -> Manifest:
    return {
        "completionMode": "Indexed",
        "completions": request.nodes,
        "parallelism": request.nodes,
        "backoffLimit": backoff_limit,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": failure_policy(),
        "template": {"metadata": {"labels": labels(request)}, "spec": pod},
    }


def _job(request: Request) -> Manifest:
    pod = pod_spec(request, meeting_place(request, f"{request.name}-0.{request.name}"))
    # A failure ends the pods of all nodes, and each counts.
    spec = _job_spec(request, request.restarts * request.nodes, {"subdomain": request.name, **pod})
    return _resource("batch/v1", "Job", request.name, request, spec=spec)


def _jobset_spec(request: Request, pod: Manifest) -> Manifest:
    """A job gives up at its first failure, and the set makes all pods anew."""
    return {
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
        "failurePolicy": {
            "maxRestarts": request.restarts,
            "restartStrategy": "Recreate",
            "rules": [{"name": "userError", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
        },
        "replicatedJobs": [{"name": CONTAINER, "replicas": 1, "template": {"spec": _job_spec(request, 0, pod)}}],
    }


def _jobset(request: Request) -> Manifest:
    pod = pod_spec(request, meeting_place(request, f"{request.name}-{CONTAINER}-0-0.{request.name}"))
    return _resource(JOBSET, "JobSet", request.name, request, spec=_jobset_spec(request, pod))


def _runtime(request: Request) -> Manifest:
    spec = _jobset_spec(request, pod_spec(request, []))
    job = spec["replicatedJobs"][0]["template"]
    job["metadata"] = {"labels": {STEP: "trainer"}}
    for counted in ("completions", "parallelism"):  # the TrainJob's numNodes
        del job["spec"][counted]
    rest = {"mlPolicy": {"numNodes": request.nodes, "torch": {}}, "template": {"spec": spec}}
    return _resource(TRAINER, "TrainingRuntime", request.name, request, spec=rest)


def _trainjob(request: Request) -> Manifest:
    spec = {
        "runtimeRef": {"apiGroup": "trainer.kubeflow.org", "kind": "TrainingRuntime", "name": request.name},
        "trainer": {
            "image": request.image,
            "numNodes": request.nodes,
            "numProcPerNode": request.per_node,
            "args": list(request.words),
            "resourcesPerNode": resources(request),
        },
    }
    return _resource(TRAINER, "TrainJob", request.name, request, spec=spec)
