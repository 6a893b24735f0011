"""Figures of each kind of task."""

from __future__ import annotations

from evaluation.base import DamagedDataError, Evaluation, Metrics, Result, check_complete
from evaluation.table import EVALUATORS, Evaluator, evaluator_of
from model.objective import NotFiniteError

RAISED_BY_ONE_RANK = (DamagedDataError, NotFiniteError)
"""Errors that the other ranks may not have, so the one that has them must tell."""

__all__ = [
    "EVALUATORS",
    "RAISED_BY_ONE_RANK",
    "DamagedDataError",
    "Evaluation",
    "Evaluator",
    "Metrics",
    "Result",
    "check_complete",
    "evaluator_of",
]
