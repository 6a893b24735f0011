"""What a trained model says of images, clips and texts. Legend: N media, C candidates, D width.

Every answer is the likeliest of its candidates by similarity, as in training; captions are made word by word. Each kind of question
takes the options of a task of the run (name, temperature, frames, length of texts): one of the same kind where there is one, else of a
related kind.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from data.attributes import TEXT_INPUT
from data.batch import Modality, Sequences
from data.config import DataConfig, TaskConfig
from data.decode.text import decode_text
from data.shards import BadSample, DatasetError, DatasetInfo
from data.tasks import make_task
from data.tasks.base import Captioned, Pixels, Task, TaskContext, Visual
from data.tasks.captioning import Captioning
from data.tasks.masked_text import MaskedText
from data.tasks.related import as_kind, trained_temperature
from data.tasks.retrieval import Retrieval
from data.tasks.segments import text_segment
from data.text.names import alike
from data.text.vocabulary import Vocabulary
from data.visual.transform import patchify
from evaluation.captioning import words_of_captions
from evaluation.encoding import checked, encode_inputs, encode_rows, encode_vocabulary
from model.generate import Words, beam_search
from model.objective import Objective
from prediction.media import Medium
from run.evaluation.suite import RELATED

GAP, GAPS = "___", re.compile(r"_{3,}")
"""Where a word is to be filled in: three underscores or more."""
OF_TEXTS = {"classification": "text_classification"}
"""Kinds of questions that are asked about texts, too, by tasks of a kind of their own."""
TEMPLATED = ("text_classification", "vqa")
"""Kinds that read a text in a template."""
COMPARED = ("classification", *TEMPLATED)
"""Kinds whose names and answers are compared, unless they were trained to be written (`answer: generate`)."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """A candidate and its probability among all candidates."""

    text: str
    probability: float


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A trained network with what it needs to read and to answer. Methods yield (medium, answer) in the order of the media, and
    (medium with a fault, None) for those that cannot be read.

    infos: of the data sets of the run's tasks, those that are there. They tell class names, and which tasks are of clips.
    """

    objective: Objective
    vocabulary: Vocabulary
    data: DataConfig
    infos: Mapping[str, DatasetInfo]
    pixels: Pixels
    step: int
    device: str = "cpu"
    batch_size: int = 32

    def classify(
        self, media: Iterable[Medium], classes: Sequence[str] = (), top: int = 5, task: str = ""
    ) -> Iterator[tuple[Medium, list[Choice] | None]]:
        """The `top` likeliest of these names of each image, clip or text, by default those of the task's data set. A linear head takes no
        others; where the data set is not there, all of them in the order of training. Raises DatasetError if two of them are one to the
        model, if there are none, or if the model has learned to write names and not to compare with them."""
        if isinstance(classes, str):
            raise DatasetError(f"classes={classes!r} is one text: give a list of names")
        return self._ranked(self._encoded(media, "classification", task, tuple(classes)), top)

    def answer(
        self, media: Iterable[Medium], question: str, answers: Sequence[str] = (), top: int = 5, task: str = ""
    ) -> Iterator[tuple[Medium, list[Choice] | None]]:
        """The `top` likeliest of these answers to a question about each image or clip, by default those of the task's data set. Raises
        DatasetError as `classify` does."""
        if isinstance(answers, str):
            raise DatasetError(f"answers={answers!r} is one text: give a list of them")
        return self._ranked(self._encoded(media, "vqa", task, tuple(answers), question), top)

    def embed(self, media: Iterable[Medium], task: str = "") -> Iterator[tuple[Medium, Tensor | None]]:
        """Unit vectors [D] in the space in which texts are retrieved, of texts as `embed_texts`."""
        for is_text, some in itertools.groupby(media, key=lambda medium: medium.is_text):
            if is_text:
                yield from self._embedded_texts(some, task)
                continue
            for medium, feature_D, _ in self._encoded(some, "retrieval", task):
                yield medium, None if feature_D is None else normalize(feature_D, dim=-1).cpu()

    def embed_texts(self, texts: Sequence[str], task: str = "", of_clips: bool = False) -> Tensor:
        """Unit vectors [N, D], comparable with those of media; a single string is one text."""
        texts = [texts] if isinstance(texts, str) else texts
        made = self._task("retrieval", task, "video" if of_clips else "image")
        assert isinstance(made, Retrieval)
        return normalize(
            encode_rows(self.objective, made.texts(list(texts)), made.config.name, self.device), dim=-1
        ).cpu()

    def embed_pattern(self, task: str = "", of_clips: bool = False) -> Tensor:
        """Unit vector [D] of a made picture, or of a clip that shows it: always the same, so it tells these weights from others."""
        made = self._task("retrieval", task, "video" if of_clips else "image")
        y_HW, x_HW = np.indices((self.pixels.image_size, self.pixels.image_size))
        checks_HW = (y_HW // self.pixels.patch + x_HW // self.pixels.patch) % 2
        frame_HWC = np.stack([x_HW % 256, y_HW % 256, 255 * checks_HW], axis=-1).astype(np.uint8)
        clip_THWC = np.stack([frame_HWC] * (made.config.num_frames if of_clips else 1))
        visual = Visual(*patchify(clip_THWC, self.pixels.patch))
        batch = made.batch([Captioned(visual, [self.vocabulary.end], [], 0)], None).to(self.device)
        feature_1D = encode_inputs(self.objective, batch.inputs, batch.read_Q2, made.config.name)
        return normalize(feature_1D[0], dim=-1).cpu()

    @torch.no_grad()
    def caption(
        self, media: Iterable[Medium], beam: int = 2, max_words: int = 0, task: str = ""
    ) -> Iterator[tuple[Medium, str | None]]:
        """max_words: tokens of a caption at most; 0 is the length in training. A task that writes class names (`answer: generate`) writes
        these."""
        words: dict[bool, Words] = {}
        for made, examples in self._read(media, "captioning", task):
            sound: list[Any] = [example for _, example in examples if example is not None]
            captions: Iterator[str] = iter(())
            if sound:
                assert isinstance(made, Captioning)
                of_clips = made.modality == Modality.VIDEO
                if of_clips not in words:
                    words[of_clips] = words_of_captions(self.objective, made, self.device)
                prefix = made.prefix(sound).to(self.device)
                length = max_words or made.config.max_text
                found = beam_search(self.objective, prefix, words[of_clips], beam, length)
                checked(found.log_probs_BKT[:, 0], made.config.name)
                captions = (self.vocabulary.decode(row).strip() for row in found.best(self.vocabulary.end))
            for medium, example in examples:
                yield medium, None if example is None else next(captions)

    def fill(self, texts: Sequence[str], top: int = 5, task: str = "") -> list[list[list[Choice]]]:
        """Of each text, of each gap `___`, the likeliest words; a single string is one text. Raises DatasetError for a text without a
        gap, and for one that is too long."""
        answers = []
        for text, gaps in self.filled([texts] if isinstance(texts, str) else texts, top, task):
            if gaps is None:
                raise DatasetError(f"{text.name!r} {text.fault}")
            answers.append(gaps)
        return answers

    @torch.no_grad()
    def filled(
        self, texts: Sequence[str], top: int = 5, task: str = ""
    ) -> Iterator[tuple[Medium, list[list[Choice]] | None]]:
        """The same one by one, and (the text's beginning with its fault, None) for one that cannot be filled."""
        made = self._task("masked_text", task, "text")
        assert isinstance(made, MaskedText)
        words_CD, tokens_C = encode_vocabulary(self.objective, made, self.device)
        names = [self.vocabulary.decode([token]).strip() for token in tokens_C.tolist()]
        for start in range(0, len(texts), self.batch_size):
            rows = [self._with_gaps(text, made.config.max_text) for text in texts[start : start + self.batch_size]]
            found = iter(
                self._words_in([row for row in rows if not isinstance(row, Medium)], words_CD, made, names, top)
            )
            for text, row in zip(texts[start:], rows, strict=False):
                yield (row, None) if isinstance(row, Medium) else (Medium(text), next(found))

    def _words_in(
        self, rows: list[tuple[list[int], list[int]]], words_CD: Tensor, made: Task, names: list[str], top: int
    ) -> list[list[list[Choice]]]:
        """rows: tokens, and places of the gaps among them."""
        if not rows:
            return []
        read_Q2 = torch.tensor([(row, 1 + place) for row, (_, gaps) in enumerate(rows) for place in gaps])
        inputs = Sequences(segments=(text_segment([tokens for tokens, _ in rows], TEXT_INPUT),)).to(self.device)
        features_QD = encode_inputs(self.objective, inputs, read_Q2.to(self.device), made.config.name)
        logits_QC = self.objective.logits(features_QD, words_CD, made.temperature)
        found = iter([_choices(logits_C, names, top) for logits_C in logits_QC])
        return [[next(found) for _ in gaps] for _, gaps in rows]

    # ------------------------------------------------------------------------------------------------------------

    def _with_gaps(self, text: str, max_text: int) -> tuple[list[int], list[int]] | Medium:
        """(tokens with <SPE> at the gaps and end-of-text, places of the gaps), or what is wrong."""
        first, *others = GAPS.split(text)
        if not others:
            return Medium(text[:60], fault=f"has no gap: write {GAP} where a word is to be filled in")
        tokens, gaps = self._tokens(first), []
        for part in others:
            gaps.append(len(tokens))
            tokens += [self.vocabulary.spe, *self._tokens(part)]
        if len(tokens) >= max_text:
            return Medium(text[:60], fault=f"has more than the {max_text} tokens that the model has learned to read")
        return [*tokens, self.vocabulary.end], gaps

    def _tokens(self, text: str) -> list[int]:
        return self.vocabulary.encode(text, 1 << 10)[:-1] if text.strip() else []

    def _ranked(
        self, encoded: Iterator[tuple[Medium, Tensor | None, Task | None]], top: int
    ) -> Iterator[tuple[Medium, list[Choice] | None]]:
        """The likeliest candidates of each."""
        names: dict[str, Tensor] = {}
        for medium, feature_D, made in encoded:
            if feature_D is None:
                yield medium, None
                continue
            assert made is not None
            if medium.modality not in names:
                self._check_head(made)
                candidates = made.candidates  # type: ignore[attr-defined]
                names[medium.modality] = encode_rows(self.objective, candidates, made.config.name, self.device)
            logits_C = self.objective.logits(feature_D[None], names[medium.modality], made.temperature)[0]
            yield medium, _choices(logits_C, made.context.info.classes, top)

    def _embedded_texts(self, media: Iterator[Medium], task: str) -> Iterator[tuple[Medium, Tensor | None]]:
        while group := list(itertools.islice(media, self.batch_size)):
            texts = dict[int, str]()
            for number, medium in enumerate(group):
                try:
                    texts[number] = decode_text(medium.content)
                except BadSample as error:
                    group[number] = dataclasses.replace(medium, content=b"", fault=error.reason)
            vectors = iter(self.embed_texts(list(texts.values()), task) if texts else ())
            yield from ((medium, next(vectors) if number in texts else None) for number, medium in enumerate(group))

    def _task(self, kind: str, name: str, medium: str, classes: tuple[str, ...] = ()) -> Task:
        """medium: image, video or text. Raises DatasetError if no task of the run serves."""
        config = self._config(kind, name, medium)
        if kind == config.kind and kind in TEMPLATED and config.answer == "generate":
            raise DatasetError(
                f"task {config.name} has learned to write its answers (answer: generate), which `evaluate.py` alone has it do"
            )
        if kind == config.kind == "classification" and config.answer == "generate":
            raise DatasetError(
                f"task {config.name} has learned to write its names (answer: generate), not to compare with them: ask for captions of it, "
                f"`caption` with --task {config.name}"
            )
        known = self.infos.get(config.name)
        compares = kind in COMPARED
        if compares and classes:
            self._check_distinct(classes, config.max_text)
        elif compares:
            # A related task's words are no classes: those of masked text, of captions.
            classes = known.classes if known else ()
            if not classes:
                head = self.objective.head
                how = f": all {len(head.weight)}, in the order of training" if head is not None else ""
                raise DatasetError(f"task {config.name}: the class names of its data set are not there: say them{how}")
        about = {
            "classification": f"{medium}_class",
            "text_classification": "text_class",
            "vqa": f"{medium}_question",
            "masked_text": "text",
        }.get(kind, f"{medium}_caption")
        info = DatasetInfo(kind=about, classes=classes, token_ids=(), splits={})  # type: ignore[arg-type]
        trained_on = known.kind.partition("_")[0] if known else medium
        # Names are compared, of one view, by the scale that was trained: on clips also where images are asked about.
        options = dataclasses.replace(
            as_kind(config, kind, trained_on),
            answer="rank",
            views=(1, 1),
            temperature=trained_temperature(config, trained_on),
        )
        return make_task(TaskContext(options, info, self.vocabulary, self.pixels, 0, self.data.word_end))

    def _check_distinct(self, classes: Sequence[str], max_text: int) -> None:
        """Raises DatasetError for names of the user that are one to the model."""
        for one, other in alike(classes, lambda name: self.vocabulary.encode(name, max_text)):
            if one == other:
                raise DatasetError(f"classes (--classes): {one!r} is named twice: name it once")
            raise DatasetError(
                f"classes (--classes): {one!r} and {other!r} are one to the model, which sees no letter case and at most "
                f"max_text={max_text} tokens: leave one out, or name it in other words"
            )

    def _check_head(self, made: Task) -> None:
        """Raises DatasetError for other classes than those that a linear head was trained on, as far as these are known."""
        head, trained = self.objective.head, self.infos.get(made.config.name)
        if head is None:
            return
        names = made.context.info.classes
        if names != trained.classes if trained and trained.classes else len(names) != len(head.weight):
            raise DatasetError(
                f"the linear head of this model knows the {len(head.weight)} classes that it was trained on, in their order: name no others"
            )

    def _config(self, kind: str, name: str, medium: str) -> TaskConfig:
        tasks = [task for task in self.data.tasks if not name or task.name == name]
        trained = "classification" if kind == "captioning" else kind
        written = [task for task in tasks if task.kind == trained and task.answer == "generate"]
        # A task that writes its names has not learned to compare with them, and is refused if nothing else serves; for texts and
        # questions no other kind does.
        for wanted in RELATED[kind][:1] if written and kind in TEMPLATED else RELATED[kind]:
            served = [task for task in tasks if task.kind == wanted and not (kind in COMPARED and task in written)]
            if served:
                return self._of_medium(served, medium)
        if written:
            return self._of_medium(written, medium)
        kinds = ", ".join(f"{task.name} ({task.kind})" for task in self.data.tasks)
        raise DatasetError(f"{name or 'no task of the run'} cannot serve as {kind}; its tasks are {kinds}")

    def _of_medium(self, served: Sequence[TaskConfig], medium: str) -> TaskConfig:
        """The first that was trained on the medium, else one of which that is not known. Raises DatasetError where these are several: they
        have other frames and other names to a router."""
        kinds = {task.name: self.infos[task.name].kind for task in served if task.name in self.infos}
        right = [task for task in served if kinds.get(task.name, "").startswith(medium)]
        unknown = [task for task in served if task.name not in kinds]
        if not right and len(unknown) > 1 and medium != "text":
            names = ", ".join(task.name for task in unknown)
            raise DatasetError(
                f"which of the tasks {names} is one of {medium}s is not known, as their data sets are not there: name one (--task)"
            )
        return (right or unknown or served)[0]

    @torch.no_grad()
    def _encoded(
        self, media: Iterable[Medium], kind: str, task: str, classes: tuple[str, ...] = (), question: str = ""
    ) -> Iterator[tuple[Medium, Tensor | None, Task | None]]:
        """(medium, its feature [D], the task it was read for)."""
        for made, examples in self._read(media, kind, task, classes, question):
            sound: list[Any] = [example for _, example in examples if example is not None]
            features: Iterator[Tensor] = iter(())
            if made is not None and sound:
                batch = made.batch(sound, None).to(self.device)
                features = iter(encode_inputs(self.objective, batch.inputs, batch.read_Q2, made.config.name))
            for medium, example in examples:
                yield medium, None if example is None else next(features), made

    def _read(
        self, media: Iterable[Medium], kind: str, task: str, classes: tuple[str, ...] = (), question: str = ""
    ) -> Iterator[tuple[Task | None, list[tuple[Medium, object | None]]]]:
        """(the task they are read for, or None where none can be read; media with their examples), a pass at a time."""
        tasks: dict[str, Task] = {}
        for group in _groups(media, self.batch_size):
            medium = group[0].modality
            if all(one.fault for one in group):
                yield None, [(one, None) for one in group]
                continue
            if medium not in tasks:
                asked = OF_TEXTS.get(kind, kind) if medium == "text" else kind
                tasks[medium] = self._task(asked, task, medium, classes)
            yield tasks[medium], list(self._examples(tasks[medium], group, question))

    def _examples(
        self, task: Task, media: Iterable[Medium], question: str = ""
    ) -> Iterator[tuple[Medium, object | None]]:
        for medium in media:
            if medium.fault:
                yield medium, None
                continue
            # A label, a caption and an answer stand for those of training, and nobody looks at them.
            about = json.dumps({"question": question, "answers": ["a"]}).encode()
            sample = {"cls": b"0", "txt": b"a", medium.kind: medium.content} | ({"json": about} if question else {})
            try:
                yield medium, task.example(sample, None)
            except BadSample as error:
                yield dataclasses.replace(medium, content=b"", fault=error.reason), None


def _groups(media: Iterable[Medium], size: int) -> Iterator[list[Medium]]:
    """In their order, images, clips and texts apart, `size` at most."""
    for _, of_one in itertools.groupby(media, key=lambda medium: medium.modality):
        while group := list(itertools.islice(of_one, size)):
            yield group


def _choices(logits_C: Tensor, names: Sequence[str], top: int) -> list[Choice]:
    best = logits_C.softmax(dim=-1).topk(min(top, len(names)))
    return [
        Choice(names[place], value) for value, place in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
