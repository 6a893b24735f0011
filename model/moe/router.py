"""Routers: what a decision is made from. Gate arithmetic is fp32 (papers.md 2.4, 2.5, 3.2, 4).

Legend: T tokens of a pass, B rows, L places, D width, F gate features, N conditions, C condition groups (groups of all sequences one
after another), A attribute bits, E experts, K choices, G routing groups.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn

from data.attributes import NUM_ATTRIBUTES
from data.batch import Modality
from model.layout import PassLayout
from model.moe import losses
from model.moe.config import ExpertConfig
from model.moe.routing import TokenRouting, capacity, kept_choices, scatter_weights, top_k
from model.noise import Key, derive, each, normal, uniform
from parallel.kernels import Kernels
from parallel.precision import exact_linear, exactly


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
            found = _probabilities(features_CF, self.gate, self.config, noise, counter_C)
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
        features_CF: Tensor = self.norm(self.embed(layout.attributes_CA))
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

    @staticmethod
    def gate_features(width: int) -> int:
        return width

    def features(self, x_TD: Tensor, layout: PassLayout) -> Tensor:
        """-> features_TF."""
        return x_TD

    def forward(self, x_TD: Tensor, layout: PassLayout, noise: Key) -> TokenRouting:
        config = self.config
        group_T, tokens_G = _routing_groups(layout, config.group_size)
        num_groups = len(tokens_G)
        counter_T = None if noise is None else layout.counter_T
        with exactly(x_TD.device):
            features_TF = self.features(x_TD, layout)
            probs_TE, selection_TE, logits_TE, noisy_TE = _probabilities(
                features_TF, self.gate, config, noise, counter_T
            )
            k = _evaluated(config.eval_top_k, config.top_k, noise)
            ids_TK, weights_TK = top_k(probs_TE, k, config.renormalise, selection_TE)
            kept_TK = self._kept(ids_TK, probs_TE.detach(), group_T, tokens_G, noise, counter_T)
            visual_T = layout.modality_T != Modality.TEXT
            found = self._losses(logits_TE, noisy_TE, ids_TK[:, 0], visual_T, group_T, num_groups)
            weights = config.auxiliary
            total = sum((getattr(weights, name) * value for name, value in found.items()), logits_TE.new_zeros(()))
            detached = {name: value.detach() for name, value in found.items()}
            factor = _evaluated(config.eval_capacity_factor, config.capacity_factor, noise)
            slots = sum(self._slots(count, k, factor) for count in tokens_G) if factor else None
            may_drop = bool(factor) or (config.random_second and noise is not None)
            return TokenRouting(
                expert_ids_TK=ids_TK,
                weights_TK=weights_TK * kept_TK if may_drop else weights_TK,
                kept_TK=kept_TK,
                entropy_T=_entropy(logits_TE),
                losses=detached,
                loss=total,
                may_drop=may_drop,
                most_kept=None if slots is None else slots * config.num_experts,
            )

    def _slots(self, tokens: int, k: int, factor: float) -> int:
        config = self.config
        return capacity(tokens, k, factor, config.num_experts, config.capacity_rounding, config.capacity_multiple)

    def _kept(
        self,
        ids_TK: Tensor,
        probs_TE: Tensor,
        group_T: Tensor | None,
        tokens_G: tuple[int, ...],
        noise: Key,
        counter_T: Tensor | None,
    ) -> Tensor:
        config = self.config
        factor = _evaluated(config.eval_capacity_factor, config.capacity_factor, noise)
        asked_TK = torch.ones_like(ids_TK, dtype=torch.bool)
        if not factor and not config.random_second:
            return asked_TK
        raw_TK = probs_TE.gather(1, ids_TK)
        if config.random_second and noise is not None:
            assert counter_T is not None
            share_T = raw_TK[:, 1] / raw_TK.sum(dim=1)
            asked_TK[:, 1] = uniform(derive(noise, "second"), counter_T) < 2 * share_T
        if not factor:
            return asked_TK
        priority_T = {"none": torch.zeros_like(raw_TK[:, 0]), "max": raw_TK[:, 0], "sum": raw_TK.sum(dim=1)}
        slots_G = tuple(self._slots(tokens, ids_TK.shape[1], factor) for tokens in tokens_G)
        return kept_choices(ids_TK, priority_T[config.priority], slots_G, config.num_experts, group_T, asked_TK)

    def _losses(
        self,
        logits_TE: Tensor,
        noisy_TE: Tensor,
        first_T: Tensor,
        visual_T: Tensor,
        group_T: Tensor | None,
        num_groups: int,
    ) -> dict[str, Tensor]:
        """The auxiliary losses that have a weight, from noise-free probabilities."""
        config, weights = self.config, self.config.auxiliary
        probs_TE = logits_TE.softmax(dim=-1)
        found: dict[str, Tensor] = {}
        if weights.importance:
            found["importance"] = losses.importance(probs_TE, group_T, num_groups)
        if weights.load:
            std = config.noise_std / config.num_experts
            found["load"] = losses.load(logits_TE, noisy_TE, config.top_k, std, group_T, num_groups)
        if weights.z:
            found["z"] = losses.z_loss(logits_TE)
        if weights.switch:
            found["switch"] = losses.switch(probs_TE, first_T, group_T, num_groups)
        for name, mask_T in (("text", ~visual_T), ("visual", visual_T)):
            if getattr(weights, f"local_{name}"):
                found[f"local_{name}"] = losses.local_entropy(probs_TE, mask_T)
            if getattr(weights, f"global_{name}"):
                threshold = math.log(getattr(weights, f"experts_{name}"))
                found[f"global_{name}"] = losses.global_entropy(probs_TE, mask_T, threshold)
        return found


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
            context_BD = torch.einsum("bl,bld->bd", score_BL.softmax(dim=1), sequence.placed(x_tD))
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
    probs_XE, selection_XE, _ = _noisy(logits_XE, config, noise, counter_XE)
    return _chosen(probs_XE, selection_XE, logits_XE, config, noise)


def _chosen(
    probs_XE: Tensor, selection_XE: Tensor | None, logits_XE: Tensor, config: ExpertConfig, noise: Key
) -> tuple[Tensor, Tensor]:
    k = _evaluated(config.eval_top_k, config.top_k, noise)
    ids_XK, weights_XK = top_k(probs_XE, k, config.renormalise, selection_XE)
    return scatter_weights(ids_XK, weights_XK, config.num_experts), _entropy(logits_XE)


def _probabilities(
    features_NF: Tensor, gate: nn.Linear, config: ExpertConfig, noise: Key, counter_N: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """-> (probs_NE that weigh, what ranks the experts if that is something else, clean logits_NE, noisy logits_NE)."""
    features_NF, weight_EF = features_NF.float(), gate.weight.float()
    logits_NE = exact_linear(features_NF, weight_EF)
    if config.noise == "jitter" and noise is not None and counter_N is not None:
        factor_NF = 1 + config.jitter * (2 * uniform(noise, each(counter_N, features_NF.shape[1])) - 1)
        noisy_NE = exact_linear(features_NF * factor_NF, weight_EF)
        return noisy_NE.softmax(dim=-1), None, logits_NE, noisy_NE
    counter_NE = None if counter_N is None else each(counter_N, logits_NE.shape[1])
    probs_NE, selection_NE, noisy_NE = _noisy(logits_NE, config, noise, counter_NE)
    return probs_NE, selection_NE, logits_NE, noisy_NE


def _noisy(
    logits_XE: Tensor, config: ExpertConfig, noise: Key, counter_XE: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """-> (probs_XE that weigh, what ranks the experts if that is something else, noisy logits_XE)."""
    if noise is None or counter_XE is None or config.noise in ("none", "jitter"):
        return logits_XE.softmax(dim=-1), None, logits_XE
    if config.noise == "gumbel":
        noisy_XE = logits_XE - torch.log(-torch.log(uniform(noise, counter_XE).clamp(1e-7, 1 - 1e-7)))
        return logits_XE.softmax(dim=-1), noisy_XE.detach(), noisy_XE
    std = config.noise_std / config.num_experts
    noisy_XE = logits_XE + std * normal(noise, counter_XE) if std else logits_XE
    return noisy_XE.softmax(dim=-1), None, noisy_XE


def _entropy(logits_NE: Tensor) -> Tensor:
    """[N], in nats."""
    return torch.special.entr(logits_NE.detach().softmax(dim=-1)).sum(dim=-1)


Value = TypeVar("Value")


def _evaluated(in_evaluation: Value | None, in_training: Value, noise: Key) -> Value:
    """Some settings have another value in evaluation, which has no noise key."""
    return in_training if noise is not None or in_evaluation is None else in_evaluation


def _routing_groups(layout: PassLayout, group_size: int) -> tuple[Tensor | None, tuple[int, ...]]:
    """-> (group_T, None where there is one group; tokens of each group): rows r of all sequences of a pass belong together,
    `group_size` rows to a group."""
    rows = max(sequence.tokens.rows for sequence in layout.sequences)
    num_groups = math.ceil(rows / group_size) if group_size else 1
    if num_groups == 1:
        return None, (layout.num_tokens,)
    tokens_G = [0] * num_groups
    for sequence in layout.sequences:
        for row, length in enumerate(sequence.tokens.lengths_B.tolist()):
            tokens_G[row // group_size] += length
    parts = [sequence.row_T.div(group_size, rounding_mode="floor") for sequence in layout.sequences]
    return torch.cat(parts), tuple(tokens_G)
