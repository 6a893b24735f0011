"""The page as text: whole, closed to the outside, and safe from what runs hold."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil

import pytest

from analysis.report.page import filled, page_of
from analysis.report.reading import read_files
from tests.analysis.report.synthetic import HOSTILE
from tests.analysis.test_markup import Parser


@pytest.fixture(scope="module")
def pages(made) -> dict[str, str]:
    sparse, dense = (read_files(made[name]) for name in ("sparse", "dense"))
    return {"sparse": page_of([sparse]), "dense": page_of([dense]), "both": page_of([sparse, dense], follow=30)}


def data_of(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="page-data">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])


def test_the_page_may_load_nothing_and_run_only_its_own_scripts(pages):
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', pages["sparse"])
    assert policy and "default-src 'none'" in policy[1] and "unsafe" not in policy[1] and "http" not in policy[1]
    scripts = re.findall(r"<script>(.*?)</script>", pages["sparse"], re.S)
    assert len(scripts) == 4
    for script in scripts:
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy[1]
    outside = re.sub(r"<script>.*?</script>", "", pages["sparse"], flags=re.S)
    outside = outside.replace("https://vega.github.io/schema/vega-lite/v6.json", "")  # a name, which nothing opens
    assert "http://" not in outside and "https://" not in outside and "url(" not in outside


def test_nothing_of_a_run_becomes_markup(pages):
    for page in pages.values():
        assert HOSTILE not in page
        tags = Parser(page).tags
        assert tags.count("script") == 5 and "onerror" not in Parser(page).attributes


def test_every_figure_has_a_place_and_numbers(pages):
    for page in pages.values():
        data = data_of(page)
        assert [int(number) for number in re.findall(r'data-figure="(\d+)"', page)] == list(range(len(data["figures"])))
        assert all(figure["kind"] in (*data["specs"], "full") for figure in data["figures"])
        for figure in data["figures"]:
            number = 1
            for choice in figure.get("choices", ()):
                number *= len(choice["options"])
            assert len(figure.get("data", [0])) == number
            assert all(0 <= series["axis"] < len(data["axes"]) for series in figure.get("series", ()))


def test_a_dense_run_has_no_places_of_experts(pages):
    assert 'id="experts"' not in pages["dense"] and 'id="maps"' not in pages["dense"]
    assert 'id="experts"' in pages["sparse"] and 'id="differences"' not in pages["sparse"]
    assert data_of(pages["both"])["runs"] == ["sparse", "dense"] and data_of(pages["both"])["follow"] == 30
    assert 'id="differences"' in pages["both"]


def test_events_and_alarms_are_marks(pages):
    kinds = [mark["kind"] for mark in data_of(pages["sparse"])["marks"]]
    assert kinds == ["resume", "skipped", "alarm"]


def test_what_is_missing_names_its_command(made, tmp_path):
    folder = tmp_path / "bare"
    folder.mkdir()
    shutil.copy(made["sparse"] / "config.yaml", folder)
    records = [json.loads(line) for line in (made["sparse"] / "metrics.jsonl").read_text().splitlines()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records[:3]))
    page = page_of([read_files(folder)])
    for name in ("experts", "interference", "routing_maps", "samples"):
        assert f"python -m analysis.{name} --run {folder}" in page
    assert f"python evaluate.py --run {folder}" in page and "not finished" in page
    (folder / "metrics.jsonl").unlink()
    assert "No loss has been written yet." in page_of([read_files(folder)])


def test_why_there_is_no_utilisation_and_where_profiles_are(made, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(made["dense"] / "config.yaml", folder)
    (folder / "events.jsonl").write_text('{"step": 0, "kind": "note", "text": "MFU n/a: no known peak"}\n')
    (folder / "profile").mkdir()
    (folder / "profile" / "trace_rank_00000.json.gz").touch()
    page = page_of([read_files(folder)])
    assert "run: MFU n/a: no known peak" in page and f"{folder}/profile: trace_rank_00000.json.gz" in page


def test_parts_that_look_like_places_stay(pages):
    assert filled("{{a}} {{b}}", {"a": "{{b}}", "b": "x"}) == "{{b}} x"


def test_runs_of_one_name_are_told_apart(made):
    run = read_files(made["dense"])
    assert data_of(page_of([run, run]))["runs"] == ["dense (1)", "dense (2)"]
