"""HTML from texts that may hold anything."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

MAX_TEXT = 2000
UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
"""Control characters have no place in HTML, half a pair of surrogates none in UTF-8, and the others turn the order of what follows."""


class Html(str):
    """Markup; every other text is escaped where it is put in."""

    __slots__ = ()


def escaped(text: Any) -> Html:
    """A text as it is read, cut where it is very long."""
    if isinstance(text, Html):
        return text
    words = str(text)
    words = words if len(words) <= MAX_TEXT else f"{words[:MAX_TEXT]}..."
    return Html(html.escape(UNFIT.sub("\N{REPLACEMENT CHARACTER}", words)))


def tag(name: str, *content: Any, **attributes: Any) -> Html:
    """An element. Attributes: `class_` for class, underscores for hyphens; None and False leave one out, True stands alone."""
    words = []
    for key, value in attributes.items():
        if value is not None and value is not False:
            key = key.rstrip("_").replace("_", "-")
            words.append(f" {key}" if value is True else f' {key}="{escaped(value)}"')
    return Html(f"<{name}{''.join(words)}>{joined(content)}</{name}>")


def joined(parts: Iterable[Any]) -> Html:
    return Html("".join(escaped(part) for part in parts if part is not None))


def table(
    head: Sequence[Any], rows: Iterable[Sequence[Any]], caption: str, numbers: Sequence[int] = (), about: Any = None
) -> Html:
    """A table with the first cell of a row as its heading; numbers: columns that are set to the right. It scrolls within itself on narrow
    screens, also by keyboard."""
    kinds = {column: "number" for column in numbers}
    header = tag("tr", *(tag("th", cell, scope="col", class_=kinds.get(i)) for i, cell in enumerate(head)))
    lines = [
        tag(
            "tr",
            tag("th", row[0], scope="row", class_=kinds.get(0)),
            *(tag("td", cell, class_=kinds.get(i)) for i, cell in enumerate(row[1:], start=1)),
        )
        for row in rows
    ]
    if not lines:
        return tag("p", f"{caption}: none.", class_="note")
    content = tag("table", tag("caption", caption), tag("thead", header), tag("tbody", *lines))
    return joined([tag("div", content, class_="scroll", tabindex="0", role="group", aria_label=caption), about])


def details(summary: Any, *content: Any, is_open: bool = False) -> Html:
    return tag("details", tag("summary", summary), *content, open=is_open)


def note(*content: Any) -> Html:
    return tag("p", *content, class_="note")


def command(text: str) -> Html:
    return tag("code", text)


def json_block(content: Any) -> Html:
    """JSON that no parser of HTML takes for markup."""
    text = json.dumps(content, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return Html(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
