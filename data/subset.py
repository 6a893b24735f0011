"""A part of a labelled data set, drawn class by class: the same for the same labels, numbers and seed, on every machine."""

from __future__ import annotations

import numpy as np

from data.seeding import rng


def chosen(labels_N: np.ndarray, shots: int = 0, fraction: float = 1.0, seed: int = 0) -> np.ndarray:
    """Rising indices of the samples of a class-balanced part.

    shots     that many of each class, all of a class that has fewer; 0: as many as `fraction` says
    fraction  of n samples of a class int(fraction * n) + 1, at most n (papers.md 1.10: the 1 % subsets of Uni-Perceiver)

    A class draws by itself, so its samples do not depend on other classes, and a larger part holds the smaller ones of its seed.
    Raises ValueError.
    """
    if shots < 0 or not 0 < fraction <= 1 or (shots and fraction < 1):
        raise ValueError(
            f"shots={shots} and fraction={fraction:g}: shots must not be negative, fraction lie in (0, 1], and one of them be given"
        )
    labels_N = np.asarray(labels_N)
    parts = [np.empty(0, dtype=np.int64)]
    for label in np.unique(labels_N):
        members = np.flatnonzero(labels_N == label)
        count = shots or (len(members) if fraction == 1 else int(fraction * len(members)) + 1)
        parts.append(rng(seed, int(label)).permutation(members)[:count])
    return np.sort(np.concatenate(parts))
