"""Captions by beam search in the double-token layout: one <SPE> query at position t scores the vocabulary, a word joins the text.

The keys and values of prefix and words are kept, so a step computes two positions alone: the word that was chosen last, and the query.
A router that looks at the whole sequence (context), or slots that tokens compete for, make a token's layers depend on later
tokens; then each step encodes whole sequences again. Source: papers.md 1.9, 9.

Legend: B images, K hypotheses of an image, N = B K, C candidates (words), D width, T words so far, S positions known, V vocabulary.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from data.attributes import Attributes
from data.batch import Modality, Segment, Sequences, Visibility
from data.token_layout import token_layout
from model.attention import KeysValues
from model.block import Merged
from model.layout import PassLayout, SequenceLayout, layout_of
from model.objective import Objective


@dataclasses.dataclass(frozen=True)
class Words:
    """What a caption is made of.

    features_CW   encoded vocabulary; tokens_C the token of each candidate, end-of-text among them
    temperature   name of the learned logit scale
    end, spe      token ids
    attributes    bits of the text in training
    task          its name
    """

    features_CW: Tensor
    tokens_C: Tensor
    temperature: str
    end: int
    spe: int
    attributes: Attributes
    task: str


@dataclasses.dataclass(frozen=True)
class Hypotheses:
    """tokens_BKT, best first, end-of-text and what follows it included; log_probs_BKT of each token, 0 after the end."""

    tokens_BKT: Tensor
    log_probs_BKT: Tensor

    def best(self, end: int) -> list[list[int]]:
        """Token ids of the best hypothesis of each image, without end-of-text."""
        rows = self.tokens_BKT[:, 0].tolist()
        return [row[: row.index(end)] if end in row else row for row in rows]


@torch.no_grad()
def beam_search(
    objective: Objective,
    prefix: Sequences,
    words: Words,
    beam: int,
    max_tokens: int,
    length_penalty: float = 0.0,
    cached: bool | None = None,
) -> Hypotheses:
    """The `beam` likeliest captions of each row of `prefix`: its visual segments, or a text that is answered.

    A finished hypothesis goes on with end-of-text at no cost. The length penalty p only orders the final list, by
    score / (words + 1)^p. beam = 1 is greedy. cached: None chooses.
    """
    if beam < 1 or max_tokens < 1:
        raise ValueError(f"beam={beam} and max_tokens={max_tokens}: must be at least 1")
    batch, device = prefix.num_rows, words.features_CW.device
    if cached is None:
        cached = can_cache(objective)
    scorer = _CachedScorer(objective, prefix, words) if cached else _WholeScorer(objective, prefix, words)
    end_c = int((words.tokens_C == words.end).nonzero().item())
    num_words = words.tokens_C.shape[0]

    scores_BK = torch.zeros(batch, 1, device=device)
    tokens_BKT = torch.empty(batch, 1, 0, dtype=torch.long, device=device)
    log_probs_BKT = torch.empty(batch, 1, 0, device=device)
    finished_BK = torch.zeros(batch, 1, dtype=torch.bool, device=device)
    parents_N = torch.arange(batch, device=device)
    for _ in range(max_tokens):
        width = scores_BK.shape[1]
        moved_N = parents_N if beam > 1 else None
        step_BKC = scorer.log_probs(tokens_BKT.flatten(0, 1), moved_N).view(batch, width, num_words)
        only_end_C = torch.full((num_words,), -torch.inf, device=device)
        only_end_C[end_c] = 0.0
        step_BKC = torch.where(finished_BK.unsqueeze(-1), only_end_C, step_BKC)
        total_BX = (scores_BK.unsqueeze(-1) + step_BKC).flatten(1)
        scores_BK, flat_BK = total_BX.topk(min(beam, total_BX.shape[1]), dim=1)
        parent_BK, word_BK = flat_BK // num_words, flat_BK % num_words
        chosen_BK1 = step_BKC.flatten(1).gather(1, flat_BK).unsqueeze(-1)
        token_BK1 = words.tokens_C[word_BK].unsqueeze(-1)
        rows_B1 = torch.arange(batch, device=device).unsqueeze(1)
        tokens_BKT = torch.cat([tokens_BKT[rows_B1, parent_BK], token_BK1], dim=2)
        log_probs_BKT = torch.cat([log_probs_BKT[rows_B1, parent_BK], chosen_BK1], dim=2)
        finished_BK = finished_BK[rows_B1, parent_BK] | (word_BK == end_c)
        parents_N = (rows_B1 * width + parent_BK).flatten()
        if bool(finished_BK.all()):
            break
    if length_penalty:
        lengths_BK = (tokens_BKT != words.end).sum(dim=2)
        order_BK = (scores_BK / (lengths_BK + 1.0) ** length_penalty).sort(dim=1, descending=True, stable=True).indices
        rows_B1 = torch.arange(batch, device=device).unsqueeze(1)
        tokens_BKT, log_probs_BKT = tokens_BKT[rows_B1, order_BK], log_probs_BKT[rows_B1, order_BK]
    return Hypotheses(tokens_BKT, log_probs_BKT)


def can_cache(objective: Objective) -> bool:
    """Whether the layers of a token depend on nothing that comes after it."""
    experts = objective.config.experts
    if experts.placement == "none" or not experts.decides_per_token:
        return True
    factor = experts.capacity_factor if experts.eval_capacity_factor is None else experts.eval_capacity_factor
    return experts.router == "token" and not factor


class _WholeScorer:
    """Every step encodes prefix, words and query again."""

    def __init__(self, objective: Objective, prefix: Sequences, words: Words) -> None:
        self.objective, self.prefix, self.words = objective, prefix, words
        self._image_N = torch.arange(prefix.num_rows, device=words.features_CW.device)

    def log_probs(self, tokens_NT: Tensor, parents_N: Tensor | None) -> Tensor:
        """[N, C] for the word after `tokens_NT`. parents: which hypothesis of the last step each continues; None: its own."""
        if parents_N is not None:
            self._image_N = self._image_N[parents_N]
        count, length = tokens_NT.shape
        query_N1 = tokens_NT.new_full((count, 1), self.words.spe)
        segments = [segment.map(lambda tensor: tensor[self._image_N]) for segment in self.prefix.segments]
        if length:
            segments.append(_text(tokens_NT, 0, Visibility.CAUSAL, self.words.attributes))
        segments.append(_text(query_N1, length, Visibility.READOUT, self.words.attributes))
        sequences = Sequences(segments=tuple(segments))
        rows_N = torch.arange(count, device=tokens_NT.device)
        read_N2 = torch.stack([rows_N, torch.full_like(rows_N, sequences.length - 1)], dim=1)
        features_NW, _ = self.objective.encode(sequences, read_N2, task=self.words.task)
        return _vocabulary_log_probs(self.objective, features_NW, self.words)


class _CachedScorer:
    """Every step computes the last word and the query; keys and values of what came before are kept."""

    def __init__(self, objective: Objective, prefix: Sequences, words: Words) -> None:
        self.objective, self.words = objective, words
        self._is_text = prefix.segments[0].modality == Modality.TEXT
        tower = self._tower = (objective.text_tower if self._is_text else None) or objective.tower
        self._task = objective.config.task_id(words.task)
        prefix = prefix.located()
        of_prefix = layout_of(prefix, by_group=tower.encoder.merges, task=self._task)
        layout = PassLayout((of_prefix,))
        x_TD = tower.embedding(prefix, of_prefix)
        _, self._past = tower.encoder.continue_from(x_TD, layout, (), tower.encoder.merged_for(layout))
        self._merged: tuple[Merged, ...] = ()  # of words and query, which have one group
        valid_BL = of_prefix.placed(torch.ones_like(x_TD[:, :1])).squeeze(-1) > 0
        prompts = self._past[0].keys.shape[2] - valid_BL.shape[1]
        self._valid_NS = torch.nn.functional.pad(valid_BL, (prompts, 0), value=True)

    def log_probs(self, tokens_NT: Tensor, parents_N: Tensor | None) -> Tensor:
        """As of the other."""
        if parents_N is not None:
            self._past = tuple(layer.rows(parents_N) for layer in self._past)
            self._valid_NS = self._valid_NS[parents_N]
        count, length = tokens_NT.shape
        query_N1 = tokens_NT.new_full((count, 1), self.words.spe)
        segments = [_text(query_N1, length, Visibility.READOUT, self.words.attributes)]
        if length:
            segments.insert(0, _text(tokens_NT[:, -1:], length - 1, Visibility.CAUSAL, self.words.attributes))
        tower = self._tower
        parts = [tower.embedding.words(segment).view(count, 1, -1) for segment in segments]
        layout = self._layout(segments)
        self._merged = self._merged or tower.encoder.merged_for(layout)
        x_TD, new = tower.encoder.continue_from(torch.cat(parts, dim=1).flatten(0, 1), layout, self._past, self._merged)
        if length:  # the word joins the history, the query does not
            word = tuple(KeysValues(layer.keys[:, :, :1], layer.values[:, :, :1]) for layer in new)
            self._past = tuple(old.joined(one) for old, one in zip(self._past, word, strict=True))
            self._valid_NS = torch.nn.functional.pad(self._valid_NS, (0, 1), value=True)
        features_NW = tower.read_last(x_TD.view(count, len(segments), -1), self._is_text)
        return _vocabulary_log_probs(self.objective, features_NW, self.words)

    def _layout(self, segments: list[Segment]) -> PassLayout:
        """The last word sees what came before and itself; the query sees the last word too."""
        count, new = self._valid_NS.shape[0], len(segments)
        before_NLS = self._valid_NS[:, None, :].expand(count, new, -1)
        among_LL = torch.ones(new, new, dtype=torch.bool, device=before_NLS.device).tril()
        mask = torch.cat([before_NLS, among_LL.expand(count, new, new)], dim=2)[:, None]
        tokens = token_layout([segment.part for segment in segments], with_spe=False).to(before_NLS.device)
        return PassLayout((SequenceLayout(tokens, 0, mask, task=self._task),))


def _text(values_BL: Tensor, first: int, visibility: Visibility, attributes: Attributes) -> Segment:
    return Segment(
        modality=Modality.TEXT,
        values=values_BL,
        positions=torch.arange(first, first + values_BL.shape[1], device=values_BL.device).expand(values_BL.shape),
        valid_BL=torch.ones_like(values_BL, dtype=torch.bool),
        visibility=visibility,
        attributes=attributes,
    )


def _vocabulary_log_probs(objective: Objective, features_NW: Tensor, words: Words) -> Tensor:
    return objective.logits(features_NW, words.features_CW, words.temperature).log_softmax(dim=1)
