"""Pictures of numbers: what the specification says, and that it is drawn."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import pytest
from PIL import Image

from analysis.charts import AROUND_ZERO, FROM_ZERO, heat_map, save, short
from run.errors import ConfigError


def cells(spec: dict) -> list[dict]:
    return spec["data"]["values"]


def colours(spec: dict) -> dict:
    return spec["layer"][0]["encoding"]["color"]["scale"]


def test_each_cell_has_its_number_and_its_interval():
    spec = heat_map([[1.0, -0.25]], ["images"], ["images", "words"], "I", low=[[1.0, -0.5]], high=[[1.0, 0.125]])
    assert cells(spec)[1] == {
        "row": "images",
        "column": "words",
        "value": -0.25,
        "text": "-0.25",
        "interval": "-0.5 to 0.125",
    }
    assert spec["layer"][0]["encoding"]["tooltip"][-1]["field"] == "interval"
    assert all(
        item["field"] != "interval" for item in heat_map([[1.0]], ["a"], ["b"], "")["layer"][0]["encoding"]["tooltip"]
    )


def test_colours_run_both_ways_only_where_values_do():
    above = colours(heat_map([[0.5, 2.0]], ["a"], ["b", "c"], ""))
    assert above["domain"] == [0, 2.0] and above["range"] == FROM_ZERO
    assert colours(heat_map([[0.5, -2.0]], ["a"], ["b", "c"], ""))["range"] == AROUND_ZERO
    assert colours(heat_map([[0.5, -2.0]], ["a"], ["b", "c"], "", largest=1.0))["domain"] == [-1.0, 1.0]
    assert colours(heat_map([[0.0]], ["a"], ["b"], ""))["domain"] == [0, 1.0]


@pytest.mark.parametrize("missing", [None, math.nan, math.inf])
def test_what_is_no_number_is_an_empty_cell(missing):
    spec = heat_map([[missing, 1.0]], ["a"], ["b", "c"], "", low=[[None, 0.0]], high=[[2.0, 2.0]])
    assert cells(spec)[0]["value"] is None and cells(spec)[0]["text"] == "" and cells(spec)[0]["interval"] == "unknown"
    assert colours(spec)["domain"] == [0, 1.0]


def test_numbers_are_short():
    assert [short(value) for value in (0.123456, 1234.5, -2.0, 1e9, 0.0)] == ["0.123", "1,234", "-2", "1e+09", "0"]


def test_a_picture_shows_names_and_numbers(tmp_path):
    spec = heat_map([[1.0, -0.25], [0.5, 1.0]], ["images <b>", "words"], ["images", "words"], "Interference & more")
    save(spec, tmp_path / "map.svg")
    tree = ElementTree.parse(tmp_path / "map.svg")
    texts = {text.text for text in tree.iter("{http://www.w3.org/2000/svg}text")}
    assert texts >= {"Interference & more", "images <b>", "words", "-0.25", "0.5"}
    save(spec, tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as picture:
        assert picture.width > 200 and len(picture.convert("RGB").getcolors(1 << 20)) > 10


def test_other_kinds_of_files_and_bad_places_are_told(tmp_path):
    with pytest.raises(ConfigError, match=r"map\.jpg: pictures are written as \.svg or \.png"):
        save(heat_map([[1.0]], ["a"], ["b"], ""), tmp_path / "map.jpg")
    with pytest.raises(ConfigError, match="No such file"):
        save(heat_map([[1.0]], ["a"], ["b"], ""), tmp_path / "none" / "map.svg")
