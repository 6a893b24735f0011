"""The attention mask and the routing groups, as functions of segments alone."""

from __future__ import annotations

import torch

from data.attributes import CAPTION_TEXT, CAPTION_VISUAL, TEXT_INPUT
from data.batch import Sequences, Visibility
from model.layout import Span, layout_of
from tests.helpers.batches import captioning, classification, text, visual


def test_double_token_mask_is_the_table_of_the_paper():
    g = torch.Generator().manual_seed(0)
    words = text(g, [2], CAPTION_TEXT, Visibility.CAUSAL)
    queries = text(g, [2], CAPTION_TEXT, Visibility.READOUT)
    image = visual(g, 1, 1, CAPTION_VISUAL)
    layout = layout_of(Sequences(segments=(image, words, queries)))
    # Rows and columns: SPE, four patches, w0, w1, q0, q1.
    expected = [
        "111110000",
        "111110000",
        "111110000",
        "111110000",
        "111110000",
        "111111000",  # w0 sees the prefix and itself
        "111111100",  # w1 sees w0 too
        "111110010",  # q0 predicts w0: prefix and itself
        "111111001",  # q1 predicts w1: prefix, w0, itself
    ]
    assert layout.mask_BLL is not None
    assert ["".join(str(int(x)) for x in row) for row in layout.mask_BLL[0]] == expected
    assert layout.spans == (Span(0, 5, 0), Span(5, 9, 1))
    assert layout.attributes_GA.tolist() == [list(CAPTION_VISUAL), list(CAPTION_TEXT)]


def test_padding_is_seen_by_nobody_but_itself():
    g = torch.Generator().manual_seed(0)
    layout = layout_of(Sequences(segments=(text(g, [3, 1], TEXT_INPUT),)))
    assert layout.mask_BLL is not None
    assert layout.mask_BLL[0].all()
    assert layout.mask_BLL[1].int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]]


def test_no_mask_where_everyone_sees_everyone():
    assert layout_of(classification().inputs).mask_BLL is None
    assert layout_of(captioning().inputs).mask_BLL is not None
