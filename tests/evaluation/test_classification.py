"""Classification by the nearest name."""

from __future__ import annotations

import torch

from evaluation import Evaluation, classification
from tests.helpers.models import make, tiny
from tests.helpers.streams import numbered, opened, write_numbered


def test_of_equal_names_the_first_ones_are_among_the_best(tmp_path, monkeypatch):
    """Pictures of the first five of 20 classes, to which all names are equally near: one is right, and all are among the first five."""
    write_numbered(tmp_path, (20,))
    source = opened(numbered(str(tmp_path)))
    objective = make(tiny(image_size=8, patch=4), source.task.vocabulary.size).eval()
    logits = iter([torch.zeros(5, 20)])
    monkeypatch.setattr(objective, "logits", lambda *others: next(logits))
    found = classification.evaluate(Evaluation(objective, source, limit=5)).metrics
    assert (found["accuracy"], found["top5_accuracy"]) == (1 / 5, 1.0)
