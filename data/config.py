"""Options of the data side, checked when made; what depends on the kind of a task is checked in data/tasks."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

Sampling = Literal["segment", "uniform", "stride"]
"""Of a clip's frames."""
Frames = Literal["as-is", "shuffled", "frozen"]
"""What evaluation does to the frames that were sampled (data/tasks/frames.py)."""
TEXT_PLACE, SPE_PLACE = "{text}", "<spe>"
"""What a template of a text or question holds: the text, and where the answer is read."""
TASK_NAME, MAX_NAME = re.compile(r"(?!\.)[^/\\,\x00-\x1f\x7f]+"), 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixConfig:
    """mixup, cutmix   alpha of the Beta distribution of the share; 0 = never (the recipe: 0.8 and 1.0)
    probability     of mixing a batch
    cutmix_share    probability of cutmix where both are on
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = 1.0
    cutmix_share: float = 0.5

    @property
    def is_on(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    def __post_init__(self) -> None:
        if self.mixup < 0 or self.cutmix < 0:
            raise ValueError(f"mixup={self.mixup} and cutmix={self.cutmix} must not be negative")
        if not 0 <= self.probability <= 1 or not 0 <= self.cutmix_share <= 1:
            raise ValueError(f"probability={self.probability} and cutmix_share={self.cutmix_share} must lie in [0, 1]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """One task on one data set; images and videos are told apart by the data set's own description.

    name             unique; under it the task appears in reports. Any letters, but no slash, comma or control character
    kind             classification, text_classification, masked_text, captioning, retrieval or vqa (data/tasks)
    path             data set: a folder, or a URL prefix, that holds dataset.json and shards
    split            split of the data set
    shards           shards in place of the split's own: paths, URLs, {000..099}, globs, @file lists, and pipe: commands
    shots            train on so many samples of each class; 0 = all. Drawn by the run's seed, the same on every machine
    fraction         train on this share of each class (of other kinds: of all samples), int(fraction * n) + 1 of n; 1 = all
    sampling_weight  relative frequency of the task among micro-batches
    loss             softmax over candidates; of retrieval also sigmoid: every pair is a yes or a no of its own (SigLIP)
    loss_weight      factor of the loss
    batch_size       samples of one micro-batch
    batch_tokens     in place of batch_size: as many samples as have so many tokens, if each is as long as can be; 0 = off
    label_smoothing  share of a label that is spread over all candidates
    temperature      learned logit scale; empty = by task: image, video, text, caption, retrieval
    max_text         tokens of a text, end-of-text included; longer ones are cut
    num_frames       frames of a clip
    frame_sampling   segment: a random point of each of equal segments; uniform: the same random point of all of them; stride:
                     frames `frame_stride` seconds apart from a random start. Evaluation takes the centres, or the middle window
    frame_stride     seconds
    views            classification in evaluation: crops along the longer side, and clips in the time of a video, whose similarities are
                     averaged; 1, 1 is the centre alone
    mask_rate        share of words masked (masked text), never all; of letters in scripts without spaces
    mask_shares      of masked words: share that becomes <SPE>, share that becomes a random word; the rest stays
    candidates       local: each data rank encodes all candidates of its micro-batch. sharded: class names or the whole vocabulary,
                     of which each data rank encodes a part, whatever its own task. global: retrieval among the pairs of all
                     data ranks, which needs data.draw=same
    template         text classification and vqa: the sample's text or question and <spe>, where the answer is read
    answer           of classification, text_classification and vqa. rank: the name is compared with those of all classes; generate: it is
                     written word by word, as captions are
    crop_scale       area of random crops in training; (1, 1) and flip=false leave positions in the image alone
    flip             mirror half of the images and clips in training
    color_jitter     strength of random brightness, contrast, saturation and hue
    rand_augment     operations and magnitude (0 to 10, more goes further); (0, 0) = off
    erase            probability that a random rectangle is replaced by noise
    mix              mixup and cutmix (image and video classification)
    """

    name: str
    kind: str
    path: str
    split: str = "train"
    shards: tuple[str, ...] = ()
    shots: int = 0
    fraction: float = 1.0
    sampling_weight: float = 1.0
    loss: Literal["softmax", "sigmoid"] = "softmax"
    loss_weight: float = 1.0
    batch_size: int = 32
    batch_tokens: int = 0
    label_smoothing: float = 0.0
    temperature: str = ""
    max_text: int = 32
    num_frames: int = 4
    frame_sampling: Sampling = "segment"
    frame_stride: float = 0.0
    views: tuple[int, int] = (1, 1)
    mask_rate: float = 0.15
    mask_shares: tuple[float, float] = (0.8, 0.1)
    candidates: Literal["local", "sharded", "global"] = "local"
    template: str = "{text} <spe>"
    answer: Literal["rank", "generate"] = "rank"
    crop_scale: tuple[float, float] = (1.0, 1.0)
    flip: bool = False
    color_jitter: float = 0.0
    rand_augment: tuple[int, float] = (0, 0.0)
    erase: float = 0.0
    mix: MixConfig = dataclasses.field(default_factory=MixConfig)

    def whole(self, split: str) -> TaskConfig:
        """The same task on all of a split."""
        return dataclasses.replace(self, split=split, shards=(), shots=0, fraction=1.0)

    def __post_init__(self) -> None:
        if self.sampling_weight <= 0:
            raise ValueError(
                f"task {self.name}: sampling_weight={self.sampling_weight} must be positive; leave the task out instead"
            )
        if self.loss_weight <= 0:
            raise ValueError(
                f"task {self.name}: loss_weight={self.loss_weight} must be positive; leave the task out instead"
            )
        if self.shots < 0 or not 0 < self.fraction <= 1 or (self.shots and self.fraction < 1):
            raise ValueError(
                f"task {self.name}: shots={self.shots} must not be negative, fraction={self.fraction:g} lie in (0, 1], and only one of "
                "them be given"
            )
        if self.batch_size < 1 or self.max_text < 2 or self.num_frames < 1 or self.batch_tokens < 0:
            raise ValueError(
                f"task {self.name}: need batch_size >= 1, batch_tokens >= 0, max_text >= 2, num_frames >= 1"
            )
        if (self.frame_sampling == "stride") != (self.frame_stride > 0) or self.frame_stride < 0:
            raise ValueError(
                f"task {self.name}: frame_stride={self.frame_stride:g} must be positive with frame_sampling=stride, and 0 otherwise"
            )
        if min(self.views) < 1:
            raise ValueError(f"task {self.name}: views={self.views} must be crops and clips, at least 1 of each")
        if not 0 < self.mask_rate < 1 or not 0 <= self.label_smoothing < 1:
            raise ValueError(f"task {self.name}: mask_rate must lie in (0, 1), label_smoothing in [0, 1)")
        if min(self.mask_shares) < 0 or sum(self.mask_shares) > 1:
            raise ValueError(
                f"task {self.name}: mask_shares={self.mask_shares} must not be negative nor exceed 1 in sum"
            )
        if self.template.count(TEXT_PLACE) != 1 or self.template.count(SPE_PLACE) != 1:
            raise ValueError(
                f"task {self.name}: template={self.template!r} needs {TEXT_PLACE} and {SPE_PLACE}, each once"
            )
        if self.rand_augment[0] < 0 or self.rand_augment[1] < 0 or not 0 <= self.erase <= 1 or self.color_jitter < 0:
            raise ValueError(
                f"task {self.name}: rand_augment={self.rand_augment} and color_jitter={self.color_jitter} must not be negative, "
                f"erase={self.erase} must lie in [0, 1]"
            )
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"task {self.name}: crop_scale={self.crop_scale} must satisfy 0 < low <= high <= 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is streamed and how.

    vocabulary         full: all 49,411 CLIP tokens; restricted: those that training texts use, and bytes that spell others; init:
                       that of the run that `init` names, and where that is one, this is what holds unless said otherwise
    vocabulary_sample  candidates of a step that score the vocabulary: the batch's own words and random others, their
                       weights corrected so that the softmax is unbiased; 0 = every word
    word_end           a word of the vocabulary is encoded with end-of-text after it, as the public code does
    draw               mixed: every micro-batch draws its own task (the papers' sampling); same: one draw per step
    mixture            weights: a task's share of the micro-batches is its sampling_weight; sizes: sampling_weight times
                       its samples to the power 1 / mixture_temperature (1: as large as the data sets are; high: equal)
    mixture_temperature  of mixture=sizes
    workers            processes per rank that decode ahead; 0 = in the training process; auto = the rank's share of the cores
                       that the process may use, less one, from 1 to 8
    shuffle_window     samples over which order is drawn at random, after the order of shards
    cache_dir          where shards that are not local files are kept; processes of a machine share it
    cache_gib          the most that may be kept there
    allow_pipe         whether `shards` may name commands (pipe:), which are started without a shell
    max_bad_fraction   the run stops where more than this share of a task's samples is lost with shards or bad, by more than chance makes
    """

    tasks: tuple[TaskConfig, ...]
    vocabulary: Literal["full", "restricted", "init"] = "full"
    vocabulary_sample: int = 0
    word_end: bool = False
    draw: Literal["mixed", "same"] = "mixed"
    mixture: Literal["weights", "sizes"] = "weights"
    mixture_temperature: float = 1.0
    workers: int | Literal["auto"] = 0
    shuffle_window: int = 8192
    cache_dir: str = "~/.cache/sparse-generalists"
    cache_gib: float = 100.0
    allow_pipe: bool = False
    max_bad_fraction: float = 0.001

    def __post_init__(self) -> None:
        names = [task.name for task in self.tasks]
        if not names:
            raise ValueError("data.tasks is empty: name at least one task")
        if len(set(names)) != len(names):
            raise ValueError(f"task names must be unique, got {names}")
        if wrong := [name for name in names if not TASK_NAME.fullmatch(name) or len(name.encode()) > MAX_NAME]:
            raise ValueError(
                f"task name {wrong[0][:80]!r}: one to {MAX_NAME} bytes, no slash, comma or control character, no dot in front: it names "
                "figures and files"
            )
        if (self.workers != "auto" and self.workers < 0) or self.vocabulary_sample < 0 or self.shuffle_window < 1:
            raise ValueError("workers and vocabulary_sample must not be negative, shuffle_window at least 1")
        together = [task.name for task in self.tasks if task.candidates == "global"]
        if together and self.draw != "same":
            raise ValueError(
                f"task {together[0]}: candidates=global needs the same task on all data ranks: set draw=same or candidates=local"
            )
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction={self.max_bad_fraction} must lie in [0, 1]")
        if self.mixture_temperature <= 0 or self.cache_gib <= 0:
            raise ValueError(
                f"mixture_temperature={self.mixture_temperature} and cache_gib={self.cache_gib} must be positive"
            )
