"""What a machine does after a start, by what it and others know of it."""

from __future__ import annotations

import json
import os
import threading
import time

import pytest

from clusters.supervise import machine
from clusters.supervise.machine import AGAIN, NO_MORE, PUBLISHED, Stopping, _heard, _state, _tell
from clusters.supervise.policy import Decision, State
from clusters.supervise.several import CODE

START = "10.0.0.1:29400"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(machine, "HEAR_S", 0.3)


@pytest.mark.parametrize(
    ("code", "stopped", "published", "ends", "known"),
    [
        (0, False, None, NO_MORE, 0),
        (2, False, None, NO_MORE, 2),
        (85, True, None, NO_MORE, 85),
        (85, False, None, AGAIN, None),  # a machine comes or goes
        (85, False, 85, NO_MORE, 85),  # another machine's supervisor was signalled
        (None, False, None, AGAIN, None),  # a failure
        (None, False, 2, NO_MORE, 2),  # which another machine knows to be one of the configuration
    ],
)
def test_how_a_machine_ends(code, stopped, published, ends, known, tmp_path):
    path = tmp_path / PUBLISHED
    if published is not None:
        path.write_text(json.dumps({"start": START, "code": published}))
    state = State(ranks=4, step=10, failures=2)
    assert _tell(Decision(state, code, ""), tmp_path, path, START, stopped) == ends
    assert (json.loads((tmp_path / CODE).read_text()) if (tmp_path / CODE).exists() else None) == known
    if ends == AGAIN:
        assert _state(tmp_path, 3, 0) == State(ranks=3, step=10, failures=2)
    elif published is None:
        assert json.loads(path.read_text()) == {"start": START, "code": code}


def test_what_was_published_of_another_start_counts_for_nothing(tmp_path):
    path = tmp_path / PUBLISHED
    for text in ('{"start": "10.0.0.1:1", "code": 0}', "[]", "{", '{"start": "10.0.0.1:29400"}'):
        path.write_text(text)
        assert _heard(path, START, None, 0.2) is None


def test_one_that_waits_goes_by_signs_of_life_and_stops_when_asked(tmp_path, monkeypatch):
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    waiting, begun = Stopping(), time.monotonic()

    def touch() -> None:
        for beat in range(6):
            (tmp_path / "in_use.json").touch()
            os.utime(tmp_path / "in_use.json", (beat, beat))
            time.sleep(0.3)

    thread = threading.Thread(target=touch)
    thread.start()
    assert _heard(tmp_path / PUBLISHED, START, waiting, 1.0) is None
    assert time.monotonic() - begun > 2.0  # 1.5 s of signs and 1 s of patience
    thread.join()
    waiting.requested, begun = True, time.monotonic()
    assert _heard(tmp_path / PUBLISHED, START, waiting, 60.0) is None and time.monotonic() - begun < 5


def test_notes_that_say_nothing_are_a_new_beginning(tmp_path):
    (tmp_path / "state.json").write_text('{"rank')
    assert _state(tmp_path, 2, 7) == State(ranks=2, step=7)
