"""Every fault of shards and servers ends in the ledger or in one clear line; nothing hangs, and the rest of the epoch comes."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data.decode.image import encode_png
from data.shards import DatasetError
from data.stream.faults import Fault, Loss, StoreGoneError, TooManyFaultsError, loss_of, losses_of
from data.transport import Cache, FetchOptions
from parallel.health.claim import FolderError
from run.errors import exit_code
from run.ledger import FaultLedger
from tests.helpers.limits import within
from tests.helpers.shard_server import Deed, ShardServer, serving
from tests.helpers.streams import labels, numbered, opened, streamed, write_numbered

SIZES = (5, 5, 5, 5)
BAD = "train-000001.tar"  # holds samples 5 to 9
QUICK = FetchOptions(attempts=3, connect_s=5.0, stall_s=5.0, backoff_s=0.01, max_backoff_s=0.05)
IMPATIENT = dataclasses.replace(QUICK, stall_s=0.4)  # for what is too slow in any case; busy machines are slow, too


@pytest.fixture(autouse=True)
def time_limit():
    with within(60):
        yield


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "set").mkdir()
    write_numbered(tmp_path / "set", SIZES)
    return tmp_path / "set"


@pytest.fixture
def server(folder):
    with serving() as server:
        server.files |= {f"/set/{path.name}": path.read_bytes() for path in folder.iterdir()}
        yield server


def patched(folder: Path, old: bytes, new: bytes) -> None:
    content = (folder / BAD).read_bytes()
    assert content.count(old) == 1 and len(old) == len(new)
    (folder / BAD).write_bytes(content.replace(old, new))


def bad_image(folder: Path) -> None:
    patched(
        folder,
        encode_png(np.full((8, 8, 3), 6, np.uint8)),
        b"no image".ljust(len(encode_png(np.full((8, 8, 3), 6, np.uint8)))),
    )


def bad_class(folder: Path) -> None:
    write_foreign(
        folder / BAD, [(f"{i:05d}", {"png": picture(i), "cls": b"six" if i == 6 else b"%d" % i}) for i in range(5, 10)]
    )


def twice(folder: Path) -> None:
    entries = [(f"{i:05d}.{e}", c) for i in range(5, 10) for e, c in (("png", picture(i)), ("cls", b"%d" % i))]
    entries.insert(4, entries[3])  # the class of sample 6 stands there twice
    write_members(folder / BAD, entries)


def claim(folder: Path) -> None:
    """The header of sample 6's picture says 2 GB."""
    content = bytearray((folder / BAD).read_bytes())
    start = 2048
    assert content[start : start + 9] == b"00006.cls" or content[start : start + 9] == b"00006.png"
    info = tarfile.TarInfo.frombuf(bytes(content[start : start + 512]), "utf-8", "strict")
    info.size = 2 << 30
    content[start : start + 512] = info.tobuf(tarfile.USTAR_FORMAT)
    (folder / BAD).write_bytes(content)


def picture(index: int) -> bytes:
    return encode_png(np.full((8, 8, 3), index, np.uint8))


def write_foreign(path: Path, samples) -> None:
    write_members(path, [(f"{key}.{e}", content) for key, members in samples for e, content in members.items()])


def write_members(path: Path, entries) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def without_list(deed):
    """Nothing is known of the shards: they are looked at when the set is opened."""

    def do(folder: Path) -> None:
        deed(folder)
        (folder / "train.shards.json").unlink()
        (folder / f"{BAD}.index.json").unlink()

    return do


def cut(size: int):
    return lambda folder: (folder / BAD).write_bytes((folder / BAD).read_bytes()[:size])


def html(folder: Path) -> None:
    (folder / BAD).write_bytes(b"<!DOCTYPE html><html><body>404 Not Found</body></html>")


def vanished(folder: Path) -> None:
    (folder / BAD).unlink()


LOCAL = {
    # deed, samples lost, the sample in the ledger (None: the shard), words of the reason
    "cut off": (cut(5000), {7, 8, 9}, None, "cut off"),
    "cut off, not listed": (without_list(cut(5000)), {7, 8, 9}, None, "cut off"),
    "empty": (cut(0), {5, 6, 7, 8, 9}, None, "the file is empty"),
    "empty, not listed": (without_list(cut(0)), {5, 6, 7, 8, 9}, None, "the file is empty"),
    "HTML": (html, {5, 6, 7, 8, 9}, None, "HTML"),
    "HTML, not listed": (without_list(html), {5, 6, 7, 8, 9}, None, "HTML"),
    "vanished": (vanished, {5, 6, 7, 8, 9}, None, "No such file"),
    "bad image": (bad_image, {6}, 1, "image of"),
    "bad class": (without_list(bad_class), {6}, 1, "six"),
    "a name twice": (without_list(twice), {6}, 1, "duplicate"),
    "2 GB": (claim, {6}, 1, "2147483648 bytes does not fit"),
    "2 GB, not listed": (without_list(claim), {6, 7, 8, 9}, None, "cut off"),
}


@pytest.mark.parametrize("name", LOCAL)
def test_damage_on_disk(folder, tmp_path, name):
    deed, lost, sample, words = LOCAL[name]
    expected = labels(streamed(numbered(str(folder)), 7))  # 21 samples, a little more than an epoch
    deed(folder)
    data = numbered(str(folder))
    source = opened(data)
    loss = loss_of(source)
    at_start = loss.faults
    micros = streamed(data, 8, source=source)
    found = labels(micros)
    assert set(range(20)) - lost == set(found), "the rest of the epoch must come"
    if not at_start:  # the order is that of the undamaged data, but for those that were replaced
        assert all(a == b for a, b in zip(expected, found, strict=False) if a not in lost)
    faults = [*at_start, *(fault for micro in micros for fault in micro.faults)]
    assert {(fault.shard, fault.sample) for fault in faults} == {(BAD, sample)}
    assert words in faults[0].reason and "\n" not in faults[0].reason
    assert sample is None or faults[0].offset == 2048
    assert labels(streamed(data, 8)) == found, "the same again"

    assert loss.samples == (len(lost) if at_start else 0) and loss.remaining + loss.samples == 20 and loss.is_exact
    if at_start:
        with pytest.raises(DatasetError, match=rf"numbers: {len(lost)} of 20 samples .* are lost: {BAD}: .*{words}"):
            losses_of([source], len(lost) / 20 - 0.01)

    ledger = FaultLedger(tmp_path / "run", 0, 1.0, losses_of([source], len(lost) / 20))
    for micro in micros:
        ledger.add("numbers", micro.num_samples, micro.faults)
    lines = [json.loads(line) for line in ledger.path.read_text().splitlines()]
    assert lines == [dataclasses.asdict(faults[0])]  # once, however often it was met


def test_bad_json_and_no_caption(tmp_path):
    from data.config import DataConfig, TaskConfig
    from data.shards import DatasetInfo, SplitInfo, write_info, write_shards

    contents = [
        b'{"captions": ["a"]}',
        b'{"captions": ["a"',
        b"[" * 100_000,
        b'{"captions": [3]}',
        b'{"captions": []}',
        b"\xff{}",
    ]
    samples = [{"__key__": f"{i}", "png": picture(i), "json": content} for i, content in enumerate(contents)]
    write_shards(tmp_path, "train", samples)
    write_info(
        tmp_path,
        DatasetInfo(kind="image_caption", classes=(), token_ids=(320, 49407), splits={"train": SplitInfo(6, 1)}),
    )
    task = TaskConfig(name="captions", kind="captioning", path=str(tmp_path), batch_size=2, max_text=4)
    micros = streamed(DataConfig(tasks=(task,), vocabulary="restricted"), 9)
    faults = {fault.sample: fault for micro in micros for fault in micro.faults}
    assert sorted(faults) == [1, 2, 3, 4, 5] and all(fault.offset is not None for fault in faults.values())


# ------------------------------------------------------------------------------------------------- over HTTP


@pytest.fixture
def quick(monkeypatch):
    """Short limits in place of those for real networks."""
    use(monkeypatch, QUICK)


def use(monkeypatch, options: FetchOptions) -> None:
    monkeypatch.setattr("data.stream.source.Cache", lambda folder, limit: Cache(folder, limit, options))


SERVED = {
    # what happens to every request of the shard, samples lost, words of the reason; no samples: it is read in the end
    "two errors": ([Deed(status=500), Deed(status=503)], False, ""),
    "cut body": ([Deed(cut=3000), Deed(cut=1500)], False, ""),
    "slow": ([Deed(pause=0.00005)], False, ""),
    "always an error": ([Deed(status=500)] * 99, True, "HTTP 500 (given up after 3 attempts)"),
    "forbidden": ([Deed(status=403)] * 99, True, "HTTP 403"),
    "too long": ([Deed(length=99_999)] * 99, True, "99999 bytes, but its list says 20480"),
    "too short": ([Deed(length=2048)] * 99, True, "2048 bytes, but its list says 20480"),
    "dripping": ([Deed(pause=0.01)] * 99, True, "too slow (given up after 3 attempts)"),
    "silent": ([Deed(silent=True)] * 99, True, "given up after 3 attempts"),
    "a huge claim": ([Deed(length=2 << 40)] * 99, True, "2199023255552 bytes, more than the limit"),
}


@pytest.mark.parametrize("name", SERVED)
def test_damage_of_a_server(server: ShardServer, tmp_path, monkeypatch, name):
    deeds, lost, words = SERVED[name]
    use(monkeypatch, IMPATIENT if name in ("dripping", "silent") else QUICK)
    server.deeds[f"/set/{BAD}"] = list(deeds)
    data = numbered(f"{server.url}/set?token=secret", cache_dir=str(tmp_path / "cache"))
    micros = streamed(data, 8)
    assert set(labels(micros)) == set(range(20)) - (set(range(5, 10)) if lost else set())
    faults = {fault for micro in micros for fault in micro.faults}
    if not lost:
        assert not faults
        return
    (fault,) = faults
    assert fault.shard == f"{server.url}/set/{BAD}?***" and fault.sample is None
    assert words in fault.reason and "secret" not in fault.reason
    assert fault.may_pass == (name in ("always an error", "dripping", "silent"))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("body", [b"<html>Sign in to the network</html>", b""])
def test_a_page_in_place_of_a_shard(server: ShardServer, tmp_path, body):
    shards = tuple(f"{server.url}/set/train-00000{n}.tar" for n in range(4))
    server.files[f"/set/{BAD}"] = body
    del server.files[f"/set/{BAD}.index.json"]
    data = numbered(f"{server.url}/set", shards=shards, cache_dir=str(tmp_path / "cache"))
    source = opened(data)
    (fault,) = loss_of(source).faults
    assert fault.shard == shards[1] and ("HTML" in fault.reason or "empty" in fault.reason)
    assert set(labels(streamed(data, 8, source=source))) == set(range(20)) - set(range(5, 10))


@pytest.mark.usefixtures("quick")
def test_what_cannot_be_opened_at_all_is_one_line(server: ShardServer, tmp_path):
    options = {"cache_dir": str(tmp_path / "cache")}
    for path, message in (
        (f"{server.url}/nowhere", "dataset.json: HTTP 404"),
        ("nonsense://set", "unknown protocol"),
        (f"{server.url}/set-without-list", r"train\.shards\.json: HTTP 404; .*python -m data\.shards"),
    ):
        server.files["/set-without-list/dataset.json"] = server.files["/set/dataset.json"]
        with pytest.raises(DatasetError, match=message) as caught:
            opened(numbered(path, **options))
        assert "\n" not in str(caught.value) and exit_code(caught.value) == 2
    server.deeds["/set/train-000002.tar"] = [Deed(status=500)] * 99
    del server.files["/set/train-000002.tar.index.json"]
    shards = tuple(f"{server.url}/set/train-00000{n}.tar" for n in range(4))
    with pytest.raises(DatasetError, match=r"HTTP 500.*have to be counted first") as caught:
        opened(numbered(f"{server.url}/set", shards=shards, **options))
    assert exit_code(caught.value) == 1, "a scheduler may start it again"


def test_a_cache_that_is_too_small_for_the_window_is_refused(server: ShardServer, tmp_path):
    with pytest.raises(DatasetError, match=r"data\.cache_gib=5e-05 is too little.*lower the window"):
        opened(numbered(f"{server.url}/set", cache_dir=str(tmp_path / "cache"), cache_gib=0.00005))


# -------------------------------------------------------------------------------------------------- the ledger


def loss(samples: int = 0, remaining: int = 1000, faults: tuple[Fault, ...] = ()) -> dict[str, Loss]:
    return {"t": Loss(samples, 0, remaining, faults, True)}


def test_the_threshold_counts_samples_and_not_lines(tmp_path):
    fault = Fault("t", "train-000000.tar", None, None, "gone")
    ledger = FaultLedger(tmp_path, 0, 0.01, loss(faults=(fault,)))  # at the start: of no sample
    for _ in range(99):
        ledger.add("t", 10, ())
    ledger.add("t", 10, (fault,) * 22)  # of 1,000; 10 are allowed, chance makes 3 x 3.16 + 3 more
    with pytest.raises(
        TooManyFaultsError,
        match=r"task t: 23 of 1033 samples were bad; .*max_bad_fraction=0\.01.*gone.*ledger_rank_00000\.jsonl",
    ):
        ledger.add("t", 10, (fault,))
    assert len(ledger.path.read_text().splitlines()) == 1
    # What a machine leaves that lost its power: a line that is none, and one that is cut off.
    ledger.path.write_text(ledger.path.read_text() + "\0" * 40 + '\n3\n{"a": 1}\n{"task": "cut o')
    again = FaultLedger(tmp_path, 0, 0.01, loss())
    again.add("t", 10, (fault, Fault("t", "train-000000.tar", 3, 512, "bad")))
    first, *_, last = ledger.path.read_text().splitlines()
    assert [json.loads(line)["sample"] for line in (first, last)] == [None, 3]


def test_a_ledger_that_cannot_be_written_is_one_line(tmp_path):
    ledger = FaultLedger(tmp_path, 0, 0.01, loss())
    ledger.path.mkdir()
    with pytest.raises(FolderError, match=r"ledger_rank_00000.jsonl cannot be written: Is a directory"):
        ledger.add("t", 10, (Fault("t", "train-000000.tar", 1, 0, "bad"),))


def test_few_bad_samples_at_the_start_pass_and_many_stop_at_once(tmp_path):
    fault = Fault("t", "train-000000.tar", 1, 0, "bad")
    ledger = FaultLedger(tmp_path, 0, 0.001, loss())
    ledger.add("t", 16, (fault,) * 3)
    with pytest.raises(TooManyFaultsError, match="10 of 42 samples"):
        ledger.add("t", 16, (fault,) * 7)


def test_no_bad_sample_is_allowed_where_none_is(tmp_path):
    fault = Fault("t", "train-000000.tar", 1, 0, "bad")
    ledger = FaultLedger(tmp_path, 0, 0.0, loss())
    ledger.add("t", 100_000, ())
    with pytest.raises(TooManyFaultsError, match="1 of 100011 samples") as caught:
        ledger.add("t", 10, (fault,))
    assert exit_code(caught.value) == 2


def test_a_store_that_has_stopped_to_answer_is_no_fault_of_the_data(tmp_path):
    fault = Fault("t", "http://store/train-000000.tar", None, None, "HTTP 503", may_pass=True)
    with pytest.raises(StoreGoneError, match=r"^task t: 10 of 10 samples") as caught:
        FaultLedger(tmp_path, 0, 0.0, loss()).add("t", 0, (fault,) * 10)
    assert exit_code(caught.value) == 1


def test_a_share_below_the_limit_does_not_stop_a_long_run_by_chance(tmp_path):
    """A third of the limit, by batches of 32, 20 runs of 100,000 samples; and three times the limit stops each."""
    fault = Fault("t", "train-000000.tar", 1, 0, "bad")
    rng = np.random.default_rng(0)
    for share, stops in ((0.0003, 0), (0.003, 20)):
        stopped = 0
        for _ in range(20):
            ledger = FaultLedger(tmp_path, 0, 0.001, loss())
            try:
                for bad in rng.binomial(32, share, size=100_000 // 32):
                    ledger.add("t", 32, (fault,) * int(bad))
            except TooManyFaultsError:
                stopped += 1
        assert stopped == stops


def test_what_was_missing_at_the_start_counts_against_the_same_limit(tmp_path):
    fault = Fault("t", "train-000000.tar", 1, 0, "bad")
    ledger = FaultLedger(tmp_path, 0, 0.01, loss(samples=9, remaining=991, faults=(fault,)))
    ledger.add("t", 991, (fault,) * 13)  # and 9.1: 22.1 of 1,013, of which 10.1 + 9.5 + 3 are allowed
    with pytest.raises(TooManyFaultsError, match="14 of 1006 samples were bad and what was missing at the start"):
        ledger.add("t", 1, (fault,))


def test_each_task_has_its_own_limit(tmp_path):
    """A hundred thousand good samples of one task do not hide that another has none."""
    fault = Fault("u", "train-000000.tar", 1, 0, "bad")
    ledger = FaultLedger(tmp_path, 0, 0.01, loss() | {"u": Loss(0, 0, 50, (), True)})
    ledger.add("t", 100_000, ())
    with pytest.raises(TooManyFaultsError, match="task u: 11 of 22"):
        ledger.add("u", 11, (fault,) * 11)


def test_a_stale_index_is_no_loss(folder):
    """The tar is looked through, and a small shard is no part of a large one."""
    write_numbered(folder, (5, 5, 5, 2))
    (folder / "train.shards.json").unlink()
    (folder / "train-000003.tar.index.json").write_text("{}")
    without_count(folder)
    assert loss_of(opened(numbered(str(folder)))) == Loss(0, 0, 17, (), False)


def test_a_damaged_shard_has_lost_one_sample_at_least(folder):
    for path in folder.glob("*.tar"):
        path.write_bytes(path.read_bytes()[:5_000])
    without_list(lambda folder: None)(folder)
    for index in folder.glob("*.index.json"):
        index.unlink()
    without_count(folder)
    found = loss_of(opened(numbered(str(folder))))
    assert found.samples == 4 and len(found.faults) == 4


def test_shards_that_are_gone_are_told_before_those_that_are_damaged(folder):
    without_list(vanished)(folder)
    (folder / "train-000002.tar").write_bytes(b"<html>")
    (folder / "train-000002.tar.index.json").unlink()
    found = loss_of(opened(numbered(str(folder))))
    assert (
        found.samples == 10 and "dataset.json: counts 20 samples" in found.text and "(and 1 other shards)" in found.text
    )


def test_a_loss_without_a_count_is_estimated_by_the_other_shards(folder):
    without_list(html)(folder)
    without_count(folder)
    found = loss_of(opened(numbered(str(folder))))
    assert (found.samples, found.remaining, found.is_exact) == (5, 15, False)
    assert found.bytes == 5 * sum((folder / f"train-00000{n}.tar").stat().st_size for n in (0, 2, 3)) // 15
    assert found.text.startswith("about 5 of 20 samples (0.02") and "HTML" in found.text


def test_shards_that_are_gone_with_their_list_are_missed_by_the_count(folder):
    without_list(vanished)(folder)
    found = loss_of(opened(numbered(str(folder))))
    assert found.text.endswith("lost: dataset.json: counts 20 samples of split train, its shards have 15")
    without_count(folder)  # nothing tells that there was more
    assert loss_of(opened(numbered(str(folder)))) == Loss(0, 0, 15, (), False)


def test_most_shards_are_pages(folder):
    for path in folder.glob("*.tar"):
        if path.name != "train-000002.tar":
            path.write_bytes(b"<!DOCTYPE html><html><body>404 Not Found</body></html>")
    without_list(lambda folder: None)(folder)
    with pytest.raises(DatasetError) as caught:
        losses_of([opened(numbered(str(folder)))], 0.001)
    message = str(caught.value)
    assert "15 of 20 samples" in message and "(and 2 other shards)" in message and "\n" not in message


def test_nothing_but_bad_samples_is_one_line_also_from_a_worker(folder):
    for path in folder.glob("*.tar"):
        keys = [path.stem + str(i) for i in range(5)]
        write_foreign(path, [(key, {"png": picture(1), "cls": b"ninety"}) for key in keys])
        path.with_name(f"{path.name}.index.json").unlink()
    (folder / "train.shards.json").unlink()
    for workers in (0, 1):
        with pytest.raises(
            TooManyFaultsError, match=r"^task numbers: 100 bad samples in a row; the last, train-.*ninety"
        ) as caught:
            streamed(numbered(str(folder)), 1, workers=workers)
        assert "\n" not in str(caught.value)


def without_count(folder: Path) -> None:
    info = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(info | {"splits": {}}))
