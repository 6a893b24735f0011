"""Shards: what is written is what webdataset reads, sample by sample; damage costs no other samples."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import pickle
import tarfile
import tempfile
from pathlib import Path

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from data.shards import (
    BadSample,
    BadShard,
    DatasetError,
    DatasetInfo,
    ShardSet,
    SplitInfo,
    clear_dataset,
    is_complete,
    read_info,
    write_info,
    write_shards,
)
from data.shards.ranges import index_of, parse_index, scan

SAMPLES = [
    {"__key__": "a/first", "txt": "eins", "cls": 3},
    {"__key__": "a.b/second", "txt": "zwei", "cls": 4},
    {"__key__": "third", "txt": "drei" * 200, "json": {"captions": ["ä"]}},
]
INFO = DatasetInfo(kind="image_class", classes=("cat", "dog"), token_ids=(5, 49407), splits={"train": SplitInfo(3, 1)})


def by_webdataset(*paths):
    """All samples as webdataset itself reads them, without its own notes."""
    dataset = webdataset.WebDataset([str(path) for path in paths], shardshuffle=False)
    return [members(sample) for sample in dataset]


def members(sample):
    return {name: value for name, value in sample.items() if name not in ("__url__", "__local_path__")}


def read_all(shards):
    return [members(shards.read(s, i)) for s, size in enumerate(shards.sizes) for i in range(size)]


def foreign_tar(path, entries, **how):
    """A tar as others write it. Entries: (name, content); content None makes a folder."""
    with tarfile.open(path, "w", **how) as tar:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


# ------------------------------------------------------------------------------------------------- writing


def test_members_follow_webdatasets_conventions(tmp_path):
    paths = write_shards(tmp_path, "train", SAMPLES, samples_per_shard=2)
    assert [path.name for path in paths] == ["train-000000.tar", "train-000001.tar"]
    assert by_webdataset(*paths) == [
        {"__key__": "a/first", "txt": b"eins", "cls": b"3"},
        {"__key__": "a.b/second", "txt": b"zwei", "cls": b"4"},
        {"__key__": "third", "txt": b"drei" * 200, "json": '{"captions": ["ä"]}'.encode()},
    ]


def test_same_samples_same_bytes(tmp_path):
    first, second = (write_shards(tmp_path / name, "train", SAMPLES)[0] for name in "xy")
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar} == {(0, 0, 0, "", "", 0o444)}


def test_index_holds_the_byte_range_of_each_sample(tmp_path):
    path = write_shards(tmp_path, "train", SAMPLES)[0]
    index = json.loads((tmp_path / "train-000000.tar.index.json").read_text())
    # A member takes a header of 512 bytes and its content rounded up to 512. The first two samples have two
    # short members each; the third has 20 bytes of JSON and 800 of text.
    assert index == {
        "version": 1,
        "tar_bytes": path.stat().st_size,
        "samples": [
            {"key": "a/first", "offset": 0, "length": 2048},
            {"key": "a.b/second", "offset": 2048, "length": 2048},
            {"key": "third", "offset": 4096, "length": 512 + 512 + 512 + 1024},
        ],
    }


@settings(deadline=None, max_examples=25)
@given(
    contents=st.lists(st.dictionaries(st.sampled_from(["jpg", "txt", "a.json"]), st.binary(max_size=1500), min_size=1)),
    samples_per_shard=st.integers(1, 4),
    indexed=st.booleans(),
)
def test_reads_what_webdataset_reads(contents, samples_per_shard, indexed):
    samples = [{"__key__": f"k{i}", **content} for i, content in enumerate(contents)]
    with tempfile.TemporaryDirectory() as folder:
        paths = write_shards(folder, "train", samples, samples_per_shard)
        if not paths:
            return
        if not indexed:
            for index in Path(folder).glob("*.index.json"):
                index.unlink()
        shards = ShardSet.open(folder, "train")
        assert len(shards) == len(samples) and shards.faults == ()
        assert read_all(shards) == by_webdataset(*paths)


def test_nothing_is_left_of_a_shard_that_failed(tmp_path):
    def samples():
        yield SAMPLES[0]
        raise RuntimeError("source failed")

    with pytest.raises(RuntimeError, match="source failed"):
        write_shards(tmp_path, "train", samples())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"__key__": "a.b", "txt": "x"}, "no dot"),
        ({"__key__": "../a", "txt": "x"}, "relative"),
        ({"__key__": "/a", "txt": "x"}, "relative"),
        ({"__key__": "__meta__/a", "txt": "x"}, "__meta__"),
        ({"__key__": "a", "TXT": "x"}, "lower case"),
        ({"__key__": "a", "x/y": "x"}, "x/y"),
        ({"__key__": "a", "txt": 1.5}, "float"),
        ({"__key__": "a"}, "no members"),
        ({"__key__": 1, "txt": "x"}, "no text"),
    ],
)
def test_refuses_samples_that_would_read_otherwise(tmp_path, sample, message):
    with pytest.raises(DatasetError, match=message):
        write_shards(tmp_path, "train", [sample])


def test_refuses_a_key_twice_and_a_second_writing(tmp_path):
    with pytest.raises(DatasetError, match="comes twice"):
        write_shards(tmp_path, "train", [SAMPLES[0], SAMPLES[0]])
    write_shards(tmp_path, "train", SAMPLES)
    with pytest.raises(DatasetError, match="exists"):
        write_shards(tmp_path, "train", SAMPLES)
    with pytest.raises(DatasetError, match="split"):
        write_shards(tmp_path, "../train", SAMPLES)


# ------------------------------------------------------------------------------------------------- opening


def test_opens_by_folder_braces_and_globs(tmp_path):
    write_shards(tmp_path, "train", SAMPLES, samples_per_shard=1)
    assert ShardSet.open(tmp_path, "train").sizes == (1, 1, 1)
    assert ShardSet.from_urls([f"{tmp_path}/train-{{000002..000001}}.tar"]).paths[0].name == "train-000002.tar"
    assert len(ShardSet.from_urls([f"{tmp_path}/train-*.tar"])) == 3
    assert len(ShardSet.from_urls([f"file:{tmp_path}/train-000000.tar"])) == 1


def test_named_shards_that_are_missing_are_lost_and_all_missing_is_one_line(tmp_path):
    write_shards(tmp_path, "train", SAMPLES, samples_per_shard=1)
    (tmp_path / "train-000001.tar").unlink()
    (tmp_path / "list.txt").write_text("train-000001.tar\n")
    shards = ShardSet.from_urls([f"{tmp_path}/train-{{000000..000002}}.tar", f"@{tmp_path}/list.txt"])
    assert shards.sizes == (1, 0, 1, 0) and shards.faults == ("train-000001.tar: No such file or directory",) * 2
    with pytest.raises(DatasetError) as caught:
        ShardSet.from_urls([f"{tmp_path}/x{{0..1}}.tar"])
    assert str(caught.value) == f"{tmp_path}/x0.tar: 2 shards without a sample; x0.tar: No such file or directory"


def test_an_existing_path_is_no_pattern(tmp_path):
    folder = tmp_path / "set [ab]* {1,2}"
    write_shards(folder, "train", SAMPLES, samples_per_shard=1)
    names = [f"train-00000{n}.tar" for n in range(3)]
    assert [path.name for path in ShardSet.from_urls([f"{folder}/{name}" for name in names]).paths] == names
    other = tmp_path / "set [ab]*"
    write_shards(other, "train", SAMPLES, samples_per_shard=1)
    for pattern in ("*.tar", "train-{000000..000002}.tar", "train-00000[0-2].tar"):
        assert [path.name for path in ShardSet.from_urls([f"{other}/{pattern}"]).paths] == names


def test_opening_nothing_says_what_is_there(tmp_path):
    write_shards(tmp_path, "val", SAMPLES)
    with pytest.raises(DatasetError, match=r"no shard train-\*\.tar; found: splits val"):
        ShardSet.open(tmp_path, "train")
    with pytest.raises(DatasetError, match="no such folder"):
        ShardSet.open(tmp_path / "absent", "train")
    with pytest.raises(DatasetError, match="no such shard"):
        ShardSet.from_urls([f"{tmp_path}/train-*.tar"])
    with pytest.raises(DatasetError, match="through a cache"):
        ShardSet.from_urls(["http://host/a.tar"])
    with pytest.raises(DatasetError, match="allow_pipe"):
        ShardSet.from_urls(["pipe:cat a.tar"])


def test_foreign_shards_are_grouped_as_webdataset_does(tmp_path):
    path = foreign_tar(
        tmp_path / "other-0.tar",
        [
            ("__index__", b"meta"),
            ("folder", None),
            ("folder/a.JPG", b"1"),
            ("README", b"no extension"),
            ("folder/a.txt", b"2"),
            ("folder/a.seg.png", b"3"),
            ("b.v1.2/" + "long" * 60 + ".txt", b"4"),
            ("folder/a.txt", b"the same key again, but not beside it"),
        ],
        format=tarfile.GNU_FORMAT,
    )
    shards = ShardSet.open(tmp_path, "other")
    assert shards.sizes == (3,) and shards.faults == ()
    assert read_all(shards) == by_webdataset(path)
    assert read_all(shards)[0] == {"__key__": "folder/a", "jpg": b"1", "txt": b"2", "seg.png": b"3"}


def test_names_that_are_no_utf8_make_an_index_that_can_be_read(tmp_path):
    path = foreign_tar(tmp_path / "x-0.tar", [("caf\udce9/a.txt", b"1"), ("ä.txt", b"2")], format=tarfile.GNU_FORMAT)
    places, fault = scan(path)
    assert [place.key for place in places] == ["caf\udce9/a", "ä"] and fault is None
    content = index_of(places, path.stat().st_size)
    assert [sample["key"] for sample in json.loads(content)["samples"]] == ["caf\udce9/a", "ä"]
    ranges_N2, fault = parse_index(content, path.stat().st_size)
    assert ranges_N2.tolist() == [[0, 1024], [1024, 1024]] and fault is None


def test_copies_to_other_processes(tmp_path):
    write_shards(tmp_path, "train", SAMPLES)
    assert read_all(pickle.loads(pickle.dumps(ShardSet.open(tmp_path, "train"))))[0]["txt"] == b"eins"


# -------------------------------------------------------------------------------------------------- damage


def test_a_truncated_tar_keeps_its_complete_samples(tmp_path):
    path = write_shards(tmp_path, "train", SAMPLES)[0]
    whole, expected = path.read_bytes(), by_webdataset(path)
    (tmp_path / "train-000000.tar.index.json").unlink()
    listed = tmp_path / "train.shards.json"
    # Samples end at 2048, 4096 and 6656. That one is complete shows in the block after it, which is another
    # sample's first header or the end mark.
    for size in range(0, 7168, 256):
        path.write_bytes(whole[:size])
        listed.unlink(missing_ok=True)
        complete = sum(end + 512 <= size for end in (2048, 4096))
        if complete == 0:
            with pytest.raises(DatasetError, match="without a sample"):
                ShardSet.open(tmp_path, "train")
            continue
        shards = ShardSet.open(tmp_path, "train")
        assert read_all(shards) == expected[:complete]
        assert "train-000000.tar: cut off or damaged" in shards.faults[0]


def test_a_tar_that_cannot_be_read_to_its_end_is_not_taken_for_cut_off(tmp_path, monkeypatch):
    path = write_shards(tmp_path, "train", SAMPLES)[0]

    class Failing(io.FileIO):
        def readinto(self, buffer):
            if self.tell() >= 4096:
                raise OSError(errno.EIO, "Input/output error")
            return super().readinto(memoryview(buffer)[:4096])

    monkeypatch.setattr("data.shards.ranges.open_plain", Failing)
    with pytest.raises(OSError, match="Input/output error"):
        scan(path)


def test_a_shard_cut_off_after_it_was_listed_gives_its_complete_samples(tmp_path):
    path = write_shards(tmp_path, "train", SAMPLES)[0]
    path.write_bytes(path.read_bytes()[:5000])
    shards = ShardSet.open(tmp_path, "train")
    assert len(shards) == 3 and shards.read(0, 1)["cls"] == b"4"
    with pytest.raises(BadShard, match=r"train-000000\.tar: 2 samples, its list says 3: cut off"):
        shards.read(0, 2)


def test_a_shard_that_grew_after_it_was_listed_is_not_used(tmp_path):
    path = write_shards(tmp_path / "a", "train", SAMPLES[:1])[0]
    other = write_shards(tmp_path / "b", "train", SAMPLES * 1 + [{"__key__": "big", "txt": "x" * 20_000}])[0]
    path.write_bytes(other.read_bytes())
    with pytest.raises(BadShard, match="make the list anew"):
        ShardSet.open(tmp_path / "a", "train").read(0, 0)


def test_an_index_that_does_not_fit_is_not_used(tmp_path):
    path = write_shards(tmp_path, "train", SAMPLES)[0]
    expected = by_webdataset(path)
    for content in (b"", b"[]", b'{"version": 2, "samples": []}', b'{"version": 1, "samples": [{"offset": -1}]}', b"3"):
        (tmp_path / "train-000000.tar.index.json").write_bytes(content)
        assert read_all(ShardSet.open(tmp_path, "train")) == expected
        (tmp_path / "train.shards.json").unlink()
        shards = ShardSet.open(tmp_path, "train")
        assert not shards.faults and read_all(shards) == expected


def test_a_damaged_header_costs_its_sample_alone(tmp_path):
    path = write_shards(tmp_path, "train", SAMPLES)[0]
    data = bytearray(path.read_bytes())
    data[2048 + 1024 : 2048 + 1536] = bytes(512)  # header of the second member of the second sample
    path.write_bytes(data)
    shards = ShardSet.open(tmp_path, "train")
    with pytest.raises(BadSample, match=r"train-000000\.tar sample 1 at byte 2048, key 'a\.b/second'.*byte 1024"):
        shards.read(0, 1)
    assert shards.read(0, 0)["cls"] == b"3" and shards.read(0, 2)["txt"] == b"drei" * 200


def test_a_name_twice_in_a_sample_is_bad(tmp_path):
    foreign_tar(tmp_path / "x-0.tar", [("a.txt", b"1"), ("a.txt", b"2"), ("b.txt", b"3")])
    shards = ShardSet.open(tmp_path, "x")
    with pytest.raises(BadSample, match="duplicate"):
        shards.read(0, 0)
    assert shards.read(0, 1)["txt"] == b"3"


@settings(deadline=None, max_examples=150)
@given(position=st.integers(0, 6655), byte=st.integers(0, 255), indexed=st.booleans())
def test_any_damage_is_a_bad_sample_or_none(position, byte, indexed):
    with tempfile.TemporaryDirectory() as folder:
        path = write_shards(folder, "train", SAMPLES)[0]
        data = bytearray(path.read_bytes())
        data[position] = byte
        path.write_bytes(data)
        if not indexed:
            (Path(folder) / "train-000000.tar.index.json").unlink()
            (Path(folder) / "train.shards.json").unlink()
        try:
            shards = ShardSet.open(folder, "train")
        except DatasetError:
            return
        for index in range(len(shards)):
            try:
                shards.read(0, index)
            except BadSample as error:
                assert error.reason.startswith(("train-000000.tar sample", "train-000000.tar: "))


def test_vanished_and_oversized_samples_are_bad(tmp_path):
    path = write_shards(tmp_path, "train", SAMPLES)[0]
    with pytest.raises(BadSample, match="2048 bytes, more than the limit of 100"):
        ShardSet.open(tmp_path, "train", max_sample_bytes=100).read(0, 0)
    shards = ShardSet.open(tmp_path, "train")
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(BadShard, match="1 samples, its list says 3"):
        shards.read(0, 1)
    shards = ShardSet.open(tmp_path, "train")
    path.unlink()
    with pytest.raises(BadSample, match="No such file"):
        shards.read(0, 0)


def test_compressed_data_is_never_unpacked(tmp_path):
    path = write_shards(tmp_path, "train", SAMPLES)[0]
    index = json.loads((tmp_path / "train-000000.tar.index.json").read_text())
    path.write_bytes(gzip.compress(path.read_bytes()))
    index["tar_bytes"], index["samples"] = path.stat().st_size, [{"key": "a", "offset": 0, "length": 64}]
    (tmp_path / "train-000000.tar.index.json").write_text(json.dumps(index))
    with pytest.raises(BadSample, match="compressed data"):
        ShardSet.open(tmp_path, "train").read(0, 0)
    (tmp_path / "train-000000.tar.index.json").unlink()
    with pytest.raises(BadShard, match="compressed"):
        ShardSet.open(tmp_path, "train").read(0, 0)
    (tmp_path / "train.shards.json").unlink()
    with pytest.raises(DatasetError, match=r"without a sample.*compressed"):
        ShardSet.open(tmp_path, "train")


# -------------------------------------------------------------------------------------------- dataset.json


def test_info_round_trip(tmp_path):
    assert not is_complete(tmp_path)
    write_info(tmp_path, INFO)
    assert read_info(tmp_path) == INFO and is_complete(tmp_path)
    assert json.loads((tmp_path / "dataset.json").read_text())["version"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "audio"}, "kind: .*'audio'"),
        ({"classes": []}, "image_class with 0 classes"),
        ({"classes": ["cat", "cat"]}, "same name"),
        ({"token_ids": ["5"]}, "token_ids"),
        ({"splits": {"train": {"samples": 3}}}, "splits.train.shards"),
        ({"version": 2}, "version"),
        ({"colour": 1}, "colour"),
    ],
)
def test_info_is_read_strictly(tmp_path, change, message):
    write_info(tmp_path, INFO)
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DatasetError, match=message) as caught:
        read_info(tmp_path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_absent_or_broken_info(tmp_path):
    with pytest.raises(DatasetError, match=r"dataset\.json.*data\.prepare"):
        read_info(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(DatasetError, match=r"dataset\.json"):
        read_info(tmp_path)


def test_clearing_removes_a_data_set_and_nothing_else(tmp_path):
    write_shards(tmp_path / "set", "train", SAMPLES)
    write_info(tmp_path / "set", INFO)
    (tmp_path / "set" / ".val-000000.tar.tmp").write_bytes(b"unfinished")
    clear_dataset(tmp_path / "set")
    assert list((tmp_path / "set").iterdir()) == []
    write_info(tmp_path, INFO)
    with pytest.raises(DatasetError, match="'set'"):
        clear_dataset(tmp_path)
    assert is_complete(tmp_path)


def test_a_pipe_named_as_a_shard_is_a_fault(tmp_path):
    """Nobody waits for what may never come."""
    write_shards(tmp_path, "train", SAMPLES, 2)
    os.mkfifo(tmp_path / "train-000009.tar")
    shards = ShardSet.open(tmp_path, "train")
    assert any("train-000009.tar" in fault and "no plain file" in fault for fault in shards.faults), shards.faults
