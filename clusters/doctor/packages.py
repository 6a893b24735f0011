"""Versions against their pins, and DeepSpeed's ops."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import platform
import re
import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clusters.doctor.finding import Finding, failed, ok, warning
from parallel.health.preflight import BUILT_AT_START, check_build_lock
from parallel.health.same_code import ROOT
from parallel.launch import PreflightError

INSTALL = "bash scripts/setup.sh, or a container image of these pins"


def check_python(root: Path = ROOT) -> list[Finding]:
    needed = _project(root).get("requires-python", ">=3")
    found = platform.python_version()
    least = tuple(map(int, needed.removeprefix(">=").split(".")))
    if tuple(map(int, platform.python_version_tuple()[:2])) < least[:2]:
        return [failed("python", found, needed, f"make the environment with Python {needed} ({INSTALL})")]
    return [ok("python", found)]


def check_packages(root: Path = ROOT, installed: Mapping[str, str] | None = None) -> list[Finding]:
    """installed: versions by normalised name; None: those of this environment."""
    direct, others = pins(root)
    there = installed_versions() if installed is None else installed
    found = []
    for name, version in direct.items():
        if name not in there:
            found.append(failed(f"package {name}", "not installed", version, INSTALL))
        elif not same_version(there[name], version):
            found.append(failed(f"package {name}", there[name], version, f"pip install {name}=={version}"))
    for name, version in others.items():
        if name in there and not same_version(there[name], version):
            found.append(warning(f"package {name}", there[name], version, f"pip install {name}=={version}"))
    return found or [ok("packages", f"{sum(name in there for name in direct | others)} as they are pinned")]


def pins(root: Path = ROOT) -> tuple[dict[str, str], dict[str, str]]:
    """Versions by normalised name -> (those that must be there, those that must be so if they are there)."""
    project = _project(root)
    extras = [line for lines in project.get("optional-dependencies", {}).values() for line in lines]
    constraints = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    direct = _pins(project.get("dependencies", []))
    return direct, {name: version for name, version in _pins([*extras, *constraints]).items() if name not in direct}


def installed_versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:  # a folder that an installation left half done has none
            found.setdefault(_normalised(name), distribution.version)
    return found


def same_version(found: str, pinned: str) -> bool:
    """2.13.0+cpu is 2.13.0: the same source, built for another device."""
    return found == pinned or ("+" not in pinned and found.partition("+")[0] == pinned)


def check_ops(folder: Path | None = None) -> list[Finding]:
    """DeepSpeed's compiled parts and the locks of builds that were killed. folder: where DeepSpeed is."""
    try:
        check_build_lock()
    except PreflightError as error:
        said, _, remedy = str(error).partition("and every start would wait for it: ")
        return [
            failed("ops", said.rstrip(", "), "", remedy or "set TORCH_EXTENSIONS_DIR to a folder that can be written")
        ]
    import torch

    built = installation_of(folder or _deepspeed_folder())
    needed = ".".join(torch.__version__.partition("+")[0].split(".")[:2])
    made_for = str(built.get("torch_info", {}).get("version", needed))
    if any(built.get("installed_ops", {}).values()) and made_for != needed:
        remedy = "install deepspeed anew in this environment (pip install --no-cache-dir --force-reinstall --no-deps)"
        return [failed("ops", f"DeepSpeed's were built for torch {made_for}", f"torch {needed}", remedy)]
    if torch.cuda.is_available() or built.get("installed_ops", {}).get(BUILT_AT_START):
        return [ok("ops", "none left to build")]
    missing = [tool for tool in ("c++", "ninja") if shutil.which(tool) is None]
    if missing:
        remedy = "install g++ and ninja, or DeepSpeed with the op built in (scripts/setup.sh does)"
        return [failed("ops", f"{BUILT_AT_START} is to be built without {', '.join(missing)}", "a compiler", remedy)]
    return [ok("ops", f"{BUILT_AT_START} will be built at the first start")]


def installation_of(folder: Path) -> dict[str, Any]:
    """What DeepSpeed noted when it was installed. It is read as text, as its import takes seconds."""
    try:
        tree = ast.parse((folder / "git_version_info_installed.py").read_text(encoding="utf-8"))
        return {
            target.id: ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
    except (OSError, ValueError, SyntaxError):
        return {}


def _deepspeed_folder() -> Path:
    found = importlib.util.find_spec("deepspeed")
    return Path(found.origin).parent if found and found.origin else Path("deepspeed")


def _project(root: Path) -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project


def _pins(lines: list[str]) -> dict[str, str]:
    found = (re.match(r"([A-Za-z0-9._-]+)==([^\s;#]+)", line) for line in lines)
    return {_normalised(match[1]): match[2] for match in found if match}


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
