"""Random numbers as pure functions of a key, so that nothing random has a state to save."""

from __future__ import annotations

import numpy as np


def rng(*key: int) -> np.random.Generator:
    """A generator for this tuple of numbers."""
    return np.random.default_rng(np.random.SeedSequence([abs(k) for k in key]))
