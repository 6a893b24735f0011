"""What a check says."""

from __future__ import annotations

import dataclasses
from typing import Literal

Verdict = Literal["ok", "warning", "FAILED"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """needed: what should have been found, where that is not plain; remedy: what to do, where something is to be done."""

    name: str
    verdict: Verdict
    found: str
    needed: str = ""
    remedy: str = ""

    def line(self) -> str:
        text = f"{self.verdict:8}{self.name}: {self.found}"
        text += f" (needed: {self.needed})" if self.needed else ""
        text += f" -> {self.remedy}" if self.remedy else ""
        # Some of it may come from other machines: nothing of it may move the cursor.
        return "".join(sign if sign.isprintable() else " " for sign in text)

    def at(self, host: str) -> Finding:
        """The same, said of another machine."""
        return dataclasses.replace(self, name=f"{host}: {self.name}")


def ok(name: str, found: str, needed: str = "") -> Finding:
    return Finding(name, "ok", found, needed)


def warning(name: str, found: str, needed: str, remedy: str) -> Finding:
    return Finding(name, "warning", found, needed, remedy)


def failed(name: str, found: str, needed: str, remedy: str) -> Finding:
    return Finding(name, "FAILED", found, needed, remedy)


def least(name: str, value: float, enough: float, too_little: float, unit: str, remedy: str) -> Finding:
    """A number that should be at least `enough`; below `too_little` it fails."""
    found = f"{value:.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"
    if value >= enough:
        return ok(name, found)
    return (failed if value < too_little else warning)(name, found, f"{enough:,g} {unit}", remedy)
