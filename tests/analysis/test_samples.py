"""Captions and retrievals of a run, with small pictures."""

from __future__ import annotations

import base64
import io
import json
import re

import numpy as np
import pytest
import yaml
from PIL import Image

from analysis import samples
from analysis.report.pictures import EMBEDDED
from analysis.samples import _evenly, small
from data.decode.image import encode_png
from prediction import Medium
from run.errors import EXIT_USER
from tests.helpers.runs import saved_run, tiny_config


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    return saved_run(tiny_config(world, tmp_path_factory.mktemp("samples")), noise=0.1)


def test_captions_and_retrievals_are_kept_with_their_pictures(run, capsys):
    assert samples.main(["--run", str(run), "--captions", "3", "--queries", "2", "--pool", "8", "--top", "4"]) == 0
    content = json.loads((run / "analysis" / "samples.json").read_text())
    assert content["step"] == 3 and content["split"] == "val"
    assert len(content["captions"]) == 3 and len(content["retrievals"]) == 2
    for caption in content["captions"]:
        assert isinstance(caption["caption"], str) and caption["references"][0] in caption["alt"]
    for retrieval in content["retrievals"]:
        scores = [result["score"] for result in retrieval["results"]]
        assert len(scores) == 4 and scores == sorted(scores, reverse=True)
        first = next((place for place, result in enumerate(retrieval["results"], 1) if result["right"]), None)
        assert retrieval["pool"] == 8 and (retrieval["rank"] == first if first else 4 < retrieval["rank"] <= 8)
        for result in retrieval["results"]:
            assert result["right"] == result["alt"].endswith(retrieval["query"])
    for sample in [*content["captions"], *content["retrievals"][0]["results"]]:
        assert EMBEDDED.fullmatch(sample["image"])
    assert "3 captions, 2 queries" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "shapes"], "tasks of .* with captions are captions, retrieval"),
        (["--split", "nothing"], "nothing"),
        (["--tensor", "2"], "on one rank"),
    ],
)
def test_mistakes_are_told_in_a_line(run, capsys, words, message):
    assert samples.main(["--run", str(run), *words]) == EXIT_USER
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert re.search(message, error)


def test_a_run_without_captions_has_nothing_to_show(world, tmp_path, capsys):
    config = tiny_config(world, tmp_path)
    raw = yaml.safe_load(config.read_text())
    raw["data"]["tasks"] = [task for task in raw["data"]["tasks"] if task["kind"] == "classification"]
    config.write_text(yaml.safe_dump(raw))
    assert samples.main(["--run", str(saved_run(config))]) == EXIT_USER
    assert "no task of captions or retrieval" in capsys.readouterr().err


def test_pictures_are_small():
    picture = Image.linear_gradient("L").resize((640, 320)).convert("RGB")
    address = small(Medium("wide", "png", encode_png(np.asarray(picture))))
    with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as kept:
        assert kept.size == (160, 80) and kept.format == "JPEG"


@pytest.mark.parametrize(
    ("total", "count", "places"), [(10, 2, [2, 7]), (3, 5, [0, 1, 2]), (1, 1, [0]), (4, 4, [0, 1, 2, 3])]
)
def test_samples_lie_evenly(total, count, places):
    assert _evenly(total, count) == places
