"""`train.py --config X --describe`: layers, parameters and arithmetic of a configuration, without allocating its weights.

The network is built on torch's meta device. model/flops.py says what FLOPs count.
"""

from __future__ import annotations

import dataclasses

import torch

from data.batch import Modality, TokenCounts
from data.config import TaskConfig
from data.shards import DatasetError, read_info
from data.tasks import kind_of
from data.text.tokenizer import SPE
from model.config import ModelConfig
from model.flops import forward_flops, sequence_work
from model.objective import Objective
from parallel.kernels import load_kernels
from parallel.mesh import Mesh
from parallel.norms import family_of
from run.config import RunConfig

FULL_VOCABULARY = SPE + 1
DEPLOYED_GROUPS = 2
"""Merged copies of a bank that serve image-text tasks: one for visual tokens, one for text."""


@dataclasses.dataclass(frozen=True)
class ParameterCount:
    """held: what training holds. per_token: what one token meets (its experts alone), of a model with a text tower one in a sequence
    of pictures; per_text_token: one in a text, which is the same where there is one tower. deployed: experts merged into one copy for
    visual and one for text tokens, routers gone; the same as held where experts cannot be merged."""

    held: int
    per_token: int
    per_text_token: int
    deployed: int
    embedding_tables: int
    experts: int


@dataclasses.dataclass(frozen=True)
class TaskCost:
    """tokens: of the input, visual_tokens of them patches; reads: places of an input that are read out;
    candidates: (number, tokens each), None where the data set is not there to be counted.
    input_flops, candidate_flops: forward, for one input and for the whole candidate set. rows: samples of a micro-batch."""

    name: str
    tokens: int
    visual_tokens: int
    reads: int
    candidates: tuple[int, int] | None
    input_flops: int
    candidate_flops: int
    rows: int


def build_on_meta(model: ModelConfig, vocabulary_size: int = FULL_VOCABULARY, mesh: Mesh | None = None) -> Objective:
    """The network without memory for its weights; `mesh`: one rank's part of it."""
    with torch.device("meta"):
        return Objective(model, vocabulary_size, mesh or Mesh(), load_kernels("torch"))


def count_parameters(model: ModelConfig, vocabulary_size: int = FULL_VOCABULARY) -> ParameterCount:
    sizes = {name: p.numel() for name, p in build_on_meta(model, vocabulary_size).named_parameters()}
    experts = sum(size for name, size in sizes.items() if family_of(name) == "experts")
    routers = sum(size for name, size in sizes.items() if family_of(name) == "routers")
    tables = sum(size for name, size in sizes.items() if ".embedding." in name and ".patches." not in name)
    held = sum(sizes.values())
    one_expert = experts // model.experts.num_experts
    merged = not model.experts.decides_per_token
    experts_met = 1 if merged else model.experts.top_k

    def met(other_tower: str) -> int:
        """All but the other tower, and of the experts those that a token takes."""
        own = {name: size for name, size in sizes.items() if not name.startswith(other_tower)}
        own_experts = sum(size for name, size in own.items() if family_of(name) == "experts")
        return sum(own.values()) - own_experts + own_experts // model.experts.num_experts * experts_met

    per_token = met("text_tower.")
    return ParameterCount(
        held=held,
        per_token=per_token,
        per_text_token=met("tower.") if model.text_tower else per_token,
        deployed=held - experts - routers + DEPLOYED_GROUPS * one_expert if merged and experts else held,
        embedding_tables=tables,
        experts=experts,
    )


def flops_of_sequences(
    model: ModelConfig, rows: int, tokens: int, visual_tokens: int, reads: int, is_target: bool = False
) -> int:
    """Forward FLOPs of `rows` sequences of `tokens` tokens each, of which `visual_tokens` are patches, read at `reads` places,
    in a tower of this shape."""
    words = tokens - 1 - visual_tokens
    kinds = {Modality.TEXT: words, Modality.IMAGE: visual_tokens}
    counts = TokenCounts(
        rows=rows,
        tokens_M=tuple(rows * kinds.get(modality, 0) for modality in Modality),
        first=Modality.IMAGE if visual_tokens else Modality.TEXT,
        places=rows * tokens,
        squares=rows * tokens**2,
    )
    one_tower = dataclasses.replace(model, text_tower=None, space=model.space_width)
    work = sequence_work(one_tower, counts, rows * reads, is_target)
    return round(sum(forward_flops(one_tower, (work,)).values()))


def task_cost(
    task: TaskConfig, model: ModelConfig, vocabulary_size: int = FULL_VOCABULARY, word_end: bool = False
) -> TaskCost:
    """Texts are taken at max_text tokens; a data set that is not there is taken for images unless temperature=video."""
    patches = (model.image_size // model.patch) ** 2
    try:
        info = read_info(task.path)
        is_video, classes = info.kind.startswith("video"), len(info.classes)
    except DatasetError:
        is_video, classes = task.temperature == "video", 0
    kind = kind_of(task)
    task = kind.with_batch_size(task, patches, is_video)
    visual, text, reads = kind.visual_tokens(task, patches, is_video), kind.text_tokens(task), kind.read_outs(task)
    number, length = {
        "classes": (classes, 1 + task.max_text),
        "pairs": (task.batch_size, 1 + task.max_text),
        "words": (vocabulary_size, 3 if word_end else 2),
    }[kind.answers]
    text_model = model.text_tower_config() or model
    input_model = model if kind.has_pictures else text_model
    return TaskCost(
        name=task.name,
        tokens=1 + visual + text,
        visual_tokens=visual,
        reads=reads,
        candidates=(number, length) if number else None,
        rows=task.batch_size,
        input_flops=flops_of_sequences(input_model, 1, 1 + visual + text, visual, reads),
        candidate_flops=flops_of_sequences(text_model, number, length, 0, 1, is_target=True),
    )


def compared_candidates(task: TaskConfig, cost: TaskCost, vocabulary_sample: int) -> int:
    """Candidates of one training step, 0 where they are not known; words may be sampled."""
    if cost.candidates is None:
        return 0
    samples_words = vocabulary_sample and kind_of(task).answers == "words"
    return vocabulary_sample if samples_words else cost.candidates[0]


def describe(run: RunConfig) -> str:
    """A page about the configuration."""
    model = run.model
    lines = [f"{run.name}: width {model.width}, depth {model.depth}, heads {model.heads}, ffn {model.ffn}"]
    lines.append(f"  images {model.image_size} px in patches of {model.patch}, up to {model.max_frames} frames")
    for title, tower in (("tower", model), ("text tower", model.text_tower_config())):
        if tower is not None:
            lines += [f"  {title}, layers:", *_layers(tower)]
    vocabulary_size = FULL_VOCABULARY
    note = "" if run.data.vocabulary == "full" else "; the run restricts it to the words of its data sets"
    count = count_parameters(model, vocabulary_size)
    lines += [
        f"parameters (vocabulary {vocabulary_size:,}{note})",
        f"  held in training       {_millions(count.held)}   of these experts {_millions(count.experts).strip()}, "
        f"embedding tables {_millions(count.embedding_tables).strip()}",
    ]
    if model.text_tower:
        lines.append(f"  met by one token       {_millions(count.per_token)}   of pictures")
        lines.append(f"                         {_millions(count.per_text_token)}   of texts, in their own tower")
    else:
        lines.append(f"  met by one token       {_millions(count.per_token)}")
    if count.experts and not model.experts.decides_per_token:
        lines.append(
            f"  deployed, merged       {_millions(count.deployed)}   (a copy for visual, a copy for text tokens)"
        )
    lines.append(
        "forward GFLOPs per sample (training takes three times as many where all is trained, "
        "and once more with activation_checkpointing=block)"
    )
    for task in run.data.tasks:
        cost = task_cost(task, model, vocabulary_size, run.data.word_end)
        if cost.candidates is None:
            candidates = "candidates not counted: the data set is not there"
        else:
            number = compared_candidates(task, cost, run.data.vocabulary_sample)
            share = cost.candidate_flops * number / cost.candidates[0] / cost.rows
            candidates = f"+ {share / 1e9:9.3f} its share of {number:,} candidates in a batch of {cost.rows}"
            if task.candidates == "sharded":
                candidates += "; 1/N of it on N data ranks, and 1/N of what the others ask for"
        lines.append(f"  {task.name:<20} {cost.input_flops / 1e9:9.3f} for {cost.tokens:>5} tokens  {candidates}")
    return "\n".join(lines)


def _layers(model: ModelConfig) -> list[str]:
    """Which layers are dense, which are sparse."""
    experts = model.experts
    parts = {"linear": "QKV, out, FFN 1, FFN 2", "ffn_linear": "FFN 1, FFN 2", "mlp": "FFN"}[experts.unit]
    sparse = f"{experts.num_experts} experts ({parts}), router {experts.router}, top {experts.top_k}"
    by_kind: dict[str, list[int]] = {}
    for layer in range(model.depth):
        by_kind.setdefault(sparse if experts.is_sparse(layer, model.depth) else "dense", []).append(layer)
    return [f"    {kind}: {_ranges(layers)}" for kind, layers in sorted(by_kind.items(), reverse=True)]


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> 0-2, 5"""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _millions(count: int) -> str:
    return f"{count / 1e9:8.3f} B" if count >= 1e9 else f"{count / 1e6:8.2f} M"
