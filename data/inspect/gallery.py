"""Samples picked at random, raw or as a task of a run makes them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.attributes import attributes
from data.batch import Modality, Segment, Sequences, TaskBatch
from data.config import DataConfig, TaskConfig
from data.inspect.page import Card, Page, Pictures, SegmentView, TaskView, Token, render
from data.inspect.run_file import RunFile, read_run_file
from data.inspect.samples import Decoded, decode
from data.seeding import rng
from data.shards import DatasetError, DatasetInfo, ShardSet, read_info
from data.shards.errors import BadSample
from data.shards.ranges import load_ranges
from data.stream.source import read_vocabulary
from data.tasks import TASKS, make_task
from data.tasks.base import Pixels, Sample, Task, TaskContext
from data.text.tokenizer import END_OF_TEXT, Tokenizer
from data.text.vocabulary import UnknownTokenError, Vocabulary
from data.visual.normalise import pixels
from data.visual.transform import unpatchify

BIT_NAMES = tuple(inspect.signature(attributes).parameters)
STANDARD = Pixels(image_size=224, patch=16)
"""Where no run says otherwise."""


@dataclasses.dataclass(frozen=True)
class Picked:
    """One sample of the split, or why it cannot be read. raw: decoded without any augmentation."""

    place: str
    sample: Sample = dataclasses.field(default_factory=dict)
    raw: Decoded | None = None
    error: str | None = None


def collect(
    folder: str | None, split: str | None, samples: int, seed: int, config: Path | None = None, task: str | None = None
) -> str:
    """The page. With a run's config and the name of a task: as training draws it. Raises DatasetError."""
    run = read_run_file(config, task) if config and task else None
    folder = folder or (run.task.path if run else "")
    split = split or (run.task.split if run else "train")
    info = read_info(folder)
    shards = ShardSet.open(folder, split)
    numbers = np.sort(rng(seed).choice(len(shards), size=min(samples, len(shards)), replace=False))
    picked = [_pick(shards, info, int(number)) for number in numbers]
    tokenizer = Tokenizer.load()
    tasks = [_task_of_run(run, folder, info)] if run else _standard_tasks(folder, info, tokenizer)
    views = {made.config.name: _views(made, picked, seed if run else None) for made in tasks}
    cards = [
        _card(one, info, tokenizer, {name: of_task[number] for name, of_task in views.items()}, run is not None)
        for number, one in enumerate(picked)
    ]
    facts = {
        "kind": info.kind,
        "split": split,
        "samples": f"{len(shards)}, {len(picked)} shown (seed {seed})",
        "shards": str(len(shards.paths)),
        "classes": str(len(info.classes)),
    }
    if run:
        facts["seen by"] = f"task {run.task.name} ({run.task.kind}) of {config}, augmented as in training"
    else:
        facts["segments"] = (
            f"of tasks with default options, pictures of {STANDARD.image_size}, patches of {STANDARD.patch}"
        )
    return render(Page(folder, {k: v for k, v in facts.items() if v != "0"}, BIT_NAMES, cards, run is not None))


def _pick(shards: ShardSet, info: DatasetInfo, number: int) -> Picked:
    ends = np.cumsum(shards.sizes)
    shard = int(np.searchsorted(ends, number, side="right"))
    index = number - int(ends[shard] - shards.sizes[shard])
    path = shards.paths[shard]
    place = f"{path.name} sample {index} at byte {load_ranges(path)[0][index, 0]}"
    try:
        sample = shards.read(shard, index)
        return Picked(place, sample, decode(sample, info))
    except BadSample as error:
        return Picked(place, error=error.reason)


def _task_of_run(run: RunFile, folder: str, info: DatasetInfo) -> Task:
    """Raises DatasetError where the task cannot be made as in the run."""
    config = dataclasses.replace(run.task, path=folder)
    data: DataConfig = dataclasses.replace(
        run.data, tasks=tuple(config if other.name == config.name else other for other in run.data.tasks)
    )
    try:
        context = TaskContext(config, info, read_vocabulary(data), run.pixels, data.vocabulary_sample, data.word_end)
        return make_task(context)
    except UnknownTokenError as error:
        raise DatasetError(f"{folder}: {error}") from error


def _standard_tasks(folder: str, info: DatasetInfo, tokenizer: Tokenizer) -> list[Task]:
    """Every kind of task that can read the data set, with default options."""
    vocabulary = Vocabulary.full(tokenizer)
    kinds = [kind for kind, task in TASKS.items() if info.kind in task.reads]
    configs = [TaskConfig(name=kind, kind=kind, path=folder) for kind in kinds]
    return [make_task(TaskContext(config, info, vocabulary, STANDARD)) for config in configs]


# ------------------------------------------------------------------------------------------------- as a task sees it


@dataclasses.dataclass(frozen=True)
class Seen:
    """A sample in a task's batch, or why it cannot be in one. frames_THWC: its patches put together again."""

    view: TaskView | None = None
    frames_THWC: np.ndarray | None = None
    error: str | None = None


def _views(task: Task, picked: Sequence[Picked], seed: int | None) -> list[Seen]:
    """What the task makes of every sample, in batches of its size; seed None: as in evaluation."""
    seen = [Seen(error=one.error) for one in picked]
    examples = []
    for number, one in enumerate(picked):
        if one.error is None:
            try:
                examples.append((number, task.example(one.sample, None if seed is None else rng(seed, number, 0))))
            except (BadSample, UnknownTokenError) as error:
                seen[number] = Seen(error=str(error))
    for start in range(0, len(examples), task.config.batch_size):
        part = examples[start : start + task.config.batch_size]
        batch = task.batch([example for _, example in part], None if seed is None else rng(seed, start, 1))
        for row, (number, _) in enumerate(part):
            seen[number] = _seen(task, batch, row)
    return seen


def _seen(task: Task, batch: TaskBatch, row: int) -> Seen:
    answers = _answers(task, batch, row)
    segments, frames, start = [], None, 1
    for segment in batch.inputs.segments:
        tokens: tuple[Token, ...] = ()
        if segment.modality == Modality.TEXT:
            own_ids = segment.values[row][segment.valid_BL[row]].tolist()
            tokens = _tokens_of_model(own_ids, task.vocabulary, {at - start: text for at, text in answers.items()})
        else:
            frames = _pixels(segment, row, task.context.pixels.patch)
        segments.append(_segment_view("input", segment, int(segment.valid_BL[row].sum()), tokens))
        start += segment.valid_BL.shape[1]
    for segment in batch.candidates.segments:
        segments.append(_segment_view("candidates", segment, int(segment.valid_BL.shape[1])))
    view = TaskView(task.config.name, tuple(segments), batch.candidates.num_rows, answers.get(0))
    return Seen(view, frames)


def _answers(task: Task, batch: TaskBatch, row: int) -> dict[int, str]:
    """Position in the row -> what is to be read there."""
    answers = {}
    for read, (of_row, position) in enumerate(batch.read_Q2.tolist()):
        if of_row == row:
            text = _candidate(batch.candidates, int(batch.labels_Q[read]), task.vocabulary)
            if batch.second_labels_Q is not None:
                second = _candidate(batch.candidates, int(batch.second_labels_Q[read]), task.vocabulary)
                text = f"{text} ({1 - batch.second_share:.0%}), {second} ({batch.second_share:.0%})"
            answers[position] = text
    return answers


def _candidate(candidates: Sequences, label: int, vocabulary: Vocabulary) -> str:
    segment = candidates.segments[0]
    own_ids = segment.values[label][segment.valid_BL[label]].tolist()
    return vocabulary.decode(own_ids).strip() or vocabulary.tokenizer.decode([END_OF_TEXT])


def _pixels(segment: Segment, row: int, patch: int) -> np.ndarray:
    return unpatchify(pixels(segment.values[row], segment.modality).numpy(), segment.positions[row].numpy(), patch)


def _segment_view(part: str, segment: Segment, num_tokens: int, tokens: tuple[Token, ...] = ()) -> SegmentView:
    modality, visibility = segment.modality.name.lower(), segment.visibility.name.lower()
    return SegmentView(part, modality, visibility, num_tokens, segment.attributes, tokens)


def _tokens_of_model(own_ids: Sequence[int], vocabulary: Vocabulary, answers: dict[int, str]) -> tuple[Token, ...]:
    clip = [vocabulary.clip_ids[own] for own in own_ids]
    return tuple(
        dataclasses.replace(token, answer=answers.get(at))
        for at, token in enumerate(_tokens(clip, vocabulary.tokenizer))
    )


def _tokens(clip_ids: Sequence[int], tokenizer: Tokenizer) -> tuple[Token, ...]:
    return tuple(Token(i, tokenizer.decode([i]).rstrip(), tokenizer.ends_word(i)) for i in clip_ids)


def _card(one: Picked, info: DatasetInfo, tokenizer: Tokenizer, seen: dict[str, Seen], augmented: bool) -> Card:
    raw = one.raw
    if raw is None:
        return Card("unreadable", one.place, error=one.error)
    pictures = []
    if raw.frames_THWC is not None:
        count, height, width, _ = raw.frames_THWC.shape
        what = f"{count} frames of a clip" if count > 1 else "image"
        pictures.append(Pictures(f"{what}, {width} x {height}", raw.frames_THWC))
    if augmented:
        pictures += [
            Pictures(f"as {name} sees it, {s.frames_THWC.shape[2]} x {s.frames_THWC.shape[1]}", s.frames_THWC)
            for name, s in seen.items()
            if s.frames_THWC is not None
        ]
    # Where a task shows its tokens, those of the texts would only be in the way.
    texts = tuple((text, () if augmented else _tokens(tokenizer.encode(text), tokenizer)) for text in raw.texts)
    key = str(one.sample["__key__"])
    title, place = key, one.place
    title_tokens: tuple[Token, ...] = ()
    if raw.label is not None:
        title, place = info.classes[raw.label], f"{one.place}, key {key}"
        title_tokens = _tokens(tokenizer.encode(title), tokenizer)
    errors = [f"{name}: {s.error}" for name, s in seen.items() if s.error]
    views = tuple(s.view for s in seen.values() if s.view)
    return Card(title, place, title_tokens, tuple(pictures), texts, views, "; ".join(errors) or None)
