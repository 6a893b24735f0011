"""The comparison of training curves sees what differs, and the curves that are written down are those of today."""

from __future__ import annotations

import subprocess
import sys

import pytest

from scripts.curves import FOLDER, STEPS, TOLERANCE, VARIANTS, difference, read, written
from tests.helpers.places import ROOT

CURVE = {1: {"shapes": 1.75, "clips": 2.0}, 2: {"shapes": 1.5}}


def test_what_is_written_is_read_again():
    assert written(CURVE) == "1 shapes 1.75\n1 clips 2\n2 shapes 1.5\n"
    assert read(written(CURVE)) == CURVE and difference(CURVE, CURVE) == (0.0, "")


@pytest.mark.parametrize(
    ("factor", "differs"), [(1 + TOLERANCE / 2, False), (1 + TOLERANCE * 2, True), (1 - TOLERANCE * 2, True)]
)
def test_the_first_loss_beyond_the_tolerance_is_named(factor, differs):
    other = {1: CURVE[1], 2: {"shapes": 1.5 * factor}}
    largest, wrong = difference(CURVE, other)
    assert largest == pytest.approx(abs(factor - 1), rel=1e-3)
    assert bool(wrong) == differs and wrong.startswith("step 2, shapes: ") == differs


def test_other_tasks_and_steps_are_named():
    assert (
        "step 1: losses of ['shapes'], expected of ['clips', 'shapes']"
        in difference(CURVE, {**CURVE, 1: {"shapes": 1.75}})[1]
    )
    assert "step 2: losses of []" in difference(CURVE, {1: CURVE[1]})[1]
    assert "step 3" in difference(CURVE, {**CURVE, 3: {"shapes": 1.0}})[1]


def test_a_curve_of_every_variant_is_written_down():
    for variant in VARIANTS:
        curve = read((FOLDER / f"{variant}.txt").read_text())
        assert sorted(curve) == list(range(1, STEPS + 1))
        assert {task for losses in curve.values() for task in losses} == {
            "shapes",
            "clips",
            "sentences",
            "captions",
            "retrieval",
        }


@pytest.mark.slow
def test_trainings_of_today_have_these_curves():
    subprocess.run([sys.executable, "scripts/curves.py"], cwd=ROOT, check=True, timeout=600)
