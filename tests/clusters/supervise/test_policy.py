"""What follows the end of a start."""

from __future__ import annotations

import pytest

from clusters.ranks import Ended
from clusters.supervise.policy import Decision, Limits, State, decide

LIMITS = Limits(ranks=4, attempts=3, restarts=5, return_after_s=600.0)
RUNNING = State(ranks=4, step=10)


def after(state: State, *codes: int, step: int = 10, hung: frozenset[int] = frozenset(), **asked: bool) -> Decision:
    """Of four micro-batches, 4, 2 and 1 ranks fit."""
    return decide(state, Ended(codes, hung), step, LIMITS, lambda most: {4: 4, 3: 2, 2: 2, 1: 1}[most], **asked)


@pytest.mark.parametrize(
    ("codes", "asked", "code"),
    [
        ((0, 0, 0, 0), {}, 0),
        ((2, 2, 2, 2), {}, 2),
        ((1, 2, 1, 1), {}, 2),  # one rank's error of the configuration; the others only saw it leave
        ((85, 85, 85, 85), {"stopped": True}, 85),
        ((85, 85, 85, 85), {}, 85),  # the ranks were signalled, not the supervisor
        ((0, 0, 0, 0), {"stopped": True}, 0),  # the signal came at the end
        ((-15, -15, -15, -15), {"stopped": True}, 85),  # before the program could listen
        ((1, -9, 1, 1), {"stopped": True}, 1),
        ((85, 85, 85, 85), {"stopped": True, "returning": True}, 85),
    ],
)
def test_what_ends_a_run(codes, asked, code):
    assert after(RUNNING, *codes, **asked).code == code


@pytest.mark.parametrize(
    ("codes", "hung", "ranks"),
    [
        ((1, 1, 1, -9), (), 2),  # three do not divide four micro-batches
        ((1, -9, -9, 1), (), 2),
        ((1, -11, -9, -9), (), 1),
        ((-9, -9, -9, -9), (), 4),  # nothing says which is missing
        ((1, 1, 1, 1), (), 4),  # an error of the program
        ((1, 1, 1, -9), (3,), 2),  # it hung and was killed by the supervisor
        ((-9, -9, -9, -9), (0, 1, 2), 2),  # rank 3 was killed, the others waited for it
    ],
)
def test_how_many_go_on(codes, hung, ranks):
    decision = after(RUNNING, *codes, hung=frozenset(hung))
    assert decision.code is None and decision.state.ranks == ranks


def test_failures_without_a_new_checkpoint_are_given_up_and_progress_counts_anew():
    state = RUNNING
    for step, failures in ((10, 1), (10, 2), (15, 1), (15, 2)):
        decision = after(state, 1, 1, 1, 1, step=step)
        assert decision.code is None and decision.state.failures == failures
        state = decision.state
    decision = after(state, 1, 1, 1, 1, step=15)
    assert decision.code == 1
    assert decision.reason.startswith(
        "given up: failed 3 times without a new checkpoint (the newest is step 15): rank 0 ended"
    )


def test_a_checkpoint_behind_a_damaged_one_is_progress():
    """Step 10 was damaged, the run went on from 5 and saved 7."""
    state = after(RUNNING, 1, 1, 1, 1, step=10).state
    assert state.failures == 1 and after(state, 1, 1, 1, 1, step=7).state.failures == 1


def test_restarts_are_counted_in_all():
    state = RUNNING
    for step in range(11, 16):
        state = after(state, 1, 1, 1, 1, step=step).state
    assert state.restarts == 5 and after(state, 1, 1, 1, 1, step=16).reason.startswith("given up after 5 restarts")


def test_all_are_tried_again_and_later_where_that_fails():
    fewer = after(RUNNING, 1, 1, 1, -9).state
    assert (fewer.ranks, fewer.return_after_s) == (2, 0.0)
    back = after(fewer, 85, 85, step=20, returning=True)
    assert back.code is None and back.state.ranks == 4 and back.state.failures == 0
    lost_at_once = after(back.state, 1, 1, 1, -9, step=20).state
    assert (lost_at_once.ranks, lost_at_once.return_after_s) == (2, 1200.0)
    lost_later = after(back.state, 1, 1, 1, -9, step=25).state
    assert (lost_later.ranks, lost_later.return_after_s) == (2, 0.0)


def test_the_reason_names_rank_and_signal():
    assert after(RUNNING, 1, 1, 1, -9).reason == "rank 3 ended by SIGKILL; going on from step 10 with 2 of 4 ranks"
    assert "rank 1 did not answer" in after(RUNNING, 1, -9, 1, 1, hung=frozenset({1})).reason
    assert (
        "rank 2 ended with exit code 7; going on from none: from the beginning"
        in after(State(4, -1), 0, 0, 7, 0, step=-1).reason
    )
