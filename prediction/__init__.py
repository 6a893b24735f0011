"""Use a trained model: `from prediction import load`."""

from __future__ import annotations

from prediction.load import load
from prediction.media import Medium, media_of
from prediction.predictor import Predictor

__all__ = ["Medium", "Predictor", "load", "media_of"]
