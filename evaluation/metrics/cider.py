"""CIDEr-D: agreement of captions with several references, by TF-IDF weighted n-grams (Vedantam et al., 2015).

Documents are the reference sets of the evaluated images. Values lie in [0, 10]; reports usually show them times 100.
Words are those of data/text/words.py: the Penn Treebank's for English, as in the common implementation. No stemming.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from data.text.words import words_of
from evaluation.metrics.caption_scores import ngrams

MAX_N = 4
SIGMA = 6.0
"""Width of the Gaussian penalty on the difference of lengths."""


def cider_d(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean score over images; `references[i]` are the captions of image i."""
    scores = cider_d_by_image(candidates, references)
    return sum(scores) / len(scores)


def cider_d_by_image(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """The score of each image; all references together say how rare an n-gram is."""
    if len(candidates) != len(references) or not candidates:
        raise ValueError(f"{len(candidates)} candidates for {len(references)} sets of references")
    reference_words = [[words_of(r) for r in refs] for refs in references]
    document_frequency: Counter[tuple[str, ...]] = Counter()
    for refs in reference_words:
        document_frequency.update({gram for words in refs for n in range(1, MAX_N + 1) for gram in ngrams(words, n)})
    log_documents = math.log(max(2, len(references)))

    def vector(words: list[str], n: int) -> dict[tuple[str, ...], float]:
        return {
            gram: count * (log_documents - math.log(max(1, document_frequency[gram])))
            for gram, count in ngrams(words, n).items()
        }

    scores = []
    for candidate, refs in zip(candidates, reference_words, strict=True):
        words, score = words_of(candidate), 0.0
        for n in range(1, MAX_N + 1):
            own = vector(words, n)
            similarities = [_similarity(own, vector(ref, n), len(words) - len(ref)) for ref in refs]
            score += 10.0 * sum(similarities) / len(similarities) / MAX_N
        scores.append(score)
    return scores


def _similarity(own: dict, other: dict, length_difference: int) -> float:
    """Cosine with clipped counts, damped by the difference of lengths."""
    norms = math.sqrt(sum(v * v for v in own.values())) * math.sqrt(sum(v * v for v in other.values()))
    if norms == 0:
        return 0.0
    dot = sum(min(value, other.get(gram, 0.0)) * other.get(gram, 0.0) for gram, value in own.items())
    return dot / norms * math.exp(-(length_difference**2) / (2 * SIGMA**2))
