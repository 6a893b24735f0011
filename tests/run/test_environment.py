"""What is noted of a start, and that nothing secret is in it."""

from __future__ import annotations

import subprocess
import sys

from parallel.config import ParallelConfig
from run.environment import environment, git_state, shown_word, versions


def test_urls_lose_what_is_secret():
    assert shown_word("--config=configs/demo.yaml") == "--config=configs/demo.yaml"
    shown = shown_word("data.tasks.a.shards=[https://me:secret@host/x?token=secret, s3://k:secret@b/c.tar]")
    assert "secret" not in shown and "host/x" in shown and shown.startswith("data.tasks.a.shards=[")
    assert shown_word("x=[https://u:secret@h/y, pipe:curl -H secret z]").endswith("pipe:...")


def test_the_state_of_the_code(tmp_path):
    assert git_state(tmp_path) is None
    for words in (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=b", "commit", "-q", "--allow-empty", "-m", "c"],
    ):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    state = git_state(tmp_path)
    assert state is not None and len(state["commit"]) == 40 and not state["changed"]
    (tmp_path / "file").write_text("a")
    subprocess.run(["git", "-C", str(tmp_path), "add", "file"], check=True)
    assert git_state(tmp_path)["changed"]


def test_a_start_says_command_versions_and_hardware(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["/usr/bin/python3", "train.py", "runs=https://me:secret@h/x"])
    found = environment(ParallelConfig())
    assert found["command"].startswith("python3 train.py 'runs=https://") and "secret" not in found["command"]
    assert found["versions"]["torch"] and found["ranks"] == {"data": 1, "tensor": 1, "expert": 1}
    assert found["hardware"]["cores"] >= 1 and found["hardware"]["memory_gib"] > 0
    assert versions(("torch", "no-such-package")).keys() == {"torch"}
