"""Visual question answering: the nearest answer, scored by what people said."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from evaluation.base import Evaluation, Metrics, Result
from evaluation.encoding import encode_inputs, encode_rows
from evaluation.metrics.vqa import best_constant, normal, vqa_accuracy


@torch.no_grad()
def evaluate(evaluation: Evaluation) -> Result:
    """vqa_accuracy in [0, 1]; answerable: what the best candidates would reach; majority: always the best single answer. details: accuracy
    of each type of answer."""
    objective, task, name = evaluation.objective, evaluation.source.task, evaluation.source.name
    classes = task.context.info.classes
    answers_CD = encode_rows(objective, task.candidates, name, evaluation.device)  # type: ignore[attr-defined]
    parts: list[list[tuple[str, tuple[str, ...], str]]] = []
    for examples, valid_B in evaluation.batches():
        batch = task.batch(examples, None).to(evaluation.device)
        features_QD = encode_inputs(objective, batch.inputs, batch.read_Q2, name)
        told_Q = objective.logits(features_QD, answers_CD, batch.temperature).argmax(dim=1)
        told = (
            (classes[number], e.answers, e.answer_type) for number, e in zip(told_Q.tolist(), examples, strict=True)
        )
        parts.append(list(itertools.compress(told, valid_B.tolist())))
    return result_of([told for part in evaluation.gathered(parts) for told in part], classes)


def result_of(told: list[tuple[str, tuple[str, ...], str]], classes: tuple[str, ...]) -> Result:
    """told: of each question the answer, what people said, and the type of their answer."""
    worth_N = np.array([vqa_accuracy(answer, answers) for answer, answers, _ in told])
    types = np.array([kind for _, _, kind in told])
    candidates = set(map(normal, classes))
    reach = [
        max((vqa_accuracy(answer, answers) for answer in {*answers} if normal(answer) in candidates), default=0.0)
        for _, answers, _ in told
    ]
    metrics: Metrics = {
        "vqa_accuracy": float(worth_N.mean()),
        "answerable": sum(reach) / len(reach),
        "majority": best_constant([answers for _, answers, _ in told]),
        "samples": len(told),
    }
    by_type = {kind: float(worth_N[types == kind].mean()) for kind in sorted(set(types.tolist()) - {""})}
    evidence_N2 = np.stack([worth_N, np.ones_like(worth_N)], axis=1)
    return Result(metrics, evidence_N2, {"type_accuracy": by_type}, samples={"answerable": np.array(reach)})
