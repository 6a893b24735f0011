"""Pictures of a run folder inside the page: routing maps, and samples with what the model says of them."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from analysis.markup import Html, details, joined, note, tag
from analysis.report.metrics import is_count
from analysis.report.reading import RunFiles, list_of

MAX_MAPS, MAX_SAMPLES = 5 << 19, 3 << 18
"""Bytes of all pictures of a page, as they stand in it; a page stays below 8 MB."""
MAX_FILE = 32 << 20
MAX_WIDTH = 1200
MAX_PIXELS = 40_000_000
EMBEDDED = re.compile(r"data:image/(?:jpeg|png|webp);base64,[A-Za-z0-9+/]+={0,2}")
KINDS = {"PNG": "png", "JPEG": "jpeg", "GIF": "gif", "WEBP": "webp"}
MOST_CAPTIONS, MOST_QUERIES, MOST_RESULTS = 24, 12, 8


class Budget:
    """Bytes of pictures that a page may still take."""

    def __init__(self, size: int) -> None:
        self.left = size

    def takes(self, address: str) -> bool:
        if len(address) > self.left:
            return False
        self.left -= len(address)
        return True


def maps(run: RunFiles, budget: Budget) -> Html | None:
    """The pictures of analysis/routing_maps; those that move begin when their part is opened."""
    if not run.pictures:
        return None
    parts: list[Html] = []
    left_out = []
    for picture in run.pictures:
        name, title = str(picture.get("file", "")), str(picture.get("title", ""))
        found = embedded(run.maps / name) if name == Path(name).name and name not in ("", ".", "..") else None
        if found is None or not budget.takes(found[0]):
            left_out.append(name)
            continue
        address, moves, size = found
        image = tag("img", src=Html(address), alt=str(picture.get("alt", title)), width=size[0], height=size[1])
        shown = tag("figure", image, tag("figcaption", title), class_="picture")
        name = f"{title} (moving picture)" if moves else title
        parts.append(details(name, shown, is_open=not parts and not moves))
    if left_out:
        parts.append(note(f"Not in this page for their size or kind; they are in {run.maps}: {', '.join(left_out)}"))
    if (run.maps / "maps.html").is_file():
        parts.append(note(f"{run.maps / 'maps.html'} lets you choose decision and expert."))
    return joined(parts)


def embedded(path: Path) -> tuple[str, bool, tuple[int, int]] | None:
    """(data URL, whether it moves, size) of a picture, made narrower where it is very wide; None for what is no picture."""
    try:
        if path.stat().st_size > MAX_FILE:
            return None
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=tuple(KINDS)) as picture:
            kind, moves, size = KINDS[str(picture.format)], getattr(picture, "n_frames", 1) > 1, picture.size
            if size[0] * size[1] > MAX_PIXELS:
                return None
            if size[0] > MAX_WIDTH and not moves:
                size = MAX_WIDTH, max(1, round(size[1] * MAX_WIDTH / size[0]))
                file = io.BytesIO()
                picture.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(file, "WEBP", quality=85)
                kind, content = "webp", file.getvalue()
            else:
                picture.load()
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
        return None
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}", moves, size


def captions(run: RunFiles, budget: Budget) -> Html | None:
    cards = []
    for sample in list_of(run.samples, "captions")[:MOST_CAPTIONS]:
        image = _image(sample, budget)
        if image is not None:
            references = [tag("li", text) for text in list_of(sample, "references")[:5]]
            told = details("References", tag("ul", *references)) if references else None
            cards.append(
                tag(
                    "figure",
                    image,
                    tag("figcaption", tag("p", str(sample.get("caption", "")), class_="said"), told),
                    class_="card",
                )
            )
    return tag("div", *cards, class_="cards") if cards else None


def retrievals(run: RunFiles, budget: Budget) -> Html | None:
    rows = []
    for sample in list_of(run.samples, "retrievals")[:MOST_QUERIES]:
        results = list_of(sample, "results")[:MOST_RESULTS] if isinstance(sample, dict) else []
        cards = []
        for place, result in enumerate(results, start=1):
            image = _image(result, budget)
            if image is not None:
                score, right = result.get("score"), result.get("right") is True
                said = f"{place}. " + (f"{score:.3f}" if isinstance(score, int | float) else "")
                mark = tag("span", " right", class_="right") if right else None
                cards.append(
                    tag("figure", image, tag("figcaption", said, mark), class_="card right" if right else "card")
                )
        if cards:
            rows.append(
                tag("h4", f"\N{LEFT DOUBLE QUOTATION MARK}{sample.get('query', '')}\N{RIGHT DOUBLE QUOTATION MARK}")
            )
            rank, pool = sample.get("rank"), sample.get("pool")
            if is_count(rank) and is_count(pool):
                rows.append(tag("p", f"Its own picture comes at place {rank:,} of {pool:,}.", class_="summary"))
            rows.append(tag("div", *cards, class_="cards"))
    return joined(rows) if rows else None


def _image(sample: Any, budget: Budget) -> Html | None:
    """Of a data URL that holds nothing but a picture."""
    address = sample.get("image") if isinstance(sample, Mapping) else None
    if not isinstance(address, str) or not EMBEDDED.fullmatch(address) or not budget.takes(address):
        return None
    return tag("img", src=Html(address), alt=str(sample.get("alt", "")))
