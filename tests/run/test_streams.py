"""Nobody listens any more: a training goes on."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from run.errors import OutputError
from run.streams import Tolerant, print_result
from tests.helpers.places import ROOT

PRINTING = """
import logging, os, sys
from tqdm import tqdm
from run.streams import keep_printing
keep_printing()
for _ in tqdm(range(3), file=sys.stderr):
    print("Größe" * 20_000)
    print("to both", file=sys.stderr, flush=True)
    logging.error("a library")
print("more", flush=True)
kept = open(os.environ["KEPT"], "w", encoding="utf-8")
kept.write(f"went on {kept.fileno() > 2}")
"""


@pytest.mark.parametrize(
    "shell",
    [
        "{} > /dev/full 2>&1",
        "{} 2> /dev/full",
        "{} >&- 2>&-",
        "{} <&- >&- 2>&-",
        "{} 2>&1 | true; exit ${{PIPESTATUS[0]}}",
        "LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 {} > /dev/null",
        "PYTHONIOENCODING=latin-1:strict {} > /dev/null",
        "script -qec '{}' /dev/null < /dev/null > /dev/full",
    ],
)
def test_printing_never_fails(shell, tmp_path):
    (tmp_path / "printing.py").write_text(PRINTING, encoding="utf-8")
    command = shell.format(f"{sys.executable} {tmp_path / 'printing.py'}")
    if (
        command.startswith("script")
        and subprocess.run(["which", "script"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no script(1) on this machine")
    done = subprocess.run(
        ["bash", "-c", command],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "KEPT": str(tmp_path / "kept")},
        timeout=60,
        check=False,
        capture_output=True,
    )
    assert (tmp_path / "kept").read_text() == "went on True", done.stderr
    assert done.returncode == 0 or command.startswith("script")


def test_a_stream_that_works_is_left_as_it_is(capsys):
    stream = Tolerant(sys.stdout)
    stream.writelines(["a", "b\n"])
    stream.flush()
    assert capsys.readouterr().out == "ab\n" and stream.encoding == sys.stdout.encoding


def test_a_closed_stream_takes_everything(tmp_path):
    file = (tmp_path / "a").open("w")
    file.close()
    stream = Tolerant(file)
    assert stream.write("abc") == 3
    stream.flush()


@pytest.mark.parametrize(
    ("encoding", "printed"), [("utf-8", "Größe → 猫 \\udce9\n"), ("latin-1", "Größe \\u2192 \\u732b \\udce9\n")]
)
def test_a_result_is_printed_in_any_encoding(encoding, printed, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    print_result("Größe → 猫 \udce9")
    assert stream.buffer.getvalue().decode(encoding) == printed


def test_a_result_without_standard_output_is_none(monkeypatch):
    """Started with `>&-`, where print says nothing and does nothing."""
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(OutputError, match="standard output cannot be written: it is closed"):
        print_result("a")
