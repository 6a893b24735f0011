"""Manifests are what Kubernetes and Kubeflow understand, and say what they must."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from clusters.kubernetes.inside import config_text, run_inside
from run.config_file import load_config
from tests.clusters.kubernetes.checks import CUSTOM, keys, misspelt, model_problem, schema_problem
from tests.clusters.kubernetes.commands import CPU, DEMO, kind, printed
from tests.helpers.places import ROOT

LARGE = (
    "--config", str(ROOT / "configs" / "presets" / "uni_perceiver_moe_base.yaml"), "--nodes", "8", "--image",
    "registry.example.org/team/sparse-generalists:1.0", "--data-claim", "shards", "--cache-path", "/mnt/nvme/cache",
    "--interface", "eth0", "--runs-claim", "team-runs", "micro_batches=64", "parallel.expert=8", "tracking.wandb=online",
)  # fmt: skip
CASES = {
    "job": (*DEMO, *CPU),
    "jobset": (*DEMO, *CPU, "--variant", "jobset"),
    "trainjob": (*DEMO, *CPU, "--variant", "trainjob"),
    "large": LARGE,
}


@pytest.fixture(scope="module", params=CASES)
def manifests(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return printed(*CASES[request.param])


@pytest.fixture(scope="module")
def demo() -> list[dict[str, Any]]:
    return printed(*CASES["job"])


@pytest.fixture(scope="module")
def large() -> list[dict[str, Any]]:
    return printed(*LARGE)


def container(job: dict[str, Any]) -> dict[str, Any]:
    (found,) = job["spec"]["template"]["spec"]["containers"]
    return found


def environment(job: dict[str, Any]) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in container(job)["env"]}


def test_manifests_are_valid(manifests):
    for manifest in manifests:
        assert model_problem(manifest) is None
        if manifest["kind"] not in CUSTOM:
            assert schema_problem(manifest) is None


@pytest.mark.parametrize("case", ["job", "jobset", "trainjob"])
def test_a_misspelt_key_is_found_at_any_depth(case):
    seen = 0
    for manifest in printed(*CASES[case]):
        for path in keys(manifest):
            if path == ("kind",):
                continue
            seen += 1
            assert model_problem(misspelt(manifest, path)), path
    assert seen > 150


def test_the_strict_schema_finds_a_misspelt_key_too(demo):
    """A few: the schema is read anew each time."""
    job = kind(demo, "Job")
    paths = sorted((path for path in keys(job) if len(path) > 2), key=len)
    for path in (*paths[::40], paths[-1]):
        assert schema_problem(misspelt(job, path)), path


@pytest.mark.parametrize(("wrong", "said"), [("two", "'two' is not"), (1.5, "1.5 is not")])
def test_a_wrong_type_is_found(wrong, said, demo):
    job = json.loads(json.dumps(kind(demo, "Job")))
    job["spec"]["completions"] = wrong
    assert said in (schema_problem(job) or "")


def test_exit_codes_of_the_program(demo):
    """2 fails the job, 85 and disruptions are not counted, all else is."""
    spec = kind(demo, "Job")["spec"]
    rules = spec["podFailurePolicy"]["rules"]
    found = [(rule["action"], rule.get("onExitCodes", {}).get("values")) for rule in rules]
    assert found == [("FailJob", [2]), ("Ignore", [85]), ("Ignore", None)]
    assert rules[2]["onPodConditions"][0]["type"] == "DisruptionTarget"
    assert spec["template"]["spec"]["restartPolicy"] == "Never", "a failure policy needs it"
    assert {rule["onExitCodes"]["containerName"] for rule in rules[:2]} == {container(kind(demo, "Job"))["name"]}
    assert spec["backoffLimit"] == 20, "10 restarts of 2 pods"


def test_nodes_find_each_other(demo):
    job, service = kind(demo, "Job"), kind(demo, "Service")
    assert (job["spec"]["completions"], job["spec"]["parallelism"], job["spec"]["completionMode"]) == (2, 2, "Indexed")
    pod = job["spec"]["template"]
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["publishNotReadyAddresses"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert pod["spec"]["subdomain"] == service["metadata"]["name"]
    assert environment(job)["PET_MASTER_ADDR"] == "demo-0.demo"


def test_a_pod_can_write_into_its_volumes_alone(manifests):
    for manifest in manifests:
        for pod in pods(manifest):
            (one,) = pod["containers"]
            assert one["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": True,
            }
            assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 10001
            assert "ARG UID=10001" in (ROOT / "Dockerfile").read_text()
            assert not pod["automountServiceAccountToken"]
            mounts = {mount["name"]: mount for mount in one["volumeMounts"]}
            assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
            written = {mount["mountPath"] for mount in mounts.values() if not mount.get("readOnly")}
            assert written == {"/runs", "/cache", "/dev/shm", "/tmp"}


def pods(tree: Any) -> list[dict[str, Any]]:
    if isinstance(tree, list):
        return [pod for item in tree for pod in pods(item)]
    if not isinstance(tree, dict):
        return []
    return [tree] if "containers" in tree else [pod for item in tree.values() for pod in pods(item)]


def test_secrets_are_files_and_stand_nowhere(manifests):
    text = json.dumps(manifests)
    assert "WANDB_API_KEY" not in text and "secretKeyRef" not in text
    assert not [manifest for manifest in manifests if manifest["kind"] == "Secret"]
    for pod in pods(manifests):
        (secret,) = [volume["secret"] for volume in pod["volumes"] if "secret" in volume]
        assert secret == {"secretName": "wandb", "optional": True, "defaultMode": 0o440}


def test_wandb_reads_the_mounted_key(tmp_path, monkeypatch):
    """NETRC names the file of the secret; nothing is asked, and no server."""
    from wandb.sdk.lib.wbauth import wbnetrc

    (tmp_path / "netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {'a1' * 20}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert wbnetrc.read_netrc_auth(host="https://api.wandb.ai") == "a1" * 20


def test_the_network_is_closed_but_for_what_a_run_needs(demo, large):
    policy = kind(demo, "NetworkPolicy")["spec"]
    mine = [{"podSelector": policy["podSelector"]}]
    names = {"ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]}
    assert policy["ingress"] == [{"from": mine}] and policy["egress"] == [{"to": mine}, names]
    assert kind(large, "NetworkPolicy")["spec"]["egress"][2] == {"ports": [{"protocol": "TCP", "port": 443}]}


def test_sizes_of_a_large_run(large):
    """64 ranks of one GPU each; memory is an estimate (clusters/sizes.py)."""
    job = kind(large, "Job")
    needs = container(job)["resources"]
    assert needs["requests"]["nvidia.com/gpu"] == needs["limits"]["nvidia.com/gpu"] == "8"
    assert needs["requests"]["memory"] == needs["limits"]["memory"] and "cpu" not in needs["limits"]
    shm = next(v["emptyDir"] for v in job["spec"]["template"]["spec"]["volumes"] if v["name"] == "shm")
    assert shm == {"medium": "Memory", "sizeLimit": "8Gi"}
    assert environment(job)["PET_NPROC_PER_NODE"] == "8" and environment(job)["NCCL_SOCKET_IFNAME"] == "eth0"
    assert not [manifest for manifest in large if manifest["kind"] == "PersistentVolumeClaim"]
    cache = next(v for v in job["spec"]["template"]["spec"]["volumes"] if v["name"] == "cache")
    assert cache["hostPath"] == {"path": "/mnt/nvme/cache", "type": "DirectoryOrCreate"}


def test_a_jobset_gives_up_on_what_a_user_must_mend_alone():
    (replicated,) = (spec := kind(printed(*CASES["jobset"]), "JobSet")["spec"])["replicatedJobs"]
    assert replicated["template"]["spec"]["backoffLimit"] == 0, "the set restarts, with all pods"
    policy = spec["failurePolicy"]
    assert (policy["maxRestarts"], policy["restartStrategy"]) == (10, "Recreate")
    assert [(rule["action"], rule["onJobFailureReasons"]) for rule in policy["rules"]] == [
        ("FailJobSet", ["PodFailurePolicy"])
    ]


def test_kubeflow_says_by_itself_where_ranks_meet():
    manifests = printed(*CASES["trainjob"])
    (pod,) = pods(kind(manifests, "TrainingRuntime"))
    assert not [variable for variable in pod["containers"][0]["env"] if variable["name"].startswith("PET_")]
    trainer = kind(manifests, "TrainJob")["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (2, 1)


@pytest.mark.parametrize("name", ["demo", "real_small", "presets/limoe_b16", "presets/uni_perceiver_moe_base"])
def test_a_shortened_configuration_says_the_same(name, tmp_path):
    run = run_inside(load_config(ROOT / "configs" / f"{name}.yaml"), "/data", True)
    short = tmp_path / "run.yaml"
    short.write_text(config_text(run))
    assert load_config(short) == run
    assert len(yaml.safe_load(short.read_text())["data"]["tasks"]) == len(run.data.tasks)


def test_places_inside_a_pod(tmp_path):
    settings = tmp_path / "mine.json"
    settings.write_text('{"zero_optimization": {"stage": 1}}')
    words = (
        *CASES["job"],
        "--data-path",
        "/sets",
        f"parallel.deepspeed={settings}",
        "data.tasks.clips.path=/whole/clips",
    )
    data = kind(printed(*words), "ConfigMap")["data"]
    run = yaml.safe_load(data["run.yaml"])
    assert run["runs"] == "/runs" and run["data"]["cache_dir"] == "/cache"
    places = {task["name"]: task["path"] for task in run["data"]["tasks"]}
    assert places["shapes"] == "/sets/data_demo/shapes" and places["clips"] == "/whole/clips"
    assert run["parallel"]["deepspeed"] == "/config/engine.json"
    assert json.loads(data["engine.json"]) == {"zero_optimization": {"stage": 1}}
