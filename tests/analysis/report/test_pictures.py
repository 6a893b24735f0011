"""Pictures inside the page."""

from __future__ import annotations

import dataclasses

import pytest
from PIL import Image

from analysis.report.pictures import EMBEDDED, Budget, captions, embedded, maps, retrievals
from analysis.report.reading import RunFiles, read_files
from tests.analysis.report.synthetic import picture


@pytest.fixture(scope="module")
def run(made) -> RunFiles:
    return read_files(made["sparse"])


def test_maps_have_their_words_and_moving_ones_wait(run):
    text = maps(run, Budget(1 << 20)) or ""
    assert text.count("<img") == 2 and 'alt="Two images &lt;/script&gt;' in text
    assert "<details open><summary>Patches by expert, 1 ffn" in text
    assert "<details><summary>Activation by layer (moving picture)" in text
    assert maps(dataclasses.replace(run, pictures=()), Budget(1 << 20)) is None


@pytest.mark.parametrize("name", ["../../config.yaml", "index.json", "none.png", "..", "", "/etc/passwd"])
def test_what_is_no_picture_of_the_folder_is_left_out(run, name):
    text = maps(dataclasses.replace(run, pictures=({"file": name, "title": "t"},)), Budget(1 << 20)) or ""
    assert "<img" not in text and "Not in this page" in text


def test_what_is_too_much_is_left_out_and_named(run):
    text = maps(run, Budget(100)) or ""
    assert "<img" not in text and "maps.png, moving.gif" in text
    assert captions(run, Budget(10)) is None


def test_wide_pictures_are_made_narrower(tmp_path):
    Image.new("RGB", (3000, 300)).save(tmp_path / "wide.png")
    address, moves, size = embedded(tmp_path / "wide.png") or ("", True, (0, 0))
    assert size == (1200, 120) and not moves and address.startswith("data:image/webp;base64,")
    (tmp_path / "cut.png").write_bytes((tmp_path / "wide.png").read_bytes()[:100])
    assert embedded(tmp_path / "cut.png") is None and embedded(tmp_path) is None


def test_samples_show_what_was_said_and_what_is_right(run):
    assert (captions(run, Budget(1 << 20)) or "").count("<img") == 6
    text = retrievals(run, Budget(1 << 20)) or ""
    assert text.count("<img") == 6 and text.count('class="card right"') == 1 and "2. 0.800" in text
    ranked = {"retrievals": [run.samples["retrievals"][0] | {"rank": 7, "pool": 90}]}
    assert "at place 7 of 90" in (retrievals(dataclasses.replace(run, samples=ranked), Budget(1 << 20)) or "")


@pytest.mark.parametrize(
    "address",
    ["https://example.org/a.png", "data:image/svg+xml;base64,AAAA", 'data:image/png;base64,AA" onload="x', "", None, 3],
)
def test_only_pictures_that_stand_there_are_shown(run, address):
    samples = {
        "captions": [{"image": address, "caption": "c"}, "none"],
        "retrievals": [{"query": "q", "results": [{"image": address}]}, 3],
    }
    changed = dataclasses.replace(run, samples=samples)
    assert captions(changed, Budget(1 << 20)) is None and retrievals(changed, Budget(1 << 20)) is None
    assert EMBEDDED.fullmatch(picture(0))
