"""The page in a real Chromium: every figure is drawn, nothing is asked of a network, no error is logged, and everyone can read it.

Needs playwright and axe-playwright-python (dev dependencies), and a Chromium of the system: scripts/browser.sh installs one.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from analysis.report.__main__ import main, write
from tests.analysis.report.synthetic import HOSTILE, write_run

pytestmark = pytest.mark.slow
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
MOST_BYTES, MOST_SECONDS = 8 << 20, 3.0
TRIES = 3
"""Other programs may slow one down."""
EMPTY = """element => {
  const svg = element.querySelector(".drawing svg"), canvas = element.querySelector(".drawing canvas");
  if (svg) return svg.querySelectorAll(".role-mark path[d], .role-mark line").length === 0;
  if (!canvas) return true;
  const colours = new Set(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data);
  return colours.size < 4;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: `make setup` brings it")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: `bash scripts/browser.sh` installs one")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def files(made, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    runs = {"sparse": ["sparse"], "dense": ["dense"], "both": ["sparse", "dense"]}
    for name, names in runs.items():
        words = [word for one in names for word in ("--run", str(made[one]))]
        assert main([*words, "--out", str(folder / f"{name}.html")]) == 0
    return {name: folder / f"{name}.html" for name in runs}


@pytest.fixture
def opened(browser) -> Iterator[Any]:
    """Opens a file; whatever it logs or asks for fails the test."""
    contexts, said = [], []

    def open_page(path: Path, width: int = 1400, scheme: str = "light", bypass: bool = False) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=bypass)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on(
            "request",
            lambda request: said.append(request.url[:80]) if request.url[:5] not in ("file:", "data:") else None,
        )
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []


def draw_by_scrolling(page: Any) -> list[Any]:
    figures = page.query_selector_all("[data-figure]")
    assert len(figures) == page.evaluate("page.figures.length") > 8
    for figure in figures:
        figure.scroll_into_view_if_needed()
        page.wait_for_function("element => element.dataset.state === 'drawn'", arg=figure)
    return figures


@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["sparse", "both"])
def test_every_figure_is_drawn_and_axe_finds_nothing(files, opened, name, scheme, width):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe is not installed: `make setup` brings it"
    )
    page = opened(files[name], width, scheme, bypass=True)
    for figure in draw_by_scrolling(page):
        assert not figure.evaluate(EMPTY), figure.query_selector("h3").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate("document.querySelectorAll('details').forEach(element => { element.open = true; })")
    page.wait_for_function("() => document.querySelectorAll('.numbers:empty').length === 0")
    violations = axe.Axe().run(page).response["violations"]
    assert [(one["id"], [node["html"][:200] for node in one["nodes"][:3]]) for one in violations] == []


def test_figures_out_of_view_are_drawn_too(files, opened):
    """For the browser's own printing, and pictures of the whole page."""
    page = opened(files["sparse"])
    page.wait_for_function(
        "() => [...document.querySelectorAll('[data-figure]')].every(one => one.dataset.state === 'drawn')"
    )
    assert page.evaluate("scrollY") == 0 and not any(
        one.evaluate(EMPTY) for one in page.query_selector_all("[data-figure]")
    )


def test_pictures_are_there_and_hostile_texts_are_texts(files, opened):
    page = opened(files["sparse"])
    sizes = page.evaluate(
        "Promise.all([...document.images].map(image => image.decode().then(() => image.naturalWidth)))"
    )
    assert len(sizes) == 2 + 6 + 6 and all(sizes)
    assert page.evaluate("document.body.textContent").count(HOSTILE) > 10
    assert page.evaluate("document.querySelectorAll('img[src=x]').length") == 0


def path_of(figure: Any) -> str:
    return figure.eval_on_selector_all(
        ".drawing svg .role-mark path", "paths => paths.map(path => path.getAttribute('d')).join()"
    )


def test_curves_can_be_zoomed_smoothed_and_hidden(files, opened):
    page = opened(files["sparse"])
    figure = page.query_selector("[data-figure='0']")
    figure.scroll_into_view_if_needed()
    page.wait_for_function("element => element.dataset.state === 'drawn'", arg=figure)

    seen = [path_of(figure)]

    def is_new() -> None:
        page.wait_for_function("() => !work && drawings[0].stale === null")
        assert path_of(figure) not in seen
        seen.append(path_of(figure))

    page.get_by_role("button", name="Zoom in").press("Enter")
    is_new()
    assert page.inner_text("#window") == "steps 100 to 300"
    page.get_by_role("button", name="Later steps").click()
    is_new()
    assert page.inner_text("#window") == "steps 200 to 400"
    page.get_by_role("button", name="All steps").click()
    page.wait_for_function("() => !work && drawings[0].stale === null")
    assert path_of(figure) == seen[0] and page.inner_text("#window") == ""
    page.focus("#smooth")
    page.keyboard.press("End")
    is_new()
    page.keyboard.press("Home")
    box = figure.query_selector(".plot").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + 60)
    values = figure.query_selector(".legend").inner_text()
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + 90, steps=4)
    assert figure.query_selector(".legend").inner_text() != values
    assert page.inner_text(".told").startswith("step ")
    page.mouse.up()
    is_new()
    assert page.inner_text("#window").startswith("steps 1")
    page.mouse.dblclick(box["x"] + box["width"] * 0.5, box["y"] + 60)
    figure.query_selector(".legend button").click()
    is_new()
    assert figure.query_selector(".legend button").get_attribute("aria-pressed") == "false"
    figure.query_selector(".controls input").check()
    is_new()
    page.check("#log-steps")
    is_new()
    figure.query_selector("details summary").click()
    assert len(figure.query_selector_all(".numbers tbody tr")) == 40
    assert "cifar10" not in figure.query_selector(".numbers thead").inner_text()  # hidden


def test_a_decision_can_be_chosen(files, opened):
    page = opened(files["sparse"])
    figure = next(
        one for one in draw_by_scrolling(page) if one.query_selector("h3").inner_text() == "Expert load over time"
    )
    figure.query_selector("details summary").click()
    before = figure.query_selector(".numbers").inner_text()
    figure.query_selector("select").select_option(label="1 ffn")
    assert figure.query_selector(".numbers").inner_text() != before


def test_runs_are_laid_over_one_another(files, opened):
    page = opened(files["both"])
    figure = draw_by_scrolling(page)[0]
    names = [element.inner_text() for element in figure.query_selector_all(".legend .name")]
    assert names == ["sparse", "dense"]
    assert len(figure.query_selector_all("select option")) == 3


def test_theme_can_be_chosen_and_is_kept(files, opened):
    page = opened(files["dense"])
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.select_option("#theme", "dark")
    dark = page.evaluate(background)
    assert dark != light
    page.reload()
    assert page.evaluate(background) == dark and page.input_value("#theme") == "dark"


def test_it_is_printed_with_all_figures_in_light(files, opened):
    page = opened(files["sparse"], scheme="dark")
    page.evaluate(
        "() => { window.print = () => { window.printed = [drawings.filter(one => one.stale).length, root.dataset.theme]; }; }"
    )
    page.keyboard.press("Control+p")
    page.wait_for_function("() => window.printed")
    assert page.evaluate("window.printed") == [0, "light"] and page.evaluate("root.dataset.theme") == "auto"
    assert len(page.pdf()) > 50_000


def test_a_followed_page_loads_itself_again_and_keeps_its_place(made, tmp_path, opened):
    folder, out = tmp_path / "run", tmp_path / "page.html"
    shutil.copytree(made["dense"], folder)
    text = (folder / "events.jsonl").read_text().splitlines(keepends=True)
    (folder / "events.jsonl").write_text("".join(text[:-1]))
    assert not write([folder], out, 1)
    page = opened(out)
    page.evaluate("scrollTo({top: 700, behavior: 'instant'}); window.first = true")
    page.wait_for_function("() => !window.first && scrollY > 600")
    page.click("#reload")
    page.evaluate("window.first = true")
    page.wait_for_timeout(1500)
    assert page.evaluate("window.first") is True


def test_a_large_run_is_small_and_opens_fast(tmp_path, opened, capsys):
    folder = write_run(tmp_path / "large", 100_000, 10, layers=24, experts=32, tasks=[f"task {i}" for i in range(10)])
    start = time.perf_counter()
    assert main(["--run", str(folder)]) == 0
    written = time.perf_counter() - start
    path, taken = folder / "analysis" / "report.html", []
    for _ in range(TRIES):
        start = time.perf_counter()
        page = opened(path)
        page.query_selector("[data-figure='0']").scroll_into_view_if_needed()
        page.wait_for_selector("[data-figure='0'][data-state=drawn]")
        taken.append(time.perf_counter() - start)
        if taken[-1] < MOST_SECONDS:
            break
    size = path.stat().st_size
    with capsys.disabled():
        opens = ", ".join(f"{seconds:.1f}" for seconds in taken)
        print(
            f"\nlarge run: {size / 1e6:.1f} MB, written in {written:.0f} s, opened with its first figure in {opens} s"
        )
    assert size < MOST_BYTES and min(taken) < MOST_SECONDS
    draw_by_scrolling(page)
