"""Mutation testing: small mistakes are put into the source, one at a time, and the tests must see them.

    python scripts/mutate.py --sample 300             # over the modules below, drawn with --seed
    python scripts/mutate.py parallel/norms.py --all  # every mutant of one file

A mutant is killed if a test fails or hangs, and survives if all tests pass that mirror its module. Each worker has a copy of the
repository, so runs in other processes see the mutant too. Ends with a line per file and writes the survivors to --out.
"""

from __future__ import annotations

import argparse
import ast
import collections
import copy
import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = {
    "run": ("tests/run", "tests/data/stream/test_faults.py", "tests/data/transport/test_urls.py"),
    "data/tasks": ("tests/data/tasks", "tests/run/test_config.py", "tests/model/test_objective.py", "tests/plan/test_sizes.py",
                   "tests/data/stream", "tests/evaluation"),
    "data/visual": ("tests/data/visual", "tests/data/tasks", "tests/golden"),
    "model/moe": ("tests/model/moe", "tests/model", "tests/golden", "tests/run/test_presets.py", "tests/parallel/test_layers.py"),
    "parallel/norms.py": ("tests/parallel/test_norms.py", "tests/parallel/test_engine.py"),
}  # fmt: skip
"""Where mutants are made, and the tests that must kill them, quick ones first."""
LIMIT_S = 240
SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Mutant:
    """file: below the root; line and what: of the change; source: the whole file with it."""

    file: str
    line: int
    what: str
    source: str


def mirrors_of(path: Path) -> tuple[str, ...]:
    """The tests of the table that must kill the mutants of a file; none where it lies outside."""
    return next((tests for place, tests in TESTS.items() if path.is_relative_to(ROOT / place)), ())


def mutants_of(path: Path) -> Iterator[Mutant]:
    """One for each place where a mistake can be made. Texts, annotations and imports are left alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for number, node in enumerate(_places(tree)):
        what = _change(node)
        if what:
            changed = copy.deepcopy(tree)
            _apply(list(_places(changed))[number])
            yield Mutant(str(path.relative_to(ROOT)), getattr(node, "lineno", 0), what, ast.unparse(changed))


def _places(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes in a fixed order, without annotations, messages of errors and decorators."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns", "decorator_list", "keywords" if isinstance(tree, ast.ClassDef) else ""):
            continue
        for node in value if isinstance(value, list) else [value]:
            if isinstance(node, ast.AST) and not isinstance(
                node, ast.Raise | ast.Import | ast.ImportFrom | ast.JoinedStr
            ):
                yield node
                yield from _places(node)


def _change(node: ast.AST) -> str:
    """What can be done to the node, in words; empty: nothing."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        return f"{type(node.ops[0]).__name__} -> {SWAPS[type(node.ops[0])].__name__}"
    if isinstance(node, ast.BoolOp | ast.BinOp | ast.AugAssign) and type(node.op) in SWAPS:
        if isinstance(node, ast.BinOp) and any(_is_text(side) for side in (node.left, node.right)):
            return ""
        return f"{type(node.op).__name__} -> {SWAPS[type(node.op)].__name__}"
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return "without not"
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return "without minus"
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        return f"{node.value} -> {not node.value}"
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return f"{node.value} -> {node.value + 1}"
    if isinstance(node, ast.If | ast.While | ast.IfExp):
        return "condition turned round"
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return "call left out"
    if isinstance(node, ast.Return) and node.value is not None and not isinstance(node.value, ast.Constant):
        return "returns None"
    return ""


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _apply(node: ast.AST) -> None:
    """The change that `_change` names, in place."""
    if isinstance(node, ast.Compare):
        node.ops[0] = SWAPS[type(node.ops[0])]()
    elif isinstance(node, ast.BoolOp | ast.BinOp | ast.AugAssign):
        node.op = SWAPS[type(node.op)]()
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node.op = ast.UAdd()
    elif isinstance(node, ast.UnaryOp):
        node.operand = ast.UnaryOp(ast.Not(), node.operand)
    elif isinstance(node, ast.Constant):
        node.value = (not node.value) if isinstance(node.value, bool) else node.value + 1  # type: ignore[operator]
    elif isinstance(node, ast.If | ast.While | ast.IfExp):
        node.test = ast.UnaryOp(ast.Not(), node.test)
    elif isinstance(node, ast.Expr | ast.Return):
        node.value = ast.Constant(None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="files or folders (default: all that have tests in the table)")
    parser.add_argument("--sample", type=int, default=300, help="mutants to draw (default: 300)")
    parser.add_argument("--all", action="store_true", help="every mutant in place of a sample")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("outputs/mutants.json"))
    arguments = parser.parse_args()
    roots = [Path(name) for name in arguments.files or TESTS]
    files = [file for root in roots for file in ([root] if root.suffix == ".py" else sorted(root.rglob("*.py")))]
    files = [(ROOT / file).resolve() for file in files]
    for file in files:
        if not mirrors_of(file):
            parser.error(f"{file}: no tests mirror it; TESTS has {', '.join(TESTS)}")
    found = [mutant for file in files for mutant in mutants_of(file)]
    chosen = found if arguments.all else random.Random(arguments.seed).sample(found, min(arguments.sample, len(found)))
    print(f"{len(found)} mutants in {len(files)} files; trying {len(chosen)}", flush=True)
    start = time.monotonic()
    survivors, tried, killed = [], collections.Counter(), collections.Counter()
    with multiprocessing.get_context("spawn").Pool(arguments.workers) as pool:
        for number, (mutant, is_killed) in enumerate(pool.imap_unordered(try_mutant, chosen), 1):
            tried[mutant.file] += 1
            killed[mutant.file] += is_killed
            if not is_killed:
                survivors.append({"file": mutant.file, "line": mutant.line, "what": mutant.what})
                print(f"  survives: {mutant.file}:{mutant.line} {mutant.what}", flush=True)
            if number % 25 == 0:
                share = sum(killed.values()) / number
                print(f"{number}/{len(chosen)}: {share:.1%} killed, {time.monotonic() - start:.0f} s", flush=True)
    for file in sorted(tried):
        print(f"{file:<32} {killed[file]:>4} of {tried[file]:>4}")
    total = sum(killed.values()) / max(1, sum(tried.values()))
    print(f"killed {sum(killed.values())} of {sum(tried.values())}: {total:.1%} in {time.monotonic() - start:.0f} s")
    shutil.rmtree(Path(tempfile.gettempdir()) / f"mutants_{os.getpid()}", ignore_errors=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(survivors, indent=1), encoding="utf-8")
    return 0


def try_mutant(mutant: Mutant) -> tuple[Mutant, bool]:
    """In a worker: (mutant, whether the tests see it)."""
    tree = _own_copy()
    file = tree / mutant.file
    original = file.read_text(encoding="utf-8")
    file.write_text(mutant.source, encoding="utf-8")
    try:
        return mutant, not all(_passes(tree, test) for test in mirrors_of(ROOT / mutant.file))
    finally:
        file.write_text(original, encoding="utf-8")


def _passes(tree: Path, test: str) -> bool:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header", test]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with subprocess.Popen(
        command, cwd=tree, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            return process.wait(LIMIT_S) == 0
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            return False


def _own_copy() -> Path:
    """This worker's copy of what git tracks."""
    tree = Path(tempfile.gettempdir()) / f"mutants_{os.getppid()}" / str(os.getpid())
    if not tree.exists():
        names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
            "\n"
        )
        for name in filter(None, names):
            if (ROOT / name).is_file():
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, tree / name)
    return tree


if __name__ == "__main__":
    sys.exit(main())
