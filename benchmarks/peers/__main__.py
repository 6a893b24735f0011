"""Forward pass, backward pass and AdamW of other people's code and of ours on the same batches, in turn, in one process.

`python -m benchmarks.peers --uni-perceiver FOLDER --open-clip` prints one table; benchmarks/peers.md says what to install and what is
compared. Times of different runs do not compare, ratios do: theirs / ours, the median over rounds and its range; above 1 ours is faster.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.peers import clip, uni_perceiver
from benchmarks.peers.batches import VOCABULARY, Sizes, task_batches
from benchmarks.peers.uni_perceiver import PeerError
from model.config import ModelConfig
from model.exchange.public import TEMPERATURES, load_logical, to_ours
from model.initialise import initialise
from model.moe.config import ExpertConfig
from model.noise import derive
from model.objective import Objective
from parallel.kernels import load_kernels
from parallel.mesh import Mesh
from parallel.precision import computing, dtype_of

CLOSE = 1e-3
"""How far losses of the same weights and batch may differ."""


@dataclasses.dataclass(frozen=True)
class Side:
    """One code with its batch; loss: a forward pass, given the number of the step; precision: of products."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[int], Tensor]
    precision: torch.dtype = torch.float32

    def step(self, number: int) -> tuple[float, float]:
        """-> seconds of (forward and backward, the whole step). With one thread those of the processor: waiting for a core that other
        work has does not count."""
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        start = clock()
        self.optimizer.zero_grad()
        with computing("cpu", self.precision):
            loss = self.loss(number)
        loss.backward()
        middle = clock()
        self.optimizer.step()
        return middle - start, clock() - start


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    theirs: Side
    ours: Side

    def with_products_in(self, theirs: torch.dtype, ours: torch.dtype) -> Case:
        return Case(
            self.name,
            dataclasses.replace(self.theirs, precision=theirs),
            dataclasses.replace(self.ours, precision=ours),
        )

    def row(self, rounds: int) -> str:
        """Who begins takes turns, too."""
        seconds: dict[str, list[tuple[float, float]]] = {"theirs": [], "ours": []}
        sides = [("theirs", self.theirs), ("ours", self.ours)]
        for number in range(rounds + 1):  # the first warms up
            for who, side in sides if number % 2 else reversed(sides):
                taken = side.step(number)
                if number:
                    seconds[who].append(taken)
        columns = [f"{self.name:<34}"]
        for part in (0, 1):
            theirs, ours = ([taken[part] for taken in seconds[who]] for who in ("theirs", "ours"))
            ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
            columns.append(
                f"{1000 * statistics.median(theirs):>9.0f}{1000 * statistics.median(ours):>8.0f}"
                f"{statistics.median(ratios):>7.2f}{min(ratios):>7.2f} -{max(ratios):>5.2f}"
            )
        return "".join(columns)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    """The same for both."""
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)


def uni_perceiver_cases(folder: Path, sizes: Sizes) -> Iterator[Case]:
    """Both start with the same weights, and without noise must find the same loss."""
    batches = task_batches(sizes)
    for experts in (True, False):
        theirs = uni_perceiver.load(folder, sizes, experts, {task: b.temperature for task, b in batches.items()})
        ours = objective_like(sizes, experts)
        spread(theirs)
        load_logical(ours, to_ours(dict(theirs.state_dict()), heads=sizes.heads))
        same = [p for p in theirs.parameters() if p.requires_grad]
        kind = "MoE" if experts else "dense"
        print(f"{kind}: {sum(map(torch.numel, same)):,} parameters theirs, {count(ours):,} ours", flush=True)
        optimizers = adam(theirs), adam(ours)
        theirs_batches = {task: uni_perceiver.batch_of(batch, task, sizes.patch) for task, batch in batches.items()}
        for task, public in theirs_batches.items():
            with uni_perceiver.without_noise(theirs), torch.no_grad():
                losses = uni_perceiver.loss_of(theirs, public).item(), ours(batches[task]).total.item()
            if abs(losses[0] - losses[1]) > CLOSE:
                raise PeerError(
                    f"{kind}, {task}: their loss is {losses[0]:.4f}, ours {losses[1]:.4f}: not the same work"
                )
        for task, public in theirs_batches.items():
            yield Case(
                f"Uni-Perceiver {kind}, {task}",
                Side(theirs, optimizers[0], lambda _, m=theirs, b=public: uni_perceiver.loss_of(m, b)),  # type: ignore[misc]
                Side(ours, optimizers[1], lambda n, m=ours, b=batches[task]: m(b, derive(0, n)).total),  # type: ignore[misc]
            )


def objective_like(sizes: Sizes, experts: bool) -> Objective:
    config = ModelConfig(
        width=sizes.width,
        depth=sizes.depth,
        heads=sizes.heads,
        ffn=sizes.ffn,
        image_size=sizes.image,
        patch=sizes.patch,
        max_text=sizes.text,
        max_frames=1,
        layer_scale=1e-3,
        drop_path=0.1,
        temperatures=tuple(TEMPERATURES.values()),
        tasks=("one",),
        experts=ExpertConfig(placement="odd" if experts else "none"),
    )
    objective = Objective(config, VOCABULARY, Mesh(), load_kernels("torch"))
    initialise(objective, 0)
    return objective


@torch.no_grad()
def spread(model: nn.Module) -> None:
    """Away from fresh weights, at which every loss is the logarithm of the candidates' number."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.05 * torch.randn_like(parameter)


def open_clip_cases(rows: int) -> Iterator[Case]:
    theirs, ours = clip.load(), Objective(clip.OURS, clip.WORDS + 1, Mesh(), load_kernels("torch"))
    initialise(ours, 0)
    print(f"ViT-B/32: {count(theirs):,} parameters theirs, {count(ours):,} ours", flush=True)
    optimizers = adam(theirs), adam(ours)
    for name, own_length in (("texts of 77", False), ("texts at their length", True)):
        batch = clip.pairs(rows, own_length)
        padded = clip.padded(batch)
        yield Case(
            f"open_clip ViT-B/32, {name}",
            Side(theirs, optimizers[0], lambda _, x=padded: clip.loss_of(theirs, *x)),  # type: ignore[misc]
            Side(ours, optimizers[1], lambda n, b=batch: ours(b, derive(0, n)).total),  # type: ignore[misc]
        )


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uni-perceiver", type=Path, help="folder with a clone of the public code")
    parser.add_argument("--open-clip", action="store_true", help="open_clip's ViT-B/32 beside ours")
    parser.add_argument("--packages", type=Path, help="folder with packages that only they need (pip install --target)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clip-rows", type=int, default=16)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of our products")
    parser.add_argument("--their-precision", choices=("fp32", "bf16"), default="fp32", help="by autocast")
    for field in dataclasses.fields(Sizes):
        parser.add_argument(f"--{field.name}", type=int, default=field.default)
    options = parser.parse_args(argv)
    if not options.uni_perceiver and not options.open_clip:
        parser.error("nothing to compare with: give --uni-perceiver FOLDER, --open-clip, or both")
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    if options.packages:
        sys.path.append(str(options.packages))
    sizes = Sizes(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Sizes)})
    title = f"{'':<34}{'forward + backward':>38}{'whole step':>38}\n"
    columns = f"{'theirs ms':>9}{'ours':>8}{'ratio':>7}{'from - to':>14}"
    print(f"{title}{'':<34}{columns}{columns}", flush=True)
    precisions = dtype_of(options.their_precision, "cpu"), dtype_of(options.precision, "cpu")
    try:
        if options.uni_perceiver:
            for case in uni_perceiver_cases(options.uni_perceiver, sizes):
                print(case.with_products_in(*precisions).row(options.rounds), flush=True)
        if options.open_clip:
            for case in open_clip_cases(options.clip_rows):
                print(case.with_products_in(*precisions).row(options.rounds), flush=True)
    except PeerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
