"""Folders, tars and zips: what is listed and read, and what must be refused."""

from __future__ import annotations

import gzip
import os
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from data.prepare.annotations import name_list, read_json, records, rows, text_lines
from data.prepare.containers import Limits, open_container
from data.prepare.tables import table
from data.shards import BadSample, DatasetError
from tests.helpers.public import captions, failures, folder, jpeg, lines, pack, pack_zip, prepare, samples

FILES = [("x/1.jpg", b"one"), ("x/y/2.jpg", b"two" * 1000), ("3.txt", b"")]
LIMITS = Limits(member=4000, archive=9000)


@pytest.mark.parametrize("kind", ["folder", "tar", "tar.gz", "tar.bz2", "tar.xz", "zip"])
def test_every_kind_lists_and_reads_the_same(tmp_path, kind):
    litter = [*FILES, ("x/._1.jpg", b"left by a file manager"), ("x/.DS_Store", b"")]
    path = tmp_path / f"in.{kind}"
    if kind == "folder":
        folder(path, litter)
    elif kind == "zip":
        pack_zip(path, litter)
    else:
        pack(path, litter, "w:" + kind.removeprefix("tar").lstrip("."))
    container = open_container(path, Limits(), tmp_path)
    assert {name: blob.read(5000) for name, blob in container.blobs.items()} == dict(FILES)
    assert container.strange == ()
    assert container.find("2.jpg") is container.blobs["x/y/2.jpg"] and container.find("4.jpg") is None
    with pytest.raises(BadSample, match="3000 bytes, more than the limit of 2999"):
        container.blobs["x/y/2.jpg"].read(2999)


def test_a_last_part_that_two_files_have_finds_none(tmp_path):
    container = open_container(Path(folder(tmp_path / "in", [("a/1", b""), ("b/1", b"")])), Limits(), None)
    assert container.find("1") is None and container.find("a/1") is not None


def test_folders_may_be_missing_at_the_start_of_a_name_but_not_be_others(tmp_path):
    entries = [("set/dogs/1.jpg", b""), ("2.jpg", b"")]
    container = open_container(Path(folder(tmp_path / "in", entries)), Limits(), None)
    for name in ("1.jpg", "dogs/1.jpg", "./dogs/1.jpg", "all/set/dogs/1.jpg"):
        assert container.find(name) is container.blobs["set/dogs/1.jpg"]
    assert container.find("cats/2.jpg") is container.blobs["2.jpg"]
    for name in ("cats/1.jpg", "set/1.jpg", "set/cats/1.jpg", "gs/1.jpg", "11.jpg"):
        assert container.find(name) is None


# --------------------------------------------------------------------------------------------- refused archives


def link(kind):
    info = tarfile.TarInfo("x/link.jpg")
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([("../x/1.jpg", b"")], r"member '\.\./x/1\.jpg' has a name that leads out"),
        ([("/x/1.jpg", b"")], "leads out"),
        ([("x/../../1.jpg", b"")], "leads out"),
        ([("x\\1.jpg", b"")], "leads out"),
        ([(link(tarfile.SYMTYPE), b"")], "is a link or device"),
        ([(link(tarfile.LNKTYPE), b"")], "is a link or device"),
        ([(link(tarfile.CHRTYPE), b"")], "is a link or device"),
        ([("x/1.jpg", b"1"), ("./x/1.jpg", b"2")], "comes twice"),
        ([("x/1.jpg", bytes(4001))], "has 4001 bytes, the limit is 4000"),
        ([(f"x/{n}.jpg", bytes(3500)) for n in range(3)], "makes 10500 bytes in all"),
    ],
)
def test_tars_that_must_be_refused(tmp_path, entries, message):
    path = pack(tmp_path / "a.tar", entries, "w")
    with pytest.raises(DatasetError, match=message) as caught:
        open_container(Path(path), LIMITS, tmp_path)
    assert str(caught.value).startswith(path)


def zip_entry(name, mode=0, data=b""):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info, data


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([zip_entry("../1.jpg")], "leads out"),
        ([zip_entry("/etc/1.jpg")], "leads out"),
        ([zip_entry("1.jpg", 0o120777, b"/etc/passwd")], "is a link or device"),
        ([zip_entry("1.jpg", data=bytes(4001))], "has 4001 bytes, the limit is 4000"),
        ([zip_entry(f"{n}.jpg", data=bytes(3500)) for n in range(3)], "makes 10500 bytes in all"),
    ],
)
def test_zips_that_must_be_refused(tmp_path, entries, message):
    path = pack_zip(tmp_path / "a.zip", entries)
    with pytest.raises(DatasetError, match=message) as caught:
        open_container(Path(path), LIMITS, None)
    assert str(caught.value).startswith(path)


def test_an_encrypted_zip_is_refused(tmp_path):
    path = Path(pack_zip(tmp_path / "a.zip", [("1.jpg", b"x")]))
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=r"'1\.jpg' is encrypted"):
        open_container(path, Limits(), None)


def test_a_zip_member_that_claims_too_little_is_no_sample(tmp_path):
    path = Path(pack_zip(tmp_path / "a.zip", [("1.jpg", bytes(1 << 20))]))
    data = bytearray(path.read_bytes())
    place = data.index(b"PK\x01\x02") + 24
    data[place : place + 4] = (100).to_bytes(4, "little")
    path.write_bytes(data)
    blob = open_container(path, LIMITS, None).blobs["1.jpg"]
    with pytest.raises(BadSample, match="CRC"):
        blob.read(4000)


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_a_bomb_is_not_unpacked(tmp_path, kind):
    path = Path(pack(tmp_path / f"bomb.tar.{kind}", [("x/1.jpg", bytes(50 << 20))], f"w:{kind}"))
    assert path.stat().st_size < 100_000
    with pytest.raises(DatasetError, match=f"bomb.tar.{kind}: unpacks to more than 2000000 bytes"):
        open_container(path, Limits(archive=2_000_000), tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.glob(".*.tmp")) <= 2_000_000


def test_a_bomb_leaves_nothing_in_the_output_folder(tmp_path, capsys):
    path = pack(tmp_path / "bomb.tar.gz", [("x/1.jpg", bytes(50 << 20))])
    out = tmp_path / "out"
    assert prepare("class-archive", "--train", path, "--max-gib", 0.01, "--out", out) == 2
    assert "bomb.tar.gz: unpacks to more than 10737418 bytes" in capsys.readouterr().err
    assert sum(file.stat().st_size for file in out.iterdir()) < 10_000


def test_headers_of_absurd_length_are_not_read(tmp_path):
    info = tarfile.TarInfo("x" * 200)
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT)[:512])  # the block that says how long the name is
    header[124:136] = b"%011o\0" % (1 << 30)
    header[148:156] = b"%06o\0 " % sum(header[:148] + b" " * 8 + header[156:])
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        file.write(header)
        file.truncate(2 << 30)
    with pytest.raises(DatasetError, match=r"a\.tar: cannot be read \(a header of 1073741824 bytes"):
        open_container(path, Limits(), None)


def test_damaged_archives_are_named(tmp_path):
    noise = np.random.default_rng(0).bytes(50_000)
    for kind in ("gz", "xz", ""):
        path = Path(pack(tmp_path / f"a.tar{kind}", [("x/1.jpg", noise), ("x/2.jpg", noise[::-1])], f"w:{kind}"))
        whole = path.read_bytes()
        for data in (b"", b"no tar", whole[:1000], whole[:70_000]):
            path.write_bytes(data)
            with pytest.raises(DatasetError, match=rf"a\.tar{kind}: cannot be read"):
                open_container(path, Limits(), tmp_path)


# ------------------------------------------------------------------------------------------------------ folders


def test_links_that_lead_out_of_a_folder_are_counted_and_not_followed(tmp_path):
    secret = tmp_path / "secret"
    folder(secret, [("1.jpg", jpeg(7))])
    source = tmp_path / "in"
    folder(source, [("x/1.jpg", jpeg(1))])
    (source / "x" / "2.jpg").symlink_to(secret / "1.jpg")
    (source / "x" / "3.jpg").symlink_to("1.jpg")
    (source / "y").symlink_to(secret)
    (source / "x" / "4.jpg").symlink_to("absent.jpg")
    os.mkfifo(source / "x" / "5.jpg")
    out = tmp_path / "out"
    assert prepare("class-folders", "--train", source, "--no-shuffle", "--out", out) == 0
    assert [sample["jpg"] for sample in samples(out)] == [jpeg(1), jpeg(1)]
    names = [name for _, examples in failures(out).values() for name in examples]
    assert sorted(names) == ["x/2.jpg", "x/4.jpg", "x/5.jpg", "y"]


def test_a_file_that_becomes_a_link_between_listing_and_reading(tmp_path):
    source = Path(folder(tmp_path / "in", [("1.jpg", b"x" * 5)]))
    blob = open_container(source, Limits(), None).blobs["1.jpg"]
    (tmp_path / "secret").write_bytes(b"12345")
    (source / "1.jpg").unlink()
    (source / "1.jpg").symlink_to(tmp_path / "secret")
    with pytest.raises(BadSample, match="leads out"):
        blob.read(10)


@pytest.mark.parametrize("name", ["../secret/1.jpg", "/etc/passwd", "x/../../secret/1.jpg", "a\\1.jpg"])
def test_names_in_lists_that_lead_out_are_refused(tmp_path, capsys, name):
    source = folder(tmp_path / "in", [("1.jpg", jpeg())])
    listed = lines(tmp_path / "a.jsonl", [{"image": name, "captions": ["x"]}])
    assert prepare("caption-archive", "--train", source, listed, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "a.jsonl" in error and "leads out" in error and repr(name) in error


def test_an_absurd_image_is_left_out_by_its_name(tmp_path):
    # A PNG that says it has 9,000 x 9,000 pixels.
    data = bytearray(jpeg(0, (8, 8), "PNG"))
    data[16:24] = (9_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    source = folder(tmp_path / "in", [("1.png", bytes(data)), ("2.jpg", jpeg())])
    listed = lines(tmp_path / "a.jsonl", [{"image": n, "captions": ["x"]} for n in ("1.png", "2.jpg")])
    out = tmp_path / "out"
    assert prepare("caption-archive", "--train", source, listed, "--out", out) == 0
    assert captions(out) == [["x"]]
    assert failures(out) == {"image of N x N pixels, more than the limit of N": (1, ["1.png"])}


# -------------------------------------------------------------------------------------------------- annotations


def test_annotation_files_are_limited_in_size(tmp_path):
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(b"[" + b" " * (1 << 20) + b"]"))
    small = Limits(annotations=1 << 19)
    with pytest.raises(DatasetError, match=r"a\.json\.gz: more than 524288 bytes"):
        read_json(path, small)
    assert read_json(path, Limits()) == []
    path = tmp_path / "a.txt"
    path.write_text("short\n" * 100_000)
    with pytest.raises(DatasetError, match=r"a\.txt: more than 524288 bytes"):
        list(text_lines(path, small.annotations))
    path.write_text("x" * (1 << 21))
    with pytest.raises(DatasetError, match="line 1 has more than"):
        list(text_lines(path, Limits().annotations))


def test_json_of_absurd_depth_is_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[" * 200_000)
    with pytest.raises(DatasetError, match=r"a\.json: no JSON"):
        read_json(path, Limits())


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (lambda path: list(records(path, Limits(), {"a": str})), '{"a": 1}\n', r'line 1: needs "a" \(str\)'),
        (lambda path: list(table(path, Limits(), ("a", "b"))), "a,c\n1,2\n", "no column 'b'"),
        (
            lambda path: list(table(path, Limits(), ("a", "b"))),
            "a,b\n1\n",
            "line 2: 1 columns, the first line has 2: cells",
        ),
        (lambda path: list(rows(path, Limits(), 2)), "1,2\n1\n", "line 2: 1 columns, need 2"),
        (lambda path: list(rows(path, Limits(), 1)), '"' + "x" * 200_000 + '"\n', "field larger than"),
        (lambda path: name_list(path, Limits()), "a.jpg\n../b.jpg\n", r"'\.\./b\.jpg' has a name that leads out"),
        (lambda path: read_json(path, Limits()), "{", "no JSON"),
    ],
)
def test_faults_of_annotation_files_name_the_place(tmp_path, read, text, message):
    path = tmp_path / "a.file"
    path.write_text(text)
    with pytest.raises(DatasetError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
