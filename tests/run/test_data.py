"""What of a run's data must fit its network."""

from __future__ import annotations

import dataclasses

import pytest

from data.shards import DatasetInfo, write_info
from run.config_file import load_config
from run.data import check_head, open_run_data
from run.errors import ConfigError


def test_a_linear_head_knows_its_classes_in_their_order(config, tmp_path):
    """Where the data that it was trained on is gone, their number."""
    run = load_config(config)
    shapes = dataclasses.replace(run.data.tasks[0], path=str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    write_info(tmp_path / "data", DatasetInfo(kind="image_class", classes=("cat", "dog"), token_ids=(0,), splits={}))
    head = dataclasses.replace(
        run,
        data=dataclasses.replace(run.data, tasks=(shapes,)),
        model=dataclasses.replace(run.model, head_classes=2),
    )
    said = "other: the linear head of tiny knows the 2 classes of task shapes alone, in their order"
    check_head(head, ["cat", "dog"], "other")
    check_head(run, ["cat"], "other")
    for classes in (["dog", "cat"], ["cat", "dog", "emu"], []):
        with pytest.raises(ConfigError, match=said):
            check_head(head, classes, "other")
    (tmp_path / "data" / "dataset.json").unlink()
    check_head(head, ["dog", "cat"], "other")
    with pytest.raises(ConfigError, match=said):
        check_head(head, ["cat", "dog", "emu"], "other")


def test_a_scale_that_only_the_data_tells_is_there_before_training(config):
    """Pictures are compared by `image`, clips by `video`; which of both a task has follows from its data set."""
    run = load_config(config, ["model.temperatures=[video, text, caption, retrieval]"])
    with pytest.raises(ConfigError, match="its logit scale 'image' is not among"):
        open_run_data(run)
