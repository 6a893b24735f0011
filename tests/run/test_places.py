"""A place is not what a thing is."""

from __future__ import annotations

import pytest

from run.config_file import load_config
from run.errors import ConfigError
from run.places import with_absolute
from tests.helpers.places import ROOT

DEMO = ROOT / "configs" / "demo.yaml"
PLACES = [
    "runs=~/runs",
    "init=~/old",
    "parallel.deepspeed=~/engine.json",
    "data.cache_dir=~/cache",
    "data.tasks.shapes.path=~/data",
    "data.tasks.shapes.shards=[~/a.tar, '@~/list', 'https://host/~me/b.tar']",
]


def test_the_home_folder_in_every_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    run = load_config(DEMO, PLACES)
    task = run.data.tasks[0]
    assert (run.runs, run.init, run.parallel.deepspeed) == ("/home/me/runs", "/home/me/old", "/home/me/engine.json")
    assert (run.data.cache_dir, task.path) == ("/home/me/cache", "/home/me/data")
    assert task.shards == ("/home/me/a.tar", "@/home/me/list", "https://host/~me/b.tar")


def test_without_a_home_a_path_that_needs_it_is_one_line(monkeypatch):
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/tmp")
    for override in (*PLACES[:3], PLACES[4]):
        with pytest.raises(ConfigError, match="~ means nothing here, as HOME is not set: write the whole path"):
            load_config(DEMO, [override])
    assert load_config(DEMO).data.cache_dir == "/tmp/.cache/sparse-generalists"


def test_what_a_run_folder_says_holds_in_another_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = with_absolute(
        load_config(DEMO, ["runs=out", "data.tasks.shapes.path=some/data", "data.tasks.clips.path=s3://b/c"])
    )
    assert (run.runs, run.init) == (str(tmp_path / "out"), "")
    assert run.data.tasks[0].path == str(tmp_path / "some" / "data") and run.data.tasks[1].path == "s3://b/c"
    assert run.parallel.deepspeed == load_config(DEMO).parallel.deepspeed  # a name, not a path
