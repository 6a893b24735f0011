"""The documentation is that of today: the page of options, and every link that leads inside."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from run.metrics.names import METRICS
from tests.helpers import devices
from tests.helpers.places import ROOT

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / ".github").rglob("*.md"))]
NAV = (ROOT / "mkdocs.yml").read_text()


def test_the_page_of_options_is_what_its_script_prints():
    done = subprocess.run(
        [sys.executable, "scripts/options_page.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == (ROOT / "docs" / "options.md").read_text(), "run scripts/options_page.py > docs/options.md"
    assert "|  |" not in done.stdout, "an option without a meaning: write it into the docstring"


def test_tests_of_a_gpu_have_a_twin_on_the_cpu_that_is_told():
    """The table of tests/helpers/devices.py: each test that it names is there, and each file that has one of a GPU is named."""
    folder = ROOT / "tests"
    told = re.findall(r"^\| .+ \| (\S+\.py): (\S+)", devices.__doc__ or "", re.MULTILINE)
    for file, name in told:
        text = (folder / file).read_text(encoding="utf-8")
        assert f"def {name.rstrip('.,')}" in text, f"{file}: {name}"
    marked = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("test_*.py")
        if re.search(r"mark\.gpu|\bDEVICES\)", path.read_text(encoding="utf-8"))
    } - {"test_docs.py"}
    assert marked == {file for file, _ in told}


def test_every_document_is_in_the_navigation():
    for page in (ROOT / "docs").glob("*.md"):
        assert f": {page.name}\n" in NAV, page.name


def anchors(text: str) -> set[str]:
    """As the headings of a page become addresses."""
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            assert re.fullmatch(r"https?://[\w.-]+(/\S*)?", target), target
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists() and path.is_relative_to(ROOT), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(path.read_text()), f"{page.name}: {target}"


def test_every_metric_stands_in_the_table():
    page = (ROOT / "docs" / "tracking.md").read_text()
    assert [metric.key for metric in METRICS if f"| `{metric.key}` |" not in page] == []
