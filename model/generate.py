"""Greedy generation in the double-token layout: one <SPE> query at position t scores the vocabulary, the best word joins the text.

Legend: B rows, C candidates (words), D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from data.attributes import Attributes
from data.batch import Modality, Segment, Sequences, Visibility
from model.objective import Objective


@torch.no_grad()
def greedy(
    objective: Objective,
    prefix: Sequences,
    words_CD: Tensor,
    tokens_C: Tensor,
    temperature: str,
    end: int,
    spe: int,
    attributes: Attributes,
    max_tokens: int,
    task: str,
) -> list[list[int]]:
    """Token ids of each row, without end-of-text.

    prefix: the visual segments; words_CD: encoded vocabulary; tokens_C: the token of each candidate; attributes: those
    of the text in training; task: its name.
    """
    batch = prefix.num_rows
    device = words_CD.device
    text_BT = torch.empty(batch, 0, dtype=torch.long, device=device)
    finished_B = torch.zeros(batch, dtype=torch.bool, device=device)
    for _ in range(max_tokens):
        sequences = _with_query(prefix, text_BT, spe, attributes)
        rows_B = torch.arange(batch, device=device)
        read_B2 = torch.stack([rows_B, torch.full_like(rows_B, sequences.length - 1)], dim=1)
        features_BD, _ = objective.encode(sequences, read_B2, task=task)
        best_B = tokens_C[objective.logits(features_BD, words_CD, temperature).argmax(dim=1)]
        best_B = torch.where(finished_B, torch.full_like(best_B, end), best_B)
        text_BT = torch.cat([text_BT, best_B[:, None]], dim=1)
        finished_B |= best_B == end
        if bool(finished_B.all()):
            break
    return [row[: row.index(end)] if end in row else row for row in text_BT.tolist()]


def _with_query(prefix: Sequences, text_BT: Tensor, spe: int, attributes: Attributes) -> Sequences:
    batch, length = text_BT.shape
    device = text_BT.device

    def segment(values: Tensor, first: int, visibility: Visibility) -> Segment:
        return Segment(
            modality=Modality.TEXT,
            values=values,
            positions=torch.arange(first, first + values.shape[1], device=device).expand(values.shape),
            valid_BL=torch.ones_like(values, dtype=torch.bool),
            visibility=visibility,
            attributes=attributes,
        )

    query = segment(torch.full((batch, 1), spe, dtype=torch.long, device=device), length, Visibility.READOUT)
    words = (segment(text_BT, 0, Visibility.CAUSAL),) if length else ()
    return Sequences(segments=(*prefix.segments, *words, query))
