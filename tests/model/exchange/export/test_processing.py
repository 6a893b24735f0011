"""Texts and pictures become what they are in training; what the code that travels imports."""

from __future__ import annotations

import ast
import io
import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.decode.image import decode_image, encode_png
from data.decode.video import decode_video, encode_mp4
from data.tasks.template import Template
from data.text.tokenizer import Tokenizer
from data.text.vocabulary import Vocabulary
from data.visual.transform import spatial_transform
from model.exchange.export import from_run
from model.exchange.export.from_run import write_processor
from model.exchange.export.processing_sparse_generalist import SparseGeneralistProcessor, frames_of
from run.config_file import load_config
from tests.helpers.places import ROOT
from tests.helpers.runs import tiny_config

VOCABULARY = Vocabulary.restricted(Tokenizer.load(), [320, 736, 2867])
SIGNS = "ab Z9'’é&amp;&lt;<|spe|>-_.,/\t\n½Ａ\u200b東ñ\U0001f600"  # noqa: RUF001


@pytest.fixture(scope="module")
def processor(world, tmp_path_factory) -> SparseGeneralistProcessor:
    folder = tmp_path_factory.mktemp("processor")
    write_processor(folder, load_config(tiny_config(world, folder)), VOCABULARY)
    return SparseGeneralistProcessor.from_pretrained(folder)


@given(
    st.one_of(
        st.text(max_size=40),
        st.text(SIGNS, max_size=40),
        st.sampled_from(["it's 28,000 u.s. o'clock light-up 3rd", "x" * 5000]),
    )
)
@settings(deadline=None, max_examples=60)
def test_texts_are_cut_and_joined_as_in_training(processor, text):
    found = processor.encode(text, 12)
    assert found == VOCABULARY.encode(text, 12)
    assert processor.decode(found) == VOCABULARY.decode(found)


def test_plain_text_needs_no_ftfy_and_other_text_says_so(processor, monkeypatch):
    monkeypatch.setitem(sys.modules, "ftfy", None)
    assert processor.encode("A red\n Circle's", 12) == VOCABULARY.encode("A red\n Circle's", 12)
    with pytest.raises(ImportError, match="pip install ftfy"):
        processor.encode("ünïcode", 12)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "I;16", "CMYK"])
def test_pictures_are_converted_and_scaled_as_in_training(processor, mode):
    rng = np.random.default_rng(0)
    if mode == "I;16":
        picture = Image.fromarray(rng.integers(0, 1 << 16, (40, 61), dtype=np.uint16))
    else:
        picture = Image.fromarray(rng.integers(0, 256, (40, 61, 4 if mode == "RGBA" else 3), dtype=np.uint8))
        picture = picture if mode == "RGBA" else picture.convert(mode)
    if mode == "CMYK":  # no PNG has it
        decoded = np.asarray(picture.convert("RGB"))
    else:
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        decoded = decode_image(buffer.getvalue())
        picture = Image.open(io.BytesIO(buffer.getvalue()))
    (expected_HWC,) = spatial_transform(decoded[None], 32, None)
    assert np.array_equal(processor.images([picture])[0].permute(1, 2, 0).numpy(), expected_HWC)
    assert np.array_equal(processor.images([decoded])[0].permute(1, 2, 0).numpy(), expected_HWC)
    assert encode_png(expected_HWC)


def test_a_clip_of_many_frames_gives_those_in_the_middle_of_equal_parts(processor):
    frames = [np.full((32, 32, 3), number, np.uint8) for number in range(8)]
    assert processor.clips([frames], 4)[0, :, 0, 0, 0].tolist() == [1, 3, 5, 7]


@given(
    st.one_of(st.text(SIGNS, max_size=60), st.sampled_from(["", "a " * 900, "x" * 5000, "red " * 7])),
    st.sampled_from(["{text} <spe>", "<spe>{text}", "it says {text}, which is <spe> to me"]),
    st.integers(10, 20),
)
@settings(deadline=None, max_examples=60)
def test_a_template_takes_of_a_text_what_it_takes_in_training(processor, text, template, max_text):
    found = processor.filled(text, template, max_text, VOCABULARY.spe)
    assert found == Template(template, VOCABULARY, max_text).filled(text)


def test_frames_of_a_stride_are_those_of_training():
    """10 frames a second, 0.22 s are 2.2 frames: a window of 8.8 of 20 begins at 5.6, and its parts have their middles at 6.7, 8.9,
    11.1 and 13.3."""
    assert frames_of(20, 4, 0.22, 10.0) == [6, 8, 11, 13]
    assert frames_of(4, 4, 0.22, 0.0) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"a clip of 20 frames: the task takes 4, 0.22 s apart: say fps="):
        frames_of(20, 4, 0.22, 0.0)
    clip_THWC = np.repeat(np.arange(0, 240, 12, dtype=np.uint8)[:, None, None, None], 32, 1).repeat(32, 2).repeat(3, 3)
    data = encode_mp4(clip_THWC, 10)
    whole = decode_video(data, 20)
    for stride in (0.07, 0.3, 0.9):
        taken = whole[frames_of(20, 4, stride, 10.0)]
        assert np.array_equal(decode_video(data, 4, "stride", stride), taken)


@pytest.mark.parametrize("name", [from_run.MODELING, from_run.PROCESSING, "open_clip_sparse.py"])
def test_what_travels_imports_nothing_of_this_program(name):
    tree = ast.parse((ROOT / "model" / "exchange" / "export" / name).read_text(encoding="utf-8"))
    found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    found |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    roots = {module.split(".")[0] for module in found if module}
    known = {
        "torch",
        "safetensors",
        "transformers",
        "regex",
        "ftfy",
        "PIL",
        "open_clip",
        "processing_sparse_generalist",
    }
    assert roots <= known | sys.stdlib_module_names


def test_settings_are_plain_data(processor):
    assert json.loads(json.dumps(processor.settings)) == processor.settings
