"""What a pass would cost the host of a GPU, counted on a CPU: operators that launch kernels, and places where the host waits."""

from __future__ import annotations

import collections
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

NO_KERNEL = {
    "view", "_unsafe_view", "t", "transpose", "permute", "expand", "slice", "select", "unbind", "split", "split_with_sizes",
    "unsqueeze", "squeeze", "as_strided", "detach", "alias", "_reshape_alias", "view_as", "unfold", "diagonal",
    "empty", "new_empty", "empty_like", "empty_strided",
}  # fmt: skip
"""Operators that make views, or memory that nothing is written to."""
READ = {
    Tensor.tolist: "tolist", Tensor.item: "item", Tensor.__bool__: "bool", Tensor.__int__: "int", Tensor.__float__: "float",
    Tensor.__index__: "index", Tensor.nonzero: "nonzero", torch.nonzero: "nonzero", Tensor.cpu: "cpu", Tensor.numpy: "numpy",
    Tensor.bincount: "bincount", torch.bincount: "bincount", torch.masked_select: "masked_select",
    Tensor.masked_select: "masked_select",
}  # fmt: skip
"""What needs a value or a size that only the device knows."""


class Launches(TorchDispatchMode):
    """launches: operators that launch a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: collections.Counter[str] = collections.Counter()

    @property
    def launches(self) -> int:
        return sum(self.seen.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        if name not in NO_KERNEL:
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


class Waits(TorchFunctionMode):
    """Kinds of places where the host would wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: collections.Counter[str] = collections.Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        kind = READ.get(func, "")
        if func is torch.tensor:
            kind = "a tensor of numbers of the host"
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(part, Tensor) and part.dtype == torch.bool for part in index):
                kind = "index by a mask"
            if any(isinstance(part, list) for part in index):
                kind = "index by numbers of the host"
        repeats = args[1] if len(args) > 1 else kwargs.get("repeats")
        if func in (Tensor.repeat_interleave, torch.repeat_interleave) and isinstance(repeats, Tensor):
            kind = "" if kwargs.get("output_size") is not None else "repeat_interleave"
        if kind:
            self.seen[kind] += 1
        return func(*args, **kwargs)
