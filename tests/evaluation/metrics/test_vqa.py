"""VQA accuracy: the nine others of each of ten people, and answers in their common form."""

from __future__ import annotations

import itertools

import pytest

from evaluation.metrics.vqa import best_constant, normal, vqa_accuracy
from evaluation.vqa import result_of


@pytest.mark.parametrize(
    ("matches", "accuracy"),
    # Of ten: each of the m who match leaves m - 1, each of the others m; a third for each, at most 1.
    [
        (0, 0.0),
        (1, 9 * (1 / 3) / 10),
        (2, (2 * (1 / 3) + 8 * (2 / 3)) / 10),
        (3, (3 * (2 / 3) + 7) / 10),
        (4, 1.0),
        (10, 1.0),
    ],
)
def test_ten_people(matches, accuracy):
    answers = ["yes"] * matches + [f"other {n}" for n in range(10 - matches)]
    assert vqa_accuracy("yes", answers) == pytest.approx(accuracy)
    subsets = itertools.combinations(answers, 9)
    assert accuracy == pytest.approx(sum(min(nine.count("yes") / 3, 1) for nine in subsets) / 10)


def test_fewer_people():
    assert vqa_accuracy("red", ["red"]) == 1 and vqa_accuracy("red", ["blue"]) == 0
    assert vqa_accuracy("red", ["red", "red"]) == 1
    assert vqa_accuracy("red", ["red", "blue"]) == pytest.approx(1 / 2)  # right for the one who is left out with "blue"


@pytest.mark.parametrize(
    ("written", "common"),
    [("The Dog.", "dog"), ("two", "2"), ("none", "0"), ("1,000", "1000"), ("3.5", "3.5"), ("t-shirt", "t shirt"),
     ("it's  a man", "it's man"), ("yes!", "yes"), ("10:30", "10:30"), ("U.S.", "us"), ("a", ""),
     # Signs that the common tool keeps, and a point before a digit.
     (".5", ".5"), ("5.", "5"), ("50%", "50%"), ("$5", "$5"), ("#1", "#1"), ("black & white", "black & white"), ("c++", "c"),
     # Beside a space, and where a comma stands between digits, a sign is left out; else it becomes a space.
     ("black/white", "black white"), ("black / white", "black white"), ("a t-shirt - red", "tshirt red"), ("1,000-2,000", "10002000"),
     ("I dont know", "i don't know"), ("its", "its"), ("WONT", "won't"), ("don't", "don't"), ("were", "were"), ("3 oclock", "3 o'clock")],
)  # fmt: skip
def test_the_common_form(written, common):
    assert normal(written) == common


def test_always_the_best_answer():
    # "no" is worth 1 + 0 + 1 of three questions, "2" 0 + 1 + 0.
    assert best_constant([["no"] * 10, ["2"] * 10, ["No."] * 10]) == pytest.approx(2 / 3)


def test_what_candidates_could_reach_is_never_below_what_they_do():
    """People say "Yes", the candidate is "yes": they are one answer."""
    result = result_of([("yes", ("Yes",) * 10, "yes/no"), ("no", ("two", *["2"] * 9), "number")], ("yes", "no", "2"))
    assert result.metrics["vqa_accuracy"] == 0.5 and result.metrics["answerable"] == 1.0
