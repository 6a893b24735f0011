"""What a pass would cost the host of a GPU, counted on a CPU: operators that launch kernels, and places where the host waits."""

from __future__ import annotations

import collections
import contextlib
import functools
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

NO_KERNEL = {
    "view", "_unsafe_view", "t", "transpose", "permute", "expand", "slice", "select", "unbind", "split", "split_with_sizes",
    "unsqueeze", "squeeze", "as_strided", "detach", "alias", "_reshape_alias", "view_as", "unfold", "diagonal",
    "empty", "new_empty", "empty_like", "empty_strided",
}  # fmt: skip
"""Operators that make views, or memory that nothing is written to."""
READ = {
    (Tensor, "tolist"), (Tensor, "item"), (Tensor, "__bool__"), (Tensor, "__int__"), (Tensor, "__float__"), (Tensor, "__index__"),
    (Tensor, "nonzero"), (torch, "nonzero"), (Tensor, "cpu"), (Tensor, "numpy"), (Tensor, "bincount"), (torch, "bincount"),
    (Tensor, "masked_select"), (torch, "masked_select"), (Tensor, "argwhere"), (torch, "argwhere"), (Tensor, "equal"), (torch, "equal"),
    (Tensor, "allclose"), (torch, "allclose"), (Tensor, "unique"), (torch, "unique"), (torch, "unique_consecutive"),
}  # fmt: skip
"""What needs a value or a size that only the device knows."""
SOMETIMES = {
    (torch, "tensor"), (Tensor, "new_tensor"), (Tensor, "__getitem__"), (Tensor, "__setitem__"), (Tensor, "repeat_interleave"),
    (torch, "repeat_interleave"), (torch, "as_tensor"), (torch, "where"),
}  # fmt: skip
"""What may wait, by what it is given."""


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


class Waits(contextlib.ExitStack):
    """seen: kinds of places where the host would wait for a device. In the backward pass, too, where no mode of torch's functions is
    active: so the functions themselves are replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: collections.Counter[str] = collections.Counter()

    def __enter__(self) -> Waits:
        super().__enter__()
        for owner, name in READ | SOMETIMES:
            counted = self._counted(name, getattr(owner, name))
            self.enter_context(mock.patch.object(owner, name, counted))
        return self

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            kind = _kind(name, args, kwargs)
            if kind:
                self.seen[kind] += 1
            return function(*args, **kwargs)

        return call


def _kind(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Of a wait; empty where there is none."""
    if name == "tensor":
        return "a tensor of numbers of the host"
    if name == "as_tensor":
        return "" if isinstance(args[0], Tensor) else "a tensor of numbers of the host"
    if name == "where":
        return "where" if len(args) == 1 and not kwargs else ""
    if name in ("__getitem__", "__setitem__"):
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        if any(isinstance(part, Tensor) and part.dtype == torch.bool for part in index):
            return "index by a mask"
        return "index by numbers of the host" if any(isinstance(part, list) for part in index) else ""
    if name == "repeat_interleave":
        repeats = args[1] if len(args) > 1 else kwargs.get("repeats")
        return name if isinstance(repeats, Tensor) and kwargs.get("output_size") is None else ""
    return name.strip("_")
