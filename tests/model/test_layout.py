"""The attention mask and the routing groups, as functions of segments alone."""

from __future__ import annotations

import torch

from data.attributes import CAPTION_TEXT, CAPTION_VISUAL, TEXT_INPUT
from data.batch import Sequences, Visibility
from model.layout import layout_of
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
    assert layout.mask is not None
    assert ["".join(str(int(x)) for x in row) for row in layout.mask[0, 0]] == expected
    assert layout.tokens.tokens_G == (5, 4)
    assert layout.tokens.attributes_GA.tolist() == [list(CAPTION_VISUAL), list(CAPTION_TEXT)]


def test_padding_is_seen_by_nobody():
    g = torch.Generator().manual_seed(0)
    layout = layout_of(Sequences(segments=(text(g, [3, 1], TEXT_INPUT),)))
    assert layout.mask is not None
    assert layout.mask.int().tolist() == [[[[1, 1, 1, 1]]], [[[1, 1, 0, 0]]]]


def test_no_mask_where_everyone_sees_everyone():
    assert layout_of(classification().inputs).mask is None
    assert layout_of(captioning().inputs).mask is not None


def test_tokens_stand_row_by_row_or_group_by_group_and_find_their_places():
    g = torch.Generator().manual_seed(0)
    words = text(g, [2, 1], CAPTION_TEXT, Visibility.CAUSAL)
    sequences = Sequences(segments=(visual(g, 2, 1, CAPTION_VISUAL), words))  # <SPE>, four patches, two words
    for by_group in (False, True):
        layout = layout_of(sequences, start=100, by_group=by_group)
        x = torch.randn(13, 3)
        placed = layout.placed(x)
        assert placed.shape == (2, 7, 3) and not placed[1, 6].any()
        assert torch.equal(layout.taken(placed), x)
        assert layout.group_T.tolist() == ([0] * 10 + [1] * 3 if by_group else [0] * 5 + [1] * 2 + [0] * 5 + [1])
        assert layout.row_T.tolist() == ([0] * 5 + [1] * 5 + [0, 0, 1] if by_group else [0] * 7 + [1] * 6)
        # The second row's second patch and its word.
        tokens = layout.tokens_at(torch.tensor([7 + 2, 7 + 5])) - 100
        assert torch.equal(x[tokens], placed[1, [2, 5]])


def test_rows_of_sequences_keep_a_layout_of_their_own():
    g = torch.Generator().manual_seed(0)
    whole = Sequences(segments=(text(g, [3, 1, 2], TEXT_INPUT),)).located()
    part = whole.rows(slice(1, 3))
    assert part.layout is not None and whole.layout is not None
    again = Sequences(segments=part.segments).located().layout
    assert again is not None
    assert part.layout.place_T.tolist() == again.place_T.tolist() == [0, 1, 4, 5, 6]
    assert part.layout.from_parts_T.tolist() == again.from_parts_T.tolist() == [0, 2, 1, 3, 4]
    assert part.layout.lengths_B.tolist() == [2, 3]
