"""VQA v2: questions about COCO images, with the most frequent answers as candidates."""

from __future__ import annotations

import argparse
import collections
from pathlib import Path, PurePosixPath
from typing import Any

from data.prepare.annotations import json_list, read_json
from data.prepare.containers import Container, Limits
from data.prepare.layout import (
    PLACE,
    Command,
    given_splits,
    open_media,
    reduction_arguments,
    reduction_of,
    split_arguments,
)
from data.prepare.media import Entry, is_medium, media_splits
from data.prepare.source import Context, Failure, PublicSet
from data.shards import DatasetError, is_trained_on


def _arguments(command: argparse.ArgumentParser) -> None:
    split_arguments(command, ("QUESTIONS", "ANNOTATIONS", PLACE))
    text = "classes: that many answers, the most frequent of train (default 3129)"
    command.add_argument("--answers", type=int, default=3129, metavar="N", help=text)
    reduction_arguments(command, "image")


def vqa_source(arguments: argparse.Namespace, context: Context) -> PublicSet:
    if arguments.answers < 1:
        raise DatasetError(f"--answers {arguments.answers}: must be at least 1")
    reduction = reduction_of(arguments)
    given = given_splits(arguments)
    asked = {split: read_questions(asks, answers, context.limits) for split, (asks, answers, _) in given.items()}
    classes = frequent_answers(asked.get("train") or next(iter(asked.values())), arguments.answers)
    numbers = {answer: number for number, answer in enumerate(classes)}
    entries: dict[str, list[Entry]] = {}
    failures: dict[str, list[Failure]] = {}
    for split, (_, _, place) in given.items():
        container, failures[split] = open_media(place, "image", context)
        images = _by_image_id(container)
        entries[split] = []
        for question in asked[split]:
            name = f"question_{question['question_id']}"
            image = images.get(question["image_id"])
            if image is None:
                failures[split].append(Failure(name, f"its image is not in {container.path.name}"))
            elif question["answer"] not in numbers and is_trained_on(split, given):
                failures[split].append(Failure(name, f"its answer is none of the {len(classes)} most frequent"))
            else:
                # Evaluation asks all questions: one that cannot be answered right counts as wrong, or as what its other answers are worth.
                number = numbers.get(question["answer"])
                members = {"json": question} | ({} if number is None else {"cls": number})
                entries[split].append(
                    Entry(name, container.blobs[image], members, (question["question"],), group=image)
                )
    return PublicSet("image_question", classes, media_splits("image", entries, failures, reduction, context))


def read_questions(questions: Path, annotations: Path, limits: Limits) -> list[dict[str, Any]]:
    """Questions with their most frequent answer and all ten, in the order of the questions. Raises DatasetError."""
    fields = {"question_id": int, "multiple_choice_answer": str, "answers": list}
    answered = {
        annotation["question_id"]: annotation
        for annotation in json_list(annotations, read_json(annotations, limits), "annotations", fields)
    }
    found = []
    fields = {"question_id": int, "image_id": int, "question": str}
    for question in json_list(questions, read_json(questions, limits), "questions", fields):
        annotation = answered.get(question["question_id"])
        if annotation is None:
            raise DatasetError(f"{annotations}: no answer to question {question['question_id']} of {questions.name}")
        answers = [
            a["answer"] for a in annotation["answers"] if isinstance(a, dict) and isinstance(a.get("answer"), str)
        ]
        found.append(
            {
                "question_id": question["question_id"],
                "image_id": question["image_id"],
                "question": question["question"].strip(),
                "answer": annotation["multiple_choice_answer"].strip(),
                "answers": answers,
            }
            | ({"answer_type": kind} if isinstance(kind := annotation.get("answer_type"), str) else {})
        )
    return found


def frequent_answers(questions: list[dict[str, Any]], count: int) -> tuple[str, ...]:
    """The most frequent answers first; equally frequent ones by name."""
    counts = collections.Counter(question["answer"] for question in questions if question["answer"])
    return tuple(sorted(counts, key=lambda answer: (-counts[answer], answer))[:count])


def _by_image_id(container: Container) -> dict[int, str]:
    """COCO_train2014_000000458752.jpg or 000000458752.jpg by its number."""
    found = {}
    for name in container.blobs:
        number = PurePosixPath(name).stem.rpartition("_")[2]
        if number.isdecimal() and is_medium(name, "image"):
            found[int(number)] = name
    return found


LAYOUTS = (
    Command(
        "vqa",
        "VQA v2 to image_question over the most frequent answers",
        "v2_OpenEnded_mscoco_train2014_questions.json, v2_mscoco_train2014_annotations.json and the COCO images of one split. A "
        "sample is a question: image, number of its most frequent answer, and json with question_id, question, answer, answer_type and "
        "all answers. Questions whose answer is none of the classes are left out of training, and kept without a number elsewhere.",
        "vqa --train questions.json annotations.json train2014.zip --resize 256 --out datasets/vqa",
        _arguments,
        vqa_source,
        shuffle=True,
    ),
)
