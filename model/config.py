"""Options of the network, each beside its source; checked when made.

The run configuration composes these; nothing here knows of files, data sets or ranks.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

RouterName = Literal["attribute", "token"]
PlacementName = Literal["odd", "all", "none"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertConfig:
    """The sparse linears of Uni-Perceiver-MoE: each of QKV, attention output, FFN 1 and FFN 2 is a bank of experts.

    router       attribute: one decision per group of tokens, run by merging weights (MergePath)
                 token: one decision per token, run by sending tokens (DispatchPath)
    num_experts  E; the released configurations use 8
    top_k        k; the released configurations use 2
    placement    odd: layers 0, 2, 4, ... (the released name); all; none (dense)
    noise_std    noise on the logits in training is N(0, (noise_std / E)^2), the V-MoE policy
    renormalise  divide the top-k weights by their sum (released attribute router: yes for k = 2; V-MoE: no)
    capacity_factor  token router alone: slots of an expert = factor * tokens * k / E per rank; 0 = no limit
    importance_weight  factor of the importance loss (token router alone)
    """

    router: RouterName = "attribute"
    num_experts: int = 8
    top_k: int = 2
    placement: PlacementName = "odd"
    noise_std: float = 1.0
    renormalise: bool = True
    capacity_factor: float = 0.0
    importance_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.num_experts < 1:
            raise ValueError(f"num_experts={self.num_experts}: needs at least 1")
        if not 1 <= self.top_k <= self.num_experts:
            raise ValueError(f"top_k={self.top_k}: must lie in 1..num_experts={self.num_experts}")
        if self.capacity_factor < 0 or self.noise_std < 0 or self.importance_weight < 0:
            raise ValueError("capacity_factor, noise_std and importance_weight must not be negative")

    def is_sparse(self, layer: int) -> bool:
        """Whether block `layer` (from 0) holds experts."""
        return {"odd": layer % 2 == 0, "all": True, "none": False}[self.placement]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One shared encoder for all modalities (papers.md 1.2, 1.3).

    width, depth, heads, ffn     d, L, h, d_ff
    image_size, patch            pixels; patch divides image_size
    max_frames, max_text         sizes of the learned temporal and text position tables
    position_scale               factor of the grid coordinates of the fixed sine-cosine spatial positions
    layer_scale                  initial value of the learned branch factors; 0 leaves them out
    drop_path                    probability of dropping a branch for one row, the same in every layer
    temperatures                 names of the learned logit scales; initial value log(1 / 0.07), capped at 100
    """

    width: int = 128
    depth: int = 4
    heads: int = 4
    ffn: int = 512
    image_size: int = 32
    patch: int = 8
    max_frames: int = 8
    max_text: int = 64
    position_scale: float = 1.0
    layer_scale: float = 0.0
    drop_path: float = 0.0
    experts: ExpertConfig = dataclasses.field(default_factory=ExpertConfig)
    temperatures: tuple[str, ...] = ("image", "video", "text", "caption", "retrieval")

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
        if not 0.0 <= self.drop_path < 1.0:
            raise ValueError(f"drop_path={self.drop_path}: must lie in [0, 1)")

    @property
    def patch_values(self) -> int:
        """Numbers in one patch: channels * patch * patch."""
        return 3 * self.patch * self.patch
