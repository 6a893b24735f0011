"""Dependencies point one way, and each heavy library has one place."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("data", "model", "parallel", "evaluation", "benchmarks", "plan")
ENTRIES = ("train", "evaluate", "command_line", "config", "config_file", "describe", "metrics", "run_folder", "sinks")
ALLOWED = {
    "data": {"data"},
    "parallel": {"parallel"},
    "model": {"model", "parallel", "data.batch", "data.attributes", "data.normalise"},
    "evaluation": {"evaluation", "model", "data"},
}
OWNERS = {
    "deepspeed": "parallel",
    "megatron": "parallel",
    "apex": "parallel",
    "wandb": "sinks",
    "webdataset": "data",
    "av": "data",
    "requests": "data",
    "fsspec": "data",
}


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return found


def sources() -> list[Path]:
    return [p for name in PACKAGES for p in sorted((ROOT / name).rglob("*.py"))] + [ROOT / f"{e}.py" for e in ENTRIES]


def test_packages_import_only_what_lies_below_them():
    seen = 0
    for package, allowed in ALLOWED.items():
        for path in (ROOT / package).rglob("*.py"):
            for name in imports_of(path):
                if name.split(".")[0] in (*PACKAGES, *ENTRIES):
                    seen += 1
                    assert any(name == a or name.startswith(a + ".") for a in allowed), (
                        f"{path.relative_to(ROOT)} imports {name}"
                    )
    assert seen > 50


def test_heavy_libraries_have_one_owner():
    for path in sources():
        top = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for name in imports_of(path):
            owner = OWNERS.get(name.split(".")[0])
            assert owner in (None, top) or top == "benchmarks", (
                f"{path.relative_to(ROOT)} imports {name}, which belongs to {owner}"
            )


def test_the_model_and_the_help_need_no_heavy_library():
    code = "import sys, train, evaluate; print([m for m in ('deepspeed', 'megatron', 'wandb') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
