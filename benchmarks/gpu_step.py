"""What a training step of a preset takes on the device that is here, beside what the roofline predicts, and its blocks beside other
programs'.

    python -m benchmarks.gpu_step --presets uni_perceiver_moe_base limoe_b16

Steps are those of train.py (forward, backward, clipping, AdamW) at full size, one micro-batch each, on made batches that lie on the device
already. One rank holds all experts and encodes all candidates; `--experts` and `--scale` make it fit. MFU is the model's FLOPs
(model/flops.py, choices without a slot not counted, nothing for recomputation) over the data sheet's (run/metrics/peaks.py). The options
of benchmarks.roofline say what is predicted.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import os
import sys
import warnings
from collections.abc import Iterator

import torch

from benchmarks.batches import PRESETS, batch_of
from benchmarks.block_peers import peers_table
from benchmarks.roofline import Machine, add_rates, machine_of, step_of
from data.batch import TaskBatch
from model.flops import choice_flops, forward_flops, passes_of, work_of
from model.initialise import initialise
from model.moe.use import ExpertUse
from model.noise import keys_of
from model.objective import Objective
from parallel.engine import Engine
from parallel.kernels import load_kernels
from parallel.mesh import Mesh, create_mesh, destroy_mesh
from parallel.precision import dtype_of
from plan.tasks import TaskLoad, shares_of, task_loads, vocabulary_size_of, word_candidates_of
from run.command_line import Several
from run.config import RunConfig
from run.config_file import load_config
from run.engine_file import read_engine_file
from run.errors import USER_ERRORS, ConfigError, exit_code
from run.metrics.memory import GIB, peak_bytes
from run.metrics.peaks import TERA, name_of, peak_of
from run.metrics.phases import Phases

WARM_UP = 3
"""Steps before those that count: compilers, the allocator and the optimizer's memory."""
PHASES = ("forward", "backward", "update")


@dataclasses.dataclass(frozen=True)
class Measured:
    """Of a step: FLOPs of the model; seconds by phase; bytes that were held at most, by the process where the device is a CPU."""

    flops: float
    seconds: dict[str, float]
    peak_bytes: int

    @property
    def passes(self) -> float:
        return self.seconds["forward"] + self.seconds["backward"]

    @property
    def whole(self) -> float:
        return sum(self.seconds.values())


def configured(preset: str, options: argparse.Namespace) -> RunConfig:
    """The preset with what the options change. Raises ConfigError."""
    overrides = ["parallel.expert=1", f"compile={options.compile}", f"parallel.precision={options.precision}"]
    if options.recompute:
        overrides.append(f"model.activation_checkpointing={options.recompute}")
    if options.experts:
        overrides.append(f"model.experts.num_experts={options.experts}")
    run = load_config(PRESETS / f"{preset}.yaml", [*overrides, *options.set])
    # Pairs are compared with each other, so two at least.
    tasks = [dataclasses.replace(t, batch_size=max(2, round(t.batch_size * options.scale))) for t in run.data.tasks]
    return dataclasses.replace(run, data=dataclasses.replace(run.data, tasks=tuple(tasks)))


def loads_of(run: RunConfig, names: list[str]) -> list[TaskLoad]:
    """Of the named tasks, or of all whose shapes differ. Raises ConfigError where it has none of that name."""
    loads = task_loads(run, word_candidates_of(run), shares_of(run)[0])
    if names:
        chosen = [load for load in loads if load.name in names]
        if not chosen:
            raise ConfigError(f"--task {' '.join(names)}: {run.name} has {', '.join(load.name for load in loads)}")
        return chosen
    return list({load.sequences: load for load in reversed(loads)}.values())[::-1]


def measure(run: RunConfig, engine: Engine, objective: Objective, batch: TaskBatch, steps: int) -> Measured:
    """The mean of so many steps. Raises RuntimeError where an update is left out."""
    device = engine.mesh.device
    moved, phase = batch.to(device), Phases(device)
    for number in range(WARM_UP + steps):
        if number == WARM_UP:
            phase.taken()
            if device != "cpu":
                torch.cuda.reset_peak_memory_stats(device)
        with engine.accumulation():
            phase("forward")
            losses = engine(moved, keys_of(run.seed, number, 0))
            phase("backward")
            engine.backward(losses.total)
            phase("reduce")
        phase("step")
        if not engine.step(run.optimizer.learning_rate(number, run.steps)).applied:
            raise RuntimeError("a gradient is not finite, so there was no update to measure")
        phase("report")
    taken = phase.taken()
    seconds = {"forward": taken["forward"], "backward": taken["backward"], "update": taken["reduce"] + taken["step"]}
    each = {name: value / steps for name, value in seconds.items()}
    return Measured(flops_of(objective, batch, losses.use), each, peak_bytes(device))


def flops_of(objective: Objective, batch: TaskBatch, use: ExpertUse) -> float:
    """Of a training step, without choices that found no slot or were not asked for."""
    model, passes = objective.config, passes_of(objective)
    parts = forward_flops(model, work_of(model, batch, batch.inputs.counts, batch.candidates.counts))
    choices = zip(choice_flops(model), use.dropped.tolist(), strict=True)
    lost = [passes[part] * flops * number for (part, flops), number in choices]
    return sum(passes[part] * flops for part, flops in parts.items()) - sum(lost)


def lines_of(preset: str, run: RunConfig, mesh: Mesh, peak: float, options: argparse.Namespace) -> Iterator[str]:
    """A line for each task. peak: FLOP/s, 0 where it is not known. Raises OutOfMemoryError."""
    vocabulary_size, _ = vocabulary_size_of(run)
    kernels = load_kernels(run.kernels, run.compile, run.attention)
    objective = Objective(run.model, vocabulary_size, mesh, kernels)
    initialise(objective, run.seed)
    objective.to(mesh.device)
    engine = Engine(objective, mesh, run.optimizer, read_engine_file(run), kernels, run.parallel.precision)
    for load in loads_of(run, options.task):
        batch = batch_of(run.model, load, vocabulary_size)
        found = measure(run, engine, objective, batch, options.steps)
        tokens = batch.inputs.num_tokens + batch.candidates.num_tokens
        yield (
            f"{preset:<26}{load.name:<18}{tokens:>8}{found.peak_bytes / GIB:>7.1f}"
            + "".join(f"{1e3 * found.seconds[name]:>10.1f}" for name in PHASES)
            + f"{tokens / found.whole:>11.0f}{found.flops / found.passes / TERA:>9.3g}{share(found.flops / found.passes, peak):>7}"
            + f"{share(found.flops / found.whole, peak):>8}"
            + (predicted(run, vocabulary_size, batch, machine_of(options)) if options.predict else "")
        )


def predicted(run: RunConfig, vocabulary_size: int, batch: TaskBatch, machine: Machine) -> str:
    """Milliseconds of forward and backward, and MFU, on the machine that is assumed."""
    found = step_of(run.model, vocabulary_size, batch, machine, run.compile != "none")
    seconds = max(found["gpu"], found["host"])
    return f"{1e3 * seconds:>10.1f}{share(found['flops'] / seconds, machine.peak):>6}"


def share(flops_per_s: float, peak: float) -> str:
    return f"{flops_per_s / peak:.0%}" if peak else "n/a"


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--presets", nargs="+", action=Several, default=["uni_perceiver_moe_base", "limoe_b16"], metavar="NAME"
    )
    parser.add_argument(
        "--task", nargs="+", action="extend", default=[], metavar="NAME", help="these alone (all whose shapes differ)"
    )
    parser.add_argument("--steps", type=int, default=10, help=f"that count, after {WARM_UP} others (%(default)s)")
    parser.add_argument("--compile", choices=["auto", "passes", "none"], default="auto", help="as the run's option")
    parser.add_argument(
        "--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto", help="as the run's option"
    )
    parser.add_argument("--recompute", choices=["none", "selective", "block"], help="in place of the preset's own")
    parser.add_argument("--experts", type=int, default=0, help="of a layer, in place of the preset's own")
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the batch sizes (%(default)s)")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="further options of the run"
    )
    parser.add_argument("--device", choices=["auto", "cpu"], default="auto", help="cpu: leave the GPU alone")
    parser.add_argument("--predict", action=argparse.BooleanOptionalAction, default=True, help="by the roofline")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True, help="other programs' blocks")
    parser.add_argument("--peer-tokens", type=int, default=16384, help="of a pass through them (%(default)s)")
    add_rates(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    warnings.filterwarnings("ignore")
    options = arguments(argv)
    try:
        measure_all(options)
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(exit_code(error))


def measure_all(options: argparse.Namespace) -> None:
    """Prints. Raises what a user may have caused."""
    runs = {preset: configured(preset, options) for preset in options.presets}
    for run in runs.values():
        loads_of(run, options.task)
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    mesh = create_mesh()
    dtype = dtype_of(options.precision, mesh.device)
    peak = peak_of(next(iter(runs.values())).tracking.peak, mesh.device, dtype)
    told = f"peak {peak / TERA:.4g} TFLOP/s" if peak else "no known peak, so no MFU: --set tracking.peak=measured"
    kind = str(dtype).removeprefix("torch.")
    print(f"{name_of(mesh.device)}, torch {torch.__version__}, {kind}, {told}, compile={options.compile}")
    print(
        f"{'preset':<26}{'task':<18}{'tokens':>8}{'GiB':>7}"
        + "".join(f"{name:>7} ms" for name in ("forw.", "backw.", "update"))
        + f"{'tokens/s':>11}{'TFLOP/s':>9}{'MFU':>7}{'+update':>8}"
        + (f"{'roofline ms':>13}{'MFU':>6}" if options.predict else "")
    )
    for preset, run in runs.items():
        try:
            for line in lines_of(preset, run, mesh, peak, options):
                print(line, flush=True)
        except torch.OutOfMemoryError:
            print(f"{preset:<26}does not fit here: --scale, --experts and --recompute make it smaller", flush=True)
        gc.collect()  # an engine and its modules know each other
        if options.peers:
            print(peers_table(preset, run, mesh, dtype, peak, options.peer_tokens, options.steps), flush=True)
    destroy_mesh()


if __name__ == "__main__":
    main()
