"""Use a trained model on your files and texts: name them, caption them, ask about them, find them, fill in words.

  python predict.py classify --run runs/demo --classes "red circle" "blue star" --files pictures clip.mp4
  python predict.py caption  --run runs/demo --files 'pictures/*.jpg'
  python predict.py answer   --run runs/vqa  --question "how many dogs are there?" --files pictures
  python predict.py classify --run runs/sst2 --texts "a fine film" "two hours too long"
  python predict.py retrieve --run runs/demo --query "a red circle" --files pictures
  python predict.py embed    --run runs/demo --files pictures --out index.npz
  python predict.py retrieve --run runs/demo --query "a red circle" --index index.npz
  python predict.py fill     --run runs/demo --texts "the red ___ lies left of the star"
  python predict.py caption  --model outputs/demo --files pictures                          an exported run

Files are images, clips, folders of them, patterns, or shards (.tar), also by URL or as @LIST; for `classify` and `embed` also texts (.txt,
one a line). Answers go to standard output, a line each
(--json: JSON lines, --parquet FILE: a table in its place); what cannot be read is named on standard error, and the rest is done.

Exit codes: 0 done, 1 done but for files that could not be read, or failure, 2 the run or the arguments cannot be used.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from data.shards import DatasetError
from data.transport import NotText, text_of
from prediction import Medium, Predictor, load, media_of, texts_of
from prediction.answers import Answers, check_place
from prediction.index import Index
from prediction.media import CACHE_DIR, shard_cache
from prediction.predictor import Choice
from run.command_line import checkpoint_step, positive
from run.errors import USER_ERRORS, exit_code
from run.places import expanded

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
    which.add_argument("--model", help="a run folder, or a folder of `python -m model.exchange.export`")
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

    texts = argparse.ArgumentParser(add_help=False)
    texts.add_argument(
        "--texts", nargs="+", action="extend", default=[], metavar="TEXT", help="texts, or @FILE with one per line"
    )

    classify = commands.add_parser("classify", parents=[common, files, texts], help="which of these names fits best")
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
    answer = commands.add_parser(
        "answer", parents=[common, files], help="the likeliest answer to a question about each"
    )
    answer.add_argument("--question", required=True)
    answer.add_argument(
        "--answers",
        nargs="+",
        action="extend",
        default=[],
        metavar="ANSWER",
        help="to choose from, or @FILE with one per line (default: those of the task)",
    )
    answer.add_argument("--top", type=positive, default=3, help="so many answers of each file (default: 3)")
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
    embed = commands.add_parser("embed", parents=[common, files, texts], help="a vector of each, as an index")
    embed.add_argument("--out", type=Path, help="index to write (.npz)")
    fill = commands.add_parser("fill", parents=[common, texts], help="words in place of ___")
    fill.add_argument("--top", type=positive, default=3, help="so many words of each gap (default: 3)")
    arguments = parser.parse_args(argv)
    if arguments.command == "retrieve" and bool(arguments.files) == bool(arguments.index):
        parser.error("retrieve: give --files, or --index")
    if arguments.command in ("caption", "answer") and not arguments.files:
        parser.error(f"{arguments.command}: give --files")
    if arguments.command in ("classify", "embed") and not (arguments.files or arguments.texts):
        parser.error(f"{arguments.command}: give --files or --texts")
    if arguments.command == "fill" and not arguments.texts:
        parser.error("fill: give --texts")
    if arguments.command == "embed" and not (arguments.out or arguments.parquet):
        parser.error("embed: give --out, or --parquet")
    if damaged := [text for text in _texts(arguments) if not _is_utf8(text)]:
        parser.error(f"{arguments.command}: {damaged[0][:80]!r} has bytes that are no UTF-8: write it in UTF-8")
    return arguments


def _texts(arguments: argparse.Namespace) -> list[str]:
    """What of the command line the model is to read; names of files may have any bytes."""
    given = vars(arguments)
    words = [given.get(name, []) for name in ("classes", "answers", "texts")]
    said = [word for some in words for word in some if not _is_list(word, some)]
    query = given.get("query", []) if not given.get("by_file") else []
    return [*said, *query, *([given["question"]] if "question" in given else [])]


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Unreadable:
    """Names files that cannot be read, each once, and counts them."""

    def __init__(self) -> None:
        self.count, self.fault = 0, ""

    def without(self, answers: Iterable[tuple[Medium, Any]]) -> Iterator[tuple[Medium, Any]]:
        for medium, answer in tqdm(answers, unit=" files", disable=None if sys.stderr else True):
            if answer is None:
                self.count += not medium.is_note
                self.fault = medium.fault
                said = "note" if medium.is_note else "cannot be read"
                if sys.stderr:  # without one tqdm would write among the answers
                    tqdm.write(f"{said}: {medium.name}: {medium.fault}", file=sys.stderr)
            else:
                yield medium, answer


def predict(arguments: argparse.Namespace) -> int:
    """Returns the exit code."""
    answers = Answers(arguments.command, arguments.json, arguments.parquet)
    if arguments.command == "embed" and arguments.out:
        check_place(arguments.out)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model = load(arguments.run or arguments.model, arguments.step, batch_size=arguments.batch_size)
    unreadable = Unreadable()
    if arguments.command == "classify":
        classes = _names(arguments.classes, "--classes")
        for medium, choices in unreadable.without(
            model.classify(_media(arguments), classes, arguments.top, arguments.task)
        ):
            answers.put({"file": medium.name, "classes": _rows("class", choices)}, f"{medium.name}: {_shown(choices)}")
    elif arguments.command == "answer":
        choice_of, question = _names(arguments.answers, "--answers"), arguments.question
        told = model.answer(_media(arguments), question, choice_of, arguments.top, arguments.task)
        for medium, choices in unreadable.without(told):
            record = {"file": medium.name, "question": question, "answers": _rows("answer", choices)}
            answers.put(record, f"{medium.name}: {_shown(choices)}")
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
        texts = _listed(arguments.texts)
        for text, gaps in unreadable.without(model.filled(texts, arguments.top, arguments.task)):
            words = [_rows("word", gap) for gap in gaps]
            answers.put({"text": text.name, "gaps": words}, f"{text.name}: {'; '.join(map(_shown, gaps))}")
        if unreadable.count == len(texts):
            raise DatasetError(f"none of the texts can be filled: the last one {unreadable.fault}")
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
    """Of these places, or of --files and --texts."""
    given = vars(arguments)
    media = media_of(places or arguments.files, shard_cache(arguments.cache_dir or CACHE_DIR), "texts" in given)
    return itertools.chain(media, texts_of(_listed(given.get("texts", []))))


def _rows(name: str, choices: Sequence[Choice]) -> list[dict[str, Any]]:
    return [{name: choice.text, "probability": round(choice.probability, 5)} for choice in choices]


def _shown(choices: Sequence[Choice]) -> str:
    return ", ".join(f"{choice.text} {choice.probability:.1%}" for choice in choices)


def _embedded(model: Predictor, arguments: argparse.Namespace, places: list[str], unreadable: Unreadable) -> Index:
    """Raises DatasetError if none can be read."""
    embedded = unreadable.without(model.embed(_media(arguments, places), arguments.task))
    found = [(medium.name, medium.is_clip, vector) for medium, vector in embedded]  # without the content of the files
    if not found:
        raise DatasetError(f"none of {', '.join([*places, *vars(arguments).get('texts', [])])[:200]} can be read")
    names, clips, vectors = zip(*found, strict=True)
    return Index(list(names), torch.stack(vectors).numpy(), np.array(clips))


def _is_list(word: str, words: list[str]) -> bool:
    """Whether a word is @FILE: the only one, or one of a file that is there."""
    return word.startswith("@") and (len(words) == 1 or expanded(word[1:]).is_file())


def _names(words: list[str], option: str) -> list[str]:
    """Raises DatasetError."""
    names = _listed(words)
    if words and len(names) < 2:
        raise DatasetError(f"{option}: give two names at least, or @FILE with one per line")
    return names


def _listed(words: list[str]) -> list[str]:
    """With the lines of each @FILE in its place. Raises DatasetError."""
    return [text for word in words for text in (_lines(word[1:]) if _is_list(word, words) else [word])]


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
