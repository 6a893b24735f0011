"""Text is UTF-8 in every locale: no file is opened with the encoding of the machine."""

from __future__ import annotations

import ast

from tests.helpers.places import ROOT

ROOMS = (
    "run",
    "data",
    "model",
    "parallel",
    "plan",
    "evaluation",
    "prediction",
    "analysis",
    "clusters",
    "scripts",
    "benchmarks",
)


def mode_of(call: ast.Call, place: int) -> str | None:
    """The mode of an open; None where it is no constant."""
    found = next((keyword.value for keyword in call.keywords if keyword.arg == "mode"), None)
    if found is None and len(call.args) > place:
        found = call.args[place]
    return "r" if found is None else found.value if isinstance(found, ast.Constant) else None


def without_encoding(tree: ast.AST) -> list[int]:
    lines = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if any(keyword.arg in ("encoding", None) for keyword in call.keywords):
            continue
        if isinstance(call.func, ast.Attribute) and call.func.attr in ("read_text", "write_text"):
            lines.append(call.lineno)
        elif isinstance(call.func, ast.Name) and call.func.id == "open":
            mode = mode_of(call, 1)
            lines += [call.lineno] if isinstance(mode, str) and "b" not in mode else []
        elif isinstance(call.func, ast.Attribute) and call.func.attr == "open":
            mode = mode_of(call, 0)
            text = isinstance(mode, str) and set(mode) <= set("rwax+t") and (bool(call.args) or bool(call.keywords))
            lines += [call.lineno] if text else []
    return lines


def test_every_text_file_is_opened_with_an_encoding():
    files = [ROOT / "train.py", ROOT / "evaluate.py", *(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))]
    found = {
        f"{path.relative_to(ROOT)}:{line}"
        for path in files
        for line in without_encoding(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert not found


def test_the_check_sees_what_it_is_for():
    source = "p.read_text()\np.write_text(x)\nopen(p)\nopen(p, 'wb')\np.open('a')\np.open('rb')\np.open()\nopen(p, encoding='utf-8')"
    assert without_encoding(ast.parse(source)) == [1, 2, 3, 5]
