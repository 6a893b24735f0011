"""Attribute vectors: what a routing group's tokens are and what their task does with them.

Eight bits per routing group, as in the released Uni-Perceiver-MoE table (the paper's own order of the last
two bits is not confirmed). They are the only thing the attribute router sees, so two tasks with the same vector share
experts, and a new task needs no new parameters.
"""

from __future__ import annotations

Attributes = tuple[int, int, int, int, int, int, int, int]
NUM_ATTRIBUTES = 8


def attributes(
    *,
    input_visual: bool = False,
    input_text: bool = False,
    target_visual: bool = False,
    target_text: bool = True,
    token_visual: bool = False,
    token_text: bool = False,
    from_target: bool = False,
    causal: bool = False,
) -> Attributes:
    """The bit vector in code order: task input (visual, text), task target (visual, text), token (visual, text), source, causation."""
    bits = (input_visual, input_text, target_visual, target_text, token_visual, token_text, from_target, causal)
    return tuple(int(bit) for bit in bits)  # type: ignore[return-value]


VISUAL_INPUT = attributes(input_visual=True, token_visual=True)
"""Images and clips to classify or to retrieve text for."""
TEXT_INPUT = attributes(input_text=True, token_text=True)
"""Masked text and sentences to classify."""
CAPTION_VISUAL = attributes(input_visual=True, input_text=True, token_visual=True)
CAPTION_TEXT = attributes(input_visual=True, input_text=True, token_text=True, causal=True)
QUESTION_TEXT = attributes(input_visual=True, input_text=True, token_text=True)
"""Questions about pictures, whose tokens have CAPTION_VISUAL. The released table has no vector for them: this is what the bits say."""
WRITTEN_TEXT = attributes(input_text=True, token_text=True, causal=True)
"""Answers that are written after a text."""
NAME_TARGET = attributes(input_visual=True, token_text=True, from_target=True)
"""Class names and the texts of retrieval: targets of tasks whose input is visual."""
WORD_TARGET = attributes(input_visual=True, input_text=True, token_text=True, from_target=True)
"""Vocabulary entries: targets of masked text and of captions; answers to questions."""
