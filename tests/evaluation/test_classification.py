"""Classification by the nearest name."""

from __future__ import annotations

import numpy as np
import torch

from evaluation import EVALUATORS, Evaluation, classification, probes
from evaluation.table import WRITTEN
from tests.helpers.models import make, tiny
from tests.helpers.streams import numbered, opened, write_numbered


def test_of_equal_names_the_first_ones_are_among_the_best(tmp_path, monkeypatch):
    """Pictures of 20 classes, to which all names are equally near: one is right, and five are among the first five."""
    write_numbered(tmp_path, (20,))
    source = opened(numbered(str(tmp_path)))
    objective = make(tiny(image_size=8, patch=4), source.task.vocabulary.size).eval()
    logits = iter([torch.zeros(20, 20)])
    monkeypatch.setattr(objective, "logits", lambda *others: next(logits))
    found = classification.evaluate(Evaluation(objective, source)).metrics
    assert (found["accuracy"], found["top5_accuracy"]) == (1 / 20, 5 / 20)
    assert found["majority"] == found["chance"] == 1 / 20


def test_the_floor_is_the_most_frequent_class():
    """Two classes, one of three samples in four, as in MRPC: 0.75 and not 1 / 2 needs no learning."""
    assert classification.majority(np.array([1, 0, 1, 1])) == 0.75
    assert probes.FLOOR == "majority" and {EVALUATORS[kind].floor for kind in WRITTEN} == {"majority"}
    assert {evaluator.floor for evaluator in WRITTEN.values()} == {"majority"}
