"""No text of a run becomes markup."""

from __future__ import annotations

import html.parser
import json

from hypothesis import given
from hypothesis import strategies as st

from analysis.markup import Html, escaped, json_block, table, tag
from tests.analysis.report.synthetic import HOSTILE

NASTY = st.text() | st.sampled_from([HOSTILE, "<!--", "]]>", "</SCRIPT", "\ud800", "\x00", "\u202e"])


class Parser(html.parser.HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.attributes: dict[str, str | None] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.attributes |= dict(attrs)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@given(text=NASTY, attribute=NASTY)
def test_texts_stay_texts(text, attribute):
    parser = Parser(tag("p", text, title=attribute))
    assert parser.tags == ["p"] and parser.attributes.keys() == {"title"}
    if text.isprintable() and text.isascii():
        assert "".join(parser.texts) == text
    tag("p", text).encode()


@given(text=NASTY)
def test_json_ends_no_script_and_says_the_same(text):
    block = json_block({"text": text})
    assert not set(block) & set("<>&") and block.isascii()
    assert json.loads(block) == {"text": text}


def test_attributes_and_parts():
    assert (
        tag("a", "x", None, Html("<b>y</b>"), class_="c", aria_label="l", hidden=True, open=False)
        == '<a class="c" aria-label="l" hidden>x<b>y</b></a>'
    )
    assert escaped("a" * 5000) == "a" * 2000 + "..."


def test_a_table_can_be_reached_and_read():
    text = table(["name", "n"], [("<x>", 1)], "Counts", numbers=(1,))
    assert '<th scope="row">&lt;x&gt;</th><td class="number">1</td>' in text
    assert 'tabindex="0"' in text and "<caption>Counts</caption>" in text
    assert "none" in table(["name"], [], "Counts") and "<table" not in table(["name"], [], "Counts")
