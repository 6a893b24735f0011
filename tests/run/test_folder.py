"""What a run's folder keeps of its data sets."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from data.shards import DatasetInfo, write_info
from run.errors import ConfigError
from run.folder import DATA_SETS, infos_of, write_data_sets


def test_data_sets_that_are_elsewhere_are_known_by_what_the_run_kept(tmp_path):
    clips = DatasetInfo(kind="video_class", classes=("run", "jump"), token_ids=(), splits={})
    (tmp_path / "here").mkdir()
    write_info(tmp_path / "here", DatasetInfo(kind="image_class", classes=("cat", "dog"), token_ids=(1,), splits={}))
    tasks = [
        SimpleNamespace(name=name, path=str(path))
        for name, path in (("clips", "s3://bucket/clips"), ("images", tmp_path / "here"), ("gone", tmp_path / "gone"))
    ]
    run = SimpleNamespace(data=SimpleNamespace(tasks=tasks))
    assert infos_of(tmp_path, run).keys() == {"images"}  # a run of before
    write_data_sets(tmp_path, {"clips": clips, "images": clips})
    found = infos_of(tmp_path, run)
    assert found["clips"] == clips and found["images"].classes == ("cat", "dog") and found.keys() == {"clips", "images"}
    (tmp_path / DATA_SETS).write_text('{"clips": {"kind": "music"}}', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"data_sets.json is damaged .*: copy it from a backup, or remove it"):
        infos_of(tmp_path, run)
