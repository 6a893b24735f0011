"""The checked-in folders are what the command makes today, and kustomize puts them together as said."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.clusters.kubernetes.checks import CUSTOM, model_problem, schema_problem
from tests.clusters.kubernetes.commands import CPU, DEMO, call, printed
from tests.helpers.places import ROOT

FOLDER = ROOT / "clusters" / "kubernetes"
GPU = ("--gpus-per-node", "1", "--image", "sparse-generalists:cuda", "--data-claim", "data")
OVERLAYS = {
    "base": (*DEMO, *CPU),
    "overlays/gpu": (*DEMO, *GPU),
    "overlays/jobset": (*DEMO, *CPU, "--variant", "jobset"),
    "overlays/trainjob": (*DEMO, *CPU, "--variant", "trainjob"),
}
KUSTOMIZE = ("pykustomize==0.1.4", "cffi")
"""kustomize itself, as a library of Go; it asks for a newer Python than it needs."""
BUILD = "import asyncio, sys, pykustomize; print(asyncio.run(pykustomize.build(sys.argv[1])).yaml)"
Manifest = dict[str, Any]


def identity(manifest: Manifest) -> tuple[str, str, str]:
    return manifest["apiVersion"], manifest["kind"], manifest["metadata"]["name"]


def merged(one: Any, patch: Any) -> Any:
    """A strategic merge as far as our patches need it: mappings by key, lists of named elements by name."""
    if isinstance(one, dict) and isinstance(patch, dict):
        return {**one, **{key: merged(one.get(key), value) for key, value in patch.items()}}
    if isinstance(one, list) and isinstance(patch, list) and all("name" in item for item in (*one, *patch)):
        by_name = {item["name"]: item for item in patch}
        assert by_name.keys() <= {item["name"] for item in one}
        return [merged(item, by_name.get(item["name"], {})) for item in one]
    return patch


def put_together(folder: Path) -> list[Manifest]:
    """As `kustomize build`, for the fields that our folders have."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert kustomization.keys() <= {"apiVersion", "kind", "resources", "patches"}, "not known here"
    found: dict[tuple[str, str, str], Manifest] = {}
    for name in kustomization["resources"]:
        path = folder / name
        parts = put_together(path) if path.is_dir() else [yaml.safe_load(path.read_text())]
        for manifest in parts:
            assert identity(manifest) not in found, name
            found[identity(manifest)] = manifest
    for entry in kustomization.get("patches", []):
        patch = yaml.safe_load(entry["patch"] if "patch" in entry else (folder / entry["path"]).read_text())
        assert identity(patch) in found, f"{folder}: no {identity(patch)} to patch"
        if patch.pop("$patch", "") == "delete":
            del found[identity(patch)]
        else:
            found[identity(patch)] = merged(found[identity(patch)], patch)
    return list(found.values())


def ordered(manifests: list[Manifest]) -> list[Manifest]:
    return sorted(manifests, key=identity)


def regenerate(name: str) -> str:
    return f"python -m clusters kubernetes {' '.join(OVERLAYS[name])} --out FOLDER, and copy what differs to clusters/kubernetes/{name}"


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_folders_are_what_the_command_makes(name):
    assert ordered(put_together(FOLDER / name)) == ordered(printed(*OVERLAYS[name])), regenerate(name)


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_file_of_a_folder_is_used(name):
    text = (FOLDER / name / "kustomization.yaml").read_text()
    for path in (FOLDER / name).glob("*.yaml"):
        assert path.name == "kustomization.yaml" or path.name in text


def test_an_overlay_is_valid_as_a_whole():
    for manifest in put_together(FOLDER / "overlays" / "gpu"):
        assert model_problem(manifest) is None
        assert manifest["kind"] in CUSTOM or schema_problem(manifest) is None


def test_a_folder_is_written_file_by_file(tmp_path):
    code, out = call(*DEMO, *CPU, "--out", str(tmp_path / "mine"))
    assert (code, out) == (0, "")
    mine, base = tmp_path / "mine", FOLDER / "base"
    assert {path.name: path.read_text() for path in mine.iterdir()} == {p.name: p.read_text() for p in base.iterdir()}


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "there").write_text("a file")
    code, out = call(*DEMO, *CPU, "--out", str(tmp_path / "there"))
    assert (code, out) == (2, f"error: --out {tmp_path / 'there'}: File exists")


@pytest.fixture(scope="module")
def kustomize(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function from a folder to its manifests, by the real kustomize."""
    if binary := shutil.which("kustomize"):
        return lambda folder: _built([binary, "build", str(folder)], {})
    place = tmp_path_factory.mktemp("kustomize")
    words = ["install", "--quiet", "--no-deps", "--ignore-requires-python", "--target", str(place), *KUSTOMIZE]
    done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no kustomize, and {KUSTOMIZE[0]} cannot be installed: {done.stderr[-200:]}")
    return lambda folder: _built([sys.executable, "-c", BUILD, str(folder)], {"PYTHONPATH": str(place)})


def _built(words: list[str], variables: dict[str, str]) -> list[Manifest]:
    done = subprocess.run(words, env=os.environ | variables, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.mark.slow
@pytest.mark.parametrize("name", OVERLAYS)
def test_kustomize_puts_them_together_in_the_same_way(name, kustomize):
    found = kustomize(FOLDER / name)
    assert ordered(found) == ordered(put_together(FOLDER / name))
