"""What a person reads: how a run starts, the progress line, and where messages of libraries go."""

from __future__ import annotations

import logging
import sys
import warnings

import pytest

from data.stream.faults import Fault, Loss, losses_of
from data.stream.source import open_data
from data.stream.training import schedule_of
from data.tasks.base import Pixels
from model.objective import Objective
from model.tuning.trained import choose_trained
from parallel.kernels import load_kernels
from parallel.mesh import Mesh
from run.config_file import load_config
from run.console import Console, end_line, legend, start_lines
from run.library_log import LIBRARIES, keep_library_messages
from run.resume import Resume
from run.weights.best import Best
from run.weights.initial import Initial

RECORD = {
    "step": 3, "loss/shapes": 1.25, "loss/pairs": 2.0, "samples_per_s": 40.4, "tokens_per_s": 1000.0, "data_wait": 0.015,
    "grad_norm": 0.5, "faults": 0, "lr": 1e-3, "eta_s": 125.0,
}  # fmt: skip


def test_the_start_says_what_is_trained_on_what(config, monkeypatch):
    monkeypatch.setattr("run.console.could_be_bf16", lambda name, device: (name, device) == ("auto", "cpu"))
    run = load_config(config, ["parallel.expert=1", "optimizer.frozen=['tower.embedding.*']"])
    data = open_data(run.data, Pixels(run.model.image_size, run.model.patch), run.seed)
    objective = Objective(run.model, data.vocabulary.size, Mesh(), load_kernels("torch"))
    choose_trained(objective, run.optimizer.tune, run.optimizer.frozen)
    resume = Resume(run, data, None, 0, (0,) * 5, ("environment differs: OMP_NUM_THREADS",))
    losses = losses_of(data.sources, 0.0) | {
        "shapes": Loss(5, 12_000, 48, (Fault("shapes", "a.tar", None, None, "cut off"),), False)
    }
    lines = start_lines(
        resume, Initial(("init a: all weights",)), schedule_of(run.data, 2, 0, data.sources), objective, Mesh(), losses
    )
    total = sum(p.numel() for p in objective.parameters())
    trained = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    assert trained < total and lines[0] == "environment differs: OMP_NUM_THREADS"
    assert lines[1] == "init a: all weights"
    page = "\n".join(lines)
    assert f"run {run.folder} starts; 6 steps in all" in page
    assert f"{total:,}, {trained:,} trained; vocabulary of {data.vocabulary.size}" in page
    # Weights of the demo: 5, 3, 1, 1, 1.5 of 11.5.
    assert "shapes      classification, 48 samples, 4 per micro-batch, 43% of the micro-batches" in page
    assert "              about 5 of 53 samples (0.012 MB) are lost: a.tar: cut off" in page
    assert "              frozen: embeddings " in page and "              trained: experts " in page
    assert "  precision   fp32; this processor multiplies in bf16 too: parallel.precision=bf16 may be faster" in lines
    assert len(lines) == 6 + 2 + 5 + 1 + 1


def test_the_legend_names_tasks_whose_loss_has_two_directions(config):
    assert "(retrieval: the sum of both directions)" in legend(load_config(config))


def test_elsewhere_than_on_a_terminal_each_record_is_a_line(config, capsys):
    console = Console(load_config(config), 0)
    console.write(RECORD)
    console.write(RECORD | {"faults": 2})
    console.tell("saved step_00000003")
    console.close()
    assert capsys.readouterr().out.splitlines() == [
        "waiting for the first samples",
        "step 3/6  shapes 1.250  pairs 2.000 | 40 samples/s  1000 tokens/s  wait 1.5%  norm 0.50  lr 1.0e-03  eta 2:05",
        "step 3/6  shapes 1.250  pairs 2.000 | 40 samples/s  1000 tokens/s  2 bad samples replaced  wait 1.5%  norm 0.50  lr 1.0e-03  eta "
        "2:05",
        "saved step_00000003",
    ]


def test_on_a_terminal_one_line_is_redrawn(config, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    console = Console(load_config(config), 2)
    console.write(RECORD)
    console.tell("saved step_00000003")
    console.close()
    out, drawn = capsys.readouterr()
    assert "step 2/6" in drawn and "waiting for the first samples" in drawn
    assert "step 3/6" in drawn and "shapes 1.250  pairs 2.000 | 40 samples/s" in drawn and drawn.count("\n") <= 2
    assert "saved step_00000003" in out


@pytest.mark.parametrize(
    ("step", "said"), [(6, "finished at step 6; next: python evaluate.py --run"), (4, "stopped"), (6, "stopped")]
)
def test_the_end_says_what_to_do_next(config, step, said):
    run = load_config(config)
    assert end_line(run, step, Best(run.evaluate), said == "stopped").startswith(said)


def test_the_end_says_why_it_came_early(config):
    run = load_config(config, ["evaluate={every: 1, keep_best: shapes/accuracy, patience: 2}"])
    line = end_line(run, 5, Best(run.evaluate, step=3, value=0.5, since=2), False)
    assert line.startswith(
        "stopped at step 5: no better shapes/accuracy in 2 evaluations than at step 3"
    ) and line.endswith("--step best")


def test_messages_of_libraries_go_to_a_file_and_errors_to_the_console_too(tmp_path, capsys):
    loggers = [logging.getLogger(), *map(logging.getLogger, LIBRARIES)]
    before = [list(logger.handlers) for logger in loggers]
    try:
        folder = tmp_path / "runs" / "new"  # not there yet
        keep_library_messages(folder, 3)
        path = keep_library_messages(folder, 3)  # as a run that is started again
        assert not path.exists()  # nothing was said yet
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(True)
            warnings.warn("use another function", FutureWarning, stacklevel=1)
        logging.getLogger("DeepSpeed").warning("a remark")
        logging.getLogger("megatron.core").error("a failure")
    finally:
        logging.captureWarnings(False)
        for logger, handlers in zip(loggers, before, strict=True):
            logger.handlers = handlers
    kept, said = path.read_text(), capsys.readouterr()
    assert path == folder / "logs" / "rank_00003.log"
    assert all(text in kept for text in ("use another function", "a remark", "a failure"))
    assert "a failure" in said.err and "a remark" not in said.err + said.out and "use another" not in said.err
