"""Every moment belongs to one phase, by the host's clock and by the events of a device."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import run.metrics.phases
from run.metrics.phases import PHASES, DeviceClock, Phases


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(value=100.0)
    monkeypatch.setattr(run.metrics.phases.time, "perf_counter", lambda: now.value)
    return now


def lasting(phase: Phases, clock: SimpleNamespace, *phases: tuple[str, float]) -> None:
    for name, seconds in phases:
        phase(name)
        clock.value += seconds


def test_phases_add_up_over_steps_and_start_anew(clock):
    phase = Phases("cpu")
    clock.value += 0.5  # before the first word: report
    lasting(phase, clock, ("data", 1.0), ("forward", 2.0), ("data", 0.25), ("forward", 4.0), ("save", 0.125))
    assert phase.taken() == dict.fromkeys(PHASES, 0.0) | {"report": 0.5, "data": 1.25, "forward": 6.0, "save": 0.125}
    clock.value += 3.0  # it goes on
    lasting(phase, clock, ("end", 7.0))  # no phase of a step
    assert phase.taken() == dict.fromkeys(PHASES, 0.0) | {"save": 3.0, "report": 7.0}


def test_what_listeners_do_belongs_to_the_phase_before(clock):
    heard = []

    def slow(name: str, step: int | None) -> None:
        heard.append((name, step))
        clock.value += 1.0

    phase = Phases("cpu", [slow])
    phase("data", 5)
    phase("forward")
    assert heard == [("data", 5), ("forward", None)]
    assert phase.taken() == dict.fromkeys(PHASES, 0.0) | {"report": 1.0, "data": 1.0}


class Device:
    """Its stream reaches the n-th event at the n-th time (ms), and `now` is how far it has come."""

    def __init__(self, times: list[float]) -> None:
        self.times, self.now, self.alive = iter(times), 0.0, 0

    def event(self, enable_timing: bool) -> SimpleNamespace:
        assert enable_timing
        made = SimpleNamespace(at=next(self.times), record=lambda: None)
        made.query = lambda: made.at <= self.now
        made.synchronize = lambda: setattr(self, "now", max(self.now, made.at))
        made.elapsed_time = lambda other: other.at - made.at
        return made


def test_a_device_has_phases_of_its_own_and_is_waited_for_once(monkeypatch):
    device = Device([0.0, 1.0, 3.0, 6.0, 10.0, 30.0, 31.0])
    monkeypatch.setattr(torch.cuda, "Event", device.event)
    clock = DeviceClock()
    for name in ("data", "forward", "backward"):
        clock.mark(name)
    assert device.now == 0.0 and len(clock._marks) == 4  # none is reached yet
    device.now = 3.5
    clock.mark("save")  # what is reached is read, and the event at 3 ms waits for the next one
    assert len(clock._marks) == 3
    taken = clock.taken()
    assert device.now == 30.0
    seconds = {"report": 0.001, "data": 0.002, "forward": 0.003, "backward": 0.004, "save": 0.02}
    assert taken == pytest.approx(dict.fromkeys(PHASES, 0.0) | seconds)
    assert clock.taken() == pytest.approx(dict.fromkeys(PHASES, 0.0) | {"save": 0.001})


@pytest.mark.gpu
def test_a_device_measures_its_own_time():
    """What the host asked for at once lasts in the phase that it was asked in."""
    x = torch.ones(4096, 4096, device="cuda")
    phase = Phases("cuda")
    phase("forward")
    phase("backward")
    for _ in range(20):
        x @ x
    phase("step")
    taken = phase.taken()
    assert taken["backward"] > 10 * taken["forward"] >= 0 and taken["backward"] > 10 * taken["step"], taken
