"""What every way to bytes answers, and the two ways in which it fails."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator


class FetchError(Exception):
    """It cannot be had: asking again is of no use, or was not. One line without credentials."""


class TransientError(FetchError):
    """It may work the next time. wait_s: what the server asks for."""

    def __init__(self, message: str, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class ChangedError(TransientError):
    """The part that has come is of no use: the whole must be asked for."""


def may_pass(error: BaseException | None) -> bool:
    """Is a TransientError the cause of it?"""
    while error is not None and not isinstance(error, TransientError):
        error = error.__cause__
    return error is not None


@dataclasses.dataclass(frozen=True)
class Reply:
    """start      where the chunks begin: the offset that was asked for, or 0
    total      length of the whole in bytes, None if not told
    validator  what tells this version from others, None if nothing does: then a part of it cannot be continued
    """

    start: int
    total: int | None
    validator: str | None
    chunks: Iterator[bytes]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FetchOptions:
    """attempts       in a row without progress, then it is given up
    connect_s      for a connection
    stall_s        without a byte; and in such a time at least `min_bytes_per_s` must come on average
    backoff_s      pause after the first failure, doubled each time up to `max_backoff_s`, times a random half to whole
    """

    attempts: int = 8
    connect_s: float = 10.0
    stall_s: float = 30.0
    min_bytes_per_s: int = 1024
    backoff_s: float = 0.5
    max_backoff_s: float = 30.0

    @property
    def patience_s(self) -> float:
        """The longest that a download can stand still before it is given up."""
        return self.attempts * (self.connect_s + 2 * self.stall_s + self.max_backoff_s)
