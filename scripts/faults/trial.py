"""One fault from start to verdict."""

from __future__ import annotations

import dataclasses
import secrets
import shutil
import time
from pathlib import Path

import yaml

from parallel.checkpoints.saving import latest_step
from scripts.faults.checks import compare, losses, resumed_at, shared_memory
from scripts.faults.faults import EVALUATE_EVERY, SAVE_EVERY, STEPS, Fault
from scripts.faults.kinds import Stage
from scripts.faults.launching import (
    TARGET,
    TRAIN,
    Started,
    Trial,
    marked,
    supervised,
    wait_for_end,
    wait_for_place,
    wait_for_ranks,
)
from scripts.faults.machine import TASKS
from scripts.faults.table import KINDS

TIMEOUT_S, STALL_S = 30.0, 10.0
LEAVE_S = 60.0
"""After the time-out: reports, 30 s for ranks that stay, 10 s for what they leave, and the start of programs that end."""


@dataclasses.dataclass(frozen=True)
class Reference:
    """The undisturbed run: its losses by step, and its times in seconds."""

    losses: dict[int, dict[str, float]]
    start_s: float
    whole_s: float


@dataclasses.dataclass(frozen=True)
class Result:
    """ended_s: from the fault until no process of the run was left; resumed: the step that the next start went on from, of `newest` on
    disk; wrong: empty if the fault was survived."""

    number: int
    kind: str
    phase: str
    step: int
    rank: int
    code: int | None
    ended_s: float
    newest: int
    resumed: int
    difference: float
    seconds: float
    wrong: str = ""


def write_config(out: Path) -> Path:
    """Two tasks of the made world, a tiny network, two ranks that share out experts."""
    from data.synthetic import WorldSize, write_demo_world

    world = out / "world"
    world.mkdir(exist_ok=True)
    sizes = WorldSize(shapes=48, pairs=8, clips=8, clip_captions=4, sentences=48, evaluation=16)
    write_demo_world(world, 0, sizes)
    root = TRAIN.parent
    raw = yaml.safe_load((root / "configs" / "demo.yaml").read_text(encoding="utf-8"))
    raw["data"]["tasks"] = [
        task | {"path": str(world / Path(task["path"]).name), "batch_size": 4}
        for task in raw["data"]["tasks"]
        if Path(task["path"]).name in TASKS
    ]
    raw["data"] |= {"workers": 1, "max_bad_fraction": 0.0}
    raw["model"] |= {"width": 32, "depth": 2, "heads": 2, "ffn": 64, "experts": {"num_experts": 4}}
    raw |= {
        "name": "run",
        "steps": STEPS,
        "log_every": 1,
        "save_every": SAVE_EVERY,
        "threads": 1,
        "evaluate": {"every": EVALUATE_EVERY, "split": "val", "limit": 16},
        "tracking": {"wandb": "disabled"},
        "parallel": {
            "expert": 2,
            "deepspeed": str(root / "ds_configs" / "zero1.json"),
            "timeout_s": TIMEOUT_S,
            "stall_s": STALL_S,
        },
    }
    raw["optimizer"] = raw.get("optimizer", {}) | {"warmup_steps": 2}
    path = out / "config.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


def undisturbed(config: Path, folder: Path, limit_s: float) -> Reference:
    """Raises RuntimeError if it fails, as nothing can be told then."""
    trial = Trial(folder, secrets.token_hex(8), {})
    begun = time.monotonic()
    try:
        started = supervised(trial, TARGET, words_of(config, folder / "runs"))
        wait_for_ranks(started, limit_s)
        ranks_at = time.monotonic()
        wait_for_place(started, 0, "1 data", limit_s)
        start_s = time.monotonic() - ranks_at
        code, _ = wait_for_end(started, limit_s)
    finally:
        for process in marked(trial.mark):
            process.kill()
    if code != 0:
        raise RuntimeError(f"the undisturbed run ended with {code}; see {folder / 'output.txt'}")
    return Reference(losses(folder / "runs" / "run"), start_s, time.monotonic() - begun)


def words_of(config: Path, runs: Path, *overrides: str) -> list[str]:
    return [f"--config={config}", f"runs={runs}", *overrides]


def attempt(fault: Fault, config: Path, out: Path, reference: Reference, slack: float, keep: bool = False) -> Result:
    """slack: factor of all times that are allowed, for machines that do other work besides."""
    folder = out / f"fault_{fault.number:04d}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    begun, before = time.monotonic(), shared_memory()
    with KINDS[fault.kind](fault, folder) as stage:
        trial = Trial(folder, secrets.token_hex(8), stage.environment)
        runs = (stage.disk or folder) / "runs"
        words = words_of(config, runs, f"save_async={str(fault.save_async).lower()}", *stage.overrides)
        try:
            result = _disturbed(fault, stage, trial, words, runs / "run", reference, slack)
        finally:
            for process in marked(trial.mark):
                process.kill()
    left = shared_memory() - before
    if left and not result.wrong:
        result = dataclasses.replace(result, wrong=f"left in /dev/shm: {', '.join(sorted(left))}")
    if not result.wrong and not keep:
        shutil.rmtree(folder, ignore_errors=True)
    return dataclasses.replace(result, seconds=round(time.monotonic() - begun, 1))


def _disturbed(
    fault: Fault, stage: Stage, trial: Trial, words: list[str], run: Path, reference: Reference, slack: float
) -> Result:
    result = Result(fault.number, fault.kind, fault.phase, fault.step, fault.rank, None, 0.0, -1, -1, 0.0, 0.0)
    limit_s = slack * (TIMEOUT_S + LEAVE_S)
    whole_s = slack * (2 * reference.whole_s + LEAVE_S)
    started = stage.launch(trial, TARGET, words)
    if not _reach(started, fault, reference, whole_s):
        return dataclasses.replace(result, code=started.code(), wrong="its place was never reached")
    stage.act(started)
    # Where the run goes on it may take its whole time.
    code, ended_s = wait_for_end(started, limit_s + (whole_s if 0 in stage.codes else 0.0))
    result = dataclasses.replace(result, code=code, ended_s=round(ended_s, 1))
    if code is None:
        still = ", ".join(f"{process.name()} {process.pid} ({process.status()})" for process in marked(trial.mark))
        return dataclasses.replace(result, wrong=f"after {ended_s:.0f} s there is still: {still}")
    if code not in stage.codes:
        return dataclasses.replace(result, wrong=f"exit code {code}, not one of {sorted(stage.codes)}")
    newest = max(0, latest_step(run / "checkpoints"))
    result = dataclasses.replace(result, newest=newest, resumed=newest)
    stage.mend()
    if code != 0:
        again, _ = wait_for_end(stage.launch(trial, TRAIN, words), whole_s)
        result = dataclasses.replace(result, resumed=resumed_at(run))
        if again != 0:
            return dataclasses.replace(result, wrong=f"the same command ended with {again}")
        if result.resumed != newest:
            return dataclasses.replace(result, wrong=f"went on from step {result.resumed}, the newest is {newest}")
        # What had been reached is known but for one step; the place is in the step after that.
        lost = fault.step - 1 - newest
        if fault.step and lost > (0 if stage.saves else SAVE_EVERY * (2 if fault.save_async else 1)):
            return dataclasses.replace(
                result, wrong=f"step {fault.step} was reached, and {newest} is the newest on disk"
            )
    compared = compare(losses(run), reference.losses)
    return dataclasses.replace(result, difference=compared.difference, wrong=compared.wrong)


def _reach(started: Started, fault: Fault, reference: Reference, limit_s: float) -> bool:
    if not wait_for_ranks(started, limit_s) or not started.ranks:
        return False
    if fault.phase == "start":
        # At most until the first step, as the machine may be faster now.
        wait_for_place(started, fault.rank, "1 data", fault.delay_s * 0.9 * reference.start_s)
        return True
    reached = wait_for_place(started, fault.rank, f"{fault.step} {fault.phase}", limit_s)
    time.sleep(fault.delay_s)
    return reached
