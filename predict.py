"""Use a trained model on your files: name them, caption them, find them, fill in words.

  python predict.py classify --run runs/demo --classes "red circle" "blue star" --files pictures clip.mp4
  python predict.py caption  --run runs/demo --files 'pictures/*.jpg'
  python predict.py retrieve --run runs/demo --query "a red circle" --files pictures
  python predict.py embed    --run runs/demo --files pictures --out index.npz
  python predict.py retrieve --run runs/demo --query "a red circle" --index index.npz
  python predict.py fill     --run runs/demo --texts "the red ___ lies left of the star"
  python predict.py caption  --model outputs/demo --files pictures                          an exported run

Files are images, clips, folders of them, patterns, or shards (.tar), also by URL or as @LIST. Answers go to standard output, a line each
(--json: JSON lines, --parquet FILE: a table in its place); what cannot be read is named on standard error, and the rest is done.

Exit codes: 0 done, 1 done but for files that could not be read, or failure, 2 the run or the arguments cannot be used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from data.shards import DatasetError
from data.transport import NotText, text_of
from prediction import Medium, Predictor, load, load_export, media_of
from prediction.answers import Answers, check_place
from prediction.index import Index
from prediction.media import CACHE_DIR, shard_cache
from run.command_line import checkpoint_step, positive
from run.errors import USER_ERRORS, exit_code
from run.places import expanded
from run.weights.best import chosen_step

EXIT_UNREADABLE = 1


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    files = argparse.ArgumentParser(add_help=False)
    files.add_argument(
        "--files", nargs="+", action="extend", default=[], metavar="PLACE", help="files, folders, patterns, shards"
    )
    files.add_argument("--cache-dir", type=Path, metavar="FOLDER", help=f"of remote shards (default: {CACHE_DIR})")
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
    answers = common.add_mutually_exclusive_group()
    answers.add_argument("--json", action="store_true", help="JSON lines in place of text")
    answers.add_argument("--parquet", type=Path, metavar="FILE", help="a table of the same in FILE; needs pyarrow")

    classify = commands.add_parser("classify", parents=[common, files], help="which of these names fits best")
    classify.add_argument(
        "--classes",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="names, or @FILE with one per line (default: those of the task)",
    )
    classify.add_argument("--top", type=positive, default=3, help="so many names of each file (default: 3)")
    caption = commands.add_parser("caption", parents=[common, files], help="a sentence about each file")
    caption.add_argument("--beam", type=positive, default=2, help="hypotheses; 1 is greedy (default: 2)")
    retrieve = commands.add_parser(
        "retrieve",
        parents=[common, files],
        help="the files that fit a text or a file best",
        description="Finds the files by faiss where it is installed, and by numpy elsewhere, with the same answers.",
    )
    retrieve.add_argument(
        "--query", nargs="+", action="extend", required=True, help="texts, or with --by-file images and clips"
    )
    retrieve.add_argument("--by-file", action="store_true", help="queries are files")
    retrieve.add_argument("--index", type=Path, help="what `embed` wrote, in place of --files")
    retrieve.add_argument("--top", type=positive, default=5, help="so many files of each query (default: 5)")
    embed = commands.add_parser("embed", parents=[common, files], help="a vector of each file, as an index")
    embed.add_argument("--out", type=Path, help="index to write (.npz)")
    fill = commands.add_parser("fill", parents=[common], help="words in place of ___")
    fill.add_argument("--texts", nargs="+", action="extend", required=True, metavar="TEXT")
    fill.add_argument("--top", type=positive, default=3, help="so many words of each gap (default: 3)")
    arguments = parser.parse_args(argv)
    if arguments.model and arguments.step is not None:
        parser.error("--step chooses among the checkpoints of a run: an export (--model) has one")
    if arguments.command == "retrieve" and bool(arguments.files) == bool(arguments.index):
        parser.error("retrieve: give --files, or --index")
    if arguments.command in ("classify", "caption", "embed") and not arguments.files:
        parser.error(f"{arguments.command}: give --files")
    if arguments.command == "embed" and not (arguments.out or arguments.parquet):
        parser.error("embed: give --out, or --parquet")
    if damaged := [text for text in _texts(arguments) if not _is_utf8(text)]:
        parser.error(f"{arguments.command}: {damaged[0][:80]!r} has bytes that are no UTF-8: write it in UTF-8")
    return arguments


def _texts(arguments: argparse.Namespace) -> list[str]:
    """What of the command line the model is to read; names of files may have any bytes."""
    if arguments.command == "classify":
        return [word for word in arguments.classes if not _is_list(word, arguments.classes)]
    if arguments.command == "retrieve":
        return [] if arguments.by_file else arguments.query
    return arguments.texts if arguments.command == "fill" else []


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Unreadable:
    """Names files that cannot be read, each once, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def without(self, answers: Iterable[tuple[Medium, Any]]) -> Iterator[tuple[Medium, Any]]:
        for medium, answer in tqdm(answers, unit=" files", disable=None if sys.stderr else True):
            if answer is None:
                self.count += 1
                if sys.stderr:  # without one tqdm would write among the answers
                    tqdm.write(f"cannot be read: {medium.name}: {medium.fault}", file=sys.stderr)
            else:
                yield medium, answer


def predict(arguments: argparse.Namespace) -> int:
    """Returns the exit code."""
    answers = Answers(arguments.command, arguments.json, arguments.parquet)
    if arguments.command == "embed" and arguments.out:
        check_place(arguments.out)
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
        named = model.classify(_media(arguments), _names(arguments.classes), arguments.top, arguments.task)
        for medium, choices in unreadable.without(named):
            found = [{"class": choice.text, "probability": round(choice.probability, 5)} for choice in choices]
            text = ", ".join(f"{choice.text} {choice.probability:.1%}" for choice in choices)
            answers.put({"file": medium.name, "classes": found}, f"{medium.name}: {text}")
    elif arguments.command == "caption":
        captions = model.caption(_media(arguments), arguments.beam, task=arguments.task)
        for medium, caption in unreadable.without(captions):
            answers.put({"file": medium.name, "caption": caption}, f"{medium.name}: {caption}")
    elif arguments.command == "embed":
        index = _embedded(model, arguments, arguments.files, unreadable)
        if arguments.out:
            index.write(arguments.out, model, arguments.task)
        if arguments.parquet:
            for name, vector_D in zip(index.names, index.vectors_ND, strict=True):
                answers.put({"file": name, "vector": vector_D}, name)
        else:
            count = len(index.names)
            answers.put({"index": str(arguments.out), "files": count}, f"{arguments.out}: {count} files")
    elif arguments.command == "retrieve":
        _retrieve(model, arguments, unreadable, answers)
    else:
        for text, gaps in zip(arguments.texts, model.fill(arguments.texts, arguments.top, arguments.task), strict=True):
            words = [[{"word": c.text, "probability": round(c.probability, 5)} for c in gap] for gap in gaps]
            shown = "; ".join(", ".join(f"{c.text} {c.probability:.1%}" for c in gap) for gap in gaps)
            answers.put({"text": text, "gaps": words}, f"{text}: {shown}")
    answers.close()
    return EXIT_UNREADABLE if unreadable.count else 0


def _retrieve(model: Predictor, arguments: argparse.Namespace, unreadable: Unreadable, answers: Answers) -> None:
    if arguments.index:
        index = Index.read(arguments.index, model, arguments.task)
    else:
        index = _embedded(model, arguments, arguments.files, unreadable)
    if arguments.by_file:
        asked = _embedded(model, arguments, arguments.query, unreadable)
        queries, found = asked.names, index.by_vectors(asked.vectors_ND, arguments.top)
    else:
        queries, found = arguments.query, index.by_texts(model, arguments.query, arguments.top, arguments.task)
    for query, best in zip(queries, found, strict=True):
        rows = [{"file": index.names[place], "similarity": round(similarity, 5)} for place, similarity in best]
        lines = [f"  {row['similarity']:.3f}  {row['file']}" for row in rows]
        answers.put({"query": query, "files": rows}, "\n".join([f"{query}:", *lines]))


def _media(arguments: argparse.Namespace, places: Sequence[str] = ()) -> Iterator[Medium]:
    """Of these places, or of --files."""
    return media_of(places or arguments.files, shard_cache(arguments.cache_dir or CACHE_DIR))


def _embedded(model: Predictor, arguments: argparse.Namespace, places: list[str], unreadable: Unreadable) -> Index:
    """Raises DatasetError if none can be read."""
    embedded = unreadable.without(model.embed(_media(arguments, places), arguments.task))
    found = [(medium.name, medium.is_clip, vector) for medium, vector in embedded]  # without the content of the files
    if not found:
        raise DatasetError(f"none of {', '.join(places)[:200]} can be read")
    names, clips, vectors = zip(*found, strict=True)
    return Index(list(names), torch.stack(vectors).numpy(), np.array(clips))


def _is_list(word: str, words: list[str]) -> bool:
    """Whether a word is @FILE: the only one, or one of a file that is there."""
    return word.startswith("@") and (len(words) == 1 or expanded(word[1:]).is_file())


def _names(words: list[str]) -> list[str]:
    """Raises DatasetError."""
    found = []
    for word in words:
        found += _lines(word[1:]) if _is_list(word, words) else [word]
    words = found if found or not words else [""]
    if len(words) == 1:
        raise DatasetError("--classes: give two names at least, or @FILE with one per line")
    return words


def _lines(place: str) -> list[str]:
    """Of a file, without empty ones. Raises DatasetError."""
    try:
        lines = text_of(expanded(place).read_bytes(), place).splitlines()
    except OSError as error:
        raise DatasetError(f"{place}: {error.strerror}") from error
    except NotText as error:
        raise DatasetError(str(error)) from error
    return [line.strip() for line in lines if line.strip()]


def main(argv: list[str] | None = None) -> int:
    try:
        return predict(parse_arguments(sys.argv[1:] if argv is None else argv))
    except USER_ERRORS as error:
        if sys.stderr:  # print would take standard output in its place
            print(f"error: {error}", file=sys.stderr)
        return exit_code(error)


if __name__ == "__main__":
    sys.exit(main())
