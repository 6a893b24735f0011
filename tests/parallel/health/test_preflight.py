"""Locks of builds that were killed, and numbers that a processor does not have."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from parallel.health.preflight import BUILD_S, BUILT_AT_START, is_stale
from tests.helpers.runs import ROOT, environment


def test_a_planted_lock_is_named_at_once(config: Path, tmp_path):
    """As on a machine where DeepSpeed came without the op; without the check this start would wait for ever."""
    lock = tmp_path / BUILT_AT_START / "lock"
    lock.parent.mkdir()
    lock.touch()
    code = (
        "import sys; sys.modules['deepspeed.git_version_info_installed'] = None\n"
        f"import train; sys.exit(train.main(['--config', {str(config)!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment() | {"TORCH_EXTENSIONS_DIR": str(tmp_path)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and f"rm {lock}" in errors[0] and "Traceback" not in done.stderr


def test_a_lock_counts_as_stale_when_nobody_holds_it(tmp_path, monkeypatch):
    lock = tmp_path / "lock"
    assert not is_stale(lock)
    descriptor = os.open(lock, os.O_CREAT | os.O_EXCL)  # as torch's builder takes it
    assert not is_stale(lock)
    os.close(descriptor)
    assert is_stale(lock)

    monkeypatch.setattr("parallel.health.preflight.LOCAL_FILE_SYSTEMS", set())  # the builder may be on another machine
    assert not is_stale(lock)
    os.utime(lock, (time.time() - 2 * BUILD_S,) * 2)
    assert is_stale(lock)
