"""Images and clips by file, folder, pattern and shard; what cannot be read is named."""

from __future__ import annotations

import numpy as np
import pytest

from data.decode.image import encode_png
from data.shards import write_shard
from prediction.media import media_of

PNG = encode_png(np.zeros((8, 8, 3), np.uint8))


@pytest.fixture
def folder(tmp_path):
    for name in ("b/2.png", "a/1.PNG", "a/.hidden.png", ".cache/3.png", "notes.txt", "c [1].png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(PNG)
    return tmp_path


def names(places, folder):
    return [medium.name.replace(f"{folder}/", "") for medium in media_of(map(str, places))]


def test_folders_files_and_patterns_in_their_order(folder):
    assert names([folder], folder) == ["c [1].png", "a/1.PNG", "b/2.png"]
    assert names([folder / "b" / "2.png", folder / "a"], folder) == ["b/2.png", "a/1.PNG"]
    assert names([folder / "*" / "*.png"], folder) == ["b/2.png"]
    assert names([folder / "c [1].png"], folder) == ["c [1].png"]  # a path that exists is no pattern
    (medium,) = media_of([str(folder / "a" / "1.PNG")])
    assert (medium.kind, medium.content, medium.fault, medium.is_clip) == ("png", PNG, "", False)


def test_a_shard(tmp_path):
    path = tmp_path / "train-000000.tar"
    write_shard(
        path, [{"__key__": "x", "png": PNG, "cls": 1}, {"__key__": "y", "mp4": b"clip"}, {"__key__": "z", "txt": "a"}]
    )
    found = list(media_of([str(path)]))
    assert [(m.name, m.kind, m.is_clip) for m in found] == [
        (f"{path}:x", "png", False), (f"{path}:y", "mp4", True), (f"{path}:z", "", False),
    ]  # fmt: skip
    assert [m.fault for m in found] == ["", "", "no image or clip in this sample"]


def test_what_is_not_there_is_named_and_the_rest_comes(folder):
    (folder / "empty").mkdir()
    (folder / "broken.tar").write_bytes(b"<html>")
    places = [
        folder / "nothing.png",
        folder / "empty",
        folder / "notes.txt",
        folder / "broken.tar",
        folder / "x*",
        folder / "b",
    ]
    faults = [medium.fault for medium in media_of(map(str, places))]
    for fault, words in zip(
        faults, ("no such file", "no image or clip in", "not named as", "HTML", "no such file", ""), strict=True
    ):
        assert words in fault
    assert not faults[-1]
