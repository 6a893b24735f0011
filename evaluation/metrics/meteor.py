"""METEOR 1.5 of captions (Denkowski and Lavie, 2014), by the program in the pycocoevalcap wheel, which needs Java.

Its protocol has a line per caption: SCORE asks for the counts of one, EVAL for the score of all whose counts follow. Words are those of
data/text/words.py, as for the other scores.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from evaluation.metrics.caption_scores import Words

DISTRIBUTION, JAR = "pycocoevalcap", "pycocoevalcap/meteor/meteor-1.5.jar"
MARK = "|||"
TIMEOUT_S = 1800


class MeteorError(RuntimeError):
    """The program is not there, or has not answered."""


def meteor_command() -> list[str]:
    """Raises MeteorError."""
    java = shutil.which("java")
    if java is None:
        raise MeteorError("METEOR is a Java program, and there is no java: apt-get install default-jre-headless")
    try:
        jar = Path(str(importlib.metadata.distribution(DISTRIBUTION).locate_file(JAR)))
    except importlib.metadata.PackageNotFoundError:
        raise MeteorError(
            f"METEOR comes with a package that is not here: pip install --no-deps {DISTRIBUTION}==1.2"
        ) from None
    if not jar.is_file():
        raise MeteorError(f"METEOR is not in the installed {DISTRIBUTION}: {jar} is missing")
    return [java, "-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]


def meteor(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    """In [0, 1], over the whole corpus. Raises MeteorError."""
    command = meteor_command()
    lines = [
        f" {MARK} ".join(["SCORE", *map(_said, refs), _said(words)])
        for words, refs in zip(captions, references, strict=True)
    ]
    counts = _answers(command, lines, len(lines))
    answers = _answers(command, [f" {MARK} ".join(["EVAL", *counts])], len(counts) + 1)
    try:
        return float(answers[-1])  # before it those of single captions
    except ValueError:
        raise MeteorError(f"METEOR has answered {answers[-1][:80]!r}") from None


def _said(words: Words) -> str:
    """A text without what parts one from the next."""
    return " ".join(word for word in " ".join(words).split() if MARK not in word)


def _answers(command: list[str], lines: list[str], number: int) -> list[str]:
    """Raises MeteorError."""
    try:
        done = subprocess.run(
            command, input="\n".join([*lines, ""]), capture_output=True, encoding="utf-8", timeout=TIMEOUT_S, check=True
        )
    except subprocess.TimeoutExpired:
        raise MeteorError(f"METEOR has not answered in {TIMEOUT_S} s") from None
    except (OSError, subprocess.CalledProcessError, UnicodeError) as error:
        raise MeteorError(f"METEOR has failed: {str(getattr(error, 'stderr', '') or error).strip()[-200:]}") from error
    answers = done.stdout.splitlines()
    if len(answers) != number:
        raise MeteorError(f"METEOR has answered {len(answers):,} lines, {number:,} were asked for")
    return answers
