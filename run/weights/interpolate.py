"""Weights between a run and what was tuned from it (WiSE-FT, arXiv 2109.01903), as a run of its own.

python -m run.weights.interpolate --base runs/real_small --tuned runs/flowers --share 0.5 --out runs/flowers_half

Each weight is (1 - share) base + share tuned, and low-rank updates are scaled by the share; prompts and heads, and what init_only left to
begin fresh, are the tuned run's, also where the base has its own.
The base's weights are those of the checkpoint that tuning began at, which must still be there. Averages over the training are taken where
a run has them. The result is evaluated, used, exported and tuned as any run, but cannot be trained on.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import stat
import sys
from collections.abc import Collection, Iterator

import torch
from tqdm import tqdm

from model.exchange.export.writing import new_folder
from model.tuning.warm_start import ALWAYS_NEW, check_same_use, dense_name
from parallel.checkpoints import Checkpoint, CheckpointError, Fragment, find_checkpoint, save, write_atomically
from parallel.placement import Placement
from run.command_line import checkpoint_step
from run.config import RUN_NAME, RUN_NAME_RULE, RunConfig
from run.config_file import CONFIG, dump_config
from run.errors import EXIT_USER, USER_ERRORS, ConfigError
from run.folder import infos_of, read_run, write_data_sets, write_vocabulary
from run.places import expanded, with_absolute
from run.streams import keep_printing, print_result
from run.weights.began import beginning_in
from run.weights.best import chosen_step


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="folder of the run that tuning started from")
    parser.add_argument("--tuned", required=True, help="folder of the tuned run")
    parser.add_argument("--share", type=_share, default=0.5, help="of the tuned weights, 0 to 1 (default: 0.5)")
    parser.add_argument("--out", required=True, help="folder of the new run, which must not be there yet")
    parser.add_argument(
        "--step", type=checkpoint_step, help="checkpoint of the tuned run, or `best`; default: the newest"
    )
    return parser.parse_args(argv)


def _share(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} does not lie between 0 and 1")
    return number


def interpolate(arguments: argparse.Namespace) -> str:
    """Returns lines for people. Raises ConfigError, CheckpointError."""
    base_folder, tuned_folder, out = (expanded(place) for place in (arguments.base, arguments.tuned, arguments.out))
    if out.exists():
        raise ConfigError(f"--out {out} is there already: choose another place, or remove it")
    if not RUN_NAME.fullmatch(out.name):
        raise ConfigError(f"--out {out}: {out.name!r} names no run: {RUN_NAME_RULE}")
    (base_run, base_vocabulary), (run, vocabulary) = read_run(base_folder), read_run(tuned_folder)
    if base_vocabulary.clip_ids != vocabulary.clip_ids:
        raise ConfigError(f"{tuned_folder} has another vocabulary than {base_folder}: tune with data.vocabulary=init")
    tuned = find_checkpoint(tuned_folder / "checkpoints", chosen_step(tuned_folder, arguments.step))
    base, only, note = beginning_in(base_folder, tuned_folder, run, tuned)
    common = sorted(name for name in base.names & tuned.names if _was_taken(name, only))
    if not common:
        raise ConfigError(f"{tuned_folder} and {base_folder} have no weight in common: they are different networks")
    for name in common:
        if base.shape(name) != tuned.shape(name):
            raise CheckpointError(
                f"{name} is {base.shape(name)} in {base_folder}, {tuned.shape(name)} in {tuned_folder}"
            )
    copied = sorted(name for name in tuned.names - base.names if dense_name(name) in base.names)
    if copied and only == ("*",):
        raise ConfigError(
            f"{tuned_folder} has experts where {base_folder} is dense ({copied[0]}): their weights cannot be taken apart"
        )
    check_same_use(base, base_run.model, run.model, common)
    _check_updates(base, tuned, common)
    _check_differ(base, tuned, common)
    data = dataclasses.replace(run.data, vocabulary="restricted") if run.data.vocabulary == "init" else run.data
    begins = {name: getattr(RunConfig, name) for name in ("init", "init_step", "init_only")}  # nowhere
    made = dataclasses.replace(run, name=out.name, runs=str(out.parent), data=data, **begins)
    mode = stat.S_IMODE((tuned_folder / CONFIG).stat().st_mode)  # addresses of data may hold passwords
    with new_folder(out, False, lambda _: False) as unfinished:
        write_atomically(unfinished / CONFIG, dump_config(with_absolute(made)), mode)
        write_vocabulary(unfinished, vocabulary)
        write_data_sets(unfinished, infos_of(tuned_folder, run))
        save(unfinished / "checkpoints", tuned.step, _between(base, tuned, common, arguments.share), {})
    own = len(tuned.names) - len(common)
    told = f"{out}: {len(common)} tensors between the two, {own} of the tuned run alone, step {tuned.step}"
    return f"{note}\n{told}" if note else told


def _check_updates(base: Checkpoint, tuned: Checkpoint, names: Collection[str]) -> None:
    """Raises ConfigError where both have low-rank updates: what counts is the product of two factors, and a product of factors between the
    two is not between the products."""
    for name in fnmatch.filter(names, "*.lora.*"):
        if not torch.equal(base.logical(name), tuned.logical(name)):
            raise ConfigError(
                f"{tuned.folder} trained the low-rank updates of {base.folder} further ({name}), and between factors there is no weight "
                "between products: export the base, which merges its updates (python -m model.exchange.export), and tune from that"
            )


def _check_differ(base: Checkpoint, tuned: Checkpoint, names: Collection[str]) -> None:
    """Raises ConfigError where the tuned run has trained nothing that the base has, and no update of it: a head or prompts alone."""
    if any(name.endswith(".lora.up") for name in tuned.names):
        return
    if not any(not torch.equal(base.logical(name), tuned.logical(name)) for name in names):
        own = ", ".join(sorted(tuned.names - set(names))[:3])
        raise ConfigError(
            f"{tuned.folder} and {base.folder} have the same weights but for what one of them has alone ({own}): between them there is "
            "nothing; tune weights of the base (optimizer.tune=all), or use the tuned run as it is"
        )


def _was_taken(name: str, only: tuple[str, ...]) -> bool:
    """From the base. Prompts, biases of <SPE> and heads began fresh: between two tasks' there is nothing."""
    of_task = any(fnmatch.fnmatchcase(name, pattern) for pattern in ALWAYS_NEW)
    if only == ("*",):
        return not of_task
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in only)


def _between(base: Checkpoint, tuned: Checkpoint, common: Collection[str], share: float) -> Iterator[Fragment]:
    for name in tqdm(sorted(tuned.names), desc="weights", unit="tensor", disable=not sys.stderr.isatty()):
        weight = tuned.logical(name)
        if name in common:
            weight = base.logical(name).lerp_(weight, share)
        elif name.endswith(".lora.up"):  # an update that the base does not have
            weight = share * weight
        yield Fragment(name, Placement(tuple(weight.shape)), 0, True, {"weight": weight.view(-1)})


def main(argv: list[str] | None = None) -> int:
    try:
        print_result(interpolate(parse_arguments(sys.argv[1:] if argv is None else argv)))
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER
    return 0


if __name__ == "__main__":
    keep_printing()
    sys.exit(main())
