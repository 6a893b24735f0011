"""Files that take their name once they are whole."""

from __future__ import annotations

import os
import stat

import pytest

from data.shards.files import check_replaceable, replacing


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a"
    with replacing(path) as file:
        file.write(b"one")
        assert not path.exists()
    with pytest.raises(KeyError), replacing(path) as file:
        file.write(b"two")
        raise KeyError
    assert path.read_bytes() == b"one" and os.listdir(tmp_path) == ["a"]


def test_what_is_no_plain_file_stays(tmp_path):
    """Root may replace a device, and then nothing of the machine that writes there works any more."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(OSError, match="is no plain file"), replacing(tmp_path / name):
            pass
    assert stat.S_ISFIFO(os.stat(tmp_path / "link").st_mode) and sorted(os.listdir(tmp_path)) == ["link", "pipe"]


@pytest.mark.parametrize("place", ["/dev/null", "/dev/stdout", "/dev/fd/1", "/dev/new", "/proc/self/fd/1"])
def test_devices_and_streams_are_no_plain_files(place, tmp_path):
    """A stream may lead to a plain file, and its name is still none."""
    with pytest.raises(OSError, match="is no plain file"):
        check_replaceable(tmp_path / place)
