"""From a folder as the store; tests/clusters/store/test_s3.py does the same with a server."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from clusters.store.download import download
from clusters.store.place import StoreError
from clusters.store.upload import Upload
from parallel.checkpoints import find_checkpoint, open_checkpoint
from parallel.health.claim import FolderClaim, FolderError
from run.errors import ConfigError
from tests.clusters.store.made import ELEMENTS, Watched, add_step, command, files, made_run


@pytest.fixture
def run(tmp_path) -> Path:
    return made_run(tmp_path / "run", (1, 2, 3), best=1)


@pytest.fixture
def place(tmp_path, run) -> Watched:
    place = Watched(str(tmp_path / "store"))
    assert Upload(run, place, 0, lambda line: None).round()
    return place


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def new(tmp_path) -> Path:
    return tmp_path / "elsewhere" / "new"


def stored(place: Watched, step: int, name: str) -> Path:
    return Path(place.url) / "checkpoints" / f"step_{step:08d}" / name


def flip(path: Path, at: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_the_newest_comes_with_the_files_of_the_run(run, place, new, told):
    assert download(place, new, "newest", told.append) == 3
    got = files(new)
    assert got.pop("checkpoints/latest") == b"step_00000003"
    here = files(run)
    assert got == {name: here[name] for name in got} and not (new / "in_use.json").exists()
    assert sorted(got) == [
        "checkpoints/step_00000003/manifest.json",
        "checkpoints/step_00000003/rank_00000.safetensors",
        "checkpoints/step_00000003/rank_00001.safetensors",
        "config.yaml",
        "evaluations/val.json",
        "events.jsonl",
        "metrics.jsonl",
    ]
    assert find_checkpoint(new / "checkpoints").step == 3
    (new / "metrics.jsonl").write_text("went on")
    assert download(place, new, "newest", told.append) == 3 and told[-1].endswith("is there already")
    assert (new / "metrics.jsonl").read_text() == "went on"


@pytest.mark.parametrize(("wanted", "step"), [("best", 1), (2, 2)])
def test_another_step(wanted, step, place, new, told):
    assert download(place, new, wanted, told.append) == step
    assert open_checkpoint(new / "checkpoints" / f"step_{step:08d}").step == step


def test_a_damaged_one_is_passed_over(place, new, told):
    flip(stored(place, 3, "rank_00001.safetensors"))
    assert download(place, new, "newest", told.append) == 2
    assert f"step 3 of {place.url} is damaged: the checksum of rank_00001.safetensors differs" in "".join(told)
    assert [folder.name for folder in (new / "checkpoints").glob("step_*")] == ["step_00000002"]
    with pytest.raises(StoreError, match=r"step 3 of .* is damaged"):
        download(place, new, 3, told.append)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda place: stored(place, 3, "manifest.json").unlink(), "no manifest.json: its upload has not ended"),
        (lambda place: stored(place, 3, "rank_00000.safetensors").unlink(), "rank_00000.safetensors is missing"),
        (
            lambda place: stored(place, 3, "rank_00000.safetensors").write_bytes(b"short"),
            "rank_00000.safetensors has 5 bytes, manifest.json says 80",
        ),
        (lambda place: stored(place, 3, "manifest.json").write_text("{}"), "manifest.json: cannot be read"),
        (
            lambda place: shutil.copy(stored(place, 2, "manifest.json"), stored(place, 3, "manifest.json")),
            "manifest.json is of step 2",
        ),
    ],
)
def test_an_incomplete_one_does_not_count(harm, said, place, new, told, capsys):
    harm(place)
    assert download(place, new, "newest", told.append) == 2
    assert len(told) == 2 and f"warning: step 3 of {place.url} does not count: {said}" in told[0]
    with pytest.raises(ConfigError, match=r"no complete checkpoint of step 3: .*; complete are 2, 1"):
        download(place, new, 3, told.append)
    assert command("list", "--from", place.url, "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["step"], row["complete"]) for row in rows] == [(3, False), (2, True), (1, True)]
    assert said in rows[0]["problem"]


def test_nothing_sound(place, new, told):
    for step in (1, 2, 3):
        flip(stored(place, step, "rank_00000.safetensors"))
    with pytest.raises(StoreError, match=r"step 1 of .* is damaged"):
        download(place, new, "newest", told.append)
    assert not list((new / "checkpoints").glob("step_*")) and not (new / "checkpoints" / "latest").exists()
    for step in (1, 2, 3):
        stored(place, step, "manifest.json").unlink()
    with pytest.raises(StoreError, match="holds no complete checkpoint"):
        download(place, new, "newest", told.append)
    with pytest.raises(ConfigError, match="holds no checkpoint: name the place of one run"):
        download(Watched(place.url + "/evaluations"), new, "newest", told.append)


def partial(new: Path, content: bytes) -> None:
    folder = new / "checkpoints" / ".partial_step_00000003"
    folder.mkdir(parents=True)
    (folder / "rank_00000.safetensors").write_bytes(content)


def test_what_was_cut_off_goes_on(place, new, told):
    whole = stored(place, 3, "rank_00000.safetensors").read_bytes()
    partial(new, whole[:50_000])
    assert download(place, new, "newest", told.append) == 3
    assert place.fetched["checkpoints/step_00000003/rank_00000.safetensors"] == len(whole) - 50_000
    assert place.fetched["checkpoints/step_00000003/rank_00001.safetensors"] == len(whole)


@pytest.mark.parametrize("length", [50_000, 2 * ELEMENTS + 80, 10**6])
def test_a_part_of_something_else_is_fetched_anew(length, place, new, told):
    partial(new, b"x" * length)
    assert download(place, new, "newest", told.append) == 3 and len(told) == 1
    assert open_checkpoint(new / "checkpoints" / "step_00000003").step == 3


def test_a_damaged_one_here_is_replaced(place, new, told):
    download(place, new, "newest", told.append)
    flip(new / "checkpoints" / "step_00000003" / "rank_00000.safetensors")
    download(place, new, "newest", told.append)
    assert open_checkpoint(new / "checkpoints" / "step_00000003").step == 3
    assert [path.name for path in (new / "checkpoints").iterdir()].count("step_00000003") == 1


def test_what_is_only_here_is_not_lost(run, place, new, told, tmp_path):
    other = made_run(tmp_path / "other", (1,), seed=1)
    before = files(other)
    with pytest.raises(FolderError, match="holds another run"):
        download(place, other, "newest", told.append)
    assert files(other) == before
    add_step(run, 4)
    before = files(run)
    with pytest.raises(FolderError, match="is at step 4 already, later than step 3"):
        download(place, run, "newest", told.append)
    assert files(run) == before
    claim = FolderClaim(new)
    with pytest.raises(FolderError, match="is in use by process"):
        download(place, new, "newest", told.append)
    claim.release()


def test_no_room(place, new, told, monkeypatch):
    usage = shutil.disk_usage(place.url)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(FolderError, match=r"has room for 1,000 bytes, and 160,.* are to come"):
        download(place, new, "newest", told.append)
    assert not new.exists()


def test_names_that_lead_elsewhere_stay_there(place, new, told, monkeypatch):
    """A store may hold any name; here it is said to."""
    find = Watched.find
    evil = {"../evil": 4, "a/../../evil": 4, "/evil": 4, ".bashrc": 4, "in_use.json": 4}
    monkeypatch.setattr(Watched, "find", lambda self, folder="": find(self, folder) | (evil if not folder else {}))
    assert download(place, new, "newest", told.append) == 3
    assert [path.name for path in new.parent.iterdir()] == ["new"] and not (new / ".bashrc").exists()
    assert "'../evil' of" in "".join(told) and "is no file of a run and stays there" in "".join(told)


def test_a_manifest_whose_files_lead_elsewhere_is_none(place, new, told):
    path = stored(place, 3, "manifest.json")
    path.write_text(path.read_text().replace("rank_00001.safetensors", "../../evil.safetensors"))
    assert download(place, new, "newest", told.append) == 2 and "leaves the folder" in told[0]


@pytest.mark.parametrize(("value", "warns"), [("true", True), ("on", True), ("false", False)])
def test_a_configuration_that_allows_commands_is_told(value, warns, place, new, told):
    (Path(place.url) / "config.yaml").write_text(f"data:\n  allow_pipe: {value}\n")
    download(place, new, "newest", told.append)
    assert any("config.yaml allows commands (data.allow_pipe)" in line for line in told) == warns


def test_a_link_in_the_folder_leads_nothing_elsewhere(place, new, told, tmp_path):
    (tmp_path / "target").mkdir()
    new.mkdir(parents=True)
    (new / "evaluations").symlink_to(tmp_path / "target")
    with pytest.raises(FolderError, match="evaluations is a link"):
        download(place, new, "newest", told.append)
    assert not list((tmp_path / "target").iterdir())


def test_the_command_tells_what_there_is(place, new, capsys):
    assert command("list", "--from", place.url) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"{3:>10}  {stored_bytes(place, 3):>16,}  {3:>5}  complete",
        f"{2:>10}  {stored_bytes(place, 2):>16,}  {3:>5}  complete",
        f"{1:>10}  {stored_bytes(place, 1):>16,}  {3:>5}  complete, best",
    ]
    assert command("download", "--from", place.url, "--run", new, "--step", 7) == 2
    assert "no complete checkpoint of step 7; complete are 3, 2, 1" in capsys.readouterr().err


def stored_bytes(place: Watched, step: int) -> int:
    return sum(path.stat().st_size for path in stored(place, step, "manifest.json").parent.iterdir())
