"""What an exported run does before its network: texts to tokens and back, pictures to pixels, as in training.

    processor = SparseGeneralistProcessor.from_pretrained(FOLDER)
    processor(images=[picture], text=["a red circle"]) -> {"pixels": uint8 [N, 3, S, S], "tokens": int64 [N, L], -1 behind a text's end}

Texts need the package regex (transformers brings it), and ftfy where they are more than plain ASCII; pictures need Pillow. The byte-pair
merges are CLIP's, in merges.txt; patterns and tables are data, in processor_config.json.
"""

from __future__ import annotations

import functools
import html
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

END_OF_WORD = "</w>"
MAX_WORD = 4096
"""Letters; longer words are merged in parts, as in training."""
LETTERS_OF_A_TOKEN = 64
"""Twice what the longest has."""


class SparseGeneralistProcessor:
    """settings: the content of processor_config.json; merges: pairs of units, best first."""

    def __init__(self, settings: dict[str, Any], merges: Sequence[tuple[str, str]]) -> None:
        self.settings = settings
        self._signs = printable_bytes()
        signs = list(self._signs.values())
        specials = settings["specials"]
        self._units = [*signs, *(s + END_OF_WORD for s in signs), *(a + b for a, b in merges), *specials]
        self._numbers = {unit: number for number, unit in enumerate(self._units)}
        self._ranks = {(a, b): rank for rank, (a, b) in enumerate(merges)}
        self._clip_ids = list(settings["clip_ids"])
        self._own_ids = {clip: own for own, clip in enumerate(self._clip_ids)}
        self._first_special = len(self._units) - len(specials)
        self.end = self._own_ids[self._numbers["<|endoftext|>"]]
        self._clip_word = functools.lru_cache(1 << 16)(self._merged)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> SparseGeneralistProcessor:
        """Of an exported folder, or of a repository that transformers can find."""
        settings, merges = (_text_of(folder, name, options) for name in ("processor_config.json", "merges.txt"))
        pairs = [tuple(line.split(" ")) for line in merges.splitlines()]
        return cls(json.loads(settings), pairs)  # type: ignore[arg-type]

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoProcessor") -> None:
        """transformers calls it; the folder says already where the class lies."""

    def __call__(
        self, images: Any = None, text: Any = None, max_text: int | None = None, **options: Any
    ) -> dict[str, Tensor]:
        found = {}
        if images is not None:
            found["pixels"] = self.images(images)
        if text is not None:
            found["tokens"] = self.tokens([text] if isinstance(text, str) else text, max_text)
        return found

    # -- texts -------------------------------------------------------------------------------------------------------

    def tokens(self, texts: Iterable[str], max_text: int | None = None) -> Tensor:
        """int64 [N, L]: ids and end-of-text, `max_text` at most in all, -1 behind them."""
        rows = [torch.tensor(self.encode(text, max_text or self.settings["max_text"])) for text in texts]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)

    def encode(self, text: str, max_text: int) -> list[int]:
        """Raises ValueError for a word that a vocabulary without single bytes lacks, ImportError where a package is missing."""
        found: list[int] = []
        for word in _regex().finditer(self.settings["words"], self.cleaned(text), _regex().IGNORECASE):
            for clip in self._clip_ids_of(word[0]):
                found += [self._own_ids[clip]] if clip in self._own_ids else self._spelled(clip, text)
            if len(found) >= max_text:
                break
        return [*found[: max_text - 1], self.end]

    def filled(self, text: str, template: str, max_text: int, spe: int) -> tuple[list[int], int]:
        """(tokens of a template with {text} and <spe>, index of <spe> among them), `max_text` at most with end-of-text: the text gives way,
        some words at a time, of a single word some letters."""
        before, after = template.split("<spe>")
        text = " ".join(text.split())[: max_text * LETTERS_OF_A_TOKEN]
        while True:
            first, second = (self.encode(part.replace("{text}", text), 1 << 20)[:-1] for part in (before, after))
            too_long = len(first) + len(second) + 2 - max_text
            if too_long <= 0 or not text:
                return [*first, spe, *second, self.end], len(first)
            words, fewer = text.split(), max(1, too_long // 2)
            text = " ".join(words[: max(1, len(words) - fewer)]) if len(words) > 1 else text[:-fewer]

    def decode(self, ids: Iterable[int]) -> str:
        """Text up to the first end-of-text, words put together as far as that can be known."""
        content = bytearray()
        back = {sign: byte for byte, sign in self._signs.items()}
        for own in ids:
            if own == self.end:
                break
            clip = self._clip_ids[own]
            unit = self._units[clip]
            if clip >= self._first_special:
                content += unit.encode()
            else:
                content += bytes(back[sign] for sign in unit.removesuffix(END_OF_WORD))
                content += b" " if unit.endswith(END_OF_WORD) else b""
        text = _regex().sub(
            self.settings["initials"], lambda m: m[0].replace(" ", ""), content.decode(errors="replace")
        )
        for pattern, replacement in self.settings["joins"]:
            text = _regex().sub(pattern, replacement, text)
        return text

    def cleaned(self, text: str) -> str:
        """Repaired, HTML entities resolved, white space single, lower case."""
        if not text.isascii() or "&" in text or not all(" " <= sign <= "~" or sign in "\t\n\r" for sign in text):
            try:
                import ftfy
            except ImportError as error:
                raise ImportError(
                    f"{text[:40]!r} is more than plain ASCII and is repaired by: pip install ftfy"
                ) from error
            text = _unescaped(_unescaped(ftfy.fix_text(text)))
        return _regex().sub(r"\s+", " ", text).strip().lower()

    def _clip_ids_of(self, word: str) -> list[int]:
        if word in self.settings["specials"]:  # what a text says is no mark of ours
            pieces = _regex().findall(self.settings["pieces"], word)
            return [clip for piece in pieces for clip in self._clip_word(piece)]
        if len(word) <= MAX_WORD:
            return list(self._clip_word(word))
        cuts = range(0, len(word), MAX_WORD)
        return [c for at in cuts for c in self._merged(word[at : at + MAX_WORD], at + MAX_WORD >= len(word))]

    def _merged(self, word: str, ends: bool = True) -> tuple[int, ...]:
        """Two neighbours of the best rank become one unit, until no neighbours have a rank."""
        units = [self._signs[byte] for byte in word.encode("utf-8")]
        if ends:
            units[-1] += END_OF_WORD
        while len(units) > 1:
            pairs = list(itertools.pairwise(units))
            best = min(pairs, key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if best not in self._ranks:
                break
            joined, at = [], 0
            while at < len(units):
                both = at + 1 < len(units) and (units[at], units[at + 1]) == best
                joined.append(units[at] + units[at + 1] if both else units[at])
                at += 2 if both else 1
            units = joined
        return tuple(self._numbers[unit] for unit in units)

    def _spelled(self, clip: int, text: str) -> list[int]:
        """The token as tokens of one byte each."""
        unit = self._units[clip]
        signs = list(unit.removesuffix(END_OF_WORD))
        if unit.endswith(END_OF_WORD):
            signs[-1] += END_OF_WORD
        try:
            return [self._own_ids[self._numbers[sign]] for sign in signs]
        except KeyError as error:
            raise ValueError(
                f"{unit!r} of {text[:60]!r} is not among the model's words, and it cannot spell"
            ) from error

    # -- pictures ----------------------------------------------------------------------------------------------------

    def images(self, pictures: Any) -> Tensor:
        """PIL images or arrays uint8 [H, W, 3] to pixels uint8 [N, 3, S, S]: the largest square in the centre, scaled."""
        listed = pictures if isinstance(pictures, (list, tuple)) else [pictures]
        return torch.stack([self._square(picture) for picture in listed])

    def clips(self, clips: Sequence[Sequence[Any]], num_frames: int, stride: float = 0.0, fps: float = 0.0) -> Tensor:
        """Frames of each clip to uint8 [N, T, 3, S, S]: of each of `num_frames` equal parts the frame in its middle. stride: frames so many
        seconds apart instead, in the middle of the clip; it needs fps, frames of the clips in a second, unless they have `num_frames`.
        Raises ValueError."""
        chosen = [[clip[at] for at in frames_of(len(clip), num_frames, stride, fps)] for clip in clips]
        return torch.stack([self.images(frames) for frames in chosen])

    def _square(self, picture: Any) -> Tensor:
        try:
            from PIL import Image
        except ImportError as error:
            raise ImportError(
                "pictures are scaled by Pillow: pip install pillow, or give pixels [N, 3, S, S]"
            ) from error
        image = _rgb(picture, Image) if isinstance(picture, Image.Image) else Image.fromarray(picture)
        (width, height), size = image.size, self.settings["image_size"]
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
        scaled = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
        return torch.frombuffer(bytearray(scaled.tobytes()), dtype=torch.uint8).view(size, size, 3).permute(2, 0, 1)


def frames_of(count: int, num_frames: int, stride: float, fps: float) -> list[int]:
    """Which of a clip's frames are taken (SparseGeneralistProcessor.clips)."""
    if not stride or count == num_frames:
        return [int((part + 0.5) * count / num_frames) for part in range(num_frames)]
    if fps <= 0:
        raise ValueError(
            f"a clip of {count} frames: the task takes {num_frames}, {stride:g} s apart: say fps=, how many frames a second has, or give "
            f"{num_frames} frames"
        )
    apart = stride * fps / count
    start = max(0.0, 1 - num_frames * apart) / 2
    return [min(count - 1, int((start + (part + 0.5) * apart) * count)) for part in range(num_frames)]


def _rgb(image: Any, pillow: Any) -> Any:
    """Transparent parts become black; of 16 bits of grey the upper 8."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        high, low = image.convert("I").getextrema()[::-1]
        if low < 0 or high > 0xFFFF:
            raise ValueError(f"a grey image of values from {low} to {high}: more than 16 bits")
        values = torch.frombuffer(bytearray(image.convert("I").tobytes()), dtype=torch.int32) >> 8
        return pillow.frombytes("L", image.size, bytes(values.tolist())).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        black = pillow.new("RGB", image.size)
        black.paste(rgba, mask=rgba)
        return black
    return image.convert("RGB")


def printable_bytes() -> dict[int, str]:
    """A sign for every byte, in the order of the first ids: Latin-1's where it can be seen, else the next from U+0100 on."""
    seen = [byte for byte in range(256) if 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174]
    others = [byte for byte in range(256) if byte not in seen]
    return {byte: chr(byte) for byte in seen} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def _unescaped(text: str) -> str:
    try:
        return html.unescape(text)
    except ValueError:  # a number of thousands of digits, which is no character
        return text


def _regex() -> Any:
    try:
        import regex
    except ImportError as error:
        raise ImportError("texts are cut into words by the package regex: pip install regex") from error
    return regex


def _text_of(folder: str | Path, name: str, options: dict[str, Any]) -> str:
    path = Path(folder) / name
    if not path.is_file():
        try:
            from transformers.utils import cached_file
        except ImportError as error:
            raise FileNotFoundError(f"{path}: no such file") from error
        chosen = ("revision", "token", "cache_dir", "local_files_only")
        path = Path(cached_file(str(folder), name, **{k: v for k, v in options.items() if k in chosen}))
    return path.read_text(encoding="utf-8")
