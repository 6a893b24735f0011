"""Other machines, behind an ssh of the test's own that answers for them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from clusters.doctor.finding import Finding, ok
from clusters.doctor.hosts import Answer, ask_doctor, check_reachable, compared, ssh_words
from tests.helpers.limits import within

SSH = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do shift 2; done  # options with their values
host=$1; shift
case $host in
  down) echo "ssh: connect to host down port 22: Connection timed out" >&2; exit 255;;
  locked) echo "me@locked: Permission denied (publickey,password)." >&2; exit 255;;
  new) echo "Host key verification failed." >&2; exit 255;;
  unknown) echo "ssh: Could not resolve hostname unknown: Name or service not known" >&2; exit 255;;
  silent) exec sleep 30;;
  late) echo $(($(date +%s) - 300)).0;;
  empty) cd() { return 1; }; echo "no such folder" >&2; exit 1;;
  canned) echo "Welcome to canned"; cat "$(dirname "$0")/answer";;
  *) exec sh -c "$*";;
esac
"""


@pytest.fixture
def ssh(tmp_path) -> list[str]:
    path = tmp_path / "ssh"
    path.write_text(SSH)
    path.chmod(0o700)
    return ssh_words(str(path))


def test_a_machine_that_answers_and_has_the_same_clock(ssh):
    assert [(finding.name, finding.verdict) for finding in check_reachable("here", ssh)] == [
        ("ssh", "ok"),
        ("clock", "ok"),
    ]


@pytest.mark.parametrize(
    ("host", "name", "remedy"),
    [
        ("down", "ssh", "is the machine up, does sshd run there"),
        ("locked", "ssh", "ssh-copy-id locked"),
        ("new", "ssh", "ssh-keyscan new >> ~/.ssh/known_hosts"),
        ("unknown", "ssh", "mend the name in the hostfile"),
        ("late", "clock", "set the clock of late or this one"),
    ],
)
def test_what_is_wrong_with_a_machine_is_named_with_the_remedy(host, name, remedy, ssh):
    found = {finding.name: finding for finding in check_reachable(host, ssh)}
    assert found[name].verdict == "FAILED" and remedy in found[name].remedy
    assert name == "ssh" or found["ssh"].verdict == "ok"


def test_a_clock_that_is_five_minutes_off(ssh):
    clock = check_reachable("late", ssh)[1]
    assert 299 <= float(clock.found.split()[0]) <= 302, clock  # `date` cuts the part of a second off


def test_a_machine_that_does_not_answer_is_left_in_time(ssh, monkeypatch):
    monkeypatch.setattr("clusters.doctor.hosts.PROBE_S", 0.3)
    with within(5):
        assert "no answer in 0.3 s" in check_reachable("silent", ssh)[0].found


def test_a_command_that_is_not_there():
    assert check_reachable("here", ["/nowhere/ssh"])[0].found == "/nowhere/ssh: No such file or directory"


MINE = Answer("a", {"train.py": "1", "run/config.py": "2"}, {"torch": "2.13.0", "numpy": "2.4.6"}, [])


def test_the_same_code_and_packages():
    assert [finding.verdict for finding in compared(MINE, dataclasses.replace(MINE, host="b"))] == ["ok"]


def test_different_code_and_packages_are_named():
    theirs = Answer("b", {"train.py": "1", "run/config.py": "3", "run/new.py": "4"}, {"torch": "2.12.0"}, [])
    code, package = compared(MINE, theirs)
    assert code.line() == (
        "FAILED  code: run/config.py, run/new.py differ from here (needed: the same code) -> git pull or rsync it there"
    )
    assert package.line().startswith("warning package torch: 2.12.0 (needed: 2.13.0 as here) -> ")


def test_an_answer_is_read_after_what_a_login_prints(ssh, tmp_path):
    sent = dataclasses.replace(MINE, findings=[ok("memory", "9 GiB free")])
    (tmp_path / "answer").write_text(json.dumps(dataclasses.asdict(sent)) + "\n")
    assert ask_doctor("canned", ssh, [], {}, 10.0) == sent


@pytest.mark.parametrize("text", ['{"host": 3}', '{"findings": "none"}', "{"])
def test_an_answer_that_is_none(text, ssh, tmp_path: Path):
    (tmp_path / "answer").write_text(text + "\n")
    answer = ask_doctor("canned", ssh, [], {}, 10.0)
    assert isinstance(answer, Finding) and answer.verdict == "FAILED"


def test_a_machine_without_the_folder(ssh):
    answer = ask_doctor("empty", ssh, [], {}, 10.0)
    assert isinstance(answer, Finding) and answer.verdict == "FAILED"
    assert answer.remedy.startswith("have the same folder ")


def test_words_are_quoted_for_the_other_shell(ssh, tmp_path, monkeypatch):
    """A folder and a value with signs of the shell arrive as they are, and are not run."""
    folder = tmp_path / "a $(touch spoilt) 'b'"
    folder.mkdir()
    monkeypatch.chdir(folder)
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$PWD" "$TRICK" "$@" >"$(dirname "$0")/seen"\n')
    program.chmod(0o700)
    monkeypatch.setattr("sys.executable", str(program))
    ask_doctor(
        "here", ssh, ["--config=a b", "--", "name=$(touch spoilt)"], {"TRICK": "`touch spoilt`; \"x\" 'y'"}, 10.0
    )
    seen = (tmp_path / "seen").read_text().splitlines()
    assert seen == [
        str(folder),
        "`touch spoilt`; \"x\" 'y'",
        "-m",
        "clusters",
        "doctor",
        "--json",
        "--config=a b",
        "--",
        "name=$(touch spoilt)",
    ]
    assert not list(folder.iterdir())


def test_a_line_cannot_move_the_cursor():
    assert "\x1b" not in ok("gpu1", "\x1b[2Jnothing\nelse").line() and "\n" not in ok("gpu1", "a\nb").line()


def test_options_of_ssh_ask_no_questions():
    assert ssh_words("ssh -p 2222") == ["ssh", "-p", "2222", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5"]
    assert ssh_words("kubectl-exec") == ["kubectl-exec"]
