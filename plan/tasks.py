"""What goes through the model in a micro-batch of each task: lengths and counts, no data."""

from __future__ import annotations

import dataclasses
import math

from data.shards import DatasetError, read_info
from data.stream.schedule import shares
from data.tasks import kind_of
from data.text.tokenizer import VocabularyFileError
from model.config import ModelConfig
from model.moe.routing import capacity
from plan.sizes import FULL_VOCABULARY, compared_candidates, task_cost
from run.config import RunConfig
from run.data import vocabulary_of


@dataclasses.dataclass(frozen=True)
class SequenceShape:
    """Sequences that go through an encoder: rows of equal length. visual: patches of a row. reads: read-outs of all rows, of
    candidates: those that are compared, also where other ranks encode them.
    masked: not everyone sees everyone, or texts of several lengths. is_target: candidates, each read at one token."""

    rows: int
    length: int
    visual: int
    reads: int
    masked: bool
    is_target: bool = False

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    @property
    def read_tokens(self) -> int:
        return self.rows if self.is_target else self.reads

    @property
    def is_text(self) -> bool:
        return not self.visual

    @property
    def groups(self) -> int:
        """Condition groups: visual tokens, words."""
        return (self.visual > 0) + (self.length > 1 + self.visual)


@dataclasses.dataclass(frozen=True)
class SetLoad:
    """A candidate set that data ranks encode together. kind: sets of one are encoded side by side (model/shared_candidates.py); asked:
    share of the micro-batches that ask for it."""

    kind: str
    shape: SequenceShape
    asked: float


@dataclasses.dataclass(frozen=True)
class TaskLoad:
    """One task's micro-batch: its share of the micro-batches, inputs and candidates of one data rank that works alone, cross
    entropies over the logits, whose candidates are compared (TaskConfig.candidates). shared: sets of all tasks, those that may be
    encoded beside it; own: which of them are its candidates."""

    name: str
    share: float
    sequences: tuple[SequenceShape, SequenceShape]
    losses: int
    counted: bool
    symmetric: bool = False
    scope: str = "local"
    shared: tuple[SetLoad, ...] = ()
    own: int = 0

    def passes(self, data: int, mean: bool = False) -> tuple[SequenceShape, ...]:
        """Inputs and candidates of one of so many data ranks, and its parts of the sets of other kinds that are encoded beside them. mean:
        each set as often as another rank asks for it, and not all of them at once."""
        inputs, candidates = self.sequences
        if self.scope == "global":
            candidates = dataclasses.replace(candidates, reads=candidates.reads * data)
        is_sharded = self.scope == "sharded"
        parts: dict[str, SequenceShape] = {}
        for index, one in enumerate(self.shared):
            often = 1 - (1 - one.asked) ** (data - 1) if mean or data == 1 else 1.0
            chance = 1.0 if is_sharded and index == self.own else often
            before = parts.get(one.kind, dataclasses.replace(one.shape, rows=0, reads=0))
            rows = before.rows + round(chance * math.ceil(one.shape.rows / data))
            length = max(before.length, one.shape.length)
            parts[one.kind] = dataclasses.replace(before, rows=rows, length=length)
        if is_sharded:
            candidates = dataclasses.replace(parts.pop(self.shared[self.own].kind), reads=candidates.reads)
        return inputs, candidates, *(part for part in parts.values() if part.rows)

    def gathered(self, data: int, mean: bool = False) -> int:
        """Rows of a rank whose features all ranks get."""
        _, candidates, *others = self.passes(data, mean)
        return (candidates.rows if self.scope != "local" else 0) + sum(other.rows for other in others)


def task_loads(run: RunConfig, word_candidates: int, shares: tuple[float, ...]) -> tuple[TaskLoad, ...]:
    """shares: of the tasks among the micro-batches."""
    loads: list[TaskLoad] = []
    sets: dict[tuple[str, str, int], SetLoad] = {}
    for task, share in zip(run.data.tasks, shares, strict=True):
        cost = task_cost(task, run.model, word_candidates, run.data.word_end)
        answers = kind_of(task).answers
        number = compared_candidates(task, cost, run.data.vocabulary_sample)
        rows = cost.rows
        texts = cost.tokens > 1 + cost.visual_tokens
        inputs = SequenceShape(rows, cost.tokens, cost.visual_tokens, rows * cost.reads, masked=texts)
        length = cost.candidates[1] if cost.candidates else 0
        candidates = SequenceShape(number, length, 0, number, masked=answers != "words", is_target=True)
        symmetric = answers == "pairs" and task.loss == "softmax"
        losses = 1 + symmetric + task.mix.is_on
        counted = cost.candidates is not None
        own = 0
        if task.candidates == "sharded":
            kind = f"{answers} {run.model.task_id(task.name)}"
            key = (kind, "" if answers == "words" else task.path, length)
            before = sets.get(key)
            sets[key] = SetLoad(kind, candidates, share + (before.asked if before else 0))
            own = list(sets).index(key)
        loads.append(
            TaskLoad(task.name, share, (inputs, candidates), losses, counted, symmetric, task.candidates, own=own)
        )
    beside = tuple(sets.values())
    if run.data.draw == "same":  # all ranks have the same task
        return tuple(
            dataclasses.replace(load, shared=beside[load.own : load.own + 1] if load.scope == "sharded" else (), own=0)
            for load in loads
        )
    return tuple(dataclasses.replace(load, shared=beside) for load in loads)


def shares_of(run: RunConfig) -> tuple[tuple[float, ...], str]:
    """-> (share of each task among the micro-batches, what is to be said about it)."""
    data = run.data
    weights, note = [task.sampling_weight for task in data.tasks], ""
    if data.mixture == "sizes":
        try:
            sizes = [read_info(task.path).splits[task.split].samples for task in data.tasks]
            return shares(weights, sizes, data.mixture, data.mixture_temperature), note
        except (DatasetError, KeyError):
            note = "shares by sampling_weight alone, as the data sets that mixture=sizes asks for are not there"
    return shares(weights, (), "weights", 1.0), note


def vocabulary_size_of(run: RunConfig) -> tuple[int, str]:
    """-> (rows of the token table before padding, what is to be said about it)."""
    if run.data.vocabulary == "full":
        return FULL_VOCABULARY, ""
    try:
        return vocabulary_of(run).size, ""
    except (DatasetError, VocabularyFileError):
        return FULL_VOCABULARY, "vocabulary: the whole one, as the data sets that restrict it are not there"


def word_candidates_of(run: RunConfig) -> int:
    """Words that masked text and captions are compared with; a restricted vocabulary has bytes besides."""
    if run.data.vocabulary != "full":
        try:
            return vocabulary_of(run).num_candidates
        except (DatasetError, VocabularyFileError):
            pass
    return FULL_VOCABULARY


def towers_of(
    model: ModelConfig, sequences: tuple[SequenceShape, ...]
) -> list[tuple[ModelConfig, tuple[SequenceShape, ...]]]:
    """Which sequences go through which tower."""
    text = model.text_tower_config()
    if text is None:
        return [(model, sequences)]
    return [(model, tuple(s for s in sequences if not s.is_text)), (text, tuple(s for s in sequences if s.is_text))]


def sent_copies(model: ModelConfig, tokens: int) -> int:
    """(token, choice) pairs of one decision, at most what the slots take."""
    experts = model.experts
    pairs = tokens * experts.top_k
    return min(pairs, math.ceil(pairs * experts.capacity_factor)) if experts.capacity_factor else pairs


def expert_rows(model: ModelConfig, tokens: int) -> int:
    """Rows of one decision that ranks with so many tokens each bring to a rank's experts, balanced. Slots are those of one routing
    group, or where DeepSpeed has no capacity those of experts that are used alike."""
    experts = model.experts
    if experts.backend == "own" and experts.exchange == "counted":
        return sent_copies(model, tokens)
    if not experts.capacity_factor:
        return experts.num_experts * capacity(tokens, experts.top_k, 1.0, experts.num_experts)
    rounding = (experts.capacity_rounding, experts.capacity_multiple)
    return experts.num_experts * capacity(
        tokens, experts.top_k, experts.capacity_factor, experts.num_experts, *rounding
    )


def groups_of(sequences: tuple[SequenceShape, ...]) -> int:
    """Condition groups of a pass."""
    return sum(s.groups for s in sequences)


def chosen_peers(model: ModelConfig, expert: int) -> int:
    """From how many other ranks a group's experts come, at most."""
    chosen = 1 if model.experts.router == "task_specific" else model.experts.top_k
    return min(chosen, expert - 1)
