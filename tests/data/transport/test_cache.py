"""The cache of shards: whole or not at all, once for all processes, within its limit."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from data.shards.lists import check_and_index
from data.transport import Cache, FetchError, FetchOptions
from tests.helpers.limits import within
from tests.helpers.runs import ROOT
from tests.helpers.shard_server import Deed, serving

QUICK = FetchOptions(attempts=2, connect_s=5.0, stall_s=5.0, backoff_s=0.01, max_backoff_s=0.05)


def tar(*texts: str, pad: int = 0) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for number, text in enumerate(texts):
            info = tarfile.TarInfo(f"{number}.txt")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return file.getvalue() + bytes(pad)


SHARD = tar("eins", "zwei")  # 10,240 bytes


@pytest.fixture(autouse=True)
def time_limit():
    with within(60):
        yield


@pytest.fixture
def server():
    with serving() as server:
        for name in "abcdef":
            server.files[f"/{name}.tar"] = SHARD
        yield server


def content(cache: Cache, url: str, expected: int | None = None) -> bytes:
    with cache.open(url, check_and_index, expected) as file:
        return file.read()


def stored(cache: Cache) -> int:
    return sum(path.stat().st_size for path in cache.folder.rglob("*") if path.is_file())


def test_a_shard_is_fetched_once_and_indexed(server, tmp_path):
    cache = Cache(tmp_path, 1 << 20, QUICK)
    url = f"{server.url}/a.tar"
    assert content(cache, url) == content(cache, url) == SHARD
    assert content(Cache(tmp_path, 1 << 20, QUICK), url) == SHARD
    assert server.requests("/a.tar") == 1
    index = json.loads((tmp_path / "objects" / (cache.path(url).name + ".index.json")).read_text())
    assert [sample["key"] for sample in index["samples"]] == ["0", "1"] and index["tar_bytes"] == len(SHARD)
    assert not list((tmp_path / "partial").iterdir())


@pytest.mark.parametrize(
    ("body", "message"),
    [(b"", "empty"), (b"<html>Sign in</html>" * 90, "HTML"), (b"\x1f\x8b\x08\x00" * 200, "compressed"), (bytes(10240), "without a sample")],
)  # fmt: skip
def test_what_is_no_shard_is_not_kept(server, tmp_path, body, message):
    server.files["/a.tar"] = body
    cache = Cache(tmp_path, 1 << 20, QUICK)
    with pytest.raises(FetchError, match=message):
        content(cache, f"{server.url}/a.tar")
    assert not list((tmp_path / "objects").iterdir()) and not list((tmp_path / "partial").iterdir())


def test_another_length_than_the_lists_is_refused_and_an_old_version_replaced(server, tmp_path):
    cache = Cache(tmp_path, 1 << 20, QUICK)
    with pytest.raises(FetchError, match="10240 bytes, but its list says 20480"):
        content(cache, f"{server.url}/a.tar", 20480)
    assert content(cache, f"{server.url}/b.tar", 10240) == SHARD
    server.files["/b.tar"] = tar(*"abcdefghijkl")
    assert content(cache, f"{server.url}/b.tar", 10240) == SHARD  # nobody said that it has changed
    assert content(cache, f"{server.url}/b.tar", 20480) == server.files["/b.tar"]


def test_a_lost_shard_is_not_asked_for_again_and_again(server, tmp_path):
    cache = Cache(tmp_path, 1 << 20, QUICK)
    server.deeds["/a.tar"] = [Deed(status=500)] * 100
    for _ in range(5):
        with pytest.raises(FetchError, match="HTTP 500"):
            content(cache, f"{server.url}/a.tar")
    assert server.requests("/a.tar") == QUICK.attempts


def test_what_failed_ahead_of_need_is_tried_again_by_the_reader(server, tmp_path):
    cache = Cache(tmp_path, 1 << 20, QUICK)
    url = f"{server.url}/a.tar"
    server.deeds["/a.tar"] = [Deed(status=500)] * QUICK.attempts
    with pytest.raises(FetchError, match="HTTP 500"):
        cache.fetch(url, check_and_index, wait=False)
    assert content(cache, url) == SHARD


def test_those_read_longest_ago_make_room(server, tmp_path):
    cache = Cache(tmp_path, 35_000, QUICK)  # three shards of 10,240 bytes with their indexes
    for number, name in enumerate("abc"):
        content(cache, f"{server.url}/{name}.tar")
        os.utime(cache.path(f"{server.url}/{name}.tar"), (1000 + number, 1000))
    content(cache, f"{server.url}/a.tar")  # used again: now b is the oldest
    content(cache, f"{server.url}/d.tar")
    assert [cache.has(f"{server.url}/{name}.tar") for name in "abcd"] == [True, False, True, True]
    assert stored(cache) <= 35_000


def test_a_shard_that_is_being_read_is_never_removed(server, tmp_path):
    cache = Cache(tmp_path, 25_000, QUICK)
    with cache.open(f"{server.url}/a.tar", check_and_index) as reading:
        os.utime(cache.path(f"{server.url}/a.tar"), (1000, 1000))
        content(cache, f"{server.url}/b.tar")
        content(cache, f"{server.url}/c.tar")
        assert [cache.has(f"{server.url}/{name}.tar") for name in "abc"] == [True, False, True]
        assert reading.read() == SHARD


def test_no_room_is_no_fault_of_the_shard(server, tmp_path):
    cache = Cache(tmp_path, 15_000, QUICK)
    with (
        cache.open(f"{server.url}/a.tar", check_and_index),
        pytest.raises(FetchError, match=r"no room for 10240 bytes.*data\.cache_gib"),
    ):
        content(cache, f"{server.url}/b.tar")
    assert content(cache, f"{server.url}/b.tar") == SHARD
    with pytest.raises(FetchError, match="more than the limit of 15000"):
        server.files["/c.tar"] = tar(*"abcdefghijkl")
        content(cache, f"{server.url}/c.tar")


def test_no_room_for_a_shard_that_has_come_is_no_fault_of_it(server, tmp_path):
    content(Cache(tmp_path, 1 << 20), f"{server.url}/a.tar")
    cache = Cache(tmp_path, stored(Cache(tmp_path, 0)) + len(SHARD), QUICK)  # none for the index of the second
    with (
        cache.open(f"{server.url}/a.tar", check_and_index),
        pytest.raises(FetchError, match=r"no room for 10\d\d\d bytes"),
    ):
        content(cache, f"{server.url}/b.tar")
    assert content(cache, f"{server.url}/b.tar") == SHARD
    assert server.requests("/b.tar") == 1


def test_a_shard_that_is_removed_while_it_is_opened_is_fetched_again(server, tmp_path, monkeypatch):
    cache = Cache(tmp_path, 1 << 20, QUICK)
    url = f"{server.url}/a.tar"
    content(cache, url)
    real, evictions = fcntl.flock, [cache.path(url)]

    def flock(file, operation) -> None:
        if operation == fcntl.LOCK_SH and evictions:
            evictions.pop().unlink()  # by another process
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with cache.open(url, check_and_index) as file:
        assert file.read() == cache.path(url).read_bytes() == SHARD


def test_room_is_made_where_only_what_is_open_for_writing_can_be_locked(server, tmp_path, monkeypatch):
    real = fcntl.flock

    def flock(file, operation) -> None:
        if operation & fcntl.LOCK_EX and not file.writable():
            raise OSError(errno.EBADF, "as NFS does")
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    cache = Cache(tmp_path, 15_000, QUICK)
    for name in "ab":
        assert content(cache, f"{server.url}/{name}.tar") == SHARD
    assert not cache.has(f"{server.url}/a.tar")


def test_what_cannot_be_locked_counts_as_in_use(server, tmp_path, monkeypatch):
    cache = Cache(tmp_path, 25_000, QUICK)
    for number, name in enumerate("ab"):
        content(cache, f"{server.url}/{name}.tar")
        os.utime(cache.path(f"{server.url}/{name}.tar"), (1000 + number, 1000))
    real, locked = fcntl.flock, cache.path(f"{server.url}/a.tar").stat().st_ino

    def flock(file, operation) -> None:
        if operation & fcntl.LOCK_EX and os.fstat(file.fileno()).st_ino == locked:
            raise OSError(errno.ENOLCK, "no locks available")
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    assert content(cache, f"{server.url}/c.tar") == SHARD
    assert [cache.has(f"{server.url}/{name}.tar") for name in "abc"] == [True, False, True]


def test_a_stream_of_unknown_length_ends_at_the_limit(tmp_path):
    cache = Cache(tmp_path, 1 << 20, QUICK)
    with pytest.raises(FetchError, match="sends more than"):
        content(cache, "pipe:cat /dev/zero")
    (tmp_path / "x.tar").write_bytes(SHARD)
    assert content(cache, f"pipe:cat {tmp_path}/x.tar") == SHARD


KILLED = """
import sys
from pathlib import Path
from data.shards.lists import check_and_index
from data.transport import Cache
with Cache(Path(sys.argv[1]), 1 << 20).open(sys.argv[2], check_and_index) as file:
    pass
"""


def test_a_killed_download_is_continued(server, tmp_path):
    big = tar("x" * 200_000)
    server.files["/a.tar"] = big
    server.deeds["/a.tar"] = [Deed(pause=0.00001)]
    url = f"{server.url}/a.tar"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path), url], cwd=ROOT)
    partial = tmp_path / "partial" / Cache(tmp_path, 1).path(url).name
    while not partial.exists() or partial.stat().st_size < 5000:
        assert process.poll() is None, "it was done before it could be killed"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    have = partial.stat().st_size
    assert content(Cache(tmp_path, 1 << 20, QUICK), url) == big
    assert server.seen[-1] == ("/a.tar", f"bytes={have}-", 206)


def test_a_killed_download_of_another_version_is_not_trusted(server, tmp_path):
    cache = Cache(tmp_path, 1 << 20, QUICK)
    url = f"{server.url}/a.tar"
    (tmp_path / "partial").mkdir()
    part = tmp_path / "partial" / cache.path(url).name
    for state in ('{"validator": "old", "total": 10240, "reserved": 1}', "{", None):
        part.write_bytes(b"x" * 5000)
        if state is not None:
            part.with_suffix(".json").write_text(state)
        assert content(cache, url) == SHARD
        cache.path(url).unlink()


def killed(part: Path, index: Path) -> None:
    raise KeyboardInterrupt


def test_a_shard_that_had_come_when_its_process_was_killed_is_not_asked_for_again(server, tmp_path):
    cache = Cache(tmp_path, 1 << 20, QUICK)
    for name, expected in (("a", None), ("b", len(SHARD))):
        url = f"{server.url}/{name}.tar"
        with pytest.raises(KeyboardInterrupt):
            cache.fetch(url, killed)
        assert content(cache, url, expected) == SHARD
        assert server.requests(f"/{name}.tar") == 1


def test_a_shard_that_had_come_in_another_version_than_the_lists_is_fetched_anew(server, tmp_path):
    cache = Cache(tmp_path, 1 << 20, QUICK)
    url = f"{server.url}/a.tar"
    with pytest.raises(KeyboardInterrupt):
        cache.fetch(url, killed)
    server.files["/a.tar"] = tar(*"abcdefghijkl")
    assert content(cache, url, 20480) == server.files["/a.tar"]


def read_all(folder: Path, urls: list[str], results) -> None:
    cache = Cache(folder, 45_000, QUICK)
    results.put([len(content(cache, url)) for url in urls for _ in range(3)])


def test_processes_share_it(server, tmp_path):
    """Four at once, first with room for all that they read: each shard comes once. Then with too little: all still read right."""
    context = multiprocessing.get_context("fork")
    for names, once in (("abc", True), ("abcdef", False)):
        results = context.Queue()
        server.seen.clear()
        folder = tmp_path / names
        urls = [f"{server.url}/{name}.tar" for name in names]
        workers = [context.Process(target=read_all, args=(folder, urls[n:] + urls[:n], results)) for n in range(4)]
        for worker in workers:
            worker.start()
        found = [results.get(timeout=40) for _ in workers]
        for worker in workers:
            worker.join(10)
        assert found == [[len(SHARD)] * len(names) * 3] * 4
        if once:
            assert sorted(path for path, _, _ in server.seen) == [f"/{name}.tar" for name in names]
        assert stored(Cache(folder, 0)) <= 45_000


def test_fetching_ahead_leaves_to_others_what_they_do(server, tmp_path):
    cache = Cache(tmp_path, 1 << 20, QUICK)
    url = f"{server.url}/a.tar"
    (tmp_path / "partial").mkdir()
    with (tmp_path / "partial" / cache.path(url).name).open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        before = time.monotonic()
        cache.fetch(url, check_and_index, wait=False)
        assert time.monotonic() - before < 5 and not cache.has(url) and not server.seen
    cache.fetch(url, check_and_index, wait=False)
    assert cache.has(url)


def test_a_cache_that_cannot_be_written_says_so(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FetchError, match=r"the cache .* cannot be used"):
        content(Cache(tmp_path / "file" / "cache", 1 << 20, QUICK), f"{server.url}/a.tar")
