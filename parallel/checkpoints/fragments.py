"""What a rank holds of the logical tensors, and the error of everything here."""

from __future__ import annotations

import dataclasses

from safetensors import SafetensorError
from torch import Tensor

from parallel.placement import Placement


class CheckpointError(Exception):
    """A checkpoint cannot be written, or is missing, damaged or of another model; the message names the part."""


UNREADABLE = (OSError, SafetensorError, RuntimeError)
"""What safe_open raises: RuntimeError where a file goes between its header and torch's map of it."""


@dataclasses.dataclass(frozen=True)
class Fragment:
    """A slice of one parameter's flattened local part; `tensors` are views [numel] by kind. Not `owned`: a copy of
    what another rank writes."""

    name: str
    placement: Placement
    start: int
    owned: bool
    tensors: dict[str, Tensor]

    @property
    def numel(self) -> int:
        return self.tensors["weight"].numel()
