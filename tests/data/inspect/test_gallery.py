"""data.inspect gallery: one page that shows what the model gets, and trusts nothing of the data."""

from __future__ import annotations

import base64
import functools
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.attributes import CAPTION_TEXT, NAME_TARGET, VISUAL_INPUT
from data.decode.image import encode_png
from data.decode.video import encode_mp4
from data.inspect.__main__ import main
from data.inspect.gallery import BIT_NAMES
from data.inspect.page import Card, Page, Token, render
from data.shards import DatasetInfo, SplitInfo, write_info, write_shards
from data.text.tokenizer import END_OF_TEXT, Tokenizer
from data.visual.transform import patchify, unpatchify

CARD_TAGS = {"html", "head", "meta", "title", "style", "body", "header", "h1", "dl", "div", "dt", "dd", "p", "main"}
CARD_TAGS |= {"article", "h2", "ul", "li", "span", "small"}
VOID = {"meta", "img", "br"}
ATTACK = '<script>alert("1")</script>'


class Document(HTMLParser):
    """Tags with their attributes, and the text; fails on tags that do not close."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data if self.open[-1:] != ["style"] else ""

    def all(self, tag, class_=None):
        return [a for t, a in self.tags if t == tag and (class_ is None or class_ in a.get("class", "").split())]


@functools.cache
def tokenizer_once():
    return Tokenizer.load()


def write(folder, kind, samples, classes=(), texts=()):
    tokenizer = tokenizer_once()
    paths = write_shards(folder, "train", samples)
    ids = {END_OF_TEXT}.union(*(tokenizer.encode(text) for text in (*classes, *texts)))
    splits = {"train": SplitInfo(len(samples), len(paths))}
    write_info(folder, DatasetInfo(kind=kind, classes=tuple(classes), token_ids=tuple(sorted(ids)), splits=splits))
    return folder


def gallery(tmp_path, *arguments):
    out = tmp_path / "page.html"
    assert main(["gallery", *map(str, arguments), "--out", str(out)]) == 0
    return Document(out.read_text())


def run_file(tmp_path, **task):
    path = tmp_path / "config.yaml"
    data = {"tasks": [{"name": "mine", "split": "train", **task}]}
    path.write_text(yaml.safe_dump({"data": data, "model": {"image_size": 16, "patch": 8, "width": 9}, "steps": 3}))
    return path


def bits(values):
    return "".join(str(bit) for bit in values)


def test_a_page_needs_nothing_from_elsewhere(tmp_path):
    samples = [
        {"__key__": f"k{i}", "png": encode_png(np.full((6, 8, 3), 90, np.uint8)), "cls": i % 2} for i in range(5)
    ]
    page = gallery(tmp_path, write(tmp_path / "s", "image_class", samples, ("red dog", "cat")), "--samples", 3)
    assert len(page.all("article")) == 3 and "5, 3 shown" in page.text
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "base", "form"})
    assert not [a for _, a in page.tags if "href" in a or any(name.startswith("on") for name in a)]
    assert "default-src 'none'" in next(a["content"] for a in page.all("meta") if "http-equiv" in a)
    images = page.all("img")
    assert len(images) == 3 and all(a["src"].startswith("data:image/jpeg;base64,") for a in images)
    picture = Image.open(io.BytesIO(base64.b64decode(images[0]["src"].split(",")[1])))
    assert picture.size == (8, 6) and abs(int(np.asarray(picture).mean()) - 90) <= 1


def test_a_sample_shows_class_tokens_and_attribute_vectors(tmp_path):
    samples = [{"__key__": "k0", "png": encode_png(np.zeros((6, 8, 3), np.uint8)), "cls": 0}]
    page = gallery(tmp_path, write(tmp_path / "s", "image_class", samples, ("red dog", "cat")))
    red, dog = tokenizer_once().encode("red dog")
    assert f"red{red}dog{dog}" in page.text
    assert "key k0" in page.text and "at byte 0" in page.text
    assert bits(VISUAL_INPUT) in page.text and bits(NAME_TARGET) in page.text
    assert all(name in page.text for name in BIT_NAMES)
    # 224 / 16 = 14 patches a side; the longest name is two tokens and end-of-text.
    assert "input, image, prefix, 196 tokens" in page.text
    assert "2 candidates, text, 3 tokens at most" in page.text


def test_all_captions_and_the_frames_of_a_clip(tmp_path):
    clip = encode_mp4(np.zeros((6, 16, 16, 3), np.uint8), fps=5)
    samples = [{"__key__": "k0", "mp4": clip, "json": {"captions": ["red dog", "cat"]}}]
    page = gallery(tmp_path, write(tmp_path / "s", "video_caption", samples, texts=("red dog cat",)))
    assert len(page.all("img")) == 8 and page.all("img")[7]["alt"] == "k0, frame 8"
    assert len(page.all("li")) == 2 and "Segments of masked_text, captioning, retrieval" in page.text
    assert bits(CAPTION_TEXT) in page.text


def test_a_damaged_sample_is_a_card_with_the_reason(tmp_path):
    samples = [{"__key__": "k0", "png": b"x", "cls": 0}]
    page = gallery(tmp_path, write(tmp_path / "s", "image_class", samples, ("dog",)))
    assert "Cannot be used: image of 1 bytes" in page.text


def test_nothing_of_the_data_becomes_markup(tmp_path):
    samples = [
        {
            "__key__": f'"><b>{ATTACK.replace("/", "")}',
            "png": encode_png(np.zeros((4, 4, 3), np.uint8)),
            "json": {"captions": [ATTACK, "\ud800"]},
        }
    ]
    folder = write(tmp_path / "s", "image_caption", [{**samples[0], "json": json.dumps(samples[0]["json"]).encode()}])
    page = gallery(tmp_path, folder)
    assert not page.all("script") and not page.all("b") and ATTACK in page.text


@settings(deadline=None, max_examples=30)
@given(st.text())
def test_any_text_is_shown_and_never_markup(text):
    card = Card(text, text, (), (), ((text, (Token(1, text, True, text),)),), (), text)
    html = render(Page(text, {text: text}, BIT_NAMES, [card], show_tokens=True))
    found = {tag for tag, _ in Document(html.encode("utf-8", "replace").decode()).tags}
    assert found == CARD_TAGS


# ----------------------------------------------------------------------------------------------- as a task sees it


def test_patches_are_put_together_again():
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), dtype=np.uint8)
    patches, positions = patchify(frames, 2)
    shuffled = np.random.default_rng(1).permutation(len(patches))
    assert (unpatchify(patches[shuffled], positions[shuffled], 2) == frames).all()


def test_masked_words_are_marked_with_what_stood_there(tmp_path):
    folder = write(tmp_path / "s", "text", [{"__key__": "k", "txt": "red dog cat"}], texts=("red dog cat",))
    config = run_file(tmp_path, kind="masked_text", path=str(folder), mask_rate=0.6, mask_shares=[1.0, 0.0])
    page = gallery(tmp_path, "--config", config, "--task", "mine")
    marked = page.all("span", "read")
    assert len(marked) == 2  # 0.6 of three words
    # <spe>, its id, and the word; the third word as it is.
    words = re.findall(r"<\|spe\|>49410(red|dog|cat)", page.text)
    assert len(words) == 2
    left = ({"red", "dog", "cat"} - set(words)).pop()
    assert f"{left}{tokenizer_once().encode(left)[0]}" in page.text


def test_pictures_are_shown_as_augmented(tmp_path):
    """A white left half: mirror images and crops change where it is, the raw picture is beside it."""
    picture = np.zeros((16, 16, 3), np.uint8)
    picture[:, :8] = 255
    samples = [{"__key__": f"k{i}", "png": encode_png(picture), "cls": 0} for i in range(8)]
    folder = write(tmp_path / "s", "image_class", samples, ("dog", "cat"))
    config = run_file(tmp_path, kind="classification", path=str(folder), flip=True)
    page = gallery(tmp_path, "--config", config, "--task", "mine", "--samples", 8)
    shown = [np.asarray(Image.open(io.BytesIO(base64.b64decode(a["src"].split(",")[1])))) for a in page.all("img")]
    assert len(shown) == 16 and {image.shape for image in shown} == {(16, 16, 3)}
    white_left = [bool(image[:, :6].mean() > 128) for image in shown]
    assert all(white_left[::2]) and set(white_left[1::2]) == {True, False}
    assert page.text.count("Read at <SPE>: dog") == 8


def test_mixed_pictures_tell_both_classes(tmp_path):
    samples = [{"__key__": f"k{i}", "png": encode_png(np.zeros((16, 16, 3), np.uint8)), "cls": i} for i in range(2)]
    folder = write(tmp_path / "s", "image_class", samples, ("dog", "cat"))
    config = run_file(tmp_path, kind="classification", path=str(folder), mix={"mixup": 1.0})
    page = gallery(tmp_path, "--config", config, "--task", "mine")
    assert len(re.findall(r"Read at <SPE>: (?:dog|cat) \(\d+%\), (?:dog|cat) \(\d+%\)", page.text)) == 2


def test_the_same_seed_the_same_page(tmp_path):
    samples = [{"__key__": f"k{i}", "txt": f"red dog {i}"} for i in range(9)]
    folder = write(tmp_path / "s", "text", samples, texts=("red dog 0 1 2 3 4 5 6 7 8",))
    config = run_file(tmp_path, kind="masked_text", path=str(folder))
    pages = []
    for seed in (1, 1, 2):
        gallery(tmp_path, "--config", config, "--task", "mine", "--samples", 4, "--seed", seed)
        pages.append((tmp_path / "page.html").read_text().replace(f"seed {seed}", ""))
    assert pages[0] == pages[1] != pages[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a data set FOLDER"),
        (["FOLDER", "--samples", "0"], "must be at least 1"),
        (["FOLDER", "--config", "CONFIG"], "--config and --task go together"),
        (["--config", "CONFIG", "--task", "yours"], "no task 'yours'; there are mine"),
        (["--config", "BASED", "--task", "mine"], "give the config.yaml of the run's folder"),
        (["--config", "TYPO", "--task", "mine"], "data.tasks.0.batch_size"),
        (["FOLDER", "--split", "val"], "has no shard val-*.tar"),
    ],
)
def test_mistakes_are_one_line(capsys, tmp_path, arguments, message):
    folder = write(tmp_path / "s", "text", [{"__key__": "k", "txt": "dog"}], texts=("dog",))
    files = {"FOLDER": folder, "CONFIG": run_file(tmp_path, kind="masked_text", path=str(folder))}
    files["BASED"], files["TYPO"] = tmp_path / "based.yaml", tmp_path / "typo.yaml"
    files["BASED"].write_text("base: config.yaml\n")
    files["TYPO"].write_text(files["CONFIG"].read_text().replace("name: mine", "name: mine\n    batch_size: many"))
    words = [str(files.get(word, word)) for word in arguments]
    assert main(["gallery", *words, "--out", str(tmp_path / "p.html")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "p.html").exists()
