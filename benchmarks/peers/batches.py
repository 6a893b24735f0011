"""One batch of each kind of task, as our TaskBatch: made numbers, real shapes.

Legend: B rows, L positions, Q read-outs, V words.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from data.attributes import CAPTION_TEXT, CAPTION_VISUAL, NAME_TARGET, TEXT_INPUT, VISUAL_INPUT, WORD_TARGET, Attributes
from data.batch import Modality, Segment, Sequences, TaskBatch, Visibility
from data.visual.normalise import normalised
from data.visual.transform import patchify

VOCABULARY = 49411
"""Words of the public table; the last is <SPE>."""
MASKED = 0.15
"""Share of a text's words that are read out."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """rows: of a batch. names, words: candidates of classification and of texts. caption: the most words of a caption, the shortest has a
    third of them; text: words of a masked text, all equally long, as a corpus is cut."""

    width: int = 384
    depth: int = 6
    heads: int = 6
    ffn: int = 1536
    image: int = 224
    patch: int = 16
    rows: int = 8
    names: int = 100
    words: int = 768
    caption: int = 24
    text: int = 128


def task_batches(sizes: Sizes) -> dict[str, TaskBatch]:
    """The same numbers whenever it is called. Captions and pairs have one length each row, so shorter ones leave places unused."""
    torch.manual_seed(0)
    rows_B = torch.arange(sizes.rows)
    first_B2 = torch.stack([rows_B, torch.zeros_like(rows_B)], dim=1)
    names = Sequences(segments=(text(lengths(sizes.names, 2, 5), NAME_TARGET),))
    words = Sequences(segments=(_words(sizes.words),))
    caption_B = lengths(sizes.rows, sizes.caption // 3, sizes.caption)
    spoken = text(caption_B, CAPTION_TEXT, Visibility.CAUSAL)
    asked = dataclasses.replace(
        spoken, values=torch.full_like(spoken.values, VOCABULARY - 1), visibility=Visibility.READOUT
    )
    patches = 1 + (sizes.image // sizes.patch) ** 2
    caption_Q2 = spoken.valid_BL.nonzero() + torch.tensor([0, patches + spoken.values.shape[1]])
    masked = text(torch.full((sizes.rows,), sizes.text), TEXT_INPUT)
    masked_Q2 = (torch.rand(sizes.rows, sizes.text) < MASKED).nonzero() + torch.tensor([0, 1])

    def batch(inputs: tuple[Segment, ...], read_Q2: Tensor, candidates: Sequences, **more: object) -> TaskBatch:
        known = {"labels_Q": torch.randint(candidates.num_rows, (len(read_Q2),))} | more
        return TaskBatch(
            task="one",
            inputs=Sequences(segments=inputs),
            read_Q2=read_Q2,
            candidates=candidates,
            **known,  # type: ignore[arg-type]
        ).located()

    picture = image(sizes, VISUAL_INPUT)
    return {
        "classification": batch((picture,), first_B2, names, temperature="image"),
        "captions": batch((image(sizes, CAPTION_VISUAL), spoken, asked), caption_Q2, words, temperature="caption"),
        "masked text": batch((masked,), masked_Q2, words, temperature="text"),
        "retrieval": batch(
            (picture,),
            first_B2,
            Sequences(segments=(text(caption_B, NAME_TARGET),)),
            labels_Q=rows_B,
            symmetric=True,
            temperature="retrieval",
        ),
    }


def lengths(rows: int, shortest: int, longest: int) -> Tensor:
    """[B], one of them the longest."""
    length_B = torch.randint(shortest, longest + 1, (rows,))
    length_B[0] = longest
    return length_B


def text(length_B: Tensor, attributes: Attributes, visibility: Visibility = Visibility.PREFIX) -> Segment:
    longest = int(length_B.max())
    position_L = torch.arange(longest)
    valid_BL = position_L < length_B[:, None]
    return Segment(
        modality=Modality.TEXT,
        values=torch.randint(VOCABULARY - 1, valid_BL.shape) * valid_BL,
        positions=position_L.expand(valid_BL.shape).contiguous(),
        valid_BL=valid_BL,
        visibility=visibility,
        attributes=attributes,
    )


def _words(count: int) -> Segment:
    """Words number 0, 1, 2, ... as candidates."""
    return dataclasses.replace(
        text(torch.ones(count, dtype=torch.long), WORD_TARGET), values=torch.arange(count)[:, None]
    )


def image(sizes: Sizes, attributes: Attributes) -> Segment:
    """Bytes, as they come from the data workers."""
    pixels_BHWC = np.random.default_rng(0).integers(0, 256, (sizes.rows, sizes.image, sizes.image, 3), dtype=np.uint8)
    cut = [patchify(pixels_HWC[None], sizes.patch) for pixels_HWC in pixels_BHWC]
    values_BLP, positions_BL3 = (torch.from_numpy(np.stack(part)) for part in zip(*cut, strict=True))
    return Segment(
        modality=Modality.IMAGE,
        values=values_BLP,
        positions=positions_BL3,
        valid_BL=torch.ones(positions_BL3.shape[:2], dtype=torch.bool),
        visibility=Visibility.PREFIX,
        attributes=attributes,
    )


def images(segment: Segment, patch: int) -> Tensor:
    """Normalised patches [B, L, P] as pictures [B, 3, H, W], which other code begins with."""
    values_BLP = normalised(segment.values, segment.modality)
    side = round(values_BLP.shape[1] ** 0.5)
    cut = values_BLP.unflatten(2, (3, patch, patch)).unflatten(1, (side, side))
    return cut.permute(0, 3, 1, 4, 2, 5).reshape(len(cut), 3, side * patch, side * patch)
