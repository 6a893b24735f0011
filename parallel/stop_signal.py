"""How a run is asked to stop."""

from __future__ import annotations

import signal


class StopSignal:
    """SIGTERM or SIGINT asks for a save at the end of the step; a second one ends at once."""

    def __init__(self) -> None:
        self.requested = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: object) -> None:
        if self.requested:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.requested = True
