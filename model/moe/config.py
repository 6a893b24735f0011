"""Options of the sparse layers, each beside its source; checked when made."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

RouterName = Literal["token", "context", "modality", "task", "attribute", "task_specific"]
DATA_DEPENDENT = ("token", "context")
"""Routers that decide for every token from its state; the others decide for whole groups and see no data."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuxiliaryConfig:
    """Weights of the auxiliary losses of routers that decide for every token; 0 = off. Added for every sparse decision.

    importance, load            V-MoE (papers.md 3.5), its configurations use 0.005 each; load needs noise: vmoe
    z                           ST-MoE, about 1e-3
    switch                      Switch (and, computed a routing group, GShard), about 1e-2
    local_text, local_visual    LIMoE's local entropy of a modality (papers.md 4.2)
    global_text, global_visual  LIMoE's global entropy, zero above its threshold
    experts_text, experts_visual  S: the threshold is log S, the entropy of S equally used experts; the paper's values could
                                not be confirmed, these defaults are ours
    """

    importance: float = 0.0
    load: float = 0.0
    z: float = 0.0
    switch: float = 0.0
    local_text: float = 0.0
    local_visual: float = 0.0
    global_text: float = 0.0
    global_visual: float = 0.0
    experts_text: float = 2.0
    experts_visual: float = 4.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 0:
                raise ValueError(f"{field.name}={getattr(self, field.name)}: must not be negative")
        for name in ("experts_text", "experts_visual"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: a threshold of less than one expert has no meaning")

    @property
    def names(self) -> tuple[str, ...]:
        """The losses that have a weight."""
        fields = (field.name for field in dataclasses.fields(self) if not field.name.startswith("experts_"))
        return tuple(name for name in fields if getattr(self, name))

    @property
    def by_modality(self) -> bool:
        """Has one of LIMoE's a weight?"""
        return any(name.startswith(("local_", "global_")) for name in self.names)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertConfig:
    """The sparse layers: what an expert is, where they sit, who decides and how (papers.md 2, 3, 4, section 5 for the table).

    router       token, context: one decision per token, run by sending tokens (DispatchPath)
                 modality, task, attribute: one decision per group of tokens, run by merging weights (MergePath)
                 task_specific: no gate, one expert of its own for each task
    unit         linear: each of QKV, attention output, FFN 1 and FFN 2 is a bank (Uni-Perceiver-MoE);
                 ffn_linear: FFN 1 and FFN 2 alone; mlp: an expert is a whole FFN (V-MoE, LIMoE; token and context routers)
    num_experts  E; the released configurations use 8
    top_k        k; the released configurations use 2, LIMoE and Switch 1
    eval_top_k   k in evaluation; none = top_k
    backend      who sends tokens: own; deepspeed: DeepSpeed's MoE layer, by the same decisions and with the same weights (unit: mlp,
                 parallel.tensor: 1). It sends all slots of all experts, filled or not, and without a capacity as many for each as the
                 fullest one needs
    exchange     what travels between expert ranks. counted: the rows that were chosen; the host asks at each decision how many. slots: all
                 slots of all experts, filled or not, which needs a capacity; the host asks once a pass
    exchange_parts  in so many parts tokens travel between expert ranks: one's rows are under way while another's are computed, and its
                 gradients too. The results are the same; products have fewer rows. 1 = nothing overlaps
    placement    odd: layers 0, 2, 4, ... (the released name); four: 0, 4, 8, ...; all; none (dense); every-N: layers N-1,
                 2N-1, ...; last-N: the last N of layers 1, 3, 5, ... (V-MoE's names)
    noise        in training: vmoe adds N(0, (noise_std / E)^2) to the logits; gumbel adds Gumbel noise that selects, weights
                 staying clean (the code's RSample); jitter scales the gate's input by U[1 - jitter, 1 + jitter]; none
    noise_std    of vmoe's noise, times the number of experts
    jitter       of jitter's noise
    renormalise  divide the top-k weights by their sum (released attribute router: yes for k = 2; V-MoE: no)
    pooling      context router: mean over the sequence's PREFIX tokens, or attention over them with a learned query;
                 causal words are left out, or routing would tell earlier words about later ones (ours, unconfirmed)
    group_size   sequences that are routed together and share slots (V-MoE: 8); 0 = all of a rank's micro-batch
    capacity_factor, eval_capacity_factor  C: slots of an expert = C * tokens * k / E; 0 = no limit; none = as in training
    capacity_rounding, capacity_multiple  V-MoE's code: ceil and 4; its paper: round and 1
    priority     who takes the slots: token order (none), the largest (max) or the summed (sum) top-k probability first:
                 Batch Prioritised Routing, in training and in evaluation
    random_second  GShard: in training a second choice is asked with probability min(1, 2 * its normalised weight)
    same_start   all experts of a bank start equal (V-MoE); otherwise each is its own draw (Uni-Perceiver-MoE)
    max_groups   groups of tokens in one pass that expert ranks exchange merged weights for, padded to this many so that ranks
                 with different tasks exchange equal shapes; captioning has 3 (picture, words, candidates), other tasks 2. Where
                 ranks share candidates, names and words of all tasks come beside them; with a task router those of each task, for
                 which there is room by default
    auxiliary    losses
    """

    router: RouterName = "attribute"
    unit: Literal["linear", "ffn_linear", "mlp"] = "linear"
    backend: Literal["own", "deepspeed"] = "own"
    exchange: Literal["counted", "slots"] = "counted"
    exchange_parts: int = 1
    num_experts: int = 8
    top_k: int = 2
    eval_top_k: int | None = None
    placement: str = "odd"
    noise: Literal["vmoe", "gumbel", "jitter", "none"] = "vmoe"
    noise_std: float = 1.0
    jitter: float = 0.01
    renormalise: bool = True
    pooling: Literal["mean", "attention"] = "mean"
    group_size: int = 0
    capacity_factor: float = 0.0
    eval_capacity_factor: float | None = None
    capacity_rounding: Literal["ceil", "round"] = "ceil"
    capacity_multiple: int = 1
    priority: Literal["none", "max", "sum"] = "max"
    random_second: bool = False
    same_start: bool = False
    max_groups: int = 8
    auxiliary: AuxiliaryConfig = dataclasses.field(default_factory=AuxiliaryConfig)

    def __post_init__(self) -> None:
        if self.num_experts < 1:
            raise ValueError(f"num_experts={self.num_experts}: needs at least 1")
        for name in ("top_k", "eval_top_k"):
            k = getattr(self, name)
            if k is not None and not 1 <= k <= self.num_experts:
                raise ValueError(f"{name}={k}: must lie in 1..num_experts={self.num_experts}")
        if not re.fullmatch(r"odd|four|all|none|(every|last)-[1-9][0-9]*", self.placement):
            raise ValueError(f"placement={self.placement}: use odd, four, all, none, every-N or last-N")
        for name in ("noise_std", "jitter", "group_size", "capacity_factor", "eval_capacity_factor"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: must not be negative")
        for name in ("capacity_multiple", "max_groups", "exchange_parts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        per_token = self.router in DATA_DEPENDENT
        if self.unit == "mlp" and not per_token:
            raise ValueError(f"unit=mlp cannot be merged: it needs router token or context, not {self.router}")
        if self.backend == "deepspeed" and self.unit != "mlp":
            raise ValueError(f"backend=deepspeed sends tokens to whole networks: it needs unit=mlp, not {self.unit}")
        if self.exchange_parts > 1 and (self.backend == "deepspeed" or not per_token):
            raise ValueError(
                f"exchange_parts={self.exchange_parts} cuts our own exchange of tokens: it needs router token or context and backend=own"
            )
        if self.exchange == "slots" and (
            self.backend == "deepspeed" or not self.capacity_factor or self.exchange_parts > 1
        ):
            raise ValueError(
                "exchange=slots sends slots as they are: it needs capacity_factor > 0, exchange_parts=1 and backend=own"
            )
        if not per_token and self.auxiliary.names:
            raise ValueError(f"auxiliary losses balance tokens: router {self.router} does not decide for tokens")
        if not per_token and (self.capacity_factor or self.eval_capacity_factor or self.random_second):
            raise ValueError(f"capacity and random_second thin tokens: router {self.router} does not decide for tokens")
        if not per_token and (self.group_size or self.capacity_multiple > 1 or self.priority != "max"):
            raise ValueError(
                f"group_size, capacity_multiple and priority are about tokens: router {self.router} does not decide for tokens"
            )
        if self.pooling != "mean" and self.router != "context":
            raise ValueError(f"pooling={self.pooling} is of router context, not of {self.router}")
        if self.auxiliary.load and (self.noise != "vmoe" or not self.noise_std):
            raise ValueError("auxiliary.load is defined by the noise: it needs noise: vmoe and noise_std > 0")
        if self.random_second and self.top_k != 2:
            raise ValueError(f"random_second is about second choices: it needs top_k=2, not {self.top_k}")

    @property
    def unreachable(self) -> tuple[str, ...]:
        """Lines about thresholds of LIMoE's global entropy that so few experts cannot reach: the loss would never be zero."""
        auxiliary = self.auxiliary
        pairs = (
            ("text", auxiliary.global_text, auxiliary.experts_text),
            ("visual", auxiliary.global_visual, auxiliary.experts_visual),
        )
        return tuple(
            f"model.experts.auxiliary.experts_{name}={experts:g} is above num_experts={self.num_experts}: its threshold, log {experts:g}, "
            f"cannot be reached, and the loss pulls towards equal use without end; lower it to at most {self.num_experts}"
            for name, weight, experts in pairs
            if weight and experts > self.num_experts
        )

    def is_sparse(self, layer: int, depth: int) -> bool:
        """Whether block `layer` (from 0) of `depth` holds experts."""
        kind, _, count = self.placement.partition("-")
        if kind == "every":
            return (layer + 1) % int(count) == 0
        if kind == "last":
            return layer in range(1, depth, 2)[-int(count) :]
        return {"odd": layer % 2 == 0, "four": layer % 4 == 0, "all": True, "none": False}[kind]

    @property
    def decides_per_token(self) -> bool:
        return self.router in DATA_DEPENDENT
