"""What every task is: a way to turn samples into one TaskBatch, and the facts about its kind.

`example` decodes one sample (it may raise BadSample), `batch` joins examples. A generator means training (augmentation,
random masks, sampled words); `None` means evaluation: everything fixed, all candidates.
"""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import re
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from data.attributes import Attributes
from data.batch import Modality, Scope, Segment, Sequences, TaskBatch
from data.config import Frames, TaskConfig
from data.decode.image import decode_image
from data.decode.text import decode_json, decode_text
from data.decode.video import decode_video
from data.seeding import rng
from data.shards import DatasetError, DatasetInfo
from data.shards.errors import BadSample
from data.tasks.candidates import WordCandidates
from data.tasks.frames import rearranged
from data.tasks.members import IMAGE_KEYS, VIDEO_KEYS, found, member
from data.tasks.segments import visual_segment
from data.text.vocabulary import Vocabulary
from data.text.words import has_word
from data.visual.augment import rand_augment, random_erase
from data.visual.transform import patchify, spatial_transform

Sample = dict[str, Any]
Answers = Literal["classes", "words", "pairs"]
LABELLED = ("classification", "text_classification")
"""Kinds of tasks whose samples have a class: parts of their data are drawn class by class, and probes can be fitted."""
_CLASS_NUMBER = re.compile(rb"(?:\xef\xbb\xbf)?\s*([-+]?[0-9]{1,9})\s*")


@dataclasses.dataclass(frozen=True)
class Pixels:
    """How images are cut for the model: square size and patch edge in pixels."""

    image_size: int
    patch: int


@dataclasses.dataclass(frozen=True)
class TaskContext:
    """What a task is built from besides its own options. frames: of clips, in evaluation alone."""

    config: TaskConfig
    info: DatasetInfo
    vocabulary: Vocabulary
    pixels: Pixels
    vocabulary_sample: int = 0
    word_end: bool = False
    frames: Frames = "as-is"


@dataclasses.dataclass(frozen=True)
class Visual:
    """One image or clip as patches of bytes [L, P] at positions [L, 3]."""

    patches: np.ndarray
    positions: np.ndarray


class Task(abc.ABC):
    """Subclasses say what an example is, and as facts of their kind what checks, budgets and plans must know:

    reads         kinds of data sets that it can read (data/shards/info.py)
    answers       what its candidates are: the class names of the data set, words of the vocabulary, or the other side of the
                  pairs of the batch
    has_pictures  whether images or clips are among its inputs
    """

    reads: ClassVar[tuple[str, ...]]
    answers: ClassVar[Answers]
    has_pictures: ClassVar[bool] = True

    @classmethod
    def text_tokens(cls, config: TaskConfig) -> int:
        """Text tokens of an input at the longest."""
        return 0

    @classmethod
    def read_outs(cls, config: TaskConfig) -> int:
        """Tokens of an input that are compared with the candidates, at max_text tokens of text."""
        return 1

    @classmethod
    def visual_tokens(cls, config: TaskConfig, patches: int, video: bool) -> int:
        """Patches of an input; patches: of one image."""
        return patches * (config.num_frames if video else 1) if cls.has_pictures else 0

    @classmethod
    def most_tokens(cls, config: TaskConfig, patches: int, video: bool) -> int:
        """Of one sample: its input at the longest, <SPE> included, and of pairs the candidate that it brings. Candidates that
        all samples share (classes, words) are not counted."""
        own_candidate = 1 + config.max_text if cls.answers == "pairs" else 0
        return 1 + cls.visual_tokens(config, patches, video) + cls.text_tokens(config) + own_candidate

    @classmethod
    def with_batch_size(cls, config: TaskConfig, patches: int, video: bool) -> TaskConfig:
        """The options with the batch_size that batch_tokens allow. Raises DatasetError if too few samples fit."""
        if not config.batch_tokens:
            return config
        tokens = cls.most_tokens(config, patches, video)
        size, least = config.batch_tokens // tokens, cls.least_batch()
        if size < least:
            raise DatasetError(
                f"task {config.name}: batch_tokens={config.batch_tokens} is too little for {least} sample(s) of up to {tokens} "
                f"tokens: use at least {least * tokens}"
            )
        return dataclasses.replace(config, batch_size=size, batch_tokens=0)

    @classmethod
    def least_batch(cls) -> int:
        """Samples of a micro-batch at least: pairs are compared with those of the others."""
        return 2 if cls.answers == "pairs" else 1

    @classmethod
    def check(cls, config: TaskConfig) -> None:
        """Raises ValueError for options that do not go with this kind."""
        if config.batch_size < cls.least_batch():
            raise ValueError(
                f"task {config.name}: {config.kind} needs batch_size >= {cls.least_batch()}, its candidates are the other samples"
            )
        together = "global" if cls.answers == "pairs" else "sharded"
        if config.candidates not in ("local", together):
            raise ValueError(
                f"task {config.name}: candidates={config.candidates} does not go with {config.kind}: use local or {together}"
            )
        if config.shots and config.kind not in LABELLED:
            raise ValueError(
                f"task {config.name}: shots are samples of a class, which {config.kind} does not have: use fraction"
            )
        if config.loss == "sigmoid" and (cls.answers != "pairs" or config.label_smoothing):
            raise ValueError(
                f"task {config.name}: loss=sigmoid asks of every pair whether it belongs together: kind=retrieval without label_smoothing"
            )
        if config.views != (1, 1) and config.kind != "classification":
            raise ValueError(f"task {config.name}: views are those of classification, not of {config.kind}")
        if config.mix.is_on and not (cls.answers == "classes" and cls.has_pictures):
            raise ValueError(
                f"task {config.name}: mix blends pictures and their class labels, which {config.kind} does not have"
            )

    def __init__(self, context: TaskContext) -> None:
        self.context = context
        self.config, self.vocabulary = context.config, context.vocabulary
        self.modality = modality_of(context.info)

    @property
    def kept_candidates(self) -> tuple[Sequences, ...]:
        """Candidates that its batches share: they are built once, and workers do not send them."""
        return ()

    @property
    def draws_candidates(self) -> bool:
        """Are they others in every step?"""
        return False

    def shared_candidates(self, generator: np.random.Generator) -> Sequences:
        """Those that all micro-batches of a step have in common, which ranks encode together; generator: of the step."""
        raise AssertionError(f"data/config.py refuses shared candidates of {self.config.kind}")

    @property
    def temperature(self) -> str:
        return self.config.temperature or self.default_temperature

    @property
    @abc.abstractmethod
    def default_temperature(self) -> str: ...

    @abc.abstractmethod
    def example(self, sample: Sample, generator: np.random.Generator | None) -> Any: ...

    @abc.abstractmethod
    def batch(self, examples: list[Any], generator: np.random.Generator | None) -> TaskBatch: ...

    def scope(self, generator: np.random.Generator | None) -> Scope:
        """Evaluation compares with what the batch holds. Sets that ranks encode together join a batch where all of their micro-batches
        are known (data/stream/shared_sets.py)."""
        return Scope.GLOBAL if generator is not None and self.config.candidates == "global" else Scope.LOCAL

    def visual(self, sample: Sample, generator: np.random.Generator | None) -> Visual:
        """Decode, augment and cut the sample's image or clip."""
        config, pixels = self.config, self.context.pixels
        (frames_THWC,) = self._clips(sample, generator, 1)
        square = spatial_transform(
            frames_THWC,
            pixels.image_size,
            generator,
            crop_scale=config.crop_scale,
            flip=config.flip,
            crop=config.crop_scale != (1.0, 1.0),
            color_jitter=config.color_jitter,
        )
        if generator is not None and config.rand_augment[0]:
            square = rand_augment(square, generator, *config.rand_augment)
        if generator is not None and config.erase and generator.random() < config.erase:
            square = random_erase(square, generator)
        return Visual(*patchify(square, pixels.patch))

    def views(self, sample: Sample) -> tuple[Visual, ...]:
        """In evaluation: crops of each clip in turn (papers.md 1.9). One crop of one clip is `visual`. Raises BadSample."""
        pixels, (crops, clips) = self.context.pixels, self.config.views
        squares = [
            spatial_transform(clip_THWC, pixels.image_size, None, place=0.5 if crops == 1 else crop / (crops - 1))
            for clip_THWC in self._clips(sample, None, clips)
            for crop in range(crops)
        ]
        return tuple(Visual(*patchify(square, pixels.patch)) for square in squares)

    def _clips(self, sample: Sample, generator: np.random.Generator | None, clips: int) -> list[np.ndarray]:
        """The frames [T, H, W, 3] of each of so many clips; an image is one of one frame."""
        config, picture = self.config, self._picture(sample)
        if self.modality != Modality.VIDEO:
            return [decode_image(picture)[None]]
        frames_THWC = decode_video(
            picture, config.num_frames, config.frame_sampling, config.frame_stride, rng=generator, clips=clips
        )
        clips_THWC = np.split(frames_THWC, clips)
        if self.context.frames == "as-is":
            return clips_THWC
        orders = rng(number_of(picture))  # of the content: the same whoever reads it
        return [rearranged(clip_THWC, self.context.frames, orders) for clip_THWC in clips_THWC]

    def _picture(self, sample: Sample) -> bytes:
        return member(sample, VIDEO_KEYS if self.modality == Modality.VIDEO else IMAGE_KEYS)

    def visual_segment(self, visuals: list[Visual], attributes: Attributes) -> Segment:
        return visual_segment([v.patches for v in visuals], [v.positions for v in visuals], self.modality, attributes)


class WordTask(Task):
    """A task whose candidates are the words of the vocabulary, all of them or a sample."""

    answers: ClassVar[Answers] = "words"

    def __init__(self, context: TaskContext) -> None:
        super().__init__(context)
        self.words = WordCandidates(context.vocabulary, context.word_end)

    @property
    def kept_candidates(self) -> tuple[Sequences, ...]:
        return () if self.context.vocabulary_sample else (self.words.all,)

    @property
    def draws_candidates(self) -> bool:
        return False

    def shared_candidates(self, generator: np.random.Generator) -> Sequences:
        return self.words.all

    def word_batch(
        self, inputs: Sequences, read_Q2: Tensor, tokens: list[int], generator: np.random.Generator | None
    ) -> TaskBatch:
        """tokens: the right word of each read-out [Q]. Training may compare with a sample of the vocabulary."""
        sample = 0 if generator is None else self.context.vocabulary_sample
        targets = self.words.targets(tokens, sample, generator or rng(0))
        return TaskBatch(
            task=self.config.name,
            inputs=inputs,
            read_Q2=read_Q2,
            candidates=targets.candidates,
            candidate_log_weights_C=targets.log_weights_C,
            labels_Q=targets.labels_Q,
            temperature=self.temperature,
            scope=self.scope(generator),
            weight=self.config.loss_weight,
            label_smoothing=self.config.label_smoothing if targets.log_weights_C is None else 0.0,
        )


@dataclasses.dataclass(frozen=True)
class Captioned:
    """A visual sample with text. tokens: one caption with end-of-text; references: all captions of the sample; content: a number that
    tells images (or clips) apart, whatever was cut out of them."""

    visual: Visual
    tokens: list[int]
    references: list[str]
    content: int


class CaptionedTask(Task):
    """A task on visual samples with captions, of which training takes one at random and evaluation the first."""

    reads = ("image_caption", "video_caption")

    def example(self, sample: Sample, generator: np.random.Generator | None) -> Captioned:
        captions = captions_of(sample)
        chosen = captions[0 if generator is None else int(generator.integers(len(captions)))]
        tokens = self.vocabulary.encode(chosen, self.config.max_text)
        return Captioned(self.visual(sample, generator), tokens, captions, number_of(self._picture(sample)))


def number_of(content: bytes) -> int:
    """63 bits that tell contents apart, on all ranks alike."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") >> 1


def modality_of(info: DatasetInfo) -> Modality:
    """What the data set's samples are."""
    return {"image": Modality.IMAGE, "video": Modality.VIDEO, "text": Modality.TEXT}[info.kind.split("_")[0]]


def label_of(sample: Sample, info: DatasetInfo) -> int:
    """The class number in member `cls`: decimal digits, with white space or a byte order mark around them."""
    content = member(sample, ("cls",))
    digits = _CLASS_NUMBER.fullmatch(content)
    if not digits:
        raise BadSample(f"no class index in member cls, which has {content[:20]!r}")
    label = int(digits[1])
    if not 0 <= label < len(info.classes):
        raise BadSample(
            f"class {label} of {len(info.classes)}: cls counts from 0 in the order of the classes in dataset.json"
        )
    return label


def captions_of(sample: Sample) -> list[str]:
    """The captions of a sample, `json` {"captions": [...]} or `txt`; those without a word are left out where there are others."""
    if "txt" in sample:
        return [decode_text(sample["txt"])]
    captions = decode_json(sample["json"]).get("captions") if "json" in sample else None
    if not isinstance(captions, list) or not all(caption is None or isinstance(caption, str) for caption in captions):
        raise BadSample(f'no caption: needs txt, or json with a list "captions" of strings; {found(sample)}')
    kept = [caption for caption in captions if caption and has_word(caption)]
    if not kept:
        raise BadSample(f"no caption: none of the {len(captions)} in json has a word")
    return kept
