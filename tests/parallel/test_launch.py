"""What launchers say, what is left over of them, and ports that are taken."""

from __future__ import annotations

import socket
import tempfile
import threading
import time

import pytest

from clusters.ranks import free_port
from parallel.launch import (
    PreflightError,
    await_first_rank,
    check_interfaces,
    check_launch,
    check_port,
    is_first_on_machine,
    missing_interfaces,
    unreachable,
)
from run.errors import EXIT_FAILURE, exit_code, is_told_here

NAMES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "SLURM_PROCID",
    "TORCHELASTIC_USE_AGENT_STORE",
)
TWO = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}


@pytest.fixture
def launched(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)

    def set_all(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_all


@pytest.mark.parametrize(
    "variables", [{}, {"RANK": "", "WORLD_SIZE": ""}, {"RANK": "0", "WORLD_SIZE": "1"}, {**TWO, "MASTER_PORT": "29501"}]
)
def test_a_start_passes(variables, launched):
    launched(**variables)
    check_launch()


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"RANK": "1"}, "RANK=1 is not below WORLD_SIZE=1"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 is not below WORLD_SIZE=2"),
        ({"WORLD_SIZE": "0"}, "RANK=0 is not below WORLD_SIZE=0"),
        ({"RANK": "one"}, "RANK=one is no number"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE=-1 is no number"),
        ({"LOCAL_RANK": "1.0"}, "LOCAL_RANK=1.0 is no number"),
        ({**TWO, "MASTER_PORT": "http"}, "MASTER_PORT=http is no number"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "WORLD_SIZE=2, but no MASTER_ADDR and MASTER_PORT to meet at"),
        (TWO, "WORLD_SIZE=2, but no MASTER_ADDR and MASTER_PORT to meet at"),
    ],
)
def test_what_is_left_over_of_another_start_is_named(variables, said, launched):
    launched(**variables)
    with pytest.raises(PreflightError) as caught:
        check_launch()
    assert str(caught.value).startswith(said) and "unset RANK WORLD_SIZE" in str(caught.value)


def test_a_folder_of_temporary_files_that_is_too_long_for_sockets(launched, monkeypatch):
    for length, passes in ((75, True), (76, False)):
        monkeypatch.setattr(tempfile, "tempdir", "/" + "t" * (length - 1))
        if passes:
            check_launch()
        else:
            with pytest.raises(
                PreflightError, match=r"TMPDIR=/t+ is too long .* at most 75 characters, as TMPDIR=/tmp"
            ):
                check_launch()


def test_a_locale_that_torch_cannot_be_loaded_in(launched, monkeypatch):
    monkeypatch.setattr("locale.getpreferredencoding", lambda do_setlocale: "ANSI_X3.4-1968")
    with pytest.raises(PreflightError, match="set PYTHONUTF8=1"):
        check_launch()


def test_a_port_that_is_taken_is_named_with_the_options(launched):
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        launched(**TWO, MASTER_PORT=str(port))
        with pytest.raises(
            PreflightError, match=f"port {port} is taken.*--master_port={port + 1}.*MASTER_PORT={port + 1}"
        ):
            check_port()
        launched(RANK="1")
        check_port()  # it is the first rank that listens
        launched(RANK="0", TORCHELASTIC_USE_AGENT_STORE="True")
        check_port()  # torchrun listens
    launched(TORCHELASTIC_USE_AGENT_STORE="False")
    check_port()


def test_a_port_that_is_none(launched):
    launched(**TWO, MASTER_PORT="80000")
    with pytest.raises(PreflightError, match="MASTER_PORT=80000 is no port"):
        check_port()


@pytest.mark.parametrize(
    ("backend", "value", "missing"),
    [
        ("gloo", "", []),
        ("gloo", "lo,eth0", []),
        ("gloo", "lo,eth9", ["eth9"]),  # each is used
        ("gloo", "eth", ["eth"]),  # whole names alone
        ("nccl", "eth", []),  # beginnings of names
        ("nccl", "ib,eth", []),  # one is enough
        ("nccl", "ib,eno", ["ib", "eno"]),
        ("nccl", "=eth", ["eth"]),
        ("nccl", "=eth0", []),
        ("nccl", "^docker,lo", []),  # all others
    ],
)
def test_interfaces_that_are_chosen_as_each_library_reads_them(backend, value, missing):
    assert missing_interfaces(backend, value, ["lo", "eth0"]) == missing


def test_an_interface_that_is_not_there_is_named_with_those_that_are(launched):
    launched(GLOO_SOCKET_IFNAME="lo,eth99", NCCL_SOCKET_IFNAME="lo")
    with pytest.raises(
        PreflightError, match=r"GLOO_SOCKET_IFNAME=lo,eth99: no network interface eth99 .* there are .*lo"
    ):
        check_interfaces("gloo")
    check_interfaces("nccl")


SECOND = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1"}


def test_a_rank_goes_on_when_the_first_one_listens(launched, capsys):
    port = free_port()
    launched(**SECOND, MASTER_PORT=str(port))
    servers: list[socket.socket] = []
    thread = threading.Timer(0.7, lambda: servers.append(socket.create_server(("127.0.0.1", port))))
    begin = time.monotonic()
    thread.start()
    await_first_rank(20.0, told_s=0.1)
    assert 0.5 < time.monotonic() - begin < 10
    thread.join()
    servers[0].close()
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and f"waits for the first rank: nobody listens at 127.0.0.1:{port}" in told[0]


@pytest.mark.parametrize(
    ("rank", "local", "tells"),
    [("1", "1", True), ("2", "2", False), ("2", "0", True), ("3", "1", False), ("1", "0", True)],
)
def test_what_is_in_the_way_is_told_once_on_a_machine(launched, capsys, rank, local, tells):
    """Beside the first rank, which may hang without a word, by the second. The same command may do, so a scheduler starts it again."""
    launched(**SECOND | {"RANK": rank, "WORLD_SIZE": "4"}, MASTER_PORT=str(free_port()), LOCAL_RANK=local)
    expected = rf"rank {rank} did not meet the first one in 1 s: nobody listens at .* is this its address\?"
    with pytest.raises(PreflightError, match=expected) as caught:
        await_first_rank(0.6, told_s=0.0)
    assert ("waits for the first rank" in capsys.readouterr().err) == tells
    assert is_told_here(caught.value, is_first_on_machine()) == tells
    assert exit_code(caught.value) == EXIT_FAILURE


def test_who_need_not_wait(launched):
    launched(**SECOND, MASTER_PORT=str(free_port()))
    for variables in (
        {"RANK": "0"},
        {"RANK": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"},
        {"RANK": "0", "WORLD_SIZE": "1"},
    ):
        launched(**variables)
        await_first_rank(0.0)


def test_why_nobody_can_be_reached(monkeypatch):
    assert "nobody listens at 127.0.0.1:" in unreachable("127.0.0.1", free_port())
    assert "the name of gpu1.invalid:29500 (MASTER_ADDR) is not known here" in unreachable("gpu1.invalid", 29500)
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert unreachable("127.0.0.1", server.getsockname()[1]) == ""

    def silent(place: object, timeout_s: float) -> None:
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", silent)
    assert "a firewall between?" in unreachable("192.0.2.1", 29500)
