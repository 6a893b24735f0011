"""Two programs do not write into one data set folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from data.shards import DatasetError
from data.shards.files import clear_dataset
from data.shards.lock import LOCK_FILE, only_writer
from tests.helpers.places import ROOT

HOLD = """
import sys, time
from pathlib import Path
from data.shards.lock import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_second_is_told_who_is_first_and_the_third_may_after_a_kill(tmp_path):
    folder = tmp_path / "set"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        told = rf"set is being written by process {first.pid} on .*wait for it"
        with pytest.raises(DatasetError, match=told), only_writer(folder):
            raise AssertionError
        first.send_signal(signal.SIGKILL)
    assert (folder / LOCK_FILE).exists()
    with only_writer(folder):
        clear_dataset(folder)  # leaves the lock alone
        assert str(os.getpid()) in (folder / LOCK_FILE).read_text()
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DatasetError, match="file/set cannot be written: Not a directory"),
        only_writer(tmp_path / "file" / "set"),
    ):
        raise AssertionError
