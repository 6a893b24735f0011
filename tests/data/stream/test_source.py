"""Opening: one list a split, however many shards; lists and indexes for shards of others; shards from anywhere."""

from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
import webdataset

from data.shards import DatasetError, ShardSet, write_shard, write_shard_list, write_shards
from data.shards.__main__ import main
from data.shards.ranges import load_ranges
from data.shards.reading import RangeCache
from data.stream.faults import loss_of
from data.transport import Cache
from data.transport.cache import NoRoomError
from tests.data.shards.test_shards import by_webdataset, foreign_tar, read_all
from tests.helpers.limits import within
from tests.helpers.runs import ROOT
from tests.helpers.shard_server import Deed, serving
from tests.helpers.streams import SEED, labels, numbered, opened, streamed, write_numbered, write_numbered_info


@pytest.fixture(autouse=True)
def time_limit():
    with within(60):
        yield


# ------------------------------------------------------------------------------------------------- the list


def test_the_list_of_what_was_written(tmp_path):
    paths = write_shards(tmp_path, "train", ({"__key__": str(i), "txt": "x"} for i in range(5)), samples_per_shard=2)
    expected = [
        {"name": path.name, "samples": count, "bytes": path.stat().st_size}
        for path, count in zip(paths, (2, 2, 1), strict=True)
    ]
    listed = tmp_path / "train.shards.json"
    assert json.loads(listed.read_text()) == {"version": 1, "shards": expected}
    listed.unlink()
    write_shard_list(tmp_path, "train")
    assert json.loads(listed.read_text()) == {"version": 1, "shards": expected}


def test_a_hundred_thousand_shards_give_their_first_batch_at_once(tmp_path):
    """A made list; of the files there are those alone that the first batches touch."""
    number, size = 100_000, 100
    write_numbered(tmp_path, (size,))
    template = tmp_path / "train-000000.tar"
    row = {"samples": size, "bytes": template.stat().st_size}
    rows = [{"name": f"train-{n:06d}.tar", **row} for n in range(number)]
    (tmp_path / "train.shards.json").write_text(json.dumps({"version": 1, "shards": rows}))
    data = numbered(str(tmp_path), batch_size=64, shuffle_window=8192)
    order = opened(data).order
    assert order.total == number * size
    far = 5_000_000  # samples consumed: half of the epoch
    touched = {order.locate(position)[0] for start in (0, far) for position in range(start, start + 64)}
    content, index = template.read_bytes(), (tmp_path / "train-000000.tar.index.json").read_bytes()
    for shard in touched:
        (tmp_path / f"train-{shard:06d}.tar").write_bytes(content)
        (tmp_path / f"train-{shard:06d}.tar.index.json").write_bytes(index)

    def seconds_of(start: int) -> float:
        before = time.perf_counter()
        (micro,) = streamed(data, 1, start=start // 64, consumed=start)
        seconds = time.perf_counter() - before
        assert not micro.faults and micro.batch.labels_Q.shape == (64,)
        return seconds

    # The better of two: machines that run tests are busy.
    first, resumed = (min(seconds_of(start) for _ in range(2)) for start in (0, far))
    copied = len(pickle.dumps(opened(data)))  # what a worker process gets
    print(f"first batch {first:.2f} s, resumed {resumed:.2f} s, {copied / 1e6:.1f} MB to a worker")
    assert max(first, resumed) < 5 and copied < 20e6


def test_shards_that_the_list_does_not_name_are_added_to_it(tmp_path):
    write_shards(tmp_path, "train", [{"__key__": "a", "txt": "1"}])
    write_shard(tmp_path / "train-000001.tar", [{"__key__": "b", "txt": "2"}, {"__key__": "c", "txt": "3"}])
    assert ShardSet.open(tmp_path, "train").sizes == (1, 2)
    assert [row["samples"] for row in json.loads((tmp_path / "train.shards.json").read_text())["shards"]] == [1, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[", "not a list of shards"),
        (b'{"version": 2, "shards": []}', "version 2, expected 1"),
        (
            b'{"version": 1, "shards": [{"name": "train-000000.tar", "samples": "x", "bytes": 1}]}',
            "not a list of shards",
        ),
        (b'{"version": 1, "shards": [{"name": "train-000000.tar", "samples": -1, "bytes": 1}]}', "negative"),
        (b'{"version": 1, "shards": [{"name": "train-../../x.tar", "samples": 1, "bytes": 1}]}', "names must be"),
        (b"[" * 100_000, "not a list of shards"),
    ],
)
def test_a_bad_list_is_one_line(tmp_path, content, message):
    write_shards(tmp_path, "train", [{"__key__": "a", "txt": "1"}])
    (tmp_path / "train.shards.json").write_bytes(content)
    with pytest.raises(DatasetError, match=message) as caught:
        ShardSet.open(tmp_path, "train")
    assert "train.shards.json" in str(caught.value) and "\n" not in str(caught.value)


def test_ranges_of_few_shards_are_held():
    cache, loaded = RangeCache(100), []

    def load(shard):
        def do():
            loaded.append(shard)
            import numpy as np

            return np.zeros((3, 2), np.int64), None  # 48 bytes: two fit

        return do

    for shard in (0, 1, 0, 2, 0, 1):
        cache.get(shard, load(shard))
    assert loaded == [0, 1, 2, 1] and len(pickle.loads(pickle.dumps(cache))._entries) == 0


# ---------------------------------------------------------------------------------------------- shards of others


def by_shard_writer(folder: Path) -> list[Path]:
    """As webdataset's own writer packs them, with keys in folders, several dots, and JSON."""
    folder.mkdir()
    with webdataset.ShardWriter(str(folder / "train-%06d.tar"), maxcount=3, verbose=0) as writer:
        for i in range(8):
            writer.write({"__key__": f"dir/sub.v1/{i:04d}", "txt": f"text {i}", "cls": i, "seg.json": {"n": i}})
    return sorted(folder.glob("*.tar"))


def by_tar_writer(folder: Path) -> list[Path]:
    folder.mkdir()
    path = folder / "train-000000.tar"
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for i in range(4):
            writer.write({"__key__": f"k{i}", "jpg": b"\xff" * i, "a.b.c": b"x"})
    return [path]


def by_hand(folder: Path) -> list[Path]:
    folder.mkdir()
    entries = [
        ("./d/1.jpg", b"1"),
        ("./d/1.TXT", b"one"),
        ("./d", None),
        ("d/2.jpg", b"2"),
        ("3.seg.png", b"3"),
        ("3.txt", b""),
    ]
    return [foreign_tar(folder / "train-000000.tar", entries), foreign_tar(folder / "train-000001.tar", entries[3:])]


@pytest.mark.parametrize("written", [by_shard_writer, by_tar_writer, by_hand])
def test_shards_of_others_read_as_webdataset_reads_them(tmp_path, written):
    paths = written(tmp_path / "set")
    expected = by_webdataset(*paths)
    assert expected and read_all(ShardSet.open(tmp_path / "set", "train")) == expected  # counted by their headers
    assert read_all(ShardSet.open(tmp_path / "set", "train")) == expected  # by the list that was kept
    assert main([str(tmp_path / "set")]) == 0
    assert all(path.with_name(path.name + ".index.json").is_file() for path in paths)
    assert read_all(ShardSet.open(tmp_path / "set", "train")) == expected  # by list and indexes
    assert read_all(ShardSet.from_urls([str(tmp_path / "set" / "*.tar")])) == expected


def test_our_shards_are_read_by_webdataset_alone(tmp_path):
    """In a process that has nothing of ours."""
    write_numbered(tmp_path, (3, 2))
    code = (
        "import sys, webdataset as w; "
        "print([(s['__key__'], int(s['cls']), len(s['png'])) for s in w.WebDataset(sys.argv[1:], shardshuffle=False)])"
    )
    paths = sorted(map(str, tmp_path.glob("*.tar")))
    done = subprocess.run([sys.executable, "-c", code, *paths], cwd="/", capture_output=True, text=True, check=True)
    ours = [(s["__key__"], int(s["cls"]), len(s["png"])) for s in read_all(ShardSet.open(tmp_path, "train"))]
    assert done.stdout.strip() == str(ours) and len(ours) == 5


def test_what_was_counted_is_kept_where_the_folder_is_not_writable(tmp_path, monkeypatch):
    folder, cache = tmp_path / "set", Cache(tmp_path / "cache", 1 << 30)
    by_shard_writer(folder)
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != folder and real(path, mode))  # tests may run as root
    assert ShardSet.open(folder, "train", cache).sizes == (3, 3, 2)
    assert not (folder / "train.shards.json").exists() and len(list((tmp_path / "cache" / "lists").iterdir())) == 1
    monkeypatch.setattr("data.shards.lists.load_ranges", None)  # nothing is counted again
    assert ShardSet.open(folder, "train", cache).sizes == (3, 3, 2)


def test_the_index_builder_as_a_command(tmp_path):
    by_shard_writer(tmp_path / "set")
    (tmp_path / "set" / "train-000001.tar").write_bytes(b"<html></html>")

    def command(*words):
        return subprocess.run(
            [sys.executable, "-m", "data.shards", *map(str, words)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    done = command(tmp_path / "set", "--split", "train")
    assert done.returncode == 1 and "train: 3 shards, 5 samples, 3 indexes made" in done.stdout
    assert "train-000001.tar: no tar: a page of HTML" in done.stdout
    assert main([str(tmp_path / "nowhere")]) == 2 and main([str(tmp_path / "set"), "--split", "../x"]) == 2
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0


# ------------------------------------------------------------------------------------------------- other places


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "set").mkdir()
    write_numbered(tmp_path / "set", (5, 5, 5, 5))
    return tmp_path / "set"


def serve(server, folder: Path, prefix: str = "/set") -> str:
    server.files |= {f"{prefix}/{path.name}": path.read_bytes() for path in folder.iterdir()}
    return server.url + prefix


def test_the_same_samples_from_everywhere(folder, tmp_path):
    import fsspec

    expected = labels(streamed(numbered(str(folder)), 14))
    store = fsspec.filesystem("memory")
    for path in folder.iterdir():
        store.pipe_file(f"/everywhere/{path.name}", path.read_bytes())
    (tmp_path / "all.txt").write_text("set/train-00000{0..3}.tar\n")
    with serving() as server:
        url = serve(server, folder)
        server.files["/lists/all.txt"] = f"{url}/train-00000{{0..3}}.tar\n".encode()
        for number, (path, shards) in enumerate(
            [
                (url, ()),
                ("memory://everywhere", ()),
                (str(folder), (f"{url}/train-00000{{0..3}}.tar",)),
                (str(folder), (f"@{url.removesuffix('/set')}/lists/all.txt",)),
                (str(folder), (f"@{tmp_path}/all.txt",)),
                (str(folder), (f"pipe:cat {folder}/train-00000{{0..3}}.tar",)),
                (
                    url,
                    (
                        f"{folder}/train-00000[01].tar",
                        f"{url}/train-000002.tar",
                        "memory://everywhere/train-000003.tar",
                    ),
                ),
            ]
        ):
            data = numbered(path, shards=shards, cache_dir=str(tmp_path / f"cache{number}"), allow_pipe=True)
            micros = streamed(data, 14)
            assert labels(micros) == expected, (path, shards)
            assert not any(micro.faults for micro in micros) and not loss_of(opened(data)).faults
        assert server.requests("/set/train-000000.tar") == 3  # once for each cache


def test_shards_without_index_are_fetched_to_be_counted_once(folder, tmp_path):
    with serving() as server:
        url = serve(server, folder)
        for path in folder.glob("*.index.json"):
            del server.files[f"/set/{path.name}"]
        data = numbered(str(folder), shards=(f"{url}/train-00000{{0..3}}.tar",), cache_dir=str(tmp_path / "cache"))
        first, second = labels(streamed(data, 14)), labels(streamed(data, 14))
        assert first == second == labels(streamed(numbered(str(folder)), 14))
        assert [server.requests(f"/set/train-00000{n}.tar") for n in range(4)] == [1] * 4


def test_the_next_windows_are_fetched_ahead(tmp_path):
    (tmp_path / "set").mkdir()
    write_numbered(tmp_path / "set", (4,) * 12)
    with serving() as server:
        url = serve(server, tmp_path / "set")
        data = numbered(url, batch_size=2, cache_dir=str(tmp_path / "cache"))  # a window is two shards
        source = opened(data)
        near = source.order.shards_near(0)
        assert 3 <= len(near) <= 5
        from data.stream.share import Share
        from data.stream.training import schedule_of, training_stream

        stream = iter(training_stream([source], schedule_of(data, 1, SEED, [source]), Share(), 0, (0,), 0))
        next(stream)
        deadline = time.monotonic() + 10
        while not all(source.shards.cache.has(source.shards.location(shard)) for shard in near):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert sum(server.requests(f"/set/train-{n:06d}.tar") for n in range(12)) == len(near)
        stream.close()


def test_a_local_file_that_changed_is_counted_again(tmp_path):
    cache = Cache(tmp_path / "cache", 1 << 30)
    (path,) = write_shards(tmp_path / "a", "train", [{"__key__": "a", "txt": "1"}])
    assert ShardSet.from_urls([str(path)], cache).sizes == (1,)
    (other,) = write_shards(tmp_path / "b", "train", ({"__key__": f"{i}", "txt": "1"} for i in range(30)))
    path.write_bytes(other.read_bytes())
    assert ShardSet.from_urls([str(path)], cache).sizes == (30,)


def test_what_could_not_be_read_when_it_was_counted_is_counted_again(folder, tmp_path):
    cache = Cache(tmp_path / "cache", 1 << 30)
    with serving() as server:
        shards = [f"{serve(server, folder)}/train-00000{{0..3}}.tar"]
        for path in folder.glob("*.index.json"):
            del server.files[f"/set/{path.name}"]
        server.deeds["/set/train-000001.tar"] = [Deed(status=403)]
        first = ShardSet.from_urls(shards, cache)
        assert first.sizes == (5, 0, 5, 5) and first.faults == (f"{server.url}/set/train-000001.tar: HTTP 403",)
        again = Cache(tmp_path / "cache", 1 << 30)  # as another process has it
        for _ in range(2):
            healed = ShardSet.from_urls(shards, again)
            assert healed.sizes == (5, 5, 5, 5) and not healed.faults
        assert [server.requests(f"/set/train-00000{n}.tar") for n in range(4)] == [1, 2, 1, 1]
        assert server.requests("/set/train-000000.tar.index.json") == 1


def test_where_nothing_could_be_read_it_says_why_and_nothing_is_kept(folder, tmp_path):
    with serving() as server:
        shards = [f"{serve(server, folder)}/train-00000{{0..1}}.tar"]
        for n in range(2):
            del server.files[f"/set/train-00000{n}.tar.index.json"]
            server.deeds[f"/set/train-00000{n}.tar"] = [Deed(status=403)]
        with pytest.raises(DatasetError, match=r"2 shards without a sample; http\S*/train-000000\.tar: HTTP 403$"):
            ShardSet.from_urls(shards, Cache(tmp_path / "cache", 1 << 30))
        assert not (tmp_path / "cache" / "lists").exists()
        assert ShardSet.from_urls(shards, Cache(tmp_path / "cache", 1 << 30)).sizes == (5, 5)


def test_want_of_room_while_counting_is_no_fault_of_a_shard(tmp_path, monkeypatch):
    def full(*arguments):
        raise NoRoomError("no room")

    monkeypatch.setattr(Cache, "open", full)
    with pytest.raises(DatasetError, match=r"no room; .*have to be counted first"):
        ShardSet.from_urls(["memory://nowhere/a.tar"], Cache(tmp_path, 1 << 30))


def listed(folder: Path) -> list[str]:
    return [row["name"] for row in json.loads((folder / "train.shards.json").read_text())["shards"]]


def test_a_folders_list_does_not_name_what_could_not_be_read(folder, monkeypatch):
    names = [f"train-00000{n}.tar" for n in range(4)]

    def failing(path: Path):
        if path.name == names[1]:
            raise PermissionError(errno.EACCES, "Permission denied")
        return load_ranges(path)

    with monkeypatch.context() as patch:
        patch.setattr("data.shards.lists.load_ranges", failing)
        (folder / "train.shards.json").unlink()
        shards = ShardSet.open(folder, "train")
        assert shards.sizes == (5, 0, 5, 5) and shards.faults == ("train-000001.tar: Permission denied",)
        assert listed(folder) == names[:1] + names[2:]
        (folder / "train.shards.json").unlink()
        assert write_shard_list(folder, "train").faults == {1: "Permission denied"}
        assert listed(folder) == names[:1] + names[2:]
    assert ShardSet.open(folder, "train").sizes == (5, 5, 5, 5) and listed(folder) == names


def test_a_row_of_no_bytes_is_not_trusted(folder):
    own = folder / "train.shards.json"
    content = json.loads(own.read_text())
    content["shards"][2] |= {"samples": 0, "bytes": 0, "fault": "Permission denied"}
    own.write_text(json.dumps(content))
    shards = ShardSet.open(folder, "train")
    assert shards.sizes == (5, 5, 5, 5) and not shards.faults and len(listed(folder)) == 4


def test_empty_files_and_links_to_nowhere_are_faults(folder, tmp_path):
    (folder / "train-000001.tar").write_bytes(b"")
    (folder / "train-000001.tar.index.json").unlink()
    (folder / "train-000002.tar").unlink()
    (folder / "train-000002.tar").symlink_to("nowhere")
    for _ in range(2):
        shards = ShardSet.from_urls([f"{folder}/*.tar"], Cache(tmp_path / "cache", 1 << 30))
        assert shards.sizes == (5, 0, 0, 5)
        assert shards.faults == (
            "train-000001.tar: no tar: the file is empty",
            "train-000002.tar: No such file or directory",
        )


def test_a_url_without_a_cache_or_a_command_without_leave(tmp_path):
    with pytest.raises(DatasetError, match="through a cache"):
        ShardSet.open("https://host/set", "train")
    write_numbered_info(tmp_path, 1, 1)
    marker = tmp_path / "started"
    for shard, message in (
        (f"pipe:touch {marker}", "allow_pipe"),
        (f"@pipe:touch {marker}", "only shards may come from commands"),
        ("local:///etc/passwd", "name local files by their paths"),
        ("zip://a::https://host/x.zip", "chains of protocols"),
    ):
        with pytest.raises(DatasetError, match=message):
            opened(numbered(str(tmp_path), shards=(shard,)))
    with pytest.raises(DatasetError, match="only shards may come from commands"):
        opened(numbered(f"pipe:touch {marker}", allow_pipe=True))
    assert not marker.exists() and not (tmp_path / "started").exists()
