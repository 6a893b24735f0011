"""What cannot be is one line, before anything reaches a cluster."""

from __future__ import annotations

import pytest

from clusters.kubernetes.inside import outside_ports
from run.config_file import load_config
from tests.clusters.kubernetes.commands import CPU, DEMO, call, kind, printed

TASKS = ("shapes", "clips", "sentences", "captions", "retrieval")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--nodes", "0"), "--nodes=0: must be at least 1"),
        (("--nodes", "3"), "parallel.expert=2 does not divide the 3 data ranks"),
        (("--gpus-per-node", "2", "--ranks-per-node", "4"), "a pod has --gpus-per-node=2, and each rank takes one"),
        (("--data-claim", ""), "is a local path, and pods have no data: name a volume claim with --data-claim="),
        (("--data-claim", "My_Claim"), "--data-claim=My_Claim: is no name of a resource"),
        (("--image", "a b"), "--image=a b: is no name of an image"),
        (("--job-name", "Demo"), "--job-name=Demo: small letters, digits and dashes"),
        (("name=" + "x" * 60,), "choose one with --job-name="),
        (("name=007",), "choose one with --job-name="),
        (("--data-path", "data"), "--data-path=data: must be a whole path"),
        (("--data-path", "/runs"), "--data-path=/runs: pods have places of their own"),
        (("--data-path", "/"), "--data-path=/: pods have places of their own"),
        (("--data-path", "/app/data"), "--data-path=/app/data: pods have places of their own"),
        (
            ("data.tasks.shapes.path=http://127.0.0.1:99999/x",),
            "task shapes: http://127.0.0.1:99999/x is no URL: Port out of range",
        ),
        (("--cache-path", "/a/../b"), "--cache-path=/a/../b: must be a whole path"),
        (("--interface", "eth0;reboot"), "is no name of an interface"),
        (("--egress-port", "70000"), "--egress-port=70000: is no port"),
        (("data.tasks.shapes.path=https://me:secret@host/shapes",), "is given with a user, password or query"),
        (
            ("data.tasks.shapes.shards=[pipe:curl -s https://me:secret@host/a.tar]",),
            "is given with a user, password or query",
        ),
        (
            (
                "--data-claim",
                "",
                *(f"data.tasks.{task}.path=s3://b/{task}" for task in TASKS),
                "init=weights.safetensors",
            ),
            "init=weights.safetensors is neither a run",
        ),
        (("parallel.deepspeed=/nowhere.json",), "/nowhere.json"),
        (("model.dept=1",), "did you mean model.depth?"),
    ],
)
def test_what_cannot_be(words, said):
    code, out = call(*DEMO, *CPU, *words)
    assert code == 2 and said in out and len(out.splitlines()) == 1, out
    assert "secret@" not in out


def test_names_become_names_of_kubernetes():
    assert kind(printed(*DEMO, *CPU, "name=Demo_2.1"), "Job")["metadata"]["name"] == "demo-2-1"
    assert kind(printed(*DEMO, *CPU, "name=007", "--job-name", "bond"), "Job")["metadata"]["name"] == "bond"


def test_ports_of_remote_shards_are_open():
    """A plan would look for the data sets there, so none is made."""
    words = ("data.tasks.shapes.path=http://store:9000/shapes", "data.tasks.clips.path=s3://bucket/clips")
    assert list(outside_ports(load_config(DEMO[1], words))) == [9000, 443]
    policy = kind(printed(*DEMO, *CPU, "--egress-port", "8443", "tracking.wandb=online"), "NetworkPolicy")
    assert [port["port"] for port in policy["spec"]["egress"][2]["ports"]] == [443, 8443]


def test_a_run_that_does_not_fit_is_told_and_printed():
    words = [word if word != "0" else "1" for word in CPU]
    code, out = call(*DEMO, *words, "--device-memory", "0.001")
    assert code == 0 and out.startswith("warning: a rank needs ") and "kind: Job" in out
