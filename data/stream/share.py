"""Which part of the samples a rank reads."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Share:
    """Part `index` of `count`: all that the data side knows about ranks."""

    index: int = 0
    count: int = 1
