"""Use a trained model on your files: name them, caption them, find them, fill in words.

  python predict.py classify --run runs/demo --classes "red circle" "blue star" --files pictures clip.mp4
  python predict.py caption  --run runs/demo --files 'pictures/*.jpg'
  python predict.py retrieve --run runs/demo --query "a red circle" --files pictures
  python predict.py embed    --run runs/demo --files pictures --out index.npz
  python predict.py retrieve --run runs/demo --query "a red circle" --index index.npz
  python predict.py fill     --run runs/demo --texts "the red ___ lies left of the star"
  python predict.py caption  --model outputs/demo --files pictures                          an exported run

Files are images, clips, folders of them, patterns, or shards (.tar). Answers go to standard output, a line each (--json: JSON lines); what
cannot be read is named on standard error, and the rest is done.

Exit codes: 0 done, 1 done but for files that could not be read, or failure, 2 the run or the arguments cannot be used.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from data.shards import DatasetError
from data.shards.files import replacing
from data.transport import NotText, text_of
from prediction import Medium, Predictor, load, load_export, media_of
from run.weights.best import chosen_step
from run.command_line import checkpoint_step, positive
from run.errors import EXIT_USER, USER_ERRORS
from run.places import expanded
from run.streams import print_result

EXIT_UNREADABLE = 1


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    files = argparse.ArgumentParser(add_help=False)
    files.add_argument("--files", nargs="+", default=[], metavar="PLACE", help="files, folders, patterns, shards")
    common = argparse.ArgumentParser(add_help=False)
    which = common.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", help="run folder, for instance runs/demo")
    which.add_argument("--model", help="in place of it, a folder of `python -m model.exchange.export`")
    common.add_argument(
        "--step",
        type=checkpoint_step,
        help="checkpoint to use, or `best` (evaluate.keep_best); default: the newest complete one",
    )
    common.add_argument("--task", default="", help="take the options of this task of the run")
    common.add_argument("--batch-size", type=positive, default=32)
    common.add_argument("--threads", type=positive, help="CPU threads (default: torch's choice)")
    common.add_argument("--json", action="store_true", help="JSON lines in place of text")

    classify = commands.add_parser("classify", parents=[common, files], help="which of these names fits best")
    classify.add_argument(
        "--classes",
        nargs="+",
        default=[],
        metavar="NAME",
        help="names, or @FILE with one per line (default: those of the task)",
    )
    classify.add_argument("--top", type=positive, default=3, help="so many names of each file (default: 3)")
    caption = commands.add_parser("caption", parents=[common, files], help="a sentence about each file")
    caption.add_argument("--beam", type=positive, default=2, help="hypotheses; 1 is greedy (default: 2)")
    retrieve = commands.add_parser("retrieve", parents=[common, files], help="the files that fit a text or a file best")
    retrieve.add_argument("--query", nargs="+", required=True, help="texts, or with --by-file images and clips")
    retrieve.add_argument("--by-file", action="store_true", help="queries are files")
    retrieve.add_argument("--index", type=Path, help="what `embed` wrote, in place of --files")
    retrieve.add_argument("--top", type=positive, default=5, help="so many files of each query (default: 5)")
    embed = commands.add_parser("embed", parents=[common, files], help="a vector of each file, as an index")
    embed.add_argument("--out", type=Path, required=True, help="index to write (.npz: names, vectors)")
    fill = commands.add_parser("fill", parents=[common], help="words in place of ___")
    fill.add_argument("--texts", nargs="+", required=True, metavar="TEXT")
    fill.add_argument("--top", type=positive, default=3, help="so many words of each gap (default: 3)")
    arguments = parser.parse_args(argv)
    if arguments.model and arguments.step is not None:
        parser.error("--step chooses among the checkpoints of a run: an export (--model) has one")
    if arguments.command == "retrieve" and bool(arguments.files) == bool(arguments.index):
        parser.error("retrieve: give --files, or --index")
    if arguments.command in ("classify", "caption", "embed") and not arguments.files:
        parser.error(f"{arguments.command}: give --files")
    return arguments


class Unreadable:
    """Names files that cannot be read, each once, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def without(self, answers: Iterable[tuple[Medium, Any]]) -> Iterator[tuple[Medium, Any]]:
        for medium, answer in tqdm(answers, unit=" files", disable=None):
            if answer is None:
                self.count += 1
                tqdm.write(f"cannot be read: {medium.name}: {medium.fault}", file=sys.stderr)
            else:
                yield medium, answer


def predict(arguments: argparse.Namespace) -> int:
    """Returns the exit code."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.model:
        model = load_export(arguments.model, batch_size=arguments.batch_size)
    else:
        model = load(
            arguments.run, chosen_step(expanded(arguments.run), arguments.step), batch_size=arguments.batch_size
        )
    unreadable = Unreadable()
    if arguments.command == "classify":
        answers = model.classify(media_of(arguments.files), _names(arguments.classes), arguments.top, arguments.task)
        for medium, choices in unreadable.without(answers):
            found = [{"class": choice.text, "probability": round(choice.probability, 5)} for choice in choices]
            text = ", ".join(f"{choice.text} {choice.probability:.1%}" for choice in choices)
            _put(arguments, {"file": medium.name, "classes": found}, f"{medium.name}: {text}")
    elif arguments.command == "caption":
        for medium, caption in unreadable.without(
            model.caption(media_of(arguments.files), arguments.beam, task=arguments.task)
        ):
            _put(arguments, {"file": medium.name, "caption": caption}, f"{medium.name}: {caption}")
    elif arguments.command == "embed":
        names, vectors_ND = _embedded(model, arguments, arguments.files, unreadable)
        with replacing(arguments.out) as file:
            np.savez(file, names=np.array(names), vectors=vectors_ND, step=model.step)
        _put(arguments, {"index": str(arguments.out), "files": len(names)}, f"{arguments.out}: {len(names)} files")
    elif arguments.command == "retrieve":
        _retrieve(model, arguments, unreadable)
    else:
        for text, gaps in zip(arguments.texts, model.fill(arguments.texts, arguments.top, arguments.task), strict=True):
            words = [[{"word": c.text, "probability": round(c.probability, 5)} for c in gap] for gap in gaps]
            shown = "; ".join(", ".join(f"{c.text} {c.probability:.1%}" for c in gap) for gap in gaps)
            _put(arguments, {"text": text, "gaps": words}, f"{text}: {shown}")
    return EXIT_UNREADABLE if unreadable.count else 0


def _retrieve(model: Predictor, arguments: argparse.Namespace, unreadable: Unreadable) -> None:
    if arguments.index:
        names, vectors_ND = _index(arguments.index)
    else:
        names, vectors_ND = _embedded(model, arguments, arguments.files, unreadable)
    if arguments.by_file:
        queries, queries_QD = _embedded(model, arguments, arguments.query, unreadable)
    else:
        queries, queries_QD = arguments.query, model.embed_texts(arguments.query, arguments.task).numpy()
    if vectors_ND.shape[1:] != queries_QD.shape[1:]:
        raise DatasetError(
            f"{arguments.index}: vectors of {vectors_ND.shape[1]} numbers, the run has {queries_QD.shape[1]}"
        )
    for query, similarity_N in zip(queries, queries_QD @ vectors_ND.T, strict=True):
        best = np.argsort(-similarity_N, kind="stable")[: arguments.top]
        found = [{"file": names[place], "similarity": round(float(similarity_N[place]), 5)} for place in best]
        lines = [f"  {row['similarity']:.3f}  {row['file']}" for row in found]
        _put(arguments, {"query": query, "files": found}, "\n".join([f"{query}:", *lines]))


def _embedded(
    model: Predictor, arguments: argparse.Namespace, places: list[str], unreadable: Unreadable
) -> tuple[list[str], np.ndarray]:
    """(names, vectors [N, D]). Raises DatasetError if none can be read."""
    found = [(m.name, v.numpy()) for m, v in unreadable.without(model.embed(media_of(places), arguments.task))]
    if not found:
        raise DatasetError(f"none of {', '.join(places)[:200]} can be read")
    return [name for name, _ in found], np.stack([vector for _, vector in found])


def _index(path: Path) -> tuple[list[str], np.ndarray]:
    """Raises DatasetError."""
    try:
        with np.load(path, allow_pickle=False) as content:
            names, vectors_ND = content["names"], content["vectors"]
        if vectors_ND.ndim != 2 or len(names) != len(vectors_ND) or vectors_ND.dtype != np.float32:
            raise ValueError("names and vectors do not go together")
        return names.tolist(), vectors_ND
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # whatever numpy and zipfile make of other files
        raise DatasetError(f"{path}: no index of `predict.py embed` ({error})") from error


def _names(words: list[str]) -> list[str]:
    """Raises DatasetError."""
    if len(words) == 1 and words[0].startswith("@"):
        try:
            lines = text_of(Path(words[0][1:]).read_bytes(), words[0][1:]).splitlines()
        except OSError as error:
            raise DatasetError(f"{words[0][1:]}: {error.strerror}") from error
        except NotText as error:
            raise DatasetError(str(error)) from error
        words = [line.strip() for line in lines if line.strip()]
    if len(words) == 1:
        raise DatasetError("--classes: give two names at least, or @FILE with one per line")
    return words


def _put(arguments: argparse.Namespace, record: dict[str, Any], text: str) -> None:
    """Raises OutputError."""
    print_result(json.dumps(record, ensure_ascii=False) if arguments.json else text)


def main(argv: list[str] | None = None) -> int:
    try:
        return predict(parse_arguments(sys.argv[1:] if argv is None else argv))
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER


if __name__ == "__main__":
    sys.exit(main())
