"""METEOR is that of the field's program, where Java is; and what is said where something is missing."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from evaluation.metrics import meteor as module
from evaluation.metrics.meteor import MeteorError, meteor

CAPTIONS = [["a", "man", "rides", "a", "horse"], [], ["a", "red|||ball", "\n", "caf\u00e9"]]
REFERENCES = [[["a", "man", "is", "riding", "a", "horse"], ["a", "person"]], [["a", "dog"]], [["a", "caf\u00e9"]]]


@pytest.mark.slow
def test_it_is_what_the_public_wrapper_gives():
    """Of the same texts: a word that would end a text is left out."""
    if shutil.which("java") is None:
        pytest.skip("METEOR is a Java program, and there is no java")
    oracle = pytest.importorskip("pycocoevalcap.meteor.meteor", reason="pycocoevalcap is not installed")
    program = oracle.Meteor()
    texts = [" ".join(words) for words in (CAPTIONS[0], CAPTIONS[1], ["a", "caf\u00e9"])]
    references = {n: [" ".join(words) for words in refs] for n, refs in enumerate(REFERENCES)}
    theirs, _ = program.compute_score(references, {n: [text] for n, text in enumerate(texts)})
    assert meteor(CAPTIONS, REFERENCES) == pytest.approx(theirs, abs=1e-6) and theirs > 0.1


def test_lines_of_the_protocol_and_the_last_answer(monkeypatch):
    asked = []

    def run(command, input, **options):
        asked.append(input.splitlines())
        answers = "1 2\n3 4\n5 6\n" if len(asked) == 1 else "0.1\n0.2\n0.3\n0.25\n"
        return subprocess.CompletedProcess(command, 0, answers, "")

    monkeypatch.setattr(module, "meteor_command", lambda: ["java"])
    monkeypatch.setattr(module.subprocess, "run", run)
    assert meteor(CAPTIONS, REFERENCES) == 0.25
    assert asked[0][0] == "SCORE ||| a man is riding a horse ||| a person ||| a man rides a horse"
    assert asked[0][2] == "SCORE ||| a caf\u00e9 ||| a caf\u00e9" and len(asked[0]) == 3
    assert asked[1] == ["EVAL ||| 1 2 ||| 3 4 ||| 5 6"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("print('x')", "METEOR has answered 1 lines, 3 were asked for"),
        ("raise SystemExit('no memory')", "METEOR has failed: no memory"),
        ("import time; time.sleep(60)", "METEOR has not answered in 0.5 s"),
    ],
)
def test_a_program_that_fails_is_told(monkeypatch, code, message):
    monkeypatch.setattr(module, "meteor_command", lambda: ["python3", "-c", code])
    monkeypatch.setattr(module, "TIMEOUT_S", 0.5)
    with pytest.raises(MeteorError, match=message):
        meteor(CAPTIONS, REFERENCES)


def test_what_is_missing_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    with pytest.raises(MeteorError, match="there is no java: apt-get install default-jre-headless"):
        module.meteor_command()
    monkeypatch.setattr(module.shutil, "which", lambda name: "/usr/bin/java")
    monkeypatch.setattr(module, "DISTRIBUTION", "no_such_wheel")
    with pytest.raises(MeteorError, match="not here: pip install --no-deps no_such_wheel"):
        module.meteor_command()
