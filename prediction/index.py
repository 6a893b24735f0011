"""Vectors of files to search in: what `predict.py embed` writes and `predict.py retrieve` reads. Legend: N files, Q queries, D width.

An index holds what a fixed sentence and a fixed picture are to the network that made it. Another network finds other vectors for them, and
then similarities to the files would mean nothing. Both are needed: tuning may leave either side as it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from data.shards import DatasetError
from data.text.vocabulary import UnknownTokenError
from prediction.answers import writing
from prediction.nearest import nearest
from prediction.predictor import Predictor

SENTENCE = "a picture"
ALIKE = 0.999
"""Least cosine of two vectors of one sentence or picture by the same weights, whatever machine and precision."""


@dataclasses.dataclass(frozen=True)
class Index:
    """vectors_ND: of length 1; clips_N: which files are clips, as texts are compared with clips as the run's task of clips does."""

    names: list[str]
    vectors_ND: np.ndarray
    clips_N: np.ndarray

    @classmethod
    def read(cls, path: Path, model: Predictor, task: str) -> Self:
        """Raises DatasetError, also where other weights or another task have made it."""
        try:
            with np.load(path, allow_pickle=False) as content:
                names, vectors_ND, clips_N = content["names"], content["vectors"], content["clips"]
                marks_2D, step = np.stack([content["sentence"], content["picture"]]), int(content["step"])
            if vectors_ND.ndim != 2 or vectors_ND.dtype != np.float32 or clips_N.dtype != bool:
                raise ValueError("numbers of another kind")
            if not len(names) == len(vectors_ND) == len(clips_N) or marks_2D.shape[1:] != vectors_ND.shape[1:]:
                raise ValueError("names and vectors do not go together")
            if not len(names) or not np.isfinite(vectors_ND).all():
                raise ValueError("no vectors, or some that are not finite")
        except OSError as error:
            raise DatasetError(f"{path}: {error.strerror or error}") from error
        except Exception as error:  # whatever numpy and zipfile make of other files
            raise DatasetError(
                f"{path}: no index of `predict.py embed`, or of an older version ({error}): embed the files again"
            ) from error
        found = cls(names.tolist(), vectors_ND, clips_N)
        own_2D = found.marks(model, task)
        if own_2D.shape != marks_2D.shape or not ((own_2D * marks_2D).sum(axis=1) >= ALIKE).all():
            raise DatasetError(
                f"{path}: made by other weights (step {step:,}, here {model.step:,}) or for another --task: embed the files again"
            )
        return found

    def write(self, path: Path, model: Predictor, task: str) -> None:
        """Raises OutputError."""
        names, (sentence_D, picture_D) = np.array(self.names), self.marks(model, task)
        marks = {"sentence": sentence_D, "picture": picture_D, "step": model.step}
        with writing(path) as file:
            np.savez(file, names=names, vectors=self.vectors_ND, clips=self.clips_N, **marks)

    def marks(self, model: Predictor, task: str) -> np.ndarray:
        """[2, D]: the fixed sentence, of a vocabulary without its words a word that it has; and the fixed picture."""
        of_clips = bool(self.clips_N[0])
        try:
            model.vocabulary.encode(SENTENCE, 1 << 10)
            text = SENTENCE
        except UnknownTokenError:
            text = model.vocabulary.decode([model.vocabulary.candidate_token(0)]).strip()
        sentence_D, picture_D = model.embed_texts([text], task, of_clips)[0], model.embed_pattern(task, of_clips)
        return np.stack([sentence_D.numpy(), picture_D.numpy()])

    def by_texts(self, model: Predictor, texts: Sequence[str], top: int, task: str) -> list[list[tuple[int, float]]]:
        """Of each text the `top` nearest files: (place, similarity)."""
        return self._found(lambda of_clips: model.embed_texts(texts, task, of_clips).numpy(), len(texts), top)

    def by_vectors(self, queries_QD: np.ndarray, top: int) -> list[list[tuple[int, float]]]:
        return self._found(lambda of_clips: queries_QD, len(queries_QD), top)

    def _found(self, queries: Callable[[bool], np.ndarray], count: int, top: int) -> list[list[tuple[int, float]]]:
        """queries: [Q, D] to compare images or clips with."""
        found: list[list[tuple[int, float]]] = [[] for _ in range(count)]
        for of_clips in np.unique(self.clips_N).tolist():
            places_K = np.flatnonzero(self.clips_N == of_clips)
            for rows, best in zip(found, nearest(self.vectors_ND[places_K], queries(of_clips), top), strict=True):
                rows += [(int(places_K[place]), similarity) for place, similarity in best]
        return [sorted(rows, key=lambda row: (-row[1], row[0]))[:top] for rows in found]
