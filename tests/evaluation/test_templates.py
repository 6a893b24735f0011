"""Class names in sentences."""

from __future__ import annotations

import pytest
import torch

from data.shards import DatasetError
from data.tasks.candidates import class_names
from data.text.vocabulary import Vocabulary
from evaluation.encoding import encode_rows
from evaluation.templates import encode_names, read_templates
from tests.helpers.models import make, tiny
from tests.helpers.streams import tokenizer


def test_the_public_lists_are_read_and_not_run():
    openai, simple = read_templates("openai"), read_templates("simple")
    assert len(openai) == 80 and len(simple) == 7 and read_templates("none") == ()
    assert openai[0] == "a bad photo of a {}." and "itap of a {}." in simple
    assert all(template.count("{}") == 1 for template in (*openai, *simple))


def test_without_the_wheel_one_line_says_so(monkeypatch):
    monkeypatch.setattr("data.text.clip_lists.DISTRIBUTION", "no_such_wheel")
    with pytest.raises(
        DatasetError, match=r"templates 'openai': .* wheel no_such_wheel, which is not here .* by @FILE"
    ):
        read_templates("openai")


def test_a_list_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "t.txt").write_bytes(b"\xef\xbb\xbfa {} here\r\n\nno {}\n")
    assert read_templates(f"@{tmp_path}/t.txt") == ("a {} here", "no {}")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_templates("@~/t.txt") == ("a {} here", "no {}")
    for content in ("", "no name\n", "{} and {}\n"):
        (tmp_path / "t.txt").write_text(content)
        with pytest.raises(DatasetError, match=r"a template has \{\} for the name, once"):
            read_templates(f"@{tmp_path}/t.txt")
    for name in ("openclip", f"@{tmp_path}/none.txt"):
        with pytest.raises(DatasetError):
            read_templates(name)


def test_a_template_that_leaves_no_room_for_names_is_refused():
    """Of eight tokens the last is end-of-text: of seven words before the name none of it is read, after six its first word."""
    vocabulary = Vocabulary.full(tokenizer())
    objective = make(tiny(max_text=8), vocabulary.size).eval()
    names = ["cat", "dog", "cat fish"]
    with pytest.raises(
        DatasetError, match=r"task t: template 'one .* seven \{\}' makes classes 'cat' and 'dog' one to the model"
    ):
        encode_names(objective, names, ["a {}", "one two three four five six seven {}"], vocabulary, "t", "cpu")
    with pytest.raises(DatasetError, match="classes 'cat' and 'cat fish' one to the model, which reads 8 tokens"):
        encode_names(objective, names, ["one two three four five six {}"], vocabulary, "t", "cpu")
    encode_names(objective, names, ["one two three four five {}"], vocabulary, "t", "cpu")


def test_features_are_means_of_unit_vectors():
    vocabulary = Vocabulary.full(tokenizer())
    objective = make(tiny(max_text=16), vocabulary.size).eval()
    names, templates = ["cat", "dog {}"], ["{}", "a photo of a {}, by me"]
    found_CD = encode_names(objective, names, templates, vocabulary, "t", "cpu")
    rows = [
        encode_rows(objective, class_names(texts, vocabulary, 16), "t", "cpu")
        for texts in (["cat", "dog {}"], ["a photo of a cat, by me", "a photo of a dog {}, by me"])
    ]
    expected_CD = sum(torch.nn.functional.normalize(part, dim=-1) for part in rows) / 2
    assert torch.allclose(found_CD, expected_CD, atol=1e-6)
    assert not torch.allclose(found_CD[0], rows[0][0], atol=1e-3)
