"""Runs in object stores: `python -m clusters store upload|download|list`.

    names      which files of a run travel, and which names from a store are taken
    place      a URL as a place for files: fsspec, attempts, pauses
    stored     the checkpoints that lie there, complete or not
    upload     what is new in a run's folder; follow: again and again until the run ends
    download   a checkpoint and the run's files, verified

    URL/config.yaml, metrics.jsonl, ...                         as in the run's folder
    URL/checkpoints/step_00000200/rank_00000.safetensors, ...   first
                                  uploading                     while it is unfinished: SHA-256 of the manifest to come
                                  manifest.json                 last: only with it the checkpoint counts

The store is not trusted: names, sizes and digests are checked. Exit codes: 0 done, 1 the store could not do it or something was damaged,
2 the arguments, the run or its folder cannot be used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

EXIT_FAILED = 1


def add_command(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "store", help="checkpoints and run folders to S3-like stores and back", description=_ABOUT
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="upload|download|list")

    upload = actions.add_parser("upload", help="what is new in a run's folder, once or beside the training")
    upload.add_argument("--run", type=Path, required=True, metavar="RUN", help="the run's folder, as runs/demo")
    upload.add_argument("--to", required=True, metavar="URL", help="the run's place, as s3://bucket/runs/demo")
    upload.add_argument("--follow", action="store_true", help="go on until the run ends; start it before or after it")
    upload.add_argument(
        "--every",
        type=_positive,
        default=30.0,
        metavar="S",
        help="seconds between two looks, with --follow (%(default)g)",
    )
    upload.add_argument(
        "--wait", type=_positive, default=600.0, metavar="S",
        help="with --follow: how long the run may take to start, and a dead store to come back after its end (%(default)g)",
    )  # fmt: skip
    upload.add_argument(
        "--keep", type=_count, default=0, metavar="N",
        help="remove older checkpoints from the store, all but the newest N and the best; 0 removes none (%(default)s)",
    )  # fmt: skip
    upload.set_defaults(main=lambda arguments: _main(_upload, arguments))

    download = actions.add_parser("download", help="a checkpoint and the run's files into a folder, to resume there")
    download.add_argument("--from", dest="url", required=True, metavar="URL", help="the run's place in the store")
    download.add_argument("--run", type=Path, required=True, metavar="RUN", help="the run's folder here, as runs/demo")
    download.add_argument(
        "--step", type=_step, default="newest", metavar="N|best|newest",
        help="which checkpoint; newest passes over damaged ones (%(default)s)",
    )  # fmt: skip
    download.set_defaults(main=lambda arguments: _main(_download, arguments))

    listing = actions.add_parser("list", help="the checkpoints of a run in a store")
    listing.add_argument("--from", dest="url", required=True, metavar="URL", help="the run's place in the store")
    listing.add_argument("--json", action="store_true", help="a JSON object per line")
    listing.set_defaults(main=lambda arguments: _main(_list, arguments))


_ABOUT = (
    "URLs are those of fsspec: s3:// needs pip install -e '.[s3]'; others need their own package. Credentials come from where "
    "the protocol's package looks for them (for s3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ~/.aws, the machine's role; "
    "AWS_ENDPOINT_URL for other stores than Amazon's), never from the command."
)


def _main(action: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    from clusters.store.place import StoreError

    try:
        return action(arguments)
    except StoreError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED


def _upload(arguments: argparse.Namespace) -> int:
    from clusters.store.follow import follow
    from clusters.store.place import Place
    from clusters.store.upload import Upload, check_run

    check_run(arguments.run, must_be_there=not arguments.follow)
    upload = Upload(arguments.run, Place(arguments.to), arguments.keep, _tell)
    if arguments.follow:
        return 0 if follow(upload, arguments.every, arguments.wait) else EXIT_FAILED
    return 0 if upload.round() else EXIT_FAILED


def _download(arguments: argparse.Namespace) -> int:
    from clusters.store.download import download
    from clusters.store.place import Place

    download(Place(arguments.url), arguments.run, arguments.step, _tell)
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from clusters.store.place import Place
    from clusters.store.stored import rows, table

    found = rows(Place(arguments.url))
    print("\n".join(table(found, arguments.json)))
    return 0


def _tell(line: str) -> None:
    print(line, file=sys.stderr if line.startswith("warning: ") else sys.stdout, flush=True)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text}: must be positive")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text}: must not be negative")
    return value


def _step(text: str) -> int | str:
    if text in ("best", "newest"):
        return text
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: a number, best or newest")
    return int(text)
