"""Options of the network, each beside its source; checked when made.

The run configuration composes these; nothing here knows of files, data sets or ranks.
"""

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
                 with different tasks exchange equal shapes; captioning has 3 (picture, words, candidates), other tasks 2
    auxiliary    losses
    """

    router: RouterName = "attribute"
    unit: Literal["linear", "ffn_linear", "mlp"] = "linear"
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
    max_groups: int = 3
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
        for name in ("capacity_multiple", "max_groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        per_token = self.router in DATA_DEPENDENT
        if self.unit == "mlp" and not per_token:
            raise ValueError(f"unit=mlp cannot be merged: it needs router token or context, not {self.router}")
        if not per_token and self.auxiliary.names:
            raise ValueError(f"auxiliary losses balance tokens: router {self.router} does not decide for tokens")
        if not per_token and (self.capacity_factor or self.eval_capacity_factor or self.random_second):
            raise ValueError(f"capacity and random_second thin tokens: router {self.router} does not decide for tokens")
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """Prompt tuning (papers.md 1.10): learned vectors joined to the keys and values of every layer, and a trained bias on
    every <SPE> embedding.

    length          prompts of a layer
    target_length   candidates have this many of their own (retrieval); 0: inputs and candidates share
    """

    length: int = 10
    target_length: int = 0

    def __post_init__(self) -> None:
        if self.length < 1 or self.target_length < 0:
            raise ValueError(f"{self}: length must be at least 1, target_length not negative")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank updates of the blocks' linears (model/lora.py): weight + alpha / rank * up down, for each expert its own.

    rank      columns of up, rows of down
    alpha     factor of the update is alpha / rank
    targets   which linears: qkv, out (attention), up, down (feed-forward)
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[Literal["qkv", "out", "up", "down"], ...] = ("qkv", "out", "up", "down")

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not self.targets:
            raise ValueError(f"rank={self.rank}, alpha={self.alpha}: need rank >= 1, alpha > 0 and at least one target")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextTowerConfig:
    """Shape of a tower for text alone; experts, placement and all else are those of the model.

    width, depth, heads, ffn  as of the model
    """

    width: int
    depth: int
    heads: int
    ffn: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One shared encoder for all modalities (papers.md 1.2, 1.3).

    width, depth, heads, ffn     d, L, h, d_ff
    image_size, patch            pixels; patch divides image_size
    max_frames, max_text         sizes of the learned temporal and text position tables
    positions                    spatial positions: fixed sine_cosine (the code), or a learned table (the paper)
    position_scale               factor of the grid coordinates; at a second, higher resolution old / new keeps the scale
    position_grid                rows and columns of the learned table; 0 = patches of the image. A second stage keeps the
                                 first one's, and the table is interpolated
    layer_scale                  initial value of the learned branch factors; 0 leaves them out
    drop_path                    probability of dropping a branch for one row, the same in every layer
    readout                      spe: the output at the read position; mean: over all valid tokens (LIMoE, unconfirmed)
    output                       one projection into the compared space, or one each for visual and text inputs (LIMoE)
    space                        width of the compared space; 0 = width
    prompts                      deep prompts for prompt tuning; none: no prompts
    head_classes                 classes of a linear head: logits = weight * cosine logits + head(feature); 0: no head. The run
                                 then has this one classification task
    lora                         low-rank updates of the linears; none: no updates
    text_tower                   a tower of its own for sequences that begin with text (CLIP, ALIGN, LiT); none: one tower
    activation_checkpointing     block: keep only the blocks' inputs and the routing decisions, compute the rest again; selective:
                                 keep all but what is cheap, the results of LayerNorm and GELU; none: keep all
    chunks                       encode a batch in this many parts of which only features are kept (BASIC): the loss and its
                                 gradient are those of the whole batch, activations those of one part
    temperatures                 names of the learned logit scales, capped at 100
    initial_scale                their initial value; SigLIP's is 10
    logit_biases                 names of logit scales that have a learned bias besides, for tasks with loss=sigmoid; the run fills them in
    tasks                        names of the tasks for the task routers; the run fills in those of data.tasks
    """

    width: int = 128
    depth: int = 4
    heads: int = 4
    ffn: int = 512
    image_size: int = 32
    patch: int = 8
    max_frames: int = 8
    max_text: int = 64
    positions: Literal["sine_cosine", "learned"] = "sine_cosine"
    position_scale: float = 1.0
    position_grid: int = 0
    layer_scale: float = 0.0
    drop_path: float = 0.0
    readout: Literal["spe", "mean"] = "spe"
    output: Literal["shared", "per_modality"] = "shared"
    space: int = 0
    prompts: PromptConfig | None = None
    head_classes: int = 0
    lora: LoraConfig | None = None
    text_tower: TextTowerConfig | None = None
    activation_checkpointing: Literal["none", "block", "selective"] = "none"
    chunks: int = 1
    experts: ExpertConfig = dataclasses.field(default_factory=ExpertConfig)
    temperatures: tuple[str, ...] = ("image", "video", "text", "caption", "retrieval")
    initial_scale: float = 1 / 0.07
    logit_biases: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "ffn", "image_size", "patch", "max_frames", "max_text"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.width % self.heads:
            raise ValueError(f"width={self.width} does not divide by heads={self.heads}")
        if self.width % 4:
            raise ValueError(f"width={self.width}: two-dimensional sine-cosine positions need a multiple of 4")
        if self.image_size % self.patch:
            raise ValueError(f"image_size={self.image_size} does not divide by patch={self.patch}")
        if self.head_classes < 0:
            raise ValueError(f"head_classes={self.head_classes}: must not be negative")
        if self.chunks < 1 or self.space < 0 or self.initial_scale <= 0 or self.layer_scale < 0:
            raise ValueError(
                f"chunks={self.chunks}, space={self.space}, initial_scale={self.initial_scale}, layer_scale={self.layer_scale}: "
                "needs chunks >= 1, space >= 0, initial_scale > 0 and layer_scale >= 0"
            )
        if self.chunks > 1 and self.activation_checkpointing == "selective":
            raise ValueError(
                f"activation_checkpointing=selective with chunks={self.chunks}: each part is computed again as a whole anyway; "
                "use none or block, or chunks=1"
            )
        if self.experts.router == "task_specific" and len(self.tasks) > self.experts.num_experts:
            raise ValueError(
                f"experts.num_experts={self.experts.num_experts}: router task_specific needs one for each of the "
                f"{len(self.tasks)} tasks"
            )
        attention_per_token = self.experts.decides_per_token and self.experts.unit == "linear"
        if self.prompts and attention_per_token and self.experts.placement != "none":
            raise ValueError(
                f"prompts are no tokens that router {self.experts.router} could send: use a router that decides for groups, "
                "or experts in the FFN alone"
            )
        unknown = set(self.logit_biases) - set(self.temperatures)
        if unknown:
            raise ValueError(f"logit_biases: {min(unknown)!r} is not among temperatures={list(self.temperatures)}")
        if self.position_scale <= 0 or self.position_grid < 0:
            raise ValueError(
                f"position_scale={self.position_scale}, position_grid={self.position_grid}: must be positive, and not negative"
            )
        if not 0.0 <= self.drop_path < 1.0:
            raise ValueError(f"drop_path={self.drop_path}: must lie in [0, 1)")
        try:
            self.text_tower_config()
        except ValueError as error:
            raise ValueError(f"text_tower: {error}") from error

    @property
    def space_width(self) -> int:
        return self.space or self.width

    @property
    def num_decisions(self) -> int:
        """Routing decisions of one forward pass: attention and FFN pair, or FFN alone, of each sparse block."""
        towers = [tower for tower in (self, self.text_tower_config()) if tower]
        sparse = sum(t.experts.is_sparse(layer, t.depth) for t in towers for layer in range(t.depth))
        return sparse * (2 if self.experts.unit == "linear" else 1)

    def text_tower_config(self) -> ModelConfig | None:
        """The options of the text tower, None if there is one tower."""
        if self.text_tower is None:
            return None
        return dataclasses.replace(self, **dataclasses.asdict(self.text_tower), text_tower=None, space=self.space_width)

    def task_id(self, name: str | None) -> int:
        """Number of a task for the task routers; 0 where the router does not ask. Raises for a task that was not trained."""
        if self.experts.router not in ("task", "task_specific") or self.experts.placement == "none":
            return 0
        if name not in self.tasks:
            raise ValueError(
                f"router {self.experts.router} knows the tasks {', '.join(self.tasks)} and cannot serve {name!r}: "
                "an unseen task needs a router that generalises (attribute, modality, token, context)"
            )
        return self.tasks.index(name)

    @property
    def patch_values(self) -> int:
        """Numbers in one patch: channels * patch * patch."""
        return 3 * self.patch * self.patch
