"""The arguments of evaluate.py."""

from __future__ import annotations

import pytest

from evaluate import _places_of_suite, parse_arguments


def test_tasks_are_taken_once_and_overrides_may_follow_them():
    arguments = parse_arguments(["--run", "r", "--tasks", "b", "a", "b", "data.workers=1"])
    assert arguments.tasks == ["b", "a"] and arguments.overrides == ["data.workers=1"]
    assert parse_arguments(["data.workers=1", "--run", "r"]).tasks == []


def test_places_of_a_suite_are_told_apart_from_options_of_the_run():
    words = ["--run", "r", "--suite", "s", "cifar10.path=/a", "data.workers=1", "data.tasks.x.path=/b"]
    arguments = parse_arguments(words)
    assert _places_of_suite(arguments) == ["cifar10.path=/a"]
    assert _places_of_suite(parse_arguments(["--run", "r", "cifar10.path=/a"])) == []


def test_a_run_is_evaluated_or_two_are_compared(capsys):
    assert list(map(str, parse_arguments(["--compare", "a", "b"]).compare)) == ["a", "b"]
    for words in ([], ["--run", "a", "--compare", "a", "b"], ["--compare", "a"]):
        with pytest.raises(SystemExit):
            parse_arguments(words)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--length-penalty", "nan"),
        ("--length-penalty", "inf"),
        ("--beam", "0"),
        ("--batch-size", "-1"),
        ("--limit", "x"),
    ],
)
def test_values_that_mean_nothing_are_refused(capsys, option, value):
    with pytest.raises(SystemExit) as caught:
        parse_arguments(["--run", "r", option, value])
    assert caught.value.code == 2 and f"argument {option}: invalid" in capsys.readouterr().err
