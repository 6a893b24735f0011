"""Clips whose frames tell less of time than they did, to see in evaluation whether a model reads time. Legend: T frames."""

from __future__ import annotations

import numpy as np

from data.config import Frames


def rearranged(frames_THWC: np.ndarray, frames: Frames, generator: np.random.Generator) -> np.ndarray:
    """as-is: the same. shuffled: in an order drawn from all others than their own, so two frames change places. frozen: the middle one
    at all places. The result has as many frames, and positions in time stay those of the places."""
    places_T = np.arange(len(frames_THWC))
    if frames == "frozen":
        places_T = np.full_like(places_T, len(places_T) // 2)
    if frames == "shuffled" and len(places_T) > 1:
        own_T = places_T
        while (places_T == own_T).all():
            places_T = generator.permutation(own_T)
    return frames_THWC[places_T]
