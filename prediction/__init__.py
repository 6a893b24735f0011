"""Use a trained model: `from prediction import load`."""

from __future__ import annotations

from prediction.load import load, load_export
from prediction.media import Medium, media_of, texts_of
from prediction.predictor import Predictor

__all__ = ["Medium", "Predictor", "load", "load_export", "media_of", "texts_of"]
