"""How a run is asked to stop."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from parallel.health import stop_signal
from parallel.health.stop_signal import SIGNALS, StopSignal
from tests.helpers.places import ROOT


@pytest.fixture
def handlers():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:  # whoever started the tests may have had them ignored
        signal.signal(number, signal.SIG_DFL)
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_asks(number, handlers):
    stop = StopSignal()
    assert not stop.requested
    signal.raise_signal(number)
    assert stop.requested


def test_what_was_ignored_stays_so(handlers):
    """nohup says by it that the terminal may go."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = StopSignal()
    signal.raise_signal(signal.SIGHUP)
    assert not stop.requested


def test_an_echo_is_no_second_signal(handlers):
    """The deepspeed launcher passes on what the whole process group has got; were it a second one, nothing would be saved."""
    stop = StopSignal()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
        signal.raise_signal(number)
    assert stop.requested  # and this process is still there


def test_what_comes_after_the_save_changes_nothing():
    code = (
        "import signal, sys, time; from parallel.health.stop_signal import StopSignal\n"
        "StopSignal().leave(); print('ready', flush=True); time.sleep(1); sys.exit(85)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=20) == 85


def test_a_second_one_later_ends_at_once(monkeypatch):
    code = (
        "import signal, sys, time; from parallel.health import stop_signal; stop_signal.ECHO_S = 0.2\n"
        "stop_signal.StopSignal(); print('ready', flush=True)\nwhile True: time.sleep(0.05)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == -signal.SIGTERM
    assert stop_signal.ECHO_S == 5.0
