"""The table of evaluators, by kind of task: (Evaluation) -> metrics."""

from __future__ import annotations

from collections.abc import Callable

from evaluation import captioning, classification, masked_text, retrieval
from evaluation.base import DamagedDataError, Evaluation, Metrics

EVALUATORS: dict[str, Callable[[Evaluation], Metrics]] = {
    "classification": classification.evaluate,
    "text_classification": classification.evaluate,
    "masked_text": masked_text.evaluate,
    "captioning": captioning.evaluate,
    "retrieval": retrieval.evaluate,
}

__all__ = ["EVALUATORS", "DamagedDataError", "Evaluation", "Metrics"]
