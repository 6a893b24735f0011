"""What routers chose is put back to patches and words, and drawn."""

from __future__ import annotations

import contextlib
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from analysis.routing_maps import __main__ as command
from analysis.routing_maps.choices import NONE, of_groups, of_tokens
from analysis.routing_maps.drawing import _surest, colours, shares, tinted
from analysis.routing_maps.page import page_of
from analysis.routing_maps.samples import RoutedSample
from model.moe.routing import TokenRouting
from tests.helpers.distributed import run_ranks
from tests.helpers.layouts import Span, joined, plain_layout
from tests.helpers.runs import saved_run, tiny_config

VALID = torch.tensor([[True, True, True], [True, True, False]])


def sample(**changes) -> RoutedSample:
    """Two decisions on a picture of 2 x 2 patches of 2 pixels and two words."""
    frames = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
    patches = np.array([[[[0, 1], [1, NONE]]], [[[0, 0], [0, 0]]]])
    weights = np.array([[[[0.9, 0.4], [0.8, 0.0]]], np.zeros((1, 2, 2))])
    fields = {"task": "t", "number": 0, "frames": frames, "words": ("a", "</script><b>")}
    words = np.array([[1, 1], [0, NONE]])
    return RoutedSample(
        **fields | {"patch_experts": patches, "patch_weights": weights, "word_experts": words} | changes
    )


def test_tokens_go_back_to_their_places():
    layout = joined(plain_layout(VALID), plain_layout(torch.ones(1, 2, dtype=torch.bool)))
    ids = torch.tensor([[3], [1], [2], [0], [1], [2], [3]])
    kept = torch.tensor([[True], [True], [False], [True], [True], [True], [True]])
    weights = torch.arange(7.0)[:, None]
    choice = of_tokens(TokenRouting(ids, weights, kept, torch.zeros(7, 4), {}), layout)
    assert choice.experts[0].tolist() == [[3, 1, NONE], [0, 1, NONE]]
    assert choice.experts[1].tolist() == [[2, 3]]
    assert choice.weights[0].tolist() == [[0, 1, 2], [3, 4, 0]]


def test_tokens_of_a_group_have_its_first_expert():
    layout = joined(plain_layout(VALID, Span(0, 1, 0), Span(1, 3, 1)), plain_layout(torch.ones(1, 2, dtype=torch.bool)))
    weights = torch.tensor([[0.0, 0.7, 0.3], [0.6, 0.0, 0.4], [0.2, 0.0, 0.8]])
    choice = of_groups(weights, layout)
    assert choice.experts[0].tolist() == [[1, 0, 0], [1, 0, NONE]] and choice.experts[1].tolist() == [[2, 2]]
    assert choice.weights[1][0].tolist() == pytest.approx([0.8, 0.8])


def test_shares_count_patches_and_words_that_have_an_expert():
    assert shares(sample(), 2).tolist() == [[1 / 5, 4 / 5], [1.0, 0.0]]


def test_patches_without_an_expert_keep_their_look():
    one = sample()
    image = np.asarray(tinted(one.frames[0], one.patch_experts[0, 0], colours(2), strength=1.0))
    assert tuple(image[0, 0]) == colours(2)[0] and tuple(image[0, 3]) == colours(2)[1]
    assert np.array_equal(image[2:, 2:], one.frames[0, 2:, 2:])


def test_the_surest_patch_comes_first():
    first, second = _surest([sample(number=0), sample(number=1)], 0, 1, 2)
    assert np.array_equal(first, sample().frames[0, 2:, :2]) and np.array_equal(second, first)
    assert len(_surest([sample()], 0, 1, 9)) == 2


@pytest.mark.parametrize("count", [1, 8, 9, 32, 64])
def test_experts_have_colours_of_their_own(count):
    assert len(set(colours(count))) == count


def test_words_cannot_break_out_of_the_page():
    page = page_of("<run>", [sample()], ["0 ffn", "1 ffn"], 2)
    assert page.count("</script>") == 2 and "<run>" not in page and "&lt;run&gt;" in page
    content = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert content["samples"][0]["words"] == ["a", "</script><b>"]
    assert content["samples"][0]["patches"][0] == [[[0, 1], [1, NONE]]]


@pytest.mark.parametrize("router", ["attribute", "token"])
def test_the_command_draws_every_task(world, tmp_path, router, capsys):
    torch.set_num_threads(1)
    run = saved_run(tiny_config(world, tmp_path), f"model.experts.router={router}", noise=0.3)
    assert command.main(["--run", str(run), "--best-of", "4", "--samples", "2", "--compare", str(run)]) == 0
    folder = run / "analysis" / "routing_maps"
    pictures = json.loads((folder / "index.json").read_text())["pictures"]
    tasks = {"shapes", "clips", "sentences", "captions", "retrieval"}
    expected = {f"of_{task}.png" for task in tasks} | {"activation.gif", "routers.png"}
    assert {picture["file"] for picture in pictures} == expected | (
        {"best_patches.png"} if router == "token" else set()
    )
    for picture in pictures:
        assert Image.open(folder / picture["file"]).width > 200 and picture["alt"]
    assert Image.open(folder / "activation.gif").n_frames == 10
    assert "maps.html" in capsys.readouterr().out
    assert command.main(["--run", str(run), "--decisions", "9 ffn"]) == 2
    assert "--decisions '9 ffn': the decisions are '0 attention', '0 ffn'" in capsys.readouterr().err


def test_runs_of_other_patches_are_refused_before_anything_is_drawn(world, tmp_path, capsys):
    """The demo's pictures of 32 pixels in patches of 8, and of 16."""
    torch.set_num_threads(1)
    ours = saved_run(tiny_config(world, tmp_path), "name=ours")
    other = saved_run(tiny_config(world, tmp_path), "name=other", "model.patch=16")
    words = ["--run", str(ours), "--tasks", "shapes", "--samples", "1", "--best-of", "1", "--compare", str(other)]
    assert command.main(words) == 2
    said = (
        f"error: --compare {other}: it cuts shapes 0 into 1 x 2 x 2 patches, and {ours} into 1 x 4 x 4: compare runs of"
    )
    error = capsys.readouterr().err
    assert error.startswith(said) and error.count("\n") == 1
    assert not (ours / "analysis" / "routing_maps").exists()


def of_rank(rank: int, run: str) -> tuple[int, str]:
    """-> (exit code, what was printed)."""
    if rank:
        command.draw = None  # it would be called in vain
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        words = ["--tasks", "shapes", "--samples", "1", "--best-of", "1", "--expert", "2", "--compare", run]
        return command.main(["--run", run, *words]), printed.getvalue()


def test_of_several_ranks_the_first_draws(world, tmp_path):
    run = saved_run(tiny_config(world, tmp_path))
    first, second = run_ranks(2, of_rank, str(run))
    folder = run / "analysis" / "routing_maps"
    assert first == (0, f"3 pictures and maps.html are in {folder}\n") and second == (0, "")
    assert Image.open(folder / "routers.png").width > 200
