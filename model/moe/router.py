"""Routers: what a decision is made from. Gate arithmetic is fp32 (papers.md 2.4, 2.5, 3.2, 4).

Legend: T tokens of a pass, B rows, L places, D width, F gate features, N conditions, C condition groups (groups of all sequences one
after another), A attribute bits, E experts, K choices, G routing groups.
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from data.attributes import NUM_ATTRIBUTES
from data.batch import Modality
from model.layout import PassLayout
from model.moe import losses
from model.moe.config import ExpertConfig
from model.moe.routing import TokenRouting, capacity, kept_choices, probabilities, scatter_weights, top_k
from model.noise import Key, derive, each, normal, uniform
from parallel.kernels import Kernels
from parallel.precision import exact_linear, exactly

WITHOUT_NUMBERS = ("none", "jitter")
"""Kinds of noise that add nothing to logits."""
MOST_DRAWN = 512
"""Numbers that a token draws at once, which take 24 bytes each for a moment."""


class GroupRouter(nn.Module):
    """One decision per condition group, made without looking at the data, so that linear experts can be merged."""

    gate: nn.Linear

    def __init__(self, width: int, config: ExpertConfig, num_tasks: int, kernels: Kernels) -> None:
        super().__init__()
        self.config, self.num_tasks = config, num_tasks

    def forward(self, layout: PassLayout, noise: Key) -> tuple[Tensor, Tensor]:
        """-> (weights_CE, zero outside the top k; entropy_C of the gate's distribution without noise, in nats, without gradient)."""
        with exactly(layout.device):
            features_CF = self.conditions(layout)
            counter_C = None if noise is None else layout.counter_C
            found = _logits(features_CF, self.gate, self.config, noise, counter_C)
            return _chosen(*found[:3], self.config, noise)

    def conditions(self, layout: PassLayout) -> Tensor:
        """-> features_CF of each group in fp32."""
        raise NotImplementedError


class AttributeRouter(GroupRouter):
    """z = W LN(A a + b) from the group's bit vector a: the released router; serves tasks it never saw."""

    def __init__(self, width: int, config: ExpertConfig, num_tasks: int, kernels: Kernels) -> None:
        super().__init__(width, config, num_tasks, kernels)
        self.embed = nn.Linear(NUM_ATTRIBUTES, width)
        self.norm = kernels.layer_norm(width)
        self.gate = nn.Linear(width, config.num_experts, bias=False)

    def conditions(self, layout: PassLayout) -> Tensor:
        embedded_CF = exact_linear(layout.attributes_CA, self.embed.weight.float()) + self.embed.bias.float()
        features_CF: Tensor = self.norm(embedded_CF)
        return features_CF


class ModalityRouter(GroupRouter):
    """z = W e from an embedding of the group's modality."""

    def __init__(self, width: int, config: ExpertConfig, num_tasks: int, kernels: Kernels) -> None:
        super().__init__(width, config, num_tasks, kernels)
        self.embed = nn.Embedding(len(Modality), width)
        self.gate = nn.Linear(width, config.num_experts, bias=False)

    def conditions(self, layout: PassLayout) -> Tensor:
        features_CF: Tensor = self.embed(layout.modality_C)
        return features_CF


class TaskRouter(GroupRouter):
    """z = W e from an embedding of the task; a task that was not trained is an error where its id is looked up."""

    def __init__(self, width: int, config: ExpertConfig, num_tasks: int, kernels: Kernels) -> None:
        super().__init__(width, config, num_tasks, kernels)
        self.embed = nn.Embedding(num_tasks, width)
        self.gate = nn.Linear(width, config.num_experts, bias=False)

    def conditions(self, layout: PassLayout) -> Tensor:
        features_CF: Tensor = self.embed(layout.task_C)
        return features_CF


class TaskSpecific(GroupRouter):
    """No gate: task i has expert i to itself. The paper's alternative to routing, parameters growing with tasks."""

    def forward(self, layout: PassLayout, noise: Key) -> tuple[Tensor, Tensor]:
        weights_CE = torch.eye(self.config.num_experts, device=layout.device)[layout.task_C]
        return weights_CE, weights_CE.new_zeros(len(weights_CE))


class TokenRouter(nn.Module):
    """One decision per token from its hidden state: z = W x."""

    def __init__(self, width: int, config: ExpertConfig, num_tasks: int, kernels: Kernels) -> None:
        super().__init__()
        self.config = config
        self.gate = nn.Linear(self.gate_features(width), config.num_experts, bias=False)
        self.losses_of_one_group = kernels.fused(losses.auxiliary_losses)

    @staticmethod
    def gate_features(width: int) -> int:
        return width

    def features(self, x_TD: Tensor, layout: PassLayout) -> Tensor:
        """-> features_TF."""
        return x_TD

    def forward(self, x_TD: Tensor, layout: PassLayout, noise: Key, drawn_TE: Tensor | None = None) -> TokenRouting:
        """drawn_TE: the numbers of the gate's noise, where all decisions of the pass have drawn theirs together (`drawn_at_once`)."""
        config = self.config
        group_T, num_groups = _routing_groups(layout, config.group_size)
        slots_G = self.slots(layout, noise)
        counter_T = None if noise is None else layout.counter_T
        with exactly(x_TD.device):
            features_TF = self.features(x_TD, layout)
            weighing_TE, selection_TE, logits_TE, noisy_TE = _logits(
                features_TF, self.gate, config, noise, counter_T, drawn_TE
            )
            k = _evaluated(config.eval_top_k, config.top_k, noise)
            ids_TK, weights_TK = top_k(weighing_TE, k, config.renormalise, selection_TE)
            kept_TK, asked_TK = self._kept(ids_TK, weighing_TE.detach(), group_T, slots_G, noise, counter_T)
            return TokenRouting(
                expert_ids_TK=ids_TK,
                weights_TK=weights_TK if kept_TK is None else weights_TK * kept_TK,
                kept_TK=kept_TK,
                logits_TE=logits_TE.detach(),
                losses=self._losses(logits_TE, noisy_TE, ids_TK, layout, group_T, num_groups),
                most_kept=None if slots_G is None else sum(slots_G) * config.num_experts,
                asked_TK=asked_TK,
            )

    def slots(self, layout: PassLayout, noise: Key) -> tuple[int, ...] | None:
        """Of an expert in each routing group of a pass; None: no limit."""
        config = self.config
        factor = _evaluated(config.eval_capacity_factor, config.capacity_factor, noise)
        k = _evaluated(config.eval_top_k, config.top_k, noise)
        if not factor:
            return None
        rounding = (config.capacity_rounding, config.capacity_multiple)
        tokens_G = _tokens_of_groups(layout, config.group_size)
        return tuple(capacity(tokens, k, factor, config.num_experts, *rounding) for tokens in tokens_G)

    def _kept(
        self,
        ids_TK: Tensor,
        weighing_TE: Tensor,
        group_T: Tensor | None,
        slots_G: tuple[int, ...] | None,
        noise: Key,
        counter_T: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """-> (kept_TK, asked_TK); None: nothing can be dropped, all are asked."""
        config = self.config
        draws = config.random_second and noise is not None
        if slots_G is None and not draws:
            return None, None
        raw_TK, asked_TK = probabilities(weighing_TE, ids_TK), None
        if draws:
            assert noise is not None and counter_T is not None
            share_T = raw_TK[:, 1] / raw_TK.sum(dim=1)
            second_T = uniform(derive(noise, "second"), counter_T) < 2 * share_T
            asked_TK = torch.stack([torch.ones_like(second_T), second_T], dim=1)
        if slots_G is None:
            return asked_TK, asked_TK
        priority_T = None
        if config.priority != "none":
            priority_T = raw_TK[:, 0] if config.priority == "max" or raw_TK.shape[1] == 1 else raw_TK.sum(dim=1)
        return kept_choices(ids_TK, priority_T, slots_G, config.num_experts, group_T, asked_TK), asked_TK

    def _losses(
        self,
        logits_TE: Tensor,
        noisy_TE: Tensor,
        ids_TK: Tensor,
        layout: PassLayout,
        group_T: Tensor | None,
        num_groups: int,
    ) -> dict[str, Tensor]:
        """The auxiliary losses that have a weight."""
        names = self.config.auxiliary.names
        if not names:
            return {}
        # A compiler would start anew for every number of groups.
        compute = losses.auxiliary_losses if group_T is not None else self.losses_of_one_group
        share_T2 = layout.share_T2 if self.config.auxiliary.by_modality else None
        found = compute(self.config, logits_TE, noisy_TE, ids_TK, share_T2, group_T, num_groups)
        return dict(zip(names, found, strict=True))


class ContextRouter(TokenRouter):
    """z = W [x; pooled context of the token's sequence]. The formula is ours where the paper could not be read."""

    def __init__(self, width: int, config: ExpertConfig, num_tasks: int, kernels: Kernels) -> None:
        super().__init__(width, config, num_tasks, kernels)
        self.query = nn.Linear(width, 1, bias=False) if config.pooling == "attention" else None

    @staticmethod
    def gate_features(width: int) -> int:
        return 2 * width

    def features(self, x_TD: Tensor, layout: PassLayout) -> Tensor:
        parts = []
        for x_tD, sequence in zip(layout.each(x_TD.float()), layout.sequences, strict=True):
            seen_t = sequence.tokens.prefix_L[sequence.place_T % sequence.tokens.length]
            score_t = torch.zeros_like(x_tD[:, 0])
            if self.query is not None:
                score_t = exact_linear(x_tD, self.query.weight.float()).squeeze(-1) / math.sqrt(x_tD.shape[-1])
            # Pads, like words that come later, have no share; the <SPE> token is always seen.
            score_t = torch.where(seen_t, score_t, -math.inf)
            is_there_BL = sequence.placed(torch.ones_like(score_t)[:, None]).squeeze(-1) > 0
            score_BL = sequence.placed(score_t[:, None]).squeeze(-1).masked_fill(~is_there_BL, -math.inf)
            context_BD = exact_linear(score_BL.softmax(dim=1)[:, None], sequence.placed(x_tD).mT).squeeze(1)
            parts.append(torch.cat([x_tD, context_BD[sequence.row_T]], dim=-1))
        return torch.cat(parts)


GROUP_ROUTERS = {
    "attribute": AttributeRouter,
    "modality": ModalityRouter,
    "task": TaskRouter,
    "task_specific": TaskSpecific,
}
TOKEN_ROUTERS = {"token": TokenRouter, "context": ContextRouter}


def weights_of(logits_XE: Tensor, config: ExpertConfig, noise: Key, counter_XE: Tensor | None) -> tuple[Tensor, Tensor]:
    """Of any leading dimensions -> (weights_XE, zero outside the top k; entropy_X). Noise that scales features is not for it."""
    weighing_XE, selection_XE, _ = _noisy(logits_XE, config, drawn(config, noise, counter_XE))
    return _chosen(weighing_XE, selection_XE, logits_XE, config, noise)


def _chosen(
    weighing_XE: Tensor, selection_XE: Tensor | None, logits_XE: Tensor, config: ExpertConfig, noise: Key
) -> tuple[Tensor, Tensor]:
    k = _evaluated(config.eval_top_k, config.top_k, noise)
    ids_XK, weights_XK = top_k(weighing_XE, k, config.renormalise, selection_XE)
    return scatter_weights(ids_XK, weights_XK, config.num_experts), entropy(logits_XE)


def drawn(config: ExpertConfig, noise: Key, counter_XE: Tensor | None) -> Tensor | None:
    """What the noise of logits is made of; None where they have none: in evaluation, or where features are scaled instead."""
    if noise is None or counter_XE is None or config.noise in WITHOUT_NUMBERS:
        return None
    if config.noise == "gumbel":
        return uniform(noise, counter_XE)
    return normal(noise, counter_XE) if config.noise_std else None


def drawn_at_once(config: ExpertConfig, decisions: int, noise: Key, layout: PassLayout) -> list[Tensor | None]:
    """`drawn` [T, E] of each of these decisions about the tokens of a pass; a draw is twenty small operators, so few are made."""
    if noise is None or config.noise in WITHOUT_NUMBERS:
        return [None] * decisions
    found: list[Tensor | None] = []
    most = max(1, MOST_DRAWN // config.num_experts)
    for first in range(0, decisions, most):
        count = min(most, decisions - first)
        numbers_TX = drawn(config, derive(noise, first), each(layout.counter_T, count * config.num_experts))
        found += [None] * count if numbers_TX is None else numbers_TX.split(config.num_experts, dim=1)
    return found


def _logits(
    features_NF: Tensor,
    gate: nn.Linear,
    config: ExpertConfig,
    noise: Key,
    counter_N: Tensor | None,
    drawn_NE: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """-> (logits_NE that weigh, what ranks the experts if that is something else, clean logits_NE, noisy logits_NE)."""
    features_NF, weight_EF = features_NF.float(), gate.weight.float()
    logits_NE = exact_linear(features_NF, weight_EF)
    if config.noise == "jitter" and noise is not None and counter_N is not None:
        factor_NF = 1 + config.jitter * (2 * uniform(noise, each(counter_N, features_NF.shape[1])) - 1)
        noisy_NE = exact_linear(features_NF * factor_NF, weight_EF)
        return noisy_NE, None, logits_NE, noisy_NE
    if drawn_NE is None and counter_N is not None:
        drawn_NE = drawn(config, noise, each(counter_N, logits_NE.shape[1]))
    weighing_NE, selection_NE, noisy_NE = _noisy(logits_NE, config, drawn_NE)
    return weighing_NE, selection_NE, logits_NE, noisy_NE


def _noisy(logits_XE: Tensor, config: ExpertConfig, drawn_XE: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
    """-> (logits_XE that weigh, what ranks the experts if that is something else, noisy logits_XE)."""
    if drawn_XE is None:
        return logits_XE, None, logits_XE
    if config.noise == "gumbel":
        noisy_XE = logits_XE - torch.log(-torch.log(drawn_XE.clamp(1e-7, 1 - 1e-7)))
        return logits_XE, noisy_XE.detach(), noisy_XE
    noisy_XE = logits_XE.add(drawn_XE, alpha=config.noise_std / config.num_experts)
    return noisy_XE, None, noisy_XE


def entropy(logits_NE: Tensor) -> Tensor:
    """[...] of [..., E]: of the gate's distribution, in nats, without gradient."""
    return torch.special.entr(logits_NE.detach().softmax(dim=-1)).sum(dim=-1)


Value = TypeVar("Value")


def _evaluated(in_evaluation: Value | None, in_training: Value, noise: Key) -> Value:
    """Some settings have another value in evaluation, which has no noise key."""
    return in_training if noise is not None or in_evaluation is None else in_evaluation


def _number_of_groups(layout: PassLayout, group_size: int) -> int:
    """Rows r of all sequences of a pass belong together, `group_size` rows to a group."""
    rows = max(sequence.tokens.rows for sequence in layout.sequences)
    return math.ceil(rows / group_size) if group_size else 1


def _tokens_of_groups(layout: PassLayout, group_size: int) -> tuple[int, ...]:
    num_groups = _number_of_groups(layout, group_size)
    if num_groups == 1:
        return (layout.num_tokens,)
    tokens_G = np.zeros(num_groups, dtype=np.int64)
    for sequence in layout.sequences:
        lengths_B = sequence.tokens.lengths_B
        np.add.at(tokens_G, np.arange(len(lengths_B)) // group_size, lengths_B)
    return tuple(tokens_G.tolist())


def _routing_groups(layout: PassLayout, group_size: int) -> tuple[Tensor | None, int]:
    """-> (group_T, None where there is one group; how many)."""
    num_groups = _number_of_groups(layout, group_size)
    if num_groups == 1:
        return None, 1
    parts = [sequence.row_T.div(group_size, rounding_mode="floor") for sequence in layout.sequences]
    return torch.cat(parts), num_groups
