"""Two programs do not write into one data set folder."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from data.shards import DatasetError
from data.shards.lock import only_writer
from tests.helpers.places import ROOT

HOLD = """
import sys, time
from pathlib import Path
from data.shards.lock import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_second_is_refused_and_the_third_may_after_a_kill(tmp_path):
    folder = tmp_path / "set"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        with pytest.raises(DatasetError, match="set: another process is writing it: wait"), only_writer(folder):
            raise AssertionError
        first.send_signal(signal.SIGKILL)
    with only_writer(folder):
        pass


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DatasetError, match="file/set cannot be written: Not a directory"),
        only_writer(tmp_path / "file" / "set"),
    ):
        raise AssertionError
