"""Attention over rows one after another equals attention over padded rows with a mask."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from model.config import PromptConfig
from model.initialise import initialise
from model.layout import layout_of
from model.objective import Objective
from parallel.kernels import Kernels, flash_attention, load_kernels
from parallel.mesh import Mesh
from parallel.precision import computing
from tests.helpers import varlen
from tests.helpers.batches import BATCHES, VOCABULARY_SIZE, captioning, classification, masked_text
from tests.helpers.devices import DEVICES
from tests.helpers.models import tiny


def made(kind: str, device: str, packed: bool, **options) -> tuple[Objective, list[int]]:
    """And how often attention was packed."""
    calls: list[int] = []

    def counted(*call):
        calls.append(1)
        return flash_attention(*call)

    kernels: Kernels = load_kernels("torch")
    if packed:
        kernels = dataclasses.replace(kernels, packed_attention=counted)
    objective = Objective(tiny(kind, **options), VOCABULARY_SIZE, Mesh(device=device), kernels)
    initialise(objective, 0)
    return objective.to(device), calls


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch):
    """There the kernel takes fp32, too, which is exact."""
    varlen.register()
    if not torch.cuda.is_available():
        monkeypatch.setattr("model.tower.is_lowering", lambda device: True)


@pytest.mark.parametrize("checkpointing", ["none", "block"])
@pytest.mark.parametrize("task", BATCHES)
@pytest.mark.parametrize("kind", ["dense", "attribute", "token", "limoe"])
@pytest.mark.parametrize("device", DEVICES)
def test_packed_rows_equal_padded_ones(device, kind, task, checkpointing):
    """Losses and all gradients; in bf16 on a GPU, which has it in no other precision."""
    batch = BATCHES[task]().located().to(device)
    (padded, _), (packed, calls) = (
        made(kind, device, p, activation_checkpointing=checkpointing) for p in (False, True)
    )
    most = 1e-1 if device == "cuda" else 1e-5  # bf16 and fp32 of the same padded pass differ by up to 5e-2
    with computing(device, torch.bfloat16 if device == "cuda" else torch.float32):
        expected, found = padded(batch, 1), packed(batch, 1)
    for losses in (expected, found):
        losses.total.backward()
    torch.testing.assert_close(found.total, expected.total, rtol=most / 5, atol=most / 5)
    whole = sum(p.grad.norm() ** 2 for p in padded.parameters() if p.grad is not None) ** 0.5
    for (name, parameter), other in zip(packed.named_parameters(), padded.parameters(), strict=True):
        if other.grad is not None:
            # Sums that cancel leave nothing but rounding.
            assert (parameter.grad - other.grad).norm() <= most * max(other.grad.norm(), 1e-2 * whole), name
    padded_rows = [s for s in (batch.inputs, batch.candidates) if _is_packed(s, kind)]
    again = 1 + (checkpointing == "block")
    assert len(calls) == len(padded_rows) * 2 * again  # of two blocks


def _is_packed(sequences, kind: str) -> bool:
    return layout_of(sequences, by_group=kind == "attribute", packs=True).is_packed


def test_rows_that_are_packed():
    """Pads alone are hidden, and tokens stand row by row."""
    text = masked_text().located()
    layout = layout_of(text.inputs, packs=True)
    assert layout.is_packed and layout.mask is None
    lengths = layout.tokens.lengths_B.tolist()
    assert len(set(lengths)) > 1 and layout.tokens.starts_X.diff().tolist() == lengths
    assert layout.tokens.starts_X.dtype == torch.int32
    assert not layout_of(text.inputs).is_packed
    assert not layout_of(classification().located().inputs, packs=True).is_packed  # no pads
    words = layout_of(captioning().located().inputs, packs=True)
    assert not words.is_packed and words.mask is not None  # later words are hidden


def test_what_is_not_lowered_stays_padded(monkeypatch):
    """Evaluation computes in fp32, which flash attention does not take."""
    monkeypatch.undo()
    packed, calls = made("dense", "cpu", True)
    batch = masked_text().located()
    packed.encode(batch.inputs, batch.read_Q2)
    assert not calls
    with computing("cpu", torch.bfloat16):
        packed.encode(batch.inputs, batch.read_Q2)
    assert len(calls) == 2


def test_prompts_keep_rows_padded():
    packed, calls = made("attribute", "cpu", True, prompts=PromptConfig(length=2))
    packed(masked_text().located(), 1).total.backward()
    assert not calls
