"""Every pin has one place, the code imports nothing undeclared, and the commands people and CI use exist."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# Where the name in an import statement is not the distribution's.
DISTRIBUTION_OF = {
    "faiss": "faiss-cpu",
    "PIL": "pillow",
    "megatron": "megatron-core",
    "open_clip": "open-clip-torch",
    "sklearn": "scikit-learn",
    "vl_convert": "vl-convert-python",
    "yaml": "pyyaml",
}
# What code that travels with an export imports where it is used: environments of others, with versions of theirs.
ELSEWHERE = {"open-clip-torch", "transformers"}
EXPORT_ROOM = ("model", "exchange", "export")
# In the image alone: its tag stands in [tool.sparse-generalists].
NOT_FROM_PYPI = {"apex"}
# What benchmarks compare with: left out where it is not installed, or fetched by whoever measures (benchmarks/peers.md).
PEERS = {"open-clip-torch", "transformer-engine", "uniperceiver"}
TARGETS = {
    *("help", "setup", "demo", "test", "test-slow", "parity", "gpu", "curves", "mutants", "check", "docs"),
    *("bench", "bench-gpu", "bench-data", "bench-evaluation", "ablation", "faults", "slurm", "image-check", "clean"),
}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(lines: list[str]) -> dict[str, str]:
    """Distribution to version. Fails on a line that is not an exact pin."""
    loose = [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.!]+", line)]
    assert not loose, f"not exact pins: {loose}"
    return {normal(name): version for name, version in (line.split("==") for line in lines)}


def constraint_lines() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


RUNTIME = pins(PROJECT["project"]["dependencies"])
PREPARATION = pins(PROJECT["project"]["optional-dependencies"]["prepare"])
INDEX = pins(PROJECT["project"]["optional-dependencies"]["index"])
REPORT = pins(PROJECT["project"]["optional-dependencies"]["wandb-report"])
SINKS = pins(
    [
        *PROJECT["project"]["optional-dependencies"]["tensorboard"],
        *PROJECT["project"]["optional-dependencies"]["prometheus"],
    ]
)
EXPORT = pins(PROJECT["project"]["optional-dependencies"]["export"])
DOCUMENTATION = pins(PROJECT["project"]["optional-dependencies"]["docs"])
DEVELOPMENT = pins(PROJECT["project"]["optional-dependencies"]["dev"])
CONSTRAINTS = pins(constraint_lines())


def source_files() -> list[Path]:
    first_parts = {
        path.name for path in ROOT.iterdir() if not path.name.startswith((".", "runs", "wandb", "outputs", "site"))
    }
    files = [path for part in sorted(first_parts) for path in (ROOT / part).glob("**/*.py")]
    return [*ROOT.glob("*.py"), *files]


def third_party_imports(file: Path) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(), filename=str(file))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            modules.add(node.module)
    names = {module.split(".")[0] for module in modules}
    ours = {name for name in names if (ROOT / name).is_dir() or (ROOT / f"{name}.py").exists()}
    return names - ours - sys.stdlib_module_names - NOT_FROM_PYPI


def test_every_import_is_declared() -> None:
    undeclared = []
    for file in source_files():
        parts = file.relative_to(ROOT).parts
        room = {"tests": DEVELOPMENT, "prediction": INDEX}.get(parts[0], {})
        room = SINKS if parts[:2] == ("run", "sinks") else room
        room = REPORT if parts[:2] == ("clusters", "dashboards") else room
        optional = PREPARATION if parts[:2] == ("data", "prepare") else room
        declared = RUNTIME.keys() | optional.keys() | (EXPORT.keys() | ELSEWHERE if parts[:3] == EXPORT_ROOM else set())
        declared |= PEERS if parts[0] == "benchmarks" else set()
        for name in sorted(third_party_imports(file)):
            if normal(DISTRIBUTION_OF.get(name, name)) not in declared:
                undeclared.append(f"{file.relative_to(ROOT)}: {name}")
    assert not undeclared, f"not in pyproject.toml: {undeclared}"


def test_a_pin_has_one_place() -> None:
    repeated = CONSTRAINTS.keys() & (RUNTIME.keys() | DEVELOPMENT.keys())
    assert not repeated, f"constraints.txt repeats what pyproject.toml pins: {sorted(repeated)}"


def test_constraints_hold_for_cpu_and_cuda() -> None:
    bound = [name for name in CONSTRAINTS if name.startswith(("nvidia-cu", "cuda-", "triton", "torch"))]
    assert not bound, f"each torch wheel pins these by itself: {bound}"


def test_the_environment_is_the_pinned_one() -> None:
    # Not all of sys.path: setuptools adds its own folder of vendored packages there once something imports it.
    site_packages = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    found = metadata.distributions(path=site_packages)
    installed = {normal(dist.name): dist.version.split("+")[0] for dist in found}
    expected = RUNTIME | DEVELOPMENT | CONSTRAINTS
    different = {n: (installed[n], v) for n, v in expected.items() if n in installed and installed[n] != v}
    assert not different, f"(installed, pinned): {different}; run `make setup`"
    missing = RUNTIME.keys() - installed.keys()
    assert not missing, f"not installed: {sorted(missing)}; run `make setup`"


def test_the_image_takes_its_versions_from_pyproject() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    known = RUNTIME | DEVELOPMENT | CONSTRAINTS
    written = re.findall(r"([\w.-]+)==([\w.]+)", dockerfile)
    assert [(name, version) for name, version in written if known.get(normal(name)) != version] == []
    assert "scripts/setup.sh" in dockerfile
    assert PROJECT["tool"]["sparse-generalists"]["apex"] not in dockerfile, "read the tag, do not repeat it"
    assert re.search(r'\["tool"\]\["sparse-generalists"\]\["apex"\]', dockerfile)


def dockerfile_stages() -> list[str]:
    """The build, and what runs."""
    _, build, runtime = re.split(r"^FROM .*$", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    return [build, runtime]


def dockerfile_bases() -> dict[str, str]:
    return dict(re.findall(r"^ARG (\w+_IMAGE)=(\S+)$", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE))


def test_the_image_does_not_run_as_root() -> None:
    users = re.findall(r"^USER (\S+)", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    assert users and users[-1] not in ("root", "0")


def test_what_runs_holds_no_compiler_and_says_what_it_is() -> None:
    build, runtime = dockerfile_stages()
    compilers = {"g++", "git", "python3-dev"}
    assert compilers <= set(build.split()) and not compilers & set(runtime.split())
    assert "COPY --from=build /opt/venv" in runtime and "COPY --from=build /opt/sbom /usr/share/sbom" in runtime
    assert 'ENTRYPOINT ["tini", "--"]' in runtime and " tini " in runtime
    check = re.search(r"^HEALTHCHECK .*CMD (\[.*\])$", runtime, re.MULTILINE)
    assert check and ast.literal_eval(check[1])[:3] == ["python", "-m", "clusters.kubernetes.ranks"]
    labels = set(re.findall(r"org\.opencontainers\.image\.(\w+)=", runtime))
    assert labels == {"title", "description", "licenses", "documentation", "version", "revision"}
    assert PROJECT["project"]["license"] in runtime


def test_the_bill_of_materials_has_a_pin() -> None:
    assert re.search(r'\["tool"\]\["sparse-generalists"\]\["sbom"\]', (ROOT / "Dockerfile").read_text())
    assert re.fullmatch(r"cyclonedx-bom==[\d.]+", PROJECT["tool"]["sparse-generalists"]["sbom"])


def test_the_cuda_of_the_image_is_that_of_torchs_wheel() -> None:
    wanted = PROJECT["tool"]["sparse-generalists"]["cuda"]
    bases = dockerfile_bases()
    assert bases.keys() == {"BUILD_IMAGE", "RUNTIME_IMAGE"}
    for base in bases.values():
        found = re.fullmatch(r"nvidia/cuda:(\d+\.\d+)\.\d+-(devel|base)-(ubuntu[\d.]+)", base)
        assert found and found[1] == wanted, base
    assert len({base.rpartition("-")[2] for base in bases.values()}) == 1, "both need the same Python"
    assert f"/whl/cu{wanted.replace('.', '')} " in (ROOT / "docs" / "start.md").read_text()
    import torch

    assert torch.version.cuda is None or torch.version.cuda.startswith(wanted)


@pytest.mark.slow
def test_torchs_wheel_asks_for_that_cuda(tmp_path: Path) -> None:
    """By the requirements of the CUDA wheel, which pip reads without the wheel. A CPU wheel may be preferred for this Python."""
    for python in ("3.12", "3.13", "3.11"):
        words = [
            *(
                "install",
                "--dry-run",
                "--quiet",
                "--report=-",
                "--no-deps",
                "--ignore-installed",
                f"--target={tmp_path}",
            ),
            *("--python-version", python, "--platform=manylinux_2_28_x86_64", "--only-binary=:all:"),
            f"torch=={RUNTIME['torch']}",
        ]
        done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            lines = json.loads(done.stdout)["install"][0]["metadata"]["requires_dist"]
            found = [match[1] for line in lines if (match := re.match(r"cuda-toolkit\[.*\]==(\d+\.\d+)\.", line))]
            if found:
                assert found == [PROJECT["tool"]["sparse-generalists"]["cuda"]]
                return
    pytest.skip("pip finds no CUDA wheel of torch here")


def test_make_lists_its_targets() -> None:
    listed = subprocess.check_output(["make", "--no-print-directory"], cwd=ROOT, text=True)
    assert set(re.findall(r"make ([a-z-]+)", listed)) == TARGETS


def test_continuous_integration_checks_and_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert {"make check", "make test"} <= set(script.read_text().splitlines())


def test_the_licence_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["project"]["license"] == citation["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text().splitlines()[0]
    assert all((ROOT / name).is_file() for name in PROJECT["project"]["license-files"])
    assert "open_clip_torch" in (ROOT / "NOTICE").read_text()


def test_the_citation_has_what_its_format_asks_for() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys() and citation["cff-version"] == "1.2.0"
    assert citation["version"] == PROJECT["project"]["version"]
    assert f"## {citation['version']}" in (ROOT / "CHANGELOG.md").read_text()
    assert all({"type", "title", "authors"} <= reference.keys() for reference in citation["references"])


def test_checks_before_a_commit_are_those_of_make_check() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe
    lines = [line.strip().replace("$(PYTHON)", ".venv/bin/python") for line in recipe[1].splitlines()]
    assert [hook["entry"] for hook in hooks] == lines


def test_hosted_ci_calls_the_script_of_this_repository_alone() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    assert [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step] == ["bash .ci/run"]
