"""Ranks that exchange, and ranks that cannot; the processes are real."""

from __future__ import annotations

import json
import socket
import sys
import time

import psutil
import pytest

from clusters.doctor.exchanges import LARGE, exchanges_between, exchanges_here, judged, variables
from tests.helpers.limits import within

EXCHANGES = [
    {"operation": "all-reduce", "num_bytes": 4096, "seconds": 0.0005, "sent_bytes": 4096},
    {"operation": "all-to-all", "num_bytes": LARGE, "seconds": 0.5, "sent_bytes": LARGE // 2},
]


def says(text: str, code: int = 0, wait_s: float = 0.0) -> list[str]:
    program = (
        f"import sys, time; time.sleep({wait_s}); print({text!r}); print({text!r}, file=sys.stderr); sys.exit({code})"
    )
    return [sys.executable, "-S", "-c", program]


def test_figures_are_judged_by_the_large_message():
    small, large = judged("exchange", [says(json.dumps(EXCHANGES)), says("")], 20.0, slow_gb_per_s=0.1)
    assert small.line() == "ok      exchange all-reduce: 4 KiB in 0.50 ms between 2 ranks"
    # 33,554,432 bytes leave in 0.5 s: 0.067 GB/s
    assert large.line().startswith(
        "warning exchange all-to-all: 64 MiB in 500.00 ms between 2 ranks, 0.07 GB/s (needed: 0.1 GB/s)"
    )
    assert judged("exchange", [says(json.dumps(EXCHANGES))], 20.0, 0.05)[1].verdict == "ok"


def test_a_rank_that_ends_early_is_named_and_the_others_are_not_waited_for(monkeypatch):
    monkeypatch.setattr("clusters.doctor.exchanges.SETTLE_S", 0.2)
    begin = time.monotonic()
    found = judged("exchange", [says("", wait_s=60.0), says("rank 1: no interface eth9", 1)], 50.0, 0.1)
    assert time.monotonic() - begin < 20
    assert found[0].verdict == "FAILED" and found[0].found == "rank 1: no interface eth9" and found[0].remedy
    assert not [child for child in psutil.Process().children() if "time.sleep" in " ".join(child.cmdline())]


@pytest.mark.parametrize("text", ["", "welcome", "[{}]", '[{"operation": 1}]'])
def test_an_answer_that_is_none(text):
    assert judged("exchange", [says(text)], 20.0, 0.1)[0].found.startswith("the first rank answered")


def test_ranks_that_never_end():
    with within(20):
        assert judged("exchange", [says("", wait_s=60.0)], 0.5, 0.1)[0].found == "ranks did not end within 0.5 s"


def test_one_rank_has_nobody_to_talk_to():
    assert [finding.verdict for finding in exchanges_here(1, 10.0)] == ["ok"]
    assert exchanges_between(["a"], ["ssh"], 29500, 10.0, {}) == []


def test_a_rank_is_told_where_to_meet():
    told = variables(1, 2, 0, "gpu1", 29500)
    assert told == {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "gpu1", "MASTER_PORT": "29500"}


@pytest.mark.slow
def test_ranks_on_two_machines(tmp_path):
    """Real ranks behind an ssh that starts them here."""
    ssh = tmp_path / "remote"
    ssh.write_text('#!/bin/sh\nshift\nexec sh -c "$*"\n')
    ssh.chmod(0o700)
    with socket.create_server(("", 0)) as opened:
        port = opened.getsockname()[1]
    found = exchanges_between(
        ["127.0.0.1", "localhost"], [str(ssh)], port, 120.0, {"GLOO_SOCKET_IFNAME": "lo"}, [4096, 1 << 20]
    )
    assert [finding.verdict for finding in found] == ["ok"] * 4, found
    missing = exchanges_between(
        ["127.0.0.1", "localhost"], [str(ssh)], port, 120.0, {"GLOO_SOCKET_IFNAME": "eth99"}, [4096]
    )
    assert (
        missing[0].verdict == "FAILED"
        and "GLOO_SOCKET_IFNAME=eth99: no network interface eth99 is up" in missing[0].found
    )
