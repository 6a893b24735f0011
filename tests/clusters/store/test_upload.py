"""Into a folder as the store; tests/clusters/store/test_s3.py does the same with a server."""

from __future__ import annotations

import shutil

import pytest

from clusters.store.place import StoreError
from clusters.store.stored import all_stored, rows
from clusters.store.upload import Upload
from parallel.checkpoints.manifest import Base
from parallel.health.claim import FolderError
from tests.clusters.store.made import Watched, add_step, command, files, made_run


@pytest.fixture
def run(tmp_path):
    return made_run(tmp_path / "run", (1, 2))


@pytest.fixture
def place(tmp_path) -> Watched:
    return Watched(str(tmp_path / "store"))


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def upload(run, place, told) -> Upload:
    return Upload(run, place, 0, told.append)


def steps(place: Watched) -> list[int]:
    return [stored.step for stored in all_stored(place) if not stored.problem]


def test_everything_of_a_run_is_there_and_the_manifest_comes_last(run, place, upload, tmp_path):
    assert upload.round()
    here = files(run)
    for name in (".unfinished", "health/rank_00000.json", "checkpoints/latest"):
        del here[name]
    assert files(tmp_path / "store") == here
    newest = [name for name in place.written if "step_00000002" in name]
    assert newest == ["checkpoints/step_00000002/uploading", "checkpoints/step_00000002/manifest.json"]
    before = place.written[: place.written.index("checkpoints/step_00000002/manifest.json")]
    assert "metrics.jsonl" in before and steps(place) == [2, 1]


def test_a_round_without_news_sends_nothing(run, place, upload):
    upload.round()
    place.sent.clear()
    place.written.clear()
    assert upload.round() and place.sent == place.written == []
    add_step(run, 3)
    assert upload.round() and steps(place) == [3, 2, 1]
    assert place.sent == [f"checkpoints/step_00000003/rank_0000{rank}.safetensors" for rank in (0, 1)]
    assert [name for name in place.written if "/" not in name] == ["metrics.jsonl"]


def test_what_was_cut_off_goes_on(run, place, upload, told):
    place.send_fails = "step_00000002/rank_00001.safetensors"
    with pytest.raises(StoreError, match="cut off"):
        upload.round()
    assert steps(place) == [] and "no manifest.json" in all_stored(place)[0].problem
    place.send_fails = None
    place.sent.clear()
    assert Upload(run, place, 0, told.append).round() and steps(place) == [2, 1]
    assert "checkpoints/step_00000002/rank_00000.safetensors" not in place.sent
    assert any(line.startswith("uploaded step_00000002: 1 files, 1 were there, 80,") for line in told)


def test_an_unfinished_checkpoint_of_another_training_is_not_mixed_in(run, place, upload, told, tmp_path):
    """All checkpoints of one model have files of the same sizes."""
    place.send_fails = "step_00000002/rank_00001.safetensors"
    with pytest.raises(StoreError):
        upload.round()
    shutil.rmtree(run / "checkpoints" / "step_00000002")
    add_step(run, 2, seed=7)
    place.send_fails = None
    assert Upload(run, place, 0, told.append).round() and steps(place) == [2, 1]
    store = tmp_path / "store" / "checkpoints" / "step_00000002"
    assert files(store) == files(run / "checkpoints" / "step_00000002")


def test_a_checkpoint_that_was_saved_anew_takes_the_place_of_the_old_one(run, place, upload, told, tmp_path):
    upload.round()
    shutil.rmtree(run / "checkpoints" / "step_00000002")
    add_step(run, 2, seed=7)
    assert upload.round()
    assert files(tmp_path / "store" / "checkpoints" / "step_00000002") == files(run / "checkpoints" / "step_00000002")


def test_a_damaged_one_does_not_count_and_the_others_do(run, place, upload, told):
    path = run / "checkpoints" / "step_00000002" / "rank_00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    for _ in range(2):
        assert not upload.round()
    assert steps(place) == [1]
    assert [line for line in told if "damaged" in line] == [
        f"warning: {path.parent} is damaged (the checksum of rank_00001.safetensors differs from the manifest's) and was not uploaded"
    ]
    path.unlink()
    assert not upload.round() and "(a file is missing)" in told[-1]


def test_one_that_the_training_removes_meanwhile_is_left(run, place, upload, told, monkeypatch):
    send = Watched.send

    def pruned(self, name, path, size):
        if "step_00000002" in name:
            shutil.rmtree(run / "checkpoints" / "step_00000002", ignore_errors=True)
        return send(self, name, path, size)

    monkeypatch.setattr(Watched, "send", pruned)
    assert upload.round() and steps(place) == [1] and not [line for line in told if "damaged" in line]


def test_another_run_is_not_written_over(run, place, upload, tmp_path, told):
    upload.round()
    other = made_run(tmp_path / "other", (9,), seed=1)
    with pytest.raises(FolderError, match=r"holds another run.*choose another --to"):
        Upload(other, place, 0, told.append).round()
    assert steps(place) == [2, 1]


def test_a_run_that_has_not_begun_to_tell_of_itself_writes_over_nothing(run, place, upload, tmp_path, told):
    upload.round()
    before = place.read("config.yaml", 1 << 20)
    other = made_run(tmp_path / "other", (9,), seed=1)
    (other / "config.yaml").write_text("name: other")
    (other / "events.jsonl").unlink()
    assert not Upload(other, place, 0, told.append).round() and "nothing is sent" in told[-1]
    assert place.read("config.yaml", 1 << 20) == before


def test_the_store_keeps_the_newest_and_the_best(tmp_path, place, told):
    run = made_run(tmp_path / "kept", (1, 2, 3, 4, 5), best=2)
    assert Upload(run, place, 2, told.append).round()
    assert steps(place) == [5, 4, 2] and not [name for name in place.sent if "step_00000003" in name]
    add_step(run, 6, best=2)
    assert Upload(run, place, 2, told.append).round()
    assert steps(place) == [6, 5, 2] and "checkpoints/step_00000004/rank_00000.safetensors" not in place.find()
    assert [(row["step"], row["best"]) for row in rows(place)] == [(6, False), (5, False), (2, True)]


def test_a_run_that_went_back_keeps_what_it_saves_now(tmp_path, place, told):
    """Steps 4 and 5 of the store are of the way that it left; of those since, two stay."""
    run = made_run(tmp_path / "back", (1, 4, 5))
    assert Upload(run, place, 3, told.append).round()
    for step in (4, 5):
        shutil.rmtree(run / "checkpoints" / f"step_{step:08d}")
    for step in (2, 3):
        add_step(run, step, seed=1)
        assert Upload(run, place, 2, told.append).round()
    assert steps(place) == [5, 4, 3, 2]


def test_a_later_step_in_the_store_is_told(run, place, upload, told):
    upload.round()
    shutil.rmtree(run / "checkpoints" / "step_00000002")
    Upload(run, place, 0, told.append).round()
    assert f"holds step 2, and {run} ends at step 1" in "".join(told)


def test_a_run_that_was_tuned_tells_what_else_is_needed(run, place, upload, told, tmp_path):
    add_step(run, 3, base=Base("../../../base/checkpoints/step_00000001", "0" * 64, ("v",)))
    upload.round()
    assert f"upload the run of {tmp_path}/base/checkpoints/step_00000001 as well" in "".join(told)


def test_the_command_tells_what_is_wrong(run, tmp_path, capsys):
    for words, said in (
        (("--run", tmp_path / "none", "--to", "s3://bucket/x"), "is not the folder of a run"),
        (("--run", run, "--to", "https://example.org/x"), "is no store that one can write to"),
        (("--run", run, "--to", "s3://key:secret@bucket/x"), "a URL here has no user, password or query"),
        (("--run", run, "--to", "nosuch://bucket/x"), "unknown protocol nosuch://"),
        (("--run", run, "--to", "s3://a/b::file://c"), "chains of protocols"),
    ):
        assert command("upload", *words) == 2
        out = capsys.readouterr()
        assert said in out.err and "secret@" not in out.err and out.err.count("\n") == 1
    (tmp_path / "file").write_text("")
    assert command("upload", "--run", run, "--to", tmp_path / "file" / "x") == 1
    assert "NotADirectoryError" in capsys.readouterr().err
