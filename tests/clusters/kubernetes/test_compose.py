"""compose.yaml starts what it says, as far as that can be seen without an engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

import train
from clusters.kubernetes.ranks import place_of
from clusters.ranks import Place
from run.config import check_layout
from run.config_file import load_config
from tests.helpers.places import ROOT

COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
ENTRY = ["python", "-m", "clusters.kubernetes.ranks", "train.py"]


def test_nodes_meet():
    places = [place_of(service["environment"]) for service in SERVICES.values()]
    assert places == [Place(2, node, 1, "node-0", 29500) for node in (0, 1)]
    assert [service["hostname"] for service in SERVICES.values()] == list(SERVICES) == ["node-0", "node-1"]


def test_the_run_fits_two_ranks(monkeypatch):
    monkeypatch.chdir(ROOT)
    for service in SERVICES.values():
        assert service["command"][:4] == ENTRY
        arguments = train.parse_arguments(service["command"][4:])
        run = load_config(arguments.config, arguments.overrides)
        check_layout(run, 2)
        assert run.runs == "/runs"
        assert {Path(task.path).parts[0] for task in run.data.tasks} == {"data_demo"}, "the mounted folder"


def test_containers_write_into_their_volumes_alone():
    for service in SERVICES.values():
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        assert {*service["tmpfs"], *(v.split(":")[1] for v in service["volumes"] if not v.endswith(":ro"))} == {
            "/tmp", "/cache", "/runs",
        }  # fmt: skip
        named = [volume.split(":")[0] for volume in service["volumes"] if not volume.startswith(".")]
        assert set(named) <= COMPOSE["volumes"].keys()


def test_its_build_arguments_are_the_dockerfiles():
    text = (ROOT / "Dockerfile").read_text()
    for name in SERVICES["node-0"]["build"]["args"]:
        assert f"ARG {name}=" in text


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Of the compose specification, from the last docker-compose that was written in Python."""
    place = tmp_path_factory.mktemp("compose")
    words = ["install", "--quiet", "--no-deps", "--target", str(place), "docker-compose==1.29.2"]
    done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"docker-compose cannot be installed for its schema: {done.stderr[-200:]}")
    (path,) = place.rglob("compose_spec.json")
    found: dict = json.loads(path.read_text())
    found["properties"]["name"] = {"type": "string"}  # came later
    return found


@pytest.mark.slow
def test_it_keeps_to_the_specification(schema):
    jsonschema.validate(COMPOSE, schema)
    wrong = json.loads(json.dumps(COMPOSE))
    wrong["services"]["node-1"]["read_onlys"] = True
    with pytest.raises(jsonschema.ValidationError, match="read_onlys"):
        jsonschema.validate(wrong, schema)
