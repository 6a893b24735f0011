"""The table of results: a row a kind."""

from __future__ import annotations

from collections.abc import Sequence

from scripts.faults.trial import Result

HEAD = "| fault | how many | survived | where | ends after (s) | computed again | largest difference |\n|---|---|---|---|---|---|---|"


def table(results: Sequence[Result]) -> str:
    rows = []
    for kind in sorted({result.kind for result in results}):
        mine = [result for result in results if result.kind == kind]
        good = [result for result in mine if not result.wrong]
        phases = ", ".join(sorted({result.phase for result in mine}))
        again = ", ".join(_again(good))
        ended = f"{min(r.ended_s for r in good):.0f} to {max(r.ended_s for r in good):.0f}" if good else ""
        worst = f"{max(r.difference for r in good):.0e}" if any(r.difference for r in good) else "0" if good else ""
        rows.append(f"| {kind} | {len(mine)} | {len(good)} | {phases} | {ended} | {again} | {worst} |")
    return "\n".join([HEAD, *rows])


def _again(good: Sequence[Result]) -> list[str]:
    """What the same command had to do: nothing where the disturbed one went on, all of it, or the steps since a checkpoint."""
    words = ["nothing"] if any(result.code == 0 for result in good) else []
    ended = [result for result in good if result.code != 0]
    words += ["all steps"] if any(not result.step for result in ended) else []
    lost = [max(0, result.step - 1 - result.resumed) for result in ended if result.step]
    return words + ([f"at most {max(lost)} steps" if max(lost) else "no step"] if lost else [])


def summary(results: Sequence[Result]) -> str:
    bad = [result for result in results if result.wrong]
    lines = [f"{len(results) - len(bad)} of {len(results)} faults were survived"]
    if results:
        slowest = max(results, key=lambda result: result.ended_s)
        lines.append(f"the longest end: {slowest.ended_s:.0f} s ({slowest.kind}, {slowest.phase})")
        lines.append(f"{sum(result.seconds for result in results) / len(results):.0f} s a fault")
    lines += [f"fault {r.number} ({r.kind}, {r.phase} of step {r.step}, rank {r.rank}): {r.wrong}" for r in bad]
    return "\n".join(lines)
