"""A gallery as one HTML file: no scripts, nothing loaded from elsewhere, light or dark as the reader's system is.

Whatever comes from data passes through `_text`; a content security policy forbids the rest.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import io
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from data.attributes import Attributes

IMAGE_SIDE, FRAME_SIDE, SMALL = 320, 140, 100
"""Pixels: the longer side of pictures and of frames of a strip; what is smaller than SMALL is shown enlarged."""
MAX_LETTERS = 2000
MAX_TOKENS = 160

_STYLE = """
:root { color-scheme: light dark; --page: #f6f6f3; --card: #fff; --ink: #1d1f21; --soft: #62676d; --line: #dcdcd6;
  --chip: #eef0f2; --mark: #ffe08a; --mark-ink: #4a3600; --on: #2f6f9f; --on-ink: #fff; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --page: #15171a; --card: #1e2125; --ink: #e6e7e9; --soft: #9aa1a9;
  --line: #33373d; --chip: #2a2e34; --mark: #5e4a0e; --mark-ink: #ffe9ad; --on: #5aa2d6; --on-ink: #0d1720; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
header, main { max-width: 1500px; margin: 0 auto; padding: 1.2rem; }
h1 { font-size: 1.5rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 0; overflow-wrap: anywhere; }
.facts { display: flex; flex-wrap: wrap; gap: .2rem 1.6rem; margin: 0; }
.facts div { display: flex; gap: .45rem; } .facts dt { color: var(--soft); } .facts dd { margin: 0; overflow-wrap: anywhere; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 430px), 1fr)); gap: 1.1rem; align-items: start; }
article { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem; min-width: 0;
  display: grid; gap: .7rem; }
article > * { min-width: 0; }
.place, .small { color: var(--soft); font-size: .82rem; overflow-wrap: anywhere; margin: 0; }
.pictures { display: flex; flex-wrap: wrap; gap: .7rem 1rem; align-items: flex-end; }
figure { margin: 0; min-width: 0; } figcaption { color: var(--soft); font-size: .82rem; }
.strip { display: flex; flex-wrap: wrap; gap: 4px; }
img { display: block; border-radius: 4px; flex: none; max-width: 100%; height: auto; } img.small-picture { image-rendering: pixelated; }
ol, ul { margin: 0; padding-left: 1.4rem; } li { margin: .25rem 0; overflow-wrap: anywhere; }
.tokens { display: flex; flex-wrap: wrap; gap: 4px 0; font-size: .8rem; margin-top: .2rem; }
.token { background: var(--chip); padding: 0 .35rem .1rem; text-align: center; white-space: pre; border-radius: 3px; margin-right: 1px; }
.token.end { margin-right: 6px; } .token small { display: block; color: var(--soft); font-size: .68rem; line-height: 1.1; }
.token.read { background: var(--mark); color: var(--mark-ink); } .token.read small { color: inherit; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .8rem; }
th, td { text-align: left; padding: .2rem .7rem .2rem 0; vertical-align: top; } th { color: var(--soft); font-weight: 500; }
.task { font-weight: 600; }
.bits { white-space: nowrap; } .bit { display: inline-block; width: 1.15em; text-align: center; margin-right: 1px; border-radius: 2px;
  background: var(--chip); color: var(--soft); } .bit.on { background: var(--on); color: var(--on-ink); }
summary { cursor: pointer; color: var(--soft); font-size: .85rem; } .error { color: var(--bad); overflow-wrap: anywhere; margin: 0; }
.legend { font-size: .85rem; color: var(--soft); margin: .6rem 0 0; }
"""


@dataclasses.dataclass(frozen=True)
class Token:
    """id: CLIP's. answer: what is to be read there, if anything is."""

    id: int
    piece: str
    ends_word: bool
    answer: str | None = None


@dataclasses.dataclass(frozen=True)
class Pictures:
    """An image (one frame), or frames of a clip."""

    title: str
    frames_THWC: np.ndarray


@dataclasses.dataclass(frozen=True)
class SegmentView:
    """What the model gets of one segment of a row. part: input or candidates."""

    part: str
    modality: str
    visibility: str
    num_tokens: int
    attributes: Attributes
    tokens: tuple[Token, ...] = ()


@dataclasses.dataclass(frozen=True)
class TaskView:
    """A sample as a task makes it. answer: what is to be read at the <SPE> token that starts the row."""

    name: str
    segments: tuple[SegmentView, ...]
    num_candidates: int
    answer: str | None


@dataclasses.dataclass(frozen=True)
class Card:
    """One sample.

    title, title_tokens   name of the class with its tokens, or the key alone
    place                 where the sample is found
    texts                 each with its tokens
    error                 why it cannot be used
    """

    title: str
    place: str
    title_tokens: tuple[Token, ...] = ()
    pictures: tuple[Pictures, ...] = ()
    texts: tuple[tuple[str, tuple[Token, ...]], ...] = ()
    tasks: tuple[TaskView, ...] = ()
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class Page:
    """show_tokens: with the tokens of every task's input (one task), not its segments alone (several)."""

    title: str
    facts: dict[str, str]
    bit_names: tuple[str, ...]
    cards: Sequence[Card]
    show_tokens: bool


def render(page: Page) -> str:
    return "".join(_page(page))


def _page(page: Page) -> Iterator[str]:
    yield '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    yield f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{_text(page.title)}</title><style>{_STYLE}</style></head><body>"
    yield f'<header><h1>{_text(page.title)}</h1><dl class="facts">'
    for name, value in page.facts.items():
        yield f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>"
    yield '</dl><p class="legend">Attribute vectors, bit by bit: '
    yield ", ".join(f"{number} {_text(name)}" for number, name in enumerate(page.bit_names, start=1))
    yield ". Marked tokens are read: the model has to tell what stands below them.</p></header><main>"
    for card in page.cards:
        yield from _card(card, page)
    yield "</main></body></html>\n"


def _card(card: Card, page: Page) -> Iterator[str]:
    yield f"<article><div><h2>{_text(card.title)}</h2>{_tokens(card.title_tokens)}"
    yield f'<p class="place">{_text(card.place)}</p></div>'
    if card.error:
        yield f'<p class="error">Cannot be used: {_text(card.error)}</p>'
    if card.pictures:
        yield '<div class="pictures">'
        for pictures in card.pictures:
            yield from _figure(pictures, card.title)
        yield "</div>"
    if card.texts:
        yield "<ul>" if len(card.texts) == 1 else "<ol>"
        for text, tokens in card.texts:
            yield f"<li>{_text(text)}{_tokens(tokens)}</li>"
        yield "</ul>" if len(card.texts) == 1 else "</ol>"
    for task in card.tasks if page.show_tokens else ():
        if task.answer is not None:
            yield f"<p>Read at &lt;SPE&gt;: <strong>{_text(task.answer)}</strong></p>"
        for segment in task.segments:
            if segment.part == "input" and segment.tokens:
                yield f'<div><p class="small">{_text(segment.visibility)} tokens</p>{_tokens(segment.tokens)}</div>'
    if card.tasks:
        yield "<details open>" if page.show_tokens else "<details>"
        names = ", ".join(task.name for task in card.tasks)
        yield f'<summary>Segments of {_text(names)}</summary><div class="scroll"><table>'
        yield "<tr><th>segment</th><th>attributes</th></tr>"
        for task in card.tasks:
            if len(card.tasks) > 1:
                yield f'<tr><td class="task" colspan="2">{_text(task.name)}</td></tr>'
            for segment in task.segments:
                yield _segment(task, segment, page.bit_names)
        yield "</table></div></details>"
    yield "</article>"


def _segment(task: TaskView, segment: SegmentView, bit_names: Sequence[str]) -> str:
    if segment.part == "candidates":
        what = f"{task.num_candidates} candidates, {segment.modality}, {_tokens_in_words(segment.num_tokens)} at most"
    else:
        what = f"{segment.part}, {segment.modality}, {segment.visibility}, {_tokens_in_words(segment.num_tokens)}"
    bits = "".join(
        f'<span class="bit{" on" if bit else ""}" title="{_text(name)}">{bit}</span>'
        for name, bit in zip(bit_names, segment.attributes, strict=True)
    )
    names = ", ".join(name for name, bit in zip(bit_names, segment.attributes, strict=True) if bit)
    bits = f'<span class="bits">{bits}</span><div class="small">{_text(names)}</div>'
    return f"<tr><td>{_text(what)}</td><td>{bits}</td></tr>"


def _tokens_in_words(count: int) -> str:
    return f"{count} token{'' if count == 1 else 's'}"


def _figure(pictures: Pictures, alt: str) -> Iterator[str]:
    clip = len(pictures.frames_THWC) > 1
    yield f'<figure><div class="{"strip" if clip else "picture"}">'
    for number, frame_HWC in enumerate(pictures.frames_THWC, start=1):
        yield _image(frame_HWC, FRAME_SIDE if clip else IMAGE_SIDE, f"{alt}, frame {number}" if clip else alt)
    yield f"</div><figcaption>{_text(pictures.title)}</figcaption></figure>"


def _image(frame_HWC: np.ndarray, side: int, alt: str) -> str:
    image = Image.fromarray(frame_HWC)
    image.thumbnail((side, side))
    longest = max(image.size)
    factor = max(1, side // 2 // longest) if longest < SMALL else 1
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=88, subsampling=0)
    data = base64.b64encode(buffer.getvalue()).decode()
    style = ' class="small-picture"' if factor > 1 else ""
    size = f'width="{image.width * factor}" height="{image.height * factor}"'
    return f'<img{style} {size} alt="{_text(alt)}" src="data:image/jpeg;base64,{data}">'


def _tokens(tokens: Sequence[Token]) -> str:
    chips = [
        f'<span class="token{" end" if token.ends_word else ""}{"" if token.answer is None else " read"}">'
        f"{_text(token.piece)}<small>{token.id}</small>"
        f"{'' if token.answer is None else f'<small>{_text(token.answer)}</small>'}</span>"
        for token in tokens[:MAX_TOKENS]
    ]
    more = f'<span class="small">and {len(tokens) - MAX_TOKENS} more</span>' if len(tokens) > MAX_TOKENS else ""
    return f'<div class="tokens">{"".join(chips)}{more}</div>' if chips else ""


def _text(text: str) -> str:
    """Text of the data as HTML."""
    shown = text if len(text) <= MAX_LETTERS else text[:MAX_LETTERS] + " ..."
    plain = "".join(sign if sign.isprintable() or sign in "\n\t" else "\N{REPLACEMENT CHARACTER}" for sign in shown)
    return html.escape(plain, quote=True)
