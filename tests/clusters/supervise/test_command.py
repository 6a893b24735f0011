"""What the command is told, and how many ranks fit."""

from __future__ import annotations

import argparse

import pytest

from clusters.supervise import add_command
from clusters.supervise.command import machines_of, run_of, words_of
from clusters.supervise.several import Machines
from clusters.supervise.sizes import most_that_fit, share
from parallel.checkpoints.saving import latest_step
from run.config_file import load_config
from run.errors import ConfigError


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_command(parser.add_subparsers())
    return parser.parse_args(["supervise", *words])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no training is named"),
        (["--"], "no training is named"),
        (["--", "nowhere.py", "--config", "x"], "nowhere.py: no such file"),
        (["--", "train.py"], "given no --config"),
        (["--", "train.py", "--config=configs/demo.yaml", "--describe"], "train nothing"),
        (["--min=0", "--", "train.py", "--config=configs/demo.yaml"], "--min=0: must be at least 1"),
        (["--attempts=0", "--", "train.py", "--config=configs/demo.yaml"], "--attempts=0"),
        (["--max-restarts=-1", "--", "train.py", "--config=configs/demo.yaml"], "--max-restarts=-1"),
        (["--save-s=0", "--", "train.py", "--config=configs/demo.yaml"], "--save-s=0: must be at least 1"),
        (
            ["--return-after=nan", "--", "train.py", "--config=configs/demo.yaml"],
            "--return-after=nan: must be at least 0",
        ),
        (["--nproc=0", "--min=1", "--", "train.py", "--config=configs/demo.yaml"], "--nproc=0"),
        (["--nnodes=2", "--", "train.py", "--config=configs/demo.yaml"], "go together"),
        (
            ["--nproc=2", "--min=2", "--", "train.py", "--config=configs/demo.yaml", "micro_batches=1"],
            "no number of ranks from 2 to 2 fits: micro_batches=1 per step must be a multiple of the 2 data ranks",
        ),
    ],
)
def test_what_cannot_be_meant_is_one_line(words, said):
    arguments = parsed(*words)
    with pytest.raises(ConfigError, match=said) as caught:
        arguments.main(arguments)
    assert "\n" not in str(caught.value)


def test_the_training_after_the_dashes():
    words = parsed("--nproc=2", "--", "python", "train.py", "--config=configs/demo.yaml", "steps=700").words
    assert words_of(words) == ["train.py", "--config=configs/demo.yaml", "steps=700"]
    assert run_of(words_of(words)).steps == 700


@pytest.mark.parametrize(
    ("overrides", "at_most", "fits"),
    [
        (("micro_batches=4",), 4, 4),
        (("micro_batches=4",), 3, 2),
        (("micro_batches=12",), 5, 4),
        (("micro_batches=8", "parallel.tensor=2"), 7, 4),  # 3 tensor groups do not divide 8
        (("micro_batches=6", "parallel.tensor=2"), 7, 6),
        (("micro_batches=8", "parallel.expert=2"), 3, 2),
    ],
)
def test_the_most_ranks_that_fit(overrides, at_most, fits):
    assert (
        most_that_fit(load_config("configs/demo.yaml", ("parallel.expert=1", "model.heads=4", *overrides)), at_most)
        == fits
    )


def test_where_none_fits_the_reason_is_told():
    run = load_config("configs/demo.yaml", ("parallel.expert=2", "micro_batches=4"))
    with pytest.raises(ConfigError, match=r"no number of ranks from 1 to 1 fits: parallel\.expert=2 does not divide"):
        most_that_fit(run, 1)


def test_machines_are_filled_one_after_another():
    assert [share(6, 4, machine) for machine in range(3)] == [(0, 4), (4, 2), (6, 0)]


def test_machines():
    assert machines_of("2:4", "host1:29400") == Machines(2, 4, "host1:29400")
    assert machines_of("3", "[fe80::1]:80") == Machines(3, 3, "[fe80::1]:80")
    for nnodes in ("4:2", "0:2", "a", "1:2:3", "-1"):
        with pytest.raises(ConfigError, match="--nnodes="):
            machines_of(nnodes, "host1:29400")
    for rendezvous in ("host1", "host1:0", "host1:99999", "host 1:80", "$(id):80"):
        with pytest.raises(ConfigError, match="--rendezvous="):
            machines_of("1:2", rendezvous)


def test_the_checkpoint_that_was_published_last(tmp_path):
    assert latest_step(tmp_path) == -1
    for step in (3, 12):
        (tmp_path / f"step_{step:08d}").mkdir()
    (tmp_path / "step_00000003" / "manifest.json").touch()
    assert latest_step(tmp_path) == 3  # the other has no manifest: it is not published
    (tmp_path / "step_00000012" / "manifest.json").touch()
    assert latest_step(tmp_path) == 12
    (tmp_path / "latest").write_text("step_00000003")  # the run went back, since the other was damaged
    assert latest_step(tmp_path) == 3
