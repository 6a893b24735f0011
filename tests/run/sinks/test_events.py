"""events.jsonl: appended to by every start, each line by itself."""

from __future__ import annotations

import datetime
import json

import pytest

from parallel.health.claim import FolderError
from run.sinks.events import Events


def test_events_of_several_starts_stand_one_after_another(tmp_path):
    Events(tmp_path).write("start", 0, "starts", ranks={"data": 2}, share=float("nan"))
    Events(tmp_path).write("resume", 7, "continues")
    first, second = map(json.loads, (tmp_path / "events.jsonl").read_text().splitlines())
    assert (first["kind"], first["step"], first["ranks"], first["share"]) == ("start", 0, {"data": 2}, None)
    assert (second["kind"], second["step"], second["text"]) == ("resume", 7, "continues")
    assert datetime.datetime.fromisoformat(second["time"]).utcoffset() == datetime.timedelta(0)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "events.jsonl").mkdir()
    with pytest.raises(FolderError, match=r"events\.jsonl"):
        Events(tmp_path).write("start", 0, "starts")
