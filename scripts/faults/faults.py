"""What is drawn: a kind, a place in the run, a rank. The same seed and number give the same fault."""

from __future__ import annotations

import dataclasses
import random

STEPS, SAVE_EVERY, EVALUATE_EVERY = 12, 3, 4
RANKS = 2
INSIDE = ("start", "data", "forward", "evaluate", "save")
RUNNING = INSIDE[1:]
PHASES: dict[str, tuple[str, ...]] = {
    "kill one rank": INSIDE,
    "kill all ranks": INSIDE,
    "kill one rank, supervisor restarts": INSIDE,
    "kill the supervisor": INSIDE,
    "kill a data worker": ("data", "forward"),
    "terminate one rank": RUNNING,
    "terminate all ranks": INSIDE,
    "terminate the supervisor": INSIDE,
    "stop one rank": INSIDE,
    "full disk": RUNNING,
    "frozen disk": ("save",),
    "slow disk": ("save",),
    "store answers 503": ("start",),
    "store dies": ("start",),
    "store is silent": ("start",),
    "cut cable": RUNNING,
    "cable drops packets": RUNNING,
    "clock forward": RUNNING,
    "clock back": RUNNING,
    "address space ends": RUNNING,
    "out of memory": RUNNING,
}
"""Where each kind may strike."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """step: counted as the progress line does; delay_s: after the place is reached, or in `start` the share of the start's time."""

    number: int
    kind: str
    phase: str
    step: int
    rank: int
    delay_s: float
    save_async: bool


def draw(seed: int, number: int, kinds: tuple[str, ...] = tuple(PHASES)) -> Fault:
    """Kinds come in shuffled rounds, so that each is there equally often."""
    block, place = divmod(number, len(kinds))
    order = list(kinds)
    random.Random(f"order {seed} {block}").shuffle(order)
    kind, generator = order[place], random.Random(f"fault {seed} {number}")
    phase = generator.choice(PHASES[kind])
    every = {"save": SAVE_EVERY, "evaluate": EVALUATE_EVERY}.get(phase, 1)
    step = generator.choice([step for step in range(2, STEPS - 1) if step % every == 0])
    return Fault(
        number=number,
        kind=kind,
        phase=phase,
        step=0 if phase == "start" else step,
        rank=generator.randrange(RANKS),
        delay_s=round(generator.uniform(0.0, 1.0 if phase == "start" else 0.05), 3),
        save_async=generator.random() < 0.5,
    )
