"""Routers: what a decision is made from. Gate arithmetic is fp32 (papers.md 2.4, 2.5, 3.2, 4).

Legend: T valid tokens of all sequences of a pass, B rows, L positions, D width, F gate features, C condition groups (groups of
all sequences one after another), A attribute bits, E experts, K choices, G routing groups.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TypeVar

import torch
from torch import Tensor, nn

from data.attributes import NUM_ATTRIBUTES
from data.batch import Modality
from model.layout import SequenceLayout
from model.moe import losses
from model.moe.config import ExpertConfig
from model.moe.routing import TokenRouting, capacity, kept_choices, scatter_weights, top_k
from model.noise import Key, Keys, derive, normal, own_of, shared_of, uniform
from parallel.kernels import Kernels

States = tuple[Tensor, ...]
"""Hidden states [B, L, D] of sequences that go through the encoder together; a layout belongs to each."""
Layouts = tuple[SequenceLayout, ...]


class GroupRouter(nn.Module):
    """One decision per condition group, made without looking at the data, so that linear experts can be merged."""

    gate: nn.Linear

    def __init__(self, width: int, config: ExpertConfig, num_tasks: int, kernels: Kernels) -> None:
        super().__init__()
        self.config, self.num_tasks = config, num_tasks

    def forward(self, layouts: Layouts, noise: Key) -> tuple[Tensor, Tensor]:
        """-> (weights_CE, zero outside the top k; entropy_C of the gate's distribution without noise, in nats, without gradient)."""
        if noise is not None and any(layout.shared_B is not None for layout in layouts):
            return self._of_each(layouts, noise)
        with torch.autocast(layouts[0].attributes_GA.device.type, enabled=False):
            features_NF, row_C = self.conditions(layouts)
            probs_NE, selection_NE, logits_NE, _ = _probabilities(features_NF, self.gate, self.config, noise)
            k = _evaluated(self.config.eval_top_k, self.config.top_k, noise)
            ids_NK, weights_NK = top_k(probs_NE, k, self.config.renormalise, selection_NE)
            weights_NE = scatter_weights(ids_NK, weights_NK, self.config.num_experts)
            return weights_NE[row_C], _entropy(logits_NE)[row_C]

    def _of_each(self, layouts: Layouts, noise: int | Keys) -> tuple[Tensor, Tensor]:
        """Candidates that data ranks share draw noise apart from the micro-batch, by what is theirs alone."""
        own = tuple(layout for layout in layouts if layout.shared_B is None)
        parts = [self(own, own_of(noise))] if own else []
        for layout in layouts[len(own) :]:
            key = derive(shared_of(noise), layout.name)
            parts.append(self((dataclasses.replace(layout, shared_B=None),), key))
        weights, entropies = zip(*parts, strict=True)
        return torch.cat(weights), torch.cat(entropies)

    def conditions(self, layouts: Layouts) -> tuple[Tensor, Tensor]:
        """-> (features_NF of the distinct conditions in fp32, row_C the condition of each group)."""
        raise NotImplementedError


class AttributeRouter(GroupRouter):
    """z = W LN(A a + b) from the group's bit vector a: the released router; serves tasks it never saw."""

    def __init__(self, width: int, config: ExpertConfig, num_tasks: int, kernels: Kernels) -> None:
        super().__init__(width, config, num_tasks, kernels)
        self.embed = nn.Linear(NUM_ATTRIBUTES, width)
        self.norm = kernels.layer_norm(width)
        self.gate = nn.Linear(width, config.num_experts, bias=False)

    def conditions(self, layouts: Layouts) -> tuple[Tensor, Tensor]:
        attributes_CA = torch.cat([layout.attributes_GA for layout in layouts])
        rows_C = torch.arange(attributes_CA.shape[0], device=attributes_CA.device)
        return self.norm(self.embed(attributes_CA.to(self.embed.weight.dtype))), rows_C


class ModalityRouter(GroupRouter):
    """z = W e from an embedding of the group's modality."""

    def __init__(self, width: int, config: ExpertConfig, num_tasks: int, kernels: Kernels) -> None:
        super().__init__(width, config, num_tasks, kernels)
        self.embed = nn.Embedding(len(Modality), width)
        self.gate = nn.Linear(width, config.num_experts, bias=False)

    def conditions(self, layouts: Layouts) -> tuple[Tensor, Tensor]:
        return self.embed.weight, torch.cat([layout.modality_G for layout in layouts])


class TaskRouter(GroupRouter):
    """z = W e from an embedding of the task; a task that was not trained is an error where its id is looked up."""

    def __init__(self, width: int, config: ExpertConfig, num_tasks: int, kernels: Kernels) -> None:
        super().__init__(width, config, num_tasks, kernels)
        self.embed = nn.Embedding(num_tasks, width)
        self.gate = nn.Linear(width, config.num_experts, bias=False)

    def conditions(self, layouts: Layouts) -> tuple[Tensor, Tensor]:
        return self.embed.weight, _tasks_of(layouts)


class TaskSpecific(GroupRouter):
    """No gate: task i has expert i to itself. The paper's alternative to routing, parameters growing with tasks."""

    def forward(self, layouts: Layouts, noise: Key) -> tuple[Tensor, Tensor]:
        identity_EE = torch.eye(self.config.num_experts, device=layouts[0].attributes_GA.device)
        weights_CE = identity_EE[_tasks_of(layouts)]
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

    def features(self, xs: States, layouts: Layouts) -> Tensor:
        """-> features_TF of the valid tokens; pads must not take capacity or count in a loss."""
        return torch.cat([_valid(x_BLD, layout) for x_BLD, layout in zip(xs, layouts, strict=True)])

    def forward(self, xs: States, layouts: Layouts, noise: Key) -> TokenRouting:
        config = self.config
        group_T, num_groups = _routing_groups(layouts, config.group_size)
        with torch.autocast(xs[0].device.type, enabled=False):
            features_TF = self.features(xs, layouts)
            shared_T = _shared_tokens(layouts)
            probs_TE, selection_TE, logits_TE, noisy_TE = _probabilities(
                features_TF, self.gate, config, noise, shared_T
            )
            k = _evaluated(config.eval_top_k, config.top_k, noise)
            ids_TK, weights_TK = top_k(probs_TE, k, config.renormalise, selection_TE)
            kept_TK = self._kept(ids_TK, probs_TE.detach(), group_T, num_groups, noise, shared_T)
            visual_T = torch.cat([(layout.modality_BL != Modality.TEXT)[layout.valid_BL] for layout in layouts])
            found = self._losses(logits_TE, noisy_TE, ids_TK[:, 0], visual_T, group_T, num_groups)
            weights = config.auxiliary
            total = sum((getattr(weights, name) * value for name, value in found.items()), logits_TE.new_zeros(()))
            detached = {name: value.detach() for name, value in found.items()}
            return TokenRouting(ids_TK, weights_TK * kept_TK, kept_TK, _entropy(logits_TE), detached, total)

    def _kept(
        self, ids_TK: Tensor, probs_TE: Tensor, group_T: Tensor, num_groups: int, noise: Key, shared_T: Tensor | None
    ) -> Tensor:
        config = self.config
        factor = _evaluated(config.eval_capacity_factor, config.capacity_factor, noise)
        raw_TK = probs_TE.gather(1, ids_TK)
        asked_TK = torch.ones_like(ids_TK, dtype=torch.bool)
        if config.random_second and noise is not None:
            share_T = raw_TK[:, 1] / raw_TK.sum(dim=1)
            drawn_T = uniform(derive(noise, "second"), tuple(share_T.shape), share_T, shared_T)
            asked_TK[:, 1] = drawn_T < 2 * share_T
        if not factor:
            return asked_TK
        priority_T = {"none": torch.zeros_like(raw_TK[:, 0]), "max": raw_TK[:, 0], "sum": raw_TK.sum(dim=1)}
        tokens_G = torch.bincount(group_T, minlength=num_groups)
        k = ids_TK.shape[1]
        slots_G = capacity(tokens_G, k, factor, config.num_experts, config.capacity_rounding, config.capacity_multiple)
        return kept_choices(ids_TK, priority_T[config.priority], slots_G, config.num_experts, group_T, asked_TK)

    def _losses(
        self,
        logits_TE: Tensor,
        noisy_TE: Tensor,
        first_T: Tensor,
        visual_T: Tensor,
        group_T: Tensor,
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

    def features(self, xs: States, layouts: Layouts) -> Tensor:
        parts = []
        for x_BLD, layout in zip(xs, layouts, strict=True):
            seen_BL = layout.valid_BL & layout.prefix_L
            score_BL = torch.zeros_like(seen_BL, dtype=torch.float32)
            if self.query is not None:
                score_BL = nn.functional.linear(x_BLD.float(), self.query.weight.float()).squeeze(-1)
                score_BL = score_BL / math.sqrt(x_BLD.shape[-1])
            share_BL = score_BL.masked_fill(~seen_BL, -math.inf).softmax(dim=1)  # the <SPE> token is always seen
            context_BD = torch.einsum("bl,bld->bd", share_BL, x_BLD.float())
            both_BLF = torch.cat([x_BLD.float(), context_BD[:, None].expand_as(x_BLD)], dim=-1)
            parts.append(_valid(both_BLF, layout))
        return torch.cat(parts)


GROUP_ROUTERS = {
    "attribute": AttributeRouter,
    "modality": ModalityRouter,
    "task": TaskRouter,
    "task_specific": TaskSpecific,
}
TOKEN_ROUTERS = {"token": TokenRouter, "context": ContextRouter}


def _probabilities(
    features_NF: Tensor, gate: nn.Linear, config: ExpertConfig, noise: Key, shared_N: Tensor | None = None
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """-> (probs_NE that weigh, what ranks the experts if that is something else, clean logits_NE, noisy logits_NE). shared_N: numbers of
    the last ones, which draw noise by them."""
    features_NF, weight_EF = features_NF.float(), gate.weight.float()
    logits_NE = nn.functional.linear(features_NF, weight_EF)
    if noise is None or config.noise == "none":
        return logits_NE.softmax(dim=-1), None, logits_NE, logits_NE
    if config.noise == "jitter":
        factor_NF = 1 + config.jitter * (2 * uniform(noise, tuple(features_NF.shape), features_NF, shared_N) - 1)
        noisy_NE = nn.functional.linear(features_NF * factor_NF, weight_EF)
        return noisy_NE.softmax(dim=-1), None, logits_NE, noisy_NE
    if config.noise == "gumbel":
        drawn_NE = uniform(noise, tuple(logits_NE.shape), logits_NE, shared_N).clamp(1e-7, 1 - 1e-7)
        noisy_NE = logits_NE - torch.log(-torch.log(drawn_NE))
        return logits_NE.softmax(dim=-1), noisy_NE.detach(), logits_NE, noisy_NE
    std = config.noise_std / config.num_experts
    noisy_NE = logits_NE
    if std:
        noisy_NE = logits_NE + std * normal(noise, tuple(logits_NE.shape), logits_NE, shared_N)
    return noisy_NE.softmax(dim=-1), None, logits_NE, noisy_NE


def _entropy(logits_NE: Tensor) -> Tensor:
    """[N], in nats."""
    return torch.special.entr(logits_NE.detach().softmax(dim=-1)).sum(dim=-1)


Value = TypeVar("Value")


def _evaluated(in_evaluation: Value | None, in_training: Value, noise: Key) -> Value:
    """Some settings have another value in evaluation, which has no noise key."""
    return in_training if noise is not None or in_evaluation is None else in_evaluation


def _tasks_of(layouts: Layouts) -> Tensor:
    """task_C: the task id of each group."""
    return torch.cat([layout.modality_G.new_full(layout.modality_G.shape, layout.task) for layout in layouts])


def _valid(x_BLF: Tensor, layout: SequenceLayout) -> Tensor:
    """[T, F]: the rows of the valid tokens."""
    flat_PF = x_BLF.flatten(0, 1)
    return flat_PF if layout.is_full else flat_PF.index_select(0, layout.place_T)


def _shared_tokens(layouts: Layouts) -> Tensor | None:
    """Numbers of the tokens of candidates that data ranks share, which come last in a pass."""
    shared = [layout.shared_T for layout in layouts if layout.shared_T is not None]
    assert all(layout.shared_B is not None for layout in layouts[len(layouts) - len(shared) :])
    return torch.cat(shared) if shared else None


def _routing_groups(layouts: Layouts, group_size: int) -> tuple[Tensor, int]:
    """-> (group_T, number of groups): rows r of all sequences of a pass belong together, `group_size` rows to a group."""
    num_groups, parts = 1, []
    for layout in layouts:
        rows = layout.valid_BL.shape[0]
        group_B = torch.arange(rows, device=layout.valid_BL.device) // (group_size or max(1, rows))
        num_groups = max(num_groups, math.ceil(rows / (group_size or max(1, rows))))
        parts.append(group_B[:, None].expand_as(layout.valid_BL)[layout.valid_BL])
    return torch.cat(parts), num_groups
