"""What a person reads while a run goes on: how it starts, a progress line, how it ended."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping

from tqdm import tqdm

from data.stream.faults import Loss
from data.stream.schedule import Schedule
from data.tasks import kind_of
from model.objective import Objective
from parallel.mesh import Mesh
from parallel.precision import could_be_bf16
from run.config import RunConfig
from run.metrics.meter import Record
from run.parameters import told_parameters
from run.resume import Resume
from run.weights.best import Best
from run.weights.initial import Initial


def start_lines(
    resume: Resume,
    initial: Initial,
    schedule: Schedule,
    objective: Objective,
    mesh: Mesh,
    losses: Mapping[str, Loss],
) -> list[str]:
    """What was loaded, what is trained and on what."""
    run, checkpoint = resume.run, resume.checkpoint
    start = f"continues at step {resume.step:,} from {checkpoint.folder}" if checkpoint else "starts"
    ranks = mesh.data.size * mesh.tensor.size
    hint = "  precision   fp32; this processor multiplies in bf16 too: parallel.precision=bf16 may be faster"
    parameters, *families = told_parameters(objective)
    lines = [
        *resume.notes,
        *initial.notes,
        *run.model.experts.unreachable,
        *_beside_random(run),
        f"run {run.folder} {start}; {run.steps:,} steps in all",
        f"  ranks       {ranks} ({mesh.device.partition(':')[0]}): data {mesh.data.size}, tensor {mesh.tensor.size}, "
        f"experts over {mesh.expert.size}; DeepSpeed settings {run.parallel.deepspeed}",
        *([hint] if could_be_bf16(run.parallel.precision, mesh.device) else []),
        f"  parameters  {parameters}; vocabulary of {resume.data.vocabulary.size:,} tokens",
        *(f"  {'':<10}  {line}" for line in families),
        f"  step        {run.micro_batches} micro-batches, {run.micro_batches // mesh.data.size} on each data rank",
    ]
    width = max(10, *(len(source.name) for source in resume.data.sources))
    for source, weight in zip(resume.data.sources, schedule.weights, strict=True):
        task = source.task.config
        lines.append(
            f"  {source.name:<{width}}  {task.kind}, {source.order.total:,} samples, {task.batch_size} per micro-batch, "
            f"{weight / sum(schedule.weights):.0%} of the micro-batches"
            + (" (a micro-batch has samples twice)" if task.batch_size > source.order.total else "")
        )
        if losses[source.name].faults:
            lines.append(f"  {'':<{width}}  {losses[source.name].text}")
    return lines


def _beside_random(run: RunConfig) -> list[str]:
    tune = run.optimizer.tune
    if tune == "all" or run.init:
        return []
    return [f"optimizer.tune={tune} trains beside frozen weights that are random: init=RUN takes those of a run"]


def legend(run: RunConfig) -> str:
    """What the progress line shows, said once."""
    pairs = [task.name for task in run.data.tasks if kind_of(task).answers == "pairs" and task.loss == "softmax"]
    both = f" ({', '.join(pairs)}: the sum of both directions)" if pairs else ""
    text = (
        f"Each line: mean loss per task in nats since the last line{both}; samples and tokens per second on all ranks; wait: share "
        "of the time without data; norm: of the gradient before clipping; lr: learning rate; eta: minutes:seconds left"
    )
    return textwrap.fill(text, 110, subsequent_indent="  ")


class Console:
    """One line that is redrawn on a terminal, a new line each time elsewhere."""

    def __init__(self, run: RunConfig, start_step: int) -> None:
        self.total = run.steps
        self._bar = None
        if sys.stderr.isatty():
            bar = "step {n_fmt}/{total_fmt} |{bar:12}| {elapsed}<{remaining}{postfix}"
            self._bar = tqdm(total=run.steps, initial=start_step, bar_format=bar, dynamic_ncols=True)
            self._bar.set_postfix_str("waiting for the first samples")
        else:
            print("waiting for the first samples", flush=True)

    def write(self, record: Record) -> None:
        losses = "  ".join(f"{key[5:]} {value:.3f}" for key, value in record.items() if key.startswith("loss/"))
        rates = f"{record['samples_per_s']:.0f} samples/s  {record['tokens_per_s']:.0f} tokens/s"
        bad = f"{record['faults']} bad samples replaced  " if record["faults"] else ""
        state = f"{bad}wait {record['data_wait']:.1%}  norm {record['grad_norm']:.2f}  lr {record['lr']:.1e}"
        if self._bar is not None:
            self._bar.set_postfix_str(f"{losses} | {rates}  {state}", refresh=False)
            self._bar.update(record["step"] - self._bar.n)
            return
        minutes, seconds = divmod(int(record["eta_s"]), 60)
        print(
            f"step {record['step']}/{self.total}  {losses} | {rates}  {state}  eta {minutes}:{seconds:02d}", flush=True
        )

    def tell(self, line: str) -> None:
        """A line that stays, above the one that is redrawn."""
        if self._bar is not None:
            self._bar.write(line)
        else:
            print(line, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def end_line(run: RunConfig, step: int, best: Best, is_early: bool) -> str:
    if best.has_stalled:
        return (
            f"stopped at step {step:,}: no better {run.evaluate.keep_best} in {best.since} evaluations than at step {best.step:,}; next: "
            f"python evaluate.py --run {run.folder} --step best"
        )
    if is_early:
        return f"stopped at step {step:,} and saved; start the same command again to continue"
    bad = (
        "; what of the data was bad stands in ledger_rank_*.jsonl there"
        if any(run.folder.glob("ledger_rank_*.jsonl"))
        else ""
    )
    return f"finished at step {step:,}; next: python evaluate.py --run {run.folder}{bad}"
