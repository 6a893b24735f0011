"""wandb beside a training: its steps, its identity, and that it never waits, asks or stops anything."""

from __future__ import annotations

import json
import os
import pty
import shutil
import socket
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from types import SimpleNamespace

import pytest

from run.config_file import load_config
from run.sinks.guarded import Guarded
from run.sinks.tracking import Wandb, answers, by_names, run_id, wanted_mode
from tests.helpers.places import ROOT


class Broken:
    def __init__(self):
        self.config = SimpleNamespace(update=lambda config, allow_val_change: self.configured.append(config))
        self.configured: list[dict] = []

    def log(self, record, step):
        raise ConnectionResetError("its helper is gone")

    def finish(self):
        raise ConnectionResetError("its helper is gone")

    def define_metric(self, *names, **options): ...


@pytest.mark.parametrize("breaks", ["start", "write", "close"])
def test_wandb_never_stops_the_training(breaks, config, tmp_path, monkeypatch, capsys):
    import wandb

    def init(**options):
        if breaks == "start":
            raise wandb.UsageError("no key\nmore of it")
        return Broken()

    monkeypatch.setattr(wandb, "init", init)
    run = load_config(config, ["tracking.wandb=offline"])
    sink = Guarded("wandb", lambda: Wandb(run, tmp_path))
    if breaks == "write":
        sink.write({"step": 1})
    sink.close()
    sink.close()
    said = capsys.readouterr().err
    assert said.count("warning: no wandb from here on (") == 1 and "more of it" not in said


@pytest.mark.parametrize(
    ("configured", "environment", "mode"),
    [
        ("offline", {}, "offline"),
        ("online", {"WANDB_MODE": "offline"}, "offline"),
        ("offline", {"WANDB_MODE": "online"}, "online"),
        ("online", {"WANDB_MODE": "dryrun"}, "offline"),
        ("offline", {"WANDB_MODE": "disabled"}, "disabled"),
        ("disabled", {"WANDB_MODE": "offline"}, "offline"),
        ("online", {"WANDB_DISABLED": "true"}, "disabled"),
        ("online", {"WANDB_DISABLED": "1", "WANDB_MODE": "online"}, "disabled"),
        ("online", {"WANDB_DISABLED": "false"}, "online"),
        ("online", {"WANDB_DISABLED": ""}, "online"),
    ],
)
def test_the_environment_wins(configured, environment, mode):
    assert wanted_mode(configured, environment) == mode


@pytest.fixture
def asked(config, tmp_path, monkeypatch):
    """What wandb.init would be asked for, without what the machine's environment says."""
    import wandb

    for name in [name for name in os.environ if name.startswith("WANDB_") and name != "WANDB_SILENT"]:
        monkeypatch.delenv(name)
    calls: list[dict] = []
    monkeypatch.setattr(wandb, "init", lambda **options: calls.append(options) or Broken())

    def start(*overrides: str) -> list[dict]:
        Wandb(load_config(config, [*overrides]), tmp_path)
        return calls

    return start


def test_project_name_and_id_of_the_environment_win(asked, monkeypatch):
    (plain,) = asked("tracking.wandb=offline")
    assert (plain["project"], plain["name"], plain["mode"]) == ("sparse-generalists", "tiny", "offline")
    for name in ("PROJECT", "NAME", "DIR"):
        monkeypatch.setenv(f"WANDB_{name}", "mine")
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    _, other = asked("tracking.wandb=offline")
    assert (other["project"], other["name"], other["dir"], other["id"]) == (None, None, None, "abc")


def test_tags_and_group_of_the_environment_win(asked, monkeypatch):
    options = ("tracking.wandb=offline", "tracking.tags=[tiny, ablation]", "tracking.group=routers")
    plain, none = (asked(*some)[-1] for some in (options, options[:1]))
    assert (plain["tags"], plain["group"]) == (("tiny", "ablation"), "routers")
    assert (none["tags"], none["group"]) == (None, None)
    monkeypatch.setenv("WANDB_TAGS", "mine")
    monkeypatch.setenv("WANDB_RUN_GROUP", "ours")
    other = asked(*options)[-1]
    assert (other["tags"], other["group"]) == (None, None)


def test_named_elements_become_keys():
    tree = {
        "tasks": ({"name": "a", "size": 4, "of": [{"name": "b", "x": 1}]},),
        "shape": (1, 2),
        "none": (),
        "pairs": [{"x": 1}],
    }
    assert by_names(tree) == {
        "tasks": {"a": {"size": 4, "of": {"b": {"x": 1}}}}, "shape": [1, 2], "none": [], "pairs": [{"x": 1}]
    }  # fmt: skip


ONLINE = """
import sys
import time
from pathlib import Path
from run.config_file import load_config
from run.sinks.tracking import Wandb
start = time.monotonic()
sink = Wandb(load_config(sys.argv[1], ["tracking.wandb=online"]), Path(sys.argv[2]))
took = time.monotonic() - start
sink.write({"step": 7, "lr": 0.1})
sink.close()
print(f"went on after {took:.0f} s")
"""


@pytest.fixture
def silent():
    """The address of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_without_an_answer_it_is_offline_soon(asked, silent, monkeypatch, capsys):
    import wandb

    monkeypatch.setattr(wandb, "setup", lambda settings: SimpleNamespace(settings=SimpleNamespace(base_url=silent)))
    monkeypatch.setattr("run.sinks.tracking.ANSWER_S", 0.5)
    start = time.monotonic()
    (call,) = asked("tracking.wandb=online")
    assert call["mode"] == "offline" and time.monotonic() - start < 5
    assert f"wandb is offline: {silent} does not answer; send it later with `wandb sync" in capsys.readouterr().err


@pytest.mark.slow
def test_the_real_wandb_without_an_answer_is_offline_within_20_s(config, tmp_path, silent):
    (tmp_path / "run").mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_") and "proxy" not in k.lower()}
    done = subprocess.run(
        [sys.executable, "-c", ONLINE, str(config), str(tmp_path / "run")],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=True,
        env=environment | {"HOME": str(tmp_path), "WANDB_API_KEY": "x" * 40, "WANDB_BASE_URL": silent},
    )  # fmt: skip
    assert "wandb is offline" in done.stderr
    assert int(done.stdout.split()[-2]) <= 20, done.stdout
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))


def test_a_server_that_answers_with_an_error_answers(tmp_path):
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)  # 501 to everything
    Thread(target=server.handle_request, daemon=True).start()
    assert answers(f"http://127.0.0.1:{server.server_port}")
    server.server_close()
    assert not answers(f"http://127.0.0.1:{server.server_port}")


def test_without_a_key_on_a_terminal_it_does_not_ask(config, tmp_path):
    """A real terminal, the real wandb, and a server that answers."""
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "run").mkdir()
    ours, theirs = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_") and k != "NETRC"}
    environment |= {"HOME": str(tmp_path), "WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}"}
    process = subprocess.Popen(
        [sys.executable, "-c", ONLINE, str(config), str(tmp_path / "run")],
        cwd=ROOT, env=environment, stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    assert process.wait(timeout=60) == 0
    said = os.read(ours, 100_000).decode()
    assert "wandb is offline: there is no key; set WANDB_API_KEY" in said and "went on" in said
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))


def test_a_folder_keeps_its_run_where_it_is_moved_to_and_a_copy_gets_its_own(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    first = run_id(tmp_path / "a")
    assert run_id(tmp_path / "a") == first
    (tmp_path / "a").rename(tmp_path / "b")
    assert run_id(tmp_path / "b") == first and not capsys.readouterr().err
    shutil.copytree(tmp_path / "b", tmp_path / "c")
    copy = run_id(tmp_path / "c")
    assert copy != first and "is a copy: it becomes another run in wandb" in capsys.readouterr().err
    assert (run_id(tmp_path / "b"), run_id(tmp_path / "c")) == (first, copy)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"id": "x"}', "\x00"])
def test_an_identity_that_says_nothing_is_replaced(content, tmp_path):
    (tmp_path / "wandb_run.json").write_text(content)
    assert len(run_id(tmp_path)) == 8
    assert json.loads((tmp_path / "wandb_run.json").read_text())["where"]["folder"] == str(tmp_path)
