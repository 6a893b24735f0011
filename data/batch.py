"""The contract between data and model: token sequences, and a task as "pick the likeliest candidate".

    TaskBatch -- inputs: Sequences -- segments: tuple[Segment, ...]
              -- candidates: Sequences
              -- shared: tuple[CandidateSet, ...], those that data ranks encode together

Legend: B rows, L positions, P values of a patch, Q read-outs, C candidates.
Every sequence starts with one <SPE> token that the model adds; positions in `read_Q2` count it (position 0).
"""

from __future__ import annotations

import dataclasses
import enum
import functools

import numpy as np
import torch
from torch import Tensor

from data.attributes import NUM_ATTRIBUTES, Attributes
from data.movable import Movable, sent
from data.token_layout import Part, TokenLayout, token_layout


class Modality(enum.IntEnum):
    """Which embedding reads a segment's values."""

    TEXT = 0
    IMAGE = 1
    VIDEO = 2


class Visibility(enum.IntEnum):
    """Who sees a segment's tokens; the attention mask is a function of this and of text positions alone.

    PREFIX tokens are seen by everyone. A CAUSAL token is seen by causal tokens from its own position on and by
    read-out tokens of later positions. A READOUT token is seen by itself alone.
    """

    PREFIX = 0
    CAUSAL = 1
    READOUT = 2


class Scope(enum.IntEnum):
    """Which candidates a read-out is compared with, where data ranks run micro-batches side by side.

    LOCAL: this batch's alone, which its rank encodes. SHARDED: one of the sets that the ranks encode together, a part each.
    GLOBAL: the candidates of all ranks' batches, which are of one task and equally many; labels count this batch's own.
    """

    LOCAL = 0
    SHARDED = 1
    GLOBAL = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment(Movable):
    """Tokens of one modality, one visibility and one attribute vector.

    TEXT:          values [B, L] int64 token ids, positions [B, L] int64.
    IMAGE, VIDEO:  values [B, L, P] patches, positions [B, L, 3] int64 (frame, row, column). uint8 is pixels, which are
                   normalised where they are embedded; floating-point values are so already.
    `valid_BL` is False at padding.
    """

    modality: Modality
    values: Tensor
    positions: Tensor
    valid_BL: Tensor
    visibility: Visibility
    attributes: Attributes

    @property
    def part(self) -> Part:
        """What a layout is made of. A device is waited for."""
        frames_B = np.zeros(len(self.valid_BL), dtype=np.int64)
        if self.modality != Modality.TEXT:
            frames_B = self.positions[..., 0].amax(dim=1).cpu().numpy() + 1
        valid_BL = self.valid_BL.cpu().numpy()
        return Part(valid_BL, self.attributes, int(self.modality), int(self.visibility), frames_B)

    def __post_init__(self) -> None:
        batch, length = self.valid_BL.shape
        visual = self.modality != Modality.TEXT
        expected = "[B, L, P]" if visual else "[B, L]"
        if self.values.dim() != (3 if visual else 2) or self.values.shape[:2] != (batch, length):
            raise ValueError(
                f"{self.modality.name} values must be {expected} with B={batch}, L={length}, got {tuple(self.values.shape)}"
            )
        if tuple(self.positions.shape) != ((batch, length, 3) if visual else (batch, length)):
            raise ValueError(f"{self.modality.name} positions do not fit: {tuple(self.positions.shape)}")
        if self.valid_BL.dtype != torch.bool:
            raise ValueError(f"valid_BL must be bool, got {self.valid_BL.dtype}")
        if len(self.attributes) != NUM_ATTRIBUTES:
            raise ValueError(f"attributes must be {NUM_ATTRIBUTES} bits, got {self.attributes}")
        if visual and self.visibility != Visibility.PREFIX:
            raise ValueError("visual segments are PREFIX: causal order is defined on text positions")


@dataclasses.dataclass(frozen=True)
class TokenCounts:
    """Valid tokens of sequences.

    rows        sequences, each with one <SPE> token
    tokens_M    of segments, by modality
    first       modality that the sequences begin with
    places      positions, pads and <SPE> included
    squares     sum over rows of (valid tokens, <SPE> included) squared: what attention goes by
    """

    rows: int
    tokens_M: tuple[int, ...]
    first: Modality
    places: int
    squares: int

    @property
    def tokens(self) -> int:
        """<SPE> included."""
        return self.rows + sum(self.tokens_M)

    @property
    def visual(self) -> int:
        """Patches."""
        return sum(self.tokens_M) - self.tokens_M[Modality.TEXT]

    @property
    def is_text(self) -> bool:
        """Do the sequences begin with text?"""
        return self.first == Modality.TEXT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sequences(Movable):
    """Rows of concatenated segments; `length` counts the <SPE> token that the model puts first. layout: where the valid tokens stand, in
    batches for training."""

    segments: tuple[Segment, ...]
    layout: TokenLayout | None = None

    def __post_init__(self) -> None:
        if not self.segments:
            raise ValueError("a sequence needs at least one segment")
        if len({segment.valid_BL.shape[0] for segment in self.segments}) != 1:
            raise ValueError("all segments of a batch need the same number of rows")

    @property
    def num_rows(self) -> int:
        return self.segments[0].valid_BL.shape[0]

    @property
    def length(self) -> int:
        return 1 + sum(segment.valid_BL.shape[1] for segment in self.segments)

    def rows(self, rows: slice | np.ndarray) -> Sequences:
        """Some of the rows, by a slice or by their numbers."""
        device = self.segments[0].valid_BL.device
        index = rows if isinstance(rows, slice) else sent(torch.from_numpy(rows), device)
        segments = tuple(segment.map(lambda tensor: tensor[index]) for segment in self.segments)
        return Sequences(segments=segments, layout=self.layout.of_rows(rows) if self.layout else None)

    def located(self) -> Sequences:
        """With a layout. Found on the host: a device is waited for."""
        if self.layout is not None:
            return self
        layout = token_layout([segment.part for segment in self.segments])
        return dataclasses.replace(self, layout=layout.to(self.segments[0].valid_BL.device))

    @functools.cached_property
    def counts(self) -> TokenCounts:
        """For tensors on the CPU, as a device would have to be waited for. Counted once, since some candidates serve all batches."""
        length_B, tokens_M = torch.ones(self.num_rows, dtype=torch.long), [0] * len(Modality)
        for segment in self.segments:
            tokens_B = segment.valid_BL.sum(dim=1)
            length_B += tokens_B
            tokens_M[segment.modality] += int(tokens_B.sum())
        return TokenCounts(
            rows=self.num_rows,
            tokens_M=tuple(tokens_M),
            first=self.segments[0].modality,
            places=self.num_rows * self.length,
            squares=int(length_B.square().sum()),
        )

    @property
    def num_tokens(self) -> int:
        """Valid tokens, <SPE> included."""
        return self.counts.tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class CandidateSet(Movable):
    """Candidates that do not depend on a batch, so that data ranks can share the work of encoding them.

    number      tells sets apart, the same on all ranks and in all steps; noise is drawn by it
    task        name under which routers meet the candidates, whichever task's batch asks for them
    candidates  one segment a row
    """

    number: int
    task: str
    candidates: Sequences

    def __post_init__(self) -> None:
        if len(self.candidates.segments) != 1:
            raise ValueError(
                "candidates that ranks share have one segment, whose rows can stand beside those of another set"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskBatch(Movable):
    """One micro-batch of one task: which candidate does each read-out mean?

    task                     name for reports and for the task router's table; the model tests it nowhere
    read_Q2                  [Q, 2] int64 (row, position) of the tokens of `inputs` to compare with the candidates
    labels_Q                 [Q] int64 index of the right candidate
    second_labels_Q          the other right candidate of mixed images, with `second_share` of the loss (mixup, cutmix)
    scope                    whose candidates are compared; GLOBAL needs batches of one task on all data ranks
    shared                   sets that data ranks encode together beside this batch, the same on all of them in a micro-step. A batch
                             with candidates of its own takes part, and is compared with its own
    own                      of a SHARDED batch: which of them its candidates are
    symmetric                also pick the right read-out for every candidate (retrieval; needs Q == C)
    alike_Q2                 [Q, 2] int64, of a symmetric batch: what each row's two sides are, as numbers. Rows with an equal number in
                             either column are no wrong answers to each other. None: no two rows are alike
    pairwise                 of a symmetric batch: every pair is a yes or a no of its own (sigmoid loss) in place of two softmaxes
    temperature              name of the learned logit scale
    weight                   factor of the loss
    candidate_log_weights_C  log of the number of targets that each candidate stands for: 0 for one of its own; where
                             negatives were sampled at rate r it is -log r, so that the partition function is unbiased
    read_host_Q2             read_Q2 on the host, where it is known there
    """

    task: str
    inputs: Sequences
    read_Q2: Tensor
    candidates: Sequences
    labels_Q: Tensor
    temperature: str
    scope: Scope = Scope.LOCAL
    shared: tuple[CandidateSet, ...] = ()
    own: int = 0
    symmetric: bool = False
    pairwise: bool = False
    weight: float = 1.0
    label_smoothing: float = 0.0
    alike_Q2: Tensor | None = None
    candidate_log_weights_C: Tensor | None = None
    second_labels_Q: Tensor | None = None
    second_share: float = 0.0
    read_host_Q2: np.ndarray | None = None

    def located(self) -> TaskBatch:
        """With the layouts of inputs and candidates."""
        return dataclasses.replace(
            self,
            inputs=self.inputs.located(),
            candidates=self.candidates.located(),
            read_host_Q2=self.read_Q2.cpu().numpy(),
        )

    def __post_init__(self) -> None:
        num_read, num_candidates = self.read_Q2.shape[0], self.candidates.num_rows
        if self.labels_Q.shape != (num_read,):
            raise ValueError(f"{num_read} read-outs need as many labels, got {tuple(self.labels_Q.shape)}")
        if self.symmetric and num_read != num_candidates:
            raise ValueError(f"a symmetric loss needs one candidate per read-out, got {num_read} and {num_candidates}")
        if self.alike_Q2 is not None and (not self.symmetric or self.alike_Q2.shape != (num_read, 2)):
            raise ValueError(f"alike_Q2 {tuple(self.alike_Q2.shape)} needs a symmetric batch of {num_read} rows")
        if (
            self.alike_Q2 is not None
            and self.labels_Q.device.type == "cpu"
            and self.labels_Q.tolist() != list(range(num_read))
        ):
            raise ValueError("alike_Q2 needs both sides of the pairs in one order: labels 0, 1, 2, ...")
        if self.second_labels_Q is not None and self.second_labels_Q.shape != (num_read,):
            raise ValueError(
                f"{num_read} read-outs need as many second labels, got {tuple(self.second_labels_Q.shape)}"
            )
        # Values are looked at on the CPU alone: reading them from a device would stop it for every batch.
        for labels_Q in (self.labels_Q, self.second_labels_Q):
            if (
                num_read
                and labels_Q is not None
                and labels_Q.device.type == "cpu"
                and int(labels_Q.max()) >= num_candidates
            ):
                raise ValueError(f"label {int(labels_Q.max())} of {num_candidates} candidates")
        if (self.second_labels_Q is None) != (self.second_share == 0) or not 0 <= self.second_share <= 1:
            raise ValueError(f"second_share={self.second_share} must lie in [0, 1] and go with second labels")
        if self.second_labels_Q is not None and self.symmetric:
            raise ValueError("a symmetric loss pairs each read-out with one candidate: no second labels")
        if self.candidate_log_weights_C is not None and self.scope != Scope.LOCAL:
            raise ValueError("sampled candidates differ from rank to rank: they cannot be shared, scope must be LOCAL")
        if self.pairwise and (not self.symmetric or self.label_smoothing):
            raise ValueError("a pairwise loss needs a symmetric batch, and has no label smoothing")
        if self.scope == Scope.SHARDED and self.symmetric:
            raise ValueError("a symmetric loss pairs this batch's rows: its candidates are LOCAL or GLOBAL")
        if self.scope == Scope.SHARDED and not 0 <= self.own < len(self.shared):
            raise ValueError(f"candidates are set {self.own} of {len(self.shared)} shared ones")
        if self.scope == Scope.SHARDED and self.shared[self.own].candidates.num_rows != num_candidates:
            raise ValueError("the candidates of a SHARDED batch are those of its shared set")
        if self.candidate_log_weights_C is not None and self.label_smoothing:
            raise ValueError("label smoothing needs the whole candidate set; it cannot go with sampled candidates")
