"""What a trained model says of images, clips and texts. Legend: N media, C candidates, D width.

Every answer is the likeliest of its candidates by similarity, as in training; captions are made word by word. Each kind of question
takes the options of a task of the run (name, temperature, frames, length of texts): one of the same kind where there is one, else of a
related kind.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from data.attributes import TEXT_INPUT
from data.batch import Modality, Sequences
from data.config import DataConfig, TaskConfig
from data.shards import BadSample, DatasetError, DatasetInfo
from data.tasks import make_task
from data.tasks.base import Captioned, Pixels, Task, TaskContext, Visual
from data.tasks.captioning import Captioning
from data.tasks.classification import Classification
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

GAP = "___"
"""Where a word is to be filled in."""


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
        """The `top` likeliest of these names, by default those of the task's data set. A linear head takes no others; where the data set is
        not there, all of them in the order of training. Raises DatasetError if two of them are one to the model, if there are none, or if
        the model has learned to write names and not to compare with them."""
        if isinstance(classes, str):
            raise DatasetError(f"classes={classes!r} is one text: give a list of names")
        names: dict[bool, Tensor] = {}
        for medium, feature_D, made in self._encoded(media, "classification", task, tuple(classes)):
            if feature_D is None:
                yield medium, None
                continue
            if medium.is_clip not in names:
                assert isinstance(made, Classification)
                self._check_head(made)
                names[medium.is_clip] = encode_rows(self.objective, made.candidates, made.config.name, self.device)
            logits_C = self.objective.logits(feature_D[None], names[medium.is_clip], made.temperature)[0]
            yield medium, _choices(logits_C, made.context.info.classes, top)

    def embed(self, media: Iterable[Medium], task: str = "") -> Iterator[tuple[Medium, Tensor | None]]:
        """Unit vectors [D] in the space in which texts are retrieved."""
        for medium, feature_D, _ in self._encoded(media, "retrieval", task):
            yield medium, None if feature_D is None else normalize(feature_D, dim=-1).cpu()

    def embed_texts(self, texts: Sequence[str], task: str = "", of_clips: bool = False) -> Tensor:
        """Unit vectors [N, D], comparable with those of media; a single string is one text."""
        texts = [texts] if isinstance(texts, str) else texts
        made = self._task("retrieval", task, of_clips)
        assert isinstance(made, Retrieval)
        return normalize(
            encode_rows(self.objective, made.texts(list(texts)), made.config.name, self.device), dim=-1
        ).cpu()

    def embed_pattern(self, task: str = "", of_clips: bool = False) -> Tensor:
        """Unit vector [D] of a made picture, or of a clip that shows it: always the same, so it tells these weights from others."""
        made = self._task("retrieval", task, of_clips)
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
            assert isinstance(made, Captioning)
            of_clips = made.modality == Modality.VIDEO
            sound: list[Any] = [example for _, example in examples if example is not None]
            captions: Iterator[str] = iter(())
            if sound:
                if of_clips not in words:
                    words[of_clips] = words_of_captions(self.objective, made, self.device)
                prefix = made.prefix(sound).to(self.device)
                length = max_words or made.config.max_text
                found = beam_search(self.objective, prefix, words[of_clips], beam, length)
                checked(found.log_probs_BKT[:, 0], made.config.name)
                captions = (self.vocabulary.decode(row).strip() for row in found.best(self.vocabulary.end))
            for medium, example in examples:
                yield medium, None if example is None else next(captions)

    @torch.no_grad()
    def fill(self, texts: Sequence[str], top: int = 5, task: str = "") -> list[list[list[Choice]]]:
        """Of each text, of each gap `___`, the likeliest words; a single string is one text. Raises DatasetError for a text without a
        gap."""
        texts = [texts] if isinstance(texts, str) else texts
        made = self._task("masked_text", task, False)
        assert isinstance(made, MaskedText)
        rows = [self._with_gaps(text, made.config.max_text) for text in texts]
        words_CD, tokens_C = encode_vocabulary(self.objective, made, self.device)
        names = [self.vocabulary.decode([token]).strip() for token in tokens_C.tolist()]
        answers: list[list[list[Choice]]] = []
        for start in range(0, len(rows), self.batch_size):
            some = rows[start : start + self.batch_size]
            read_Q2 = [(row, 1 + place) for row, (_, gaps) in enumerate(some) for place in gaps]
            inputs = Sequences(segments=(text_segment([tokens for tokens, _ in some], TEXT_INPUT),)).to(self.device)
            places_Q2 = torch.tensor(read_Q2, device=self.device)
            features_QD = encode_inputs(self.objective, inputs, places_Q2, made.config.name)
            logits_QC = self.objective.logits(features_QD, words_CD, made.temperature)
            found = iter([_choices(logits_C, names, top) for logits_C in logits_QC])
            answers += [[next(found) for _ in gaps] for _, gaps in some]
        return answers

    # ------------------------------------------------------------------------------------------------------------

    def _with_gaps(self, text: str, max_text: int) -> tuple[list[int], list[int]]:
        """(tokens with <SPE> at the gaps and end-of-text, places of the gaps)."""
        first, *others = text.split(GAP)
        if not others:
            raise DatasetError(f"{text[:60]!r} has no gap: write {GAP} where a word is to be filled in")
        tokens, gaps = self._tokens(first), []
        for part in others:
            gaps.append(len(tokens))
            tokens += [self.vocabulary.spe, *self._tokens(part)]
        if len(tokens) >= max_text:
            raise DatasetError(f"{text[:60]!r} has more than the {max_text} tokens that the model has learned to read")
        return [*tokens, self.vocabulary.end], gaps

    def _tokens(self, text: str) -> list[int]:
        return self.vocabulary.encode(text, 1 << 10)[:-1] if text.strip() else []

    def _task(self, kind: str, name: str, of_clips: bool, classes: tuple[str, ...] = ()) -> Task:
        """Raises DatasetError if no task of the run serves."""
        medium = "video" if of_clips else "image"
        config = self._config(kind, name, medium)
        if kind == config.kind == "classification" and config.answer == "generate":
            raise DatasetError(
                f"task {config.name} has learned to write its names (answer: generate), not to compare with them: ask for captions of it, "
                f"`caption` with --task {config.name}"
            )
        known = self.infos.get(config.name)
        if kind == "classification" and classes:
            self._check_distinct(classes, config.max_text)
        elif kind == "classification":
            classes = known.classes if known else ()
            if not classes:
                head = self.objective.head
                how = f": all {len(head.weight)}, in the order of training" if head is not None else ""
                raise DatasetError(f"task {config.name}: the class names of its data set are not there: say them{how}")
        about = {"classification": f"{medium}_class", "masked_text": "text"}.get(kind, f"{medium}_caption")
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
        # Of several, one of the same medium.
        tasks.sort(key=lambda task: task.name in self.infos and not self.infos[task.name].kind.startswith(medium))
        for wanted in RELATED[kind]:
            for task in tasks:
                # A task that writes its names has not learned to compare with them, and is refused if nothing else serves.
                if task.kind == wanted and not (kind == "classification" and task.answer == "generate"):
                    return task
        for task in tasks:
            if kind in ("captioning", "classification") and task.kind == "classification" and task.answer == "generate":
                return task
        kinds = ", ".join(f"{task.name} ({task.kind})" for task in self.data.tasks)
        raise DatasetError(f"{name or 'no task of the run'} cannot serve as {kind}; its tasks are {kinds}")

    @torch.no_grad()
    def _encoded(
        self, media: Iterable[Medium], kind: str, task: str, classes: tuple[str, ...] = ()
    ) -> Iterator[tuple[Medium, Tensor | None, Task]]:
        """(medium, its feature [D], the task it was read for)."""
        for made, examples in self._read(media, kind, task, classes):
            sound: list[Any] = [example for _, example in examples if example is not None]
            features: Iterator[Tensor] = iter(())
            if sound:
                batch = made.batch(sound, None).to(self.device)
                features = iter(encode_inputs(self.objective, batch.inputs, batch.read_Q2, made.config.name))
            for medium, example in examples:
                yield medium, None if example is None else next(features), made

    def _read(
        self, media: Iterable[Medium], kind: str, task: str, classes: tuple[str, ...] = ()
    ) -> Iterator[tuple[Task, list[tuple[Medium, object | None]]]]:
        """(the task they are read for, media with their examples), a pass at a time."""
        tasks: dict[bool, Task] = {}
        for group in _groups(media, self.batch_size):
            of_clips = group[0].is_clip
            if of_clips not in tasks:
                tasks[of_clips] = self._task(kind, task, of_clips, classes)
            yield tasks[of_clips], list(self._examples(tasks[of_clips], group))

    def _examples(self, task: Task, media: Iterable[Medium]) -> Iterator[tuple[Medium, object | None]]:
        for medium in media:
            if medium.fault:
                yield medium, None
                continue
            # A label and a caption stand for those of training, and nobody looks at them.
            sample = {medium.kind: medium.content, "cls": b"0", "txt": b"a"}
            try:
                yield medium, task.example(sample, None)
            except BadSample as error:
                yield dataclasses.replace(medium, content=b"", fault=error.reason), None


def _groups(media: Iterable[Medium], size: int) -> Iterator[list[Medium]]:
    """In their order, images and clips apart, `size` at most."""
    for _, of_one in itertools.groupby(media, key=lambda medium: medium.is_clip):
        while group := list(itertools.islice(of_one, size)):
            yield group


def _choices(logits_C: Tensor, names: Sequence[str], top: int) -> list[Choice]:
    best = logits_C.softmax(dim=-1).topk(min(top, len(names)))
    return [
        Choice(names[place], value) for value, place in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
