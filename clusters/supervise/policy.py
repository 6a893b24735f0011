"""What follows when the ranks of a start have ended. Pure: a table of cases tests it."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable

from clusters.ranks import Ended
from parallel.health.stop_signal import SIGNALS
from run.errors import EXIT_STOPPED, EXIT_USER

EXIT_GIVEN_UP = 1


@dataclasses.dataclass(frozen=True)
class Limits:
    """ranks: the most that are wanted; attempts: failures in a row without a new checkpoint; restarts: failures in all;
    return_after_s: with fewer ranks, until all are tried again."""

    ranks: int
    attempts: int
    restarts: int
    return_after_s: float


@dataclasses.dataclass(frozen=True)
class State:
    """ranks: of this start; step: of the checkpoint published last when it began, -1 for none; failures in a row without a new checkpoint;
    restarts: failures in all; return_after_s: seconds with fewer ranks before all are tried; tried: is this start a try with all?"""

    ranks: int
    step: int
    failures: int = 0
    restarts: int = 0
    return_after_s: float = 0.0
    tried: bool = False


@dataclasses.dataclass(frozen=True)
class Decision:
    """code: end with it; None: start again as `state` says. reason: a line for the log."""

    state: State
    code: int | None
    reason: str


def decide(
    state: State,
    ended: Ended,
    step: int,
    limits: Limits,
    fitting: Callable[[int], int],
    stopped: bool = False,
    returning: bool = False,
) -> Decision:
    """step: of the checkpoint published last, also an earlier one where the newest was damaged; fitting(n): the most ranks up to n, or the
    fewest that there may be; stopped: the user has asked; returning: the ranks were asked to save so that all can start."""
    codes = set(ended.codes)
    if EXIT_USER in codes:
        return Decision(state, EXIT_USER, "something in the configuration or data has to be mended: not started again")
    if codes == {0}:
        return Decision(state, 0, "done")
    if codes <= {0, EXIT_STOPPED}:
        if returning and not stopped:
            again = dataclasses.replace(state, ranks=limits.ranks, step=step, tried=True, failures=0)
            return Decision(again, None, f"saved at step {step}, starting all {limits.ranks} ranks")
        return Decision(state, EXIT_STOPPED, f"stopped after saving step {step}")
    if stopped:
        asked = {0, EXIT_STOPPED, *(-int(number) for number in SIGNALS)}
        if all(code in asked or rank in ended.hung for rank, code in enumerate(ended.codes)):
            return Decision(
                state, EXIT_STOPPED, f"stopped before it could save; the newest checkpoint is {_name(step)}"
            )
        return Decision(state, EXIT_GIVEN_UP, f"a rank failed while the run was to stop: {_told(ended)}")
    failures = 1 if step != state.step else state.failures + 1
    after = dataclasses.replace(state, step=step, failures=failures, restarts=state.restarts + 1, tried=False)
    if failures >= limits.attempts:
        reason = f"failed {failures} times without a new checkpoint (the newest is {_name(step)}): {_told(ended)}"
        return Decision(after, EXIT_GIVEN_UP, f"given up: {reason}")
    if after.restarts > limits.restarts:
        return Decision(after, EXIT_GIVEN_UP, f"given up after {limits.restarts} restarts: {_told(ended)}")
    ranks = state.ranks
    if 0 < len(ended.lost) < state.ranks:  # where all are gone, nothing says which is missing
        ranks = fitting(state.ranks - len(ended.lost))
    if state.tried and ranks < state.ranks and step == state.step:  # a try with all that has brought no checkpoint
        after = dataclasses.replace(after, return_after_s=2 * (after.return_after_s or limits.return_after_s))
    after = dataclasses.replace(after, ranks=ranks)
    return Decision(after, None, f"{_told(ended)}; going on from {_name(step)} with {ranks} of {limits.ranks} ranks")


def _told(ended: Ended) -> str:
    """rank 1 ended by SIGKILL; rank 0 did not answer."""
    words = []
    for rank in ended.lost:
        code = ended.codes[rank]
        words.append(
            f"rank {rank} "
            + ("did not answer" if rank in ended.hung else f"ended by {signal.Signals(-code).name}" if code < 0 else "")
        )
    failed = sorted(rank for rank, code in enumerate(ended.codes) if code > 0 and code != EXIT_STOPPED)
    if not words:
        words = [f"rank {rank} ended with exit code {ended.codes[rank]}" for rank in failed]
    return ", ".join(words)


def _name(step: int) -> str:
    return f"step {step}" if step >= 0 else "none: from the beginning"
