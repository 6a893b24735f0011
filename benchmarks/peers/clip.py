"""open_clip's ViT-B/32 as it is beside our model of the same shape, on pairs of pictures and texts.

Legend: B rows, L places of a text.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import sys
from unittest.mock import MagicMock

import torch
from torch import Tensor, nn

from benchmarks.peers.batches import Sizes, image, images, lengths, text
from benchmarks.peers.uni_perceiver import PeerError
from data.attributes import NAME_TARGET, VISUAL_INPUT
from data.batch import Segment, Sequences, TaskBatch
from model.config import ModelConfig, TextTowerConfig
from model.moe.config import ExpertConfig

WORDS, PLACES = 49408, 77
PICTURES = Sizes(patch=32)
OURS = ModelConfig(
    width=768,
    depth=12,
    heads=12,
    ffn=3072,
    image_size=PICTURES.image,
    patch=PICTURES.patch,
    positions="learned",
    max_text=PLACES,
    max_frames=1,
    space=512,
    text_tower=TextTowerConfig(width=512, depth=12, heads=8, ffn=2048),
    experts=ExpertConfig(placement="none"),
    temperatures=("retrieval",),
    tasks=("one",),
)


def load() -> nn.Module:
    """open_clip's model in training mode with fresh weights. Raises PeerError."""
    for name in ("torchvision", "timm"):
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            # For pictures' files and other towers, which are not used here.
            more = ("", ".ops", ".ops.misc", ".transforms", ".transforms.functional", ".layers", ".models")
            sys.modules |= {name + part: MagicMock(__spec__=None) for part in more}
    try:
        import open_clip  # type: ignore[import-not-found]
    except ImportError as error:
        raise PeerError(f"open_clip cannot be imported: {error}; benchmarks/peers.md says how to install it") from error
    model: nn.Module = open_clip.create_model("ViT-B-32")
    return model.train()


@functools.cache
def pairs(rows: int, own_length: bool) -> TaskBatch:
    """Texts of 8 to 24 words, or of as many as fill all places; <SPE> is one more."""
    torch.manual_seed(0)
    sizes = dataclasses.replace(PICTURES, rows=rows)
    length_B = lengths(rows, 8, 24) if own_length else torch.full((rows,), PLACES - 1)
    row_B = torch.arange(rows)
    return TaskBatch(
        task="one",
        inputs=Sequences(segments=(image(sizes, VISUAL_INPUT),)),
        read_Q2=torch.stack([row_B, torch.zeros_like(row_B)], dim=1),
        candidates=Sequences(segments=(text(length_B, NAME_TARGET),)),
        labels_Q=row_B,
        symmetric=True,
        temperature="retrieval",
    ).located()


def padded(batch: TaskBatch) -> tuple[Tensor, Tensor]:
    """Pictures [B, 3, H, W] and texts [B, 77], its end of text the largest number."""
    picture: Segment = batch.inputs.segments[0]
    words: Segment = batch.candidates.segments[0]
    text_BL = torch.zeros(len(words.values), PLACES, dtype=torch.long)
    text_BL[:, : words.values.shape[1]] = words.values.clamp(max=WORDS - 2)
    text_BL[torch.arange(len(text_BL)), words.valid_BL.sum(dim=1)] = WORDS - 1
    return images(picture, PICTURES.patch), text_BL


def loss_of(model: nn.Module, pictures_B3HW: Tensor, text_BL: Tensor) -> Tensor:
    """As its trainer computes it: the mean of both directions."""
    from open_clip.loss import ClipLoss  # type: ignore[import-not-found]

    loss: Tensor = ClipLoss()(*model(pictures_B3HW, text_BL))
    return loss
