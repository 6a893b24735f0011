"""Figures of each kind of task."""

from __future__ import annotations

from evaluation.base import DamagedDataError, Evaluation, Metrics, Result, check_complete
from evaluation.table import EVALUATORS, Evaluator, evaluator_of

__all__ = [
    "EVALUATORS",
    "DamagedDataError",
    "Evaluation",
    "Evaluator",
    "Metrics",
    "Result",
    "check_complete",
    "evaluator_of",
]
