"""Train one run: `python train.py --config configs/demo.yaml`, or `deepspeed --num_gpus 2 train.py --config ...`.

Repeating the command resumes the run from its newest complete checkpoint. Exit codes: 0 done, 1 failure, 2 the
configuration or data cannot be used, 85 stopped by a signal after saving.
"""

from __future__ import annotations

import functools
import sys

from data.stream.faults import losses_of
from data.stream.share import Share
from data.stream.training import schedule_of, training_stream
from data.workers.loader import worker_count
from model.noise import keys_of
from model.objective import Objective
from parallel.checkpoints import Saver
from parallel.engine import Engine
from parallel.health.failures import RankGuard
from parallel.health.preflight import check_build_lock
from parallel.health.replicas import check_batch, check_replicas
from parallel.health.stop_signal import StopSignal, any_rank
from parallel.kernels import load_kernels
from parallel.launch import check_launch, is_first_on_machine, launched_rank, launched_ranks_here, launched_world_size
from parallel.mesh import create_mesh, destroy_mesh
from plan import dealing_of, describe, expected, plan, render
from run.command_line import parse_arguments
from run.config import RunConfig, check_layout
from run.config_file import load_config
from run.console import end_line, legend, start_lines
from run.data import open_run_data
from run.engine_file import read_engine_file
from run.errors import EXIT_STOPPED, USER_ERRORS, DivergedError, exit_code, is_told_here
from run.evaluation.in_loop import evaluation_of
from run.folder import write_run_files
from run.ledger import FaultLedger
from run.library_log import keep_library_messages
from run.log_point import LogPoint
from run.metrics.efficiency import Efficiency
from run.metrics.meter import Meter, has_diverged
from run.resume import Resume, earlier_start
from run.sinks.sinks import Sinks
from run.streams import keep_printing
from run.threads import choose_threads
from run.weights.initial import initial_weights

REMEDY = "lower optimizer.lr or look at the data"


def train(run: RunConfig, guard: RankGuard) -> int:
    """Returns the exit code."""
    check_layout(run, launched_world_size())
    deepspeed_config = read_engine_file(run)
    kernels = load_kernels(run.kernels, run.compile, run.attention)
    data = open_run_data(run)
    lost = losses_of(data.sources, run.data.max_bad_fraction)
    earlier = earlier_start(run, data.vocabulary)
    check_build_lock()
    stop = StopSignal()
    if launched_rank() == 0:
        print(f"loading DeepSpeed, then {launched_world_size()} rank(s) meet", flush=True)
    mesh = create_mesh(run.parallel.tensor, run.parallel.expert, run.parallel.timeout_s, run.parallel.sequence)
    watchdog = guard.start(run.folder, run.parallel.stall_s)
    keep_library_messages(run.folder, launched_rank())
    resume = Resume.find(run, data, earlier)
    step, consumed = resume.step, resume.consumed
    schedule = schedule_of(run.data, run.micro_batches, run.seed, data.sources, dealing_of(run))
    workers = worker_count(run.data.workers, launched_ranks_here())
    # Now, so that workers start while the network is built.
    share = Share(mesh.data.rank, mesh.data.size)
    task_ids = [run.model.task_id(task.name) for task in run.data.tasks]
    stream = training_stream(data.sources, schedule, share, step, consumed, workers, mesh.device, task_ids)

    objective = Objective(run.model, data.vocabulary.size, mesh, kernels)
    initial = initial_weights(resume, objective)
    objective.to(mesh.device)
    engine = Engine(objective, mesh, run.optimizer, deepspeed_config, kernels, run.parallel.precision)
    resume.restore(engine)
    if mesh.is_first:
        write_run_files(run, data.vocabulary, data.infos)
        print(*start_lines(resume, initial, schedule, objective, mesh, lost), legend(run), sep="\n", flush=True)

    evaluation = evaluation_of(run, data, objective, engine.averaged, mesh)
    last = LogPoint.of(run.evaluate, resume.checkpoint, evaluation.names)
    ledger = FaultLedger(run.folder, launched_rank(), run.data.max_bad_fraction, lost)
    sinks = Sinks(run, step, mesh.is_first, last.is_owed)
    saver = Saver(run.folder / "checkpoints", run.keep_checkpoints, run.save_async, sinks.tell, initial.base)
    micro_batches = run.micro_batches // mesh.data.size
    efficiency = Efficiency.open(run, objective, engine, expected(run, mesh), watchdog.phase, sinks.tell)
    meter, phase = Meter(lost, run.model, mesh, efficiency, run.tracking.alarm_steps), efficiency.phase
    if last.is_owed:  # the run was stopped before the evaluation of this step
        last = last.next(step, lambda _: last.record, evaluation, sinks, stop, watchdog.phase)
        if not last.is_owed:
            saver.save(step, engine.fragments(), resume.state(consumed, engine, last.state), last.best.step)

    if step < run.steps:
        stream = choose_threads(run, stream, engine, mesh, launched_ranks_here(), sinks.tell)
    while step < run.steps and not last.stops:
        checking = run.check_every > 0 and step % run.check_every == 0
        with engine.accumulation():
            for _ in range(micro_batches):
                phase("data", step + 1)
                micro = next(stream)
                ledger.add(micro.batch.task, micro.num_samples, micro.faults)
                phase("forward")
                if checking:
                    check_batch([("labels", micro.batch.labels_Q), ("read-outs", micro.batch.read_Q2)], mesh)
                losses = engine(micro.batch.to(mesh.device), keys_of(run.seed, step, micro.assignment.number))
                phase("backward")
                engine.backward(losses.total / micro_batches)
                meter.add(micro, losses)
            phase("reduce")
        phase("step")
        info = engine.step(run.optimizer.learning_rate(step, run.steps))
        meter.end_step(info)
        if checking:
            check_replicas(objective, mesh)
        _, consumed = schedule.step(step, consumed)
        step += 1
        if meter.skipped_in_a_row > run.max_skipped_steps and engine.loss_scale == 1:  # above, fp16 searches
            sinks.close(diverged=True)
            raise DivergedError(f"step {step}: no finite gradient {meter.skipped_in_a_row} times in a row; {REMEDY}")
        phase("report")
        asked, writing = any_rank((stop.requested, saver.is_writing), mesh)
        if step % run.log_every == 0 or step == run.steps or asked:
            record = functools.partial(meter.record, step, run.steps, consumed)
            last = last.next(step, record, evaluation, sinks, stop, phase)
        phase("save")
        if not writing:
            saver.publish()
        if step % run.save_every == 0 or step in (run.steps, last.best.step) or last.stops:
            saver.save(step, engine.fragments(), resume.state(consumed, engine, last.state), last.best.step)
    saver.publish()
    stop.leave()
    phase("end")
    diverged = has_diverged(last.record, meter.skipped_in_a_row, engine.loss_scale)
    sinks.close(diverged)
    if diverged:
        raise DivergedError(f"step {step}: the run has ended with a loss or a gradient that is not finite; {REMEDY}")
    is_early = last.is_owed or (last.stops and step < run.steps and not last.best.has_stalled)
    if mesh.is_first:
        print(end_line(run, step, last.best, is_early), flush=True)
    destroy_mesh()
    return EXIT_STOPPED if is_early else 0


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv, description=str(__doc__))
    try:
        check_launch()
        run = load_config(arguments.config, arguments.overrides)
        if arguments.describe or arguments.plan:
            world = arguments.world or launched_world_size()
            limits = arguments.device_memory, arguments.gpus_per_node
            print(describe(run) if arguments.describe else render(plan(run, world, *limits)))
            return 0
        with RankGuard(USER_ERRORS) as guard:
            return train(run, guard)
    except USER_ERRORS as error:
        if is_told_here(error, is_first_on_machine()):
            print(f"error: {error}", file=sys.stderr)
        return exit_code(error)


if __name__ == "__main__":
    keep_printing()
    sys.exit(main())
