"""A trained run as a folder that stands alone: plain torch for transformers, or open_clip's layout; ONNX graphs beside it.

  python -m model.exchange.export --run runs/demo --out outputs/demo
  python -m model.exchange.export --run runs/demo --out outputs/shapes --task shapes     experts merged for a task
  python -m model.exchange.export --run runs/demo --out outputs/images --modality image  ... for features of one modality
  python -m model.exchange.export --run runs/demo --out outputs/demo_onnx --onnx         and graphs of both encoders
  python -m model.exchange.export --run runs/clip --out outputs/clip --format open_clip  two-tower models

Tensors are read and written one at a time, on the CPU, from a checkpoint of any layout. Exit codes: 0 done, 2 the run or the arguments
cannot be used.
"""

from __future__ import annotations

import argparse
import math
import sys

from data.batch import Modality
from model.exchange.export import open_clip
from model.exchange.export.card import card, results_of, use_of
from model.exchange.export.errors import ExportError
from model.exchange.export.folder import is_export
from model.exchange.export.from_run import (
    CheckpointTensors,
    exported_kind,
    medium_of,
    rows_of_data,
    scale_of_pairs,
    settings_of,
    text_length,
    write_network,
    write_processor,
)
from model.exchange.export.merging import Merging, entries, merging_of_modality, merging_of_task
from model.exchange.export.writing import new_folder, write_weights
from parallel.checkpoints import find_checkpoint
from run.command_line import checkpoint_step, positive
from run.config import RunConfig
from run.errors import EXIT_USER, USER_ERRORS
from run.folder import infos_of, read_run
from run.places import expanded
from run.streams import print_result
from run.weights.best import chosen_step

MEDIA = {"image": (Modality.IMAGE,), "video": (Modality.VIDEO,), "text": (), "": (Modality.IMAGE, Modality.VIDEO)}
"""Which pictures a task has been trained on; of data that is not there both."""


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m model.exchange.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", required=True, help="run folder, for instance runs/demo")
    parser.add_argument("--out", required=True, help="folder to make")
    parser.add_argument(
        "--step",
        type=checkpoint_step,
        help="checkpoint to use, or `best` (evaluate.keep_best); default: the newest complete one",
    )
    parser.add_argument(
        "--task", default="", help="merge the experts for this task of the run, which alone can be asked then"
    )
    parser.add_argument("--modality", choices=["image", "video", "text"], help="merge the experts for its features")
    parser.add_argument("--format", choices=["transformers", "open_clip"], default="transformers")
    parser.add_argument("--onnx", action="store_true", help="graphs of the encoders besides, for torch.export and ONNX")
    parser.add_argument("--int8", action="store_true", help="with --onnx: graphs with weights of 8 bits besides")
    parser.add_argument("--license", default="", help="of the weights, as an SPDX name, for the model card")
    parser.add_argument("--max-shard-mib", type=positive, default=4768, help="of a weights file (default: 4768, 5 GB)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in --out")
    arguments = parser.parse_args(argv)
    if arguments.task and arguments.modality:
        parser.error("--task and --modality: give one of them")
    if arguments.int8 and not arguments.onnx:
        parser.error("--int8 goes with --onnx")
    if arguments.format == "open_clip" and (arguments.task or arguments.modality or arguments.onnx):
        parser.error("--format open_clip goes without --task, --modality and --onnx")
    return arguments


def export(arguments: argparse.Namespace, command: list[str]) -> None:
    """Raises one of USER_ERRORS."""
    folder, out = expanded(arguments.run), expanded(arguments.out)
    run, vocabulary = read_run(folder)
    infos = infos_of(folder, run)
    merging = _merging(run, arguments, medium_of(infos.get(arguments.task)))
    with new_folder(out, arguments.overwrite, lambda old: is_export(old) or open_clip.is_export(old)) as unfinished:
        checkpoint = find_checkpoint(folder / "checkpoints", chosen_step(folder, arguments.step))
        tensors = CheckpointTensors(checkpoint, run.model)
        settings = settings_of(run, vocabulary, infos, tensors.shapes, merging, arguments.task, checkpoint.step)
        if arguments.onnx:
            from model.exchange.export.graphs import check  # imports transformers where that is installed

            check(settings)
        write_processor(unfinished, run, vocabulary)
        if arguments.format == "open_clip":
            temperature = scale_of_pairs(run)
            written = open_clip.entries(tensors, run.model, vocabulary.spe, temperature)
            open_clip.write_texts(unfinished, run.model, vocabulary.spe, text_length(run), temperature)
            size = write_weights(unfinished, written, single=open_clip.WEIGHTS)
        else:
            written = list(entries(tensors, run.model, merging))
            write_network(unfinished, settings)
            size = write_weights(unfinished, written, arguments.max_shard_mib << 20)
        numbers = sum(math.prod(entry.shape) for entry in written)
        (unfinished / "README.md").write_text(
            card(
                run.name,
                settings,
                rows_of_data(run, infos),
                results_of(folder, checkpoint.step),
                numbers,
                checkpoint.step,
                arguments.license,
                command,
                open_clip.USE
                if arguments.format == "open_clip"
                else use_of(out.name, settings, arguments.modality or ""),
            ),
            encoding="utf-8",
        )
        if arguments.onnx:
            from model.exchange.export.graphs import write_graphs

            for line in write_graphs(unfinished, arguments.int8):
                print_result(line)
    print_result(f"{out}: {len(written)} tensors, {numbers:,} numbers, {size / 1e6:,.1f} MB, step {checkpoint.step}")


def _merging(run: RunConfig, arguments: argparse.Namespace, medium: str) -> Merging | None:
    """Raises ExportError."""
    if arguments.modality:
        return merging_of_modality(run.model, Modality[arguments.modality.upper()])
    if not arguments.task:
        return None
    tasks = {task.name: task for task in run.data.tasks}
    if arguments.task not in tasks:
        raise ExportError(f"--task {arguments.task}: the run's tasks are {', '.join(tasks)}")
    task = tasks[arguments.task]
    kind = exported_kind(task)
    if task.answer == "generate" and kind != "captioning":
        raise ExportError(
            f"--task {task.name}: exports do not write answers to texts (kind {kind}, answer: generate): leave it out to keep the experts"
        )
    return merging_of_task(run.model, task.name, kind, MEDIA[medium])


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    try:
        export(parse_arguments(words), ["python", "-m", "model.exchange.export", *words])
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER
    return 0


if __name__ == "__main__":
    sys.exit(main())
