"""The command: where the page goes, and how it follows a run."""

from __future__ import annotations

import json
import os
import shutil
import threading

import pytest

from analysis.report import __main__ as report
from run.errors import EXIT_USER


def test_the_page_lies_in_the_folder_of_the_first_run(made, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(made["dense"], folder)
    assert report.main(["--run", str(folder), "--run", str(made["sparse"])]) == 0
    path = folder / "analysis" / "report.html"
    assert capsys.readouterr().out.strip() == str(path) and "<title>run and sparse</title>" in path.read_text()


def test_mistakes_are_told_in_a_line(made, tmp_path, capsys):
    assert report.main(["--run", str(tmp_path)]) == EXIT_USER
    assert "is not the folder of a run" in capsys.readouterr().err
    assert report.main(["--run", str(made["dense"]), "--out", str(tmp_path / "none" / "a.html")]) == EXIT_USER
    assert "No such file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        report.main(["--run", str(made["dense"]), "--follow", "0"])


def test_a_pipe_gets_the_page_and_stays(made, tmp_path):
    pipe, read = tmp_path / "pipe", list[str]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text(encoding="utf-8")), daemon=True)
    reader.start()
    assert report.main(["--run", str(made["dense"]), "--out", str(pipe)]) == 0
    reader.join(30)
    assert read[0].rstrip().endswith("</html>") and pipe.is_fifo()


def test_a_run_is_followed_to_its_end(made, tmp_path, monkeypatch):
    folder, out = tmp_path / "run", tmp_path / "a.html"
    shutil.copytree(made["dense"], folder)
    events = (folder / "events.jsonl").read_text().splitlines(keepends=True)
    (folder / "events.jsonl").write_text("".join(events[:-1]))
    waited = []

    def wait(seconds: float) -> None:
        assert '"follow":7' in out.read_text()
        waited.append(seconds)
        if len(waited) == 2:
            (folder / "events.jsonl").write_text("".join(events))

    monkeypatch.setattr(report.time, "sleep", wait)
    assert report.main(["--run", str(folder), "--follow", "7", "--out", str(out)]) == 0
    assert waited == [7, 7] and '"follow":0' in out.read_text()


def test_following_ends_with_a_page_that_stands_still(made, tmp_path, monkeypatch):
    folder, out = tmp_path / "run", tmp_path / "a.html"
    shutil.copytree(made["dense"], folder)
    (folder / "events.jsonl").write_text(json.dumps({"step": 0, "kind": "start", "text": "starts"}) + "\n")

    def stop(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(report.time, "sleep", stop)
    assert report.main(["--run", str(folder), "--follow", "--out", str(out)]) == 0
    assert '"follow":0' in out.read_text()
