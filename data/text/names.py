"""Class names as the model sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence


def alike(names: Iterable[str], tokens: Callable[[str], Sequence[int]]) -> Iterator[tuple[str, str]]:
    """Pairs (earlier, later) of names with the same tokens: both would be right, and one is scored as wrong."""
    first: dict[tuple[int, ...], str] = {}
    for name in names:
        key = tuple(tokens(name))
        if key in first:
            yield first[key], name
        else:
            first[key] = name
