"""What the frozen encoder's features know: classifiers that are fitted to those of the training split."""

from __future__ import annotations

from evaluation.probes.classifiers import METHODS
from evaluation.probes.probe import FIGURE, FLOOR, Probe, evaluate

__all__ = ["FIGURE", "FLOOR", "METHODS", "Probe", "evaluate"]
