"""Which parameters a run tunes."""

from __future__ import annotations

import fnmatch

from torch import nn


def freeze(module: nn.Module, patterns: tuple[str, ...]) -> int:
    """Lock the parameters whose names match a pattern (`tower.*`, `*.router.*`); returns how many tensors.

    Raises ValueError for a pattern that matches nothing.
    """
    named = dict(module.named_parameters())
    locked: set[str] = set()
    for pattern in patterns:
        matching = fnmatch.filter(named, pattern)
        if not matching:
            parts = sorted({".".join(name.split(".")[:2]) for name in named})
            raise ValueError(f"optimizer.frozen={pattern!r} matches no parameter; there are {', '.join(parts)}")
        locked.update(matching)
    for name in locked:
        named[name].requires_grad_(False)
    return len(locked)
