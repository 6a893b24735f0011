"""Images and clips by file, folder, pattern and shard; what cannot be read is named."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from data.decode.image import decode_image, encode_png
from data.shards import write_shard
from data.transport import Cache, FetchOptions
from prediction.media import media_of, shard_cache
from tests.helpers.shard_server import Deed, serving

PNG = encode_png(np.zeros((8, 8, 3), np.uint8))


@pytest.fixture
def folder(tmp_path):
    for name in ("b/2.png", "a/1.PNG", "a/.hidden.png", ".cache/3.png", "notes.txt", "c [1].png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(PNG)
    return tmp_path


def names(places, folder):
    return [medium.name.replace(f"{folder}/", "") for medium in media_of(map(str, places)) if not medium.is_note]


def test_folders_files_and_patterns_in_their_order(folder):
    assert names([folder], folder) == ["c [1].png", "a/1.PNG", "b/2.png"]
    assert names([folder / "b" / "2.png", folder / "a"], folder) == ["b/2.png", "a/1.PNG"]
    assert names([folder / "*" / "*.png"], folder) == ["b/2.png"]
    assert names([folder / "c [1].png"], folder) == ["c [1].png"]  # a path that exists is no pattern
    (medium,) = media_of([str(folder / "a" / "1.PNG")])
    assert (medium.kind, medium.content, medium.fault, medium.is_clip) == ("png", PNG, "", False)


def test_a_folder_gives_what_can_be_read_and_names_the_rest(tmp_path):
    """A bitmap becomes PNG and a shard is opened; pictures of formats that are not read are faults, and other files a note."""
    Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(tmp_path / "c.bmp")
    (tmp_path / "a.png").write_bytes(PNG)
    write_shard(tmp_path / "d.tar", [{"__key__": "x", "png": PNG}])
    for name in ("b.heic", "e.txt", "f.json"):
        (tmp_path / name).write_bytes(b"?")
    found = list(media_of([str(tmp_path)]))
    names = [m.name.replace(f"{tmp_path}/", "") for m in found[:-1]]
    assert names == ["a.png", "b.heic", "c.bmp", "d.tar:x"]
    assert [bool(m.fault) for m in found] == [False, True, False, False, True]
    assert decode_image(found[2].content).tolist() == np.full((8, 8, 3), 7).tolist()
    assert "not named as an image or a clip that can be read (jpg," in found[1].fault
    assert (
        [m.is_note for m in found] == [False] * 4 + [True]
        and "2 files" in found[-1].fault
        and "e.txt" in found[-1].fault
    )


def test_texts_are_lines_and_samples_where_they_are_asked_for(tmp_path):
    (tmp_path / "t.txt").write_text("one\n\ntwo\n", encoding="utf-8")
    write_shard(tmp_path / "d.tar", [{"__key__": "x", "txt": "three"}, {"__key__": "y", "png": PNG, "txt": "four"}])
    places = [str(tmp_path / name) for name in ("t.txt", "d.tar")]
    found = [m for m in media_of(places, texts=True) if m.is_text]
    assert [(m.name.replace(f"{tmp_path}/", ""), m.content) for m in found] == [
        ("t.txt:1", b"one"), ("t.txt:3", b"two"), ("d.tar:x", b"three"),
    ]  # fmt: skip
    assert [m.fault[:9] for m in media_of(places)] == ["not named", "no image ", ""]


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


def test_shards_by_url_and_in_a_list(tmp_path):
    with serving() as server:
        for number in range(2):
            write_shard(tmp_path / "x.tar", [{"__key__": f"{number}", "png": PNG}])
            server.files[f"/x-{number}.tar"] = (tmp_path / "x.tar").read_bytes()
        server.files["/page.tar"] = b"<html>"
        server.files["/all.txt"] = b"x-1.tar\nx-0.tar\n"
        url, cache = server.url, shard_cache(tmp_path / "cache")
        (tmp_path / "list.txt").write_text(f"# ours\n{url}/x-0.tar\nx.tar\n")
        places = [
            f"{url}/x-{{0..1}}.tar",
            f"@{url}/all.txt",
            f"@{tmp_path}/list.txt",
            f"{url}/page.tar",
            f"{url}/x-7.tar",
        ]
        found = [(medium.name.replace(url, ""), medium.fault) for medium in media_of(places, cache)]
    sound = [name for name, fault in found if not fault]
    assert sound == ["/x-0.tar:0", "/x-1.tar:1", "/x-1.tar:1", "/x-0.tar:0", "/x-0.tar:0", f"{tmp_path}/x.tar:1"]
    (page, html), (gone, missing) = [row for row in found if row[1]]
    assert (page, gone) == ("/page.tar", "/x-7.tar") and "HTML" in html and "404" in missing


@pytest.mark.parametrize("by_list", [False, True])
def test_a_shard_that_cannot_be_reached_takes_no_other_with_it(tmp_path, by_list):
    with serving() as server:
        for number in range(3):
            write_shard(tmp_path / "x.tar", [{"__key__": f"{number}", "png": PNG}])
            server.files[f"/x-{number}.tar"] = (tmp_path / "x.tar").read_bytes()
        server.files["/all.txt"] = b"x-0.tar\nx-1.tar\nx-2.tar\n"
        server.deeds["/x-1.tar"] = [Deed(status=503)] * 9
        cache = Cache(tmp_path / "cache", 1 << 20, FetchOptions(attempts=1))
        place = f"@{server.url}/all.txt" if by_list else f"{server.url}/x-{{0..2}}.tar"
        found = [(medium.name.replace(server.url, ""), medium.fault) for medium in media_of([place], cache)]
    assert [name for name, _ in found] == ["/x-0.tar:0", "/x-1.tar", "/x-2.tar:2"]
    faults = [fault for _, fault in found]
    assert faults[::2] == ["", ""] and "503" in faults[1] and "counted" not in faults[1]


def test_a_list_that_is_not_there_is_named(tmp_path):
    (medium,) = media_of([f"@{tmp_path}/none.txt"], shard_cache(tmp_path / "cache"))
    assert (medium.name, medium.fault) == (f"@{tmp_path}/none.txt", "No such file or directory")


def test_commands_are_not_started(tmp_path):
    (medium,) = media_of([f"pipe:touch {tmp_path}/x"])
    assert "commands need data.allow_pipe" in medium.fault and not (tmp_path / "x").exists()


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
        faults, ("no such file", "no image, clip or shard in", "not named as", "HTML", "no such file", ""), strict=True
    ):
        assert words in fault
    assert not faults[-1]


def test_links_and_what_is_no_file(folder):
    """A folder of links to pictures has these; a folder that is within itself has each once; what is not there ends nothing."""
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "linked").symlink_to(folder / "b")
    (folder / "b" / "again").symlink_to(folder)
    os.mkfifo(folder / "pipe.png")
    found = list(media_of([str(folder)]))
    assert [m.name.replace(f"{folder}/", "") for m in found if not m.fault] == ["c [1].png", "a/1.PNG", "b/2.png"]
    faults = {m.name.replace(f"{folder}/", ""): m.fault for m in found if m.fault and not m.is_note}
    assert faults == {
        "gone.png": "a link to nowhere.png, which is not there", "pipe.png": "no file with content: a pipe, device or socket",
    }  # fmt: skip
    for place in (folder / "gone.png", folder / "g*.png"):
        assert [m.fault for m in media_of([str(place)])] == [faults["gone.png"]]


def test_folders_that_cannot_be_listed_are_named(folder, monkeypatch):
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert [(m.name, m.fault) for m in media_of([str(folder)]) if m.fault and not m.is_note] == [
        (f"{folder}/b", "Permission denied")
    ]


def test_names_of_any_bytes_and_patterns_below_folders_with_signs(folder):
    os.rename(folder / "b", folder / "my [b]")
    odd = os.fsencode(folder / "my [b]") + b"/caf\xe9.png"
    with open(odd, "wb") as file:
        file.write(PNG)
    assert names([folder / "my [b]" / "*.png"], folder) == ["my [b]/2.png", "my [b]/caf\\xe9.png"]
    assert names([folder / "**" / "2.png"], folder) == ["my [b]/2.png"]
    assert names([folder / "my [b]" / "**"], folder) == ["my [b]/2.png", "my [b]/caf\\xe9.png"]
    assert names([os.fsdecode(odd)], folder) == ["my [b]/caf\\xe9.png"]
    (empty,) = media_of([""])
    assert "an empty name" in empty.fault
