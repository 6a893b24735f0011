"""Options of the network, each beside its source; checked when made.

The run configuration composes these; nothing here knows of files, data sets or ranks.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from torch import nn

from model.moe.config import ExpertConfig
from model.noise import WIDEST


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
    """Low-rank updates of the blocks' linears (model/tuning/lora.py): weight + alpha / rank * up down, for each expert its own.

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
        features = self.width * (2 if self.experts.router == "context" else 1)
        if self.experts.noise == "jitter" and features > WIDEST:
            raise ValueError(
                f"experts.noise=jitter draws a number for each of the gate's {features} features: {WIDEST} at most"
            )
        if wrong := [name for name in self.temperatures if not _can_name(name)]:
            raise ValueError(f"temperatures: {wrong[0]!r} cannot name a parameter: take another word, without a dot")
        unknown = set(self.logit_biases) - set(self.temperatures)
        if unknown:
            raise ValueError(f"logit_biases: {min(unknown)!r} is not among temperatures={list(self.temperatures)}")
        if self.position_scale <= 0 or self.position_grid < 0:
            raise ValueError(
                f"position_scale={self.position_scale}, position_grid={self.position_grid}: must be positive, and not negative"
            )
        if self.position_grid and self.positions != "learned":
            raise ValueError(
                f"position_grid={self.position_grid} is the size of a learned table, and positions={self.positions} has none: "
                "leave it out, position_scale alone keeps the scale of a smaller image"
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

    def reads_early(self, layer: int) -> bool:
        """Does a block compute the output of its attention and its FFN for those tokens alone that are read out? The last one does, unless
        a mean is read, or tokens compete for its experts."""
        competing = self.experts.decides_per_token and self.experts.is_sparse(layer, self.depth)
        return layer == self.depth - 1 and self.readout == "spe" and not competing

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


def _can_name(temperature: str) -> bool:
    """A parameter in a ParameterDict, where parts of names are told apart by dots and its own attributes have names, too."""
    return temperature != "" and "." not in temperature and not hasattr(nn.ParameterDict(), temperature)
