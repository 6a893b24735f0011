"""Draws docs/images/architecture.svg: from shards to the loss, and what ranks share.

python scripts/draw_architecture.py
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

PATH = Path(__file__).resolve().parents[1] / "docs" / "images" / "architecture.svg"
WIDTH, HEIGHT = 1080, 560
INK, PAPER = "#1f2933", "#ffffff"
FILLS = {
    "data": "#e3f2fd",
    "input": "#fff3e0",
    "model": "#ede7f6",
    "expert": "#d1c4e9",
    "loss": "#e8f5e9",
    "ranks": "#f5f5f5",
}


class Picture:
    def __init__(self) -> None:
        self.root = ET.Element(
            "svg", xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img",
            attrib={"font-family": "Helvetica, Arial, sans-serif", "font-size": "15"},
        )  # fmt: skip
        ET.SubElement(self.root, "title").text = "From shards to the loss"
        defs = ET.SubElement(self.root, "defs")
        marker = ET.SubElement(
            defs,
            "marker",
            id="arrow",
            viewBox="0 0 10 10",
            refX="9",
            refY="5",
            markerWidth="7",
            markerHeight="7",
            orient="auto",
        )
        ET.SubElement(marker, "path", d="M0 0 L10 5 L0 10 z", fill=INK)
        self.rectangle(0, 0, WIDTH, HEIGHT, PAPER, PAPER, 14)

    def rectangle(self, x: int, y: int, width: int, height: int, fill: str, line: str = INK, round_: int = 8) -> None:
        ET.SubElement(
            self.root,
            "rect",
            x=str(x),
            y=str(y),
            width=str(width),
            height=str(height),
            rx=str(round_),
            fill=fill,
            stroke=line,
        )

    def text(self, x: int, y: int, words: str, size: int = 15, bold: bool = False, middle: bool = True) -> None:
        ET.SubElement(
            self.root, "text", x=str(x), y=str(y), fill=INK,
            attrib={
                "text-anchor": "middle" if middle else "start", "font-size": str(size),
                "font-weight": "bold" if bold else "normal",
            },
        ).text = words  # fmt: skip

    def box(self, x: int, y: int, width: int, height: int, kind: str, title: str, *lines: str) -> None:
        """A box with a bold title and lines below it, all in its middle."""
        self.rectangle(x, y, width, height, FILLS[kind])
        top = y + height // 2 - 9 * len(lines) + 5
        self.text(x + width // 2, top, title, bold=True)
        for number, line in enumerate(lines, 1):
            self.text(x + width // 2, top + 18 * number + 1, line, 13)

    def arrow(self, *points: tuple[int, int]) -> None:
        path = "M" + " L".join(f"{x} {y}" for x, y in points)
        ET.SubElement(
            self.root,
            "path",
            d=path,
            fill="none",
            stroke=INK,
            attrib={"stroke-width": "1.6", "marker-end": "url(#arrow)"},
        )


def draw() -> str:
    picture = Picture()
    picture.text(540, 34, "Every task is: which candidate does this input mean?", 19, bold=True)
    picture.box(24, 70, 150, 84, "data", "tar shards", "images, clips,", "captions, text")
    picture.box(24, 196, 150, 84, "data", "task", "decode, augment,", "mask")
    picture.arrow((99, 154), (99, 194))
    picture.rectangle(214, 70, 206, 210, PAPER)
    picture.text(317, 94, "TaskBatch", bold=True)
    picture.box(230, 108, 174, 70, "input", "inputs", "<SPE> patches, words")
    picture.box(230, 194, 174, 70, "input", "candidates", "names, words, texts")
    picture.arrow((174, 238), (212, 238))

    picture.rectangle(462, 70, 366, 320, FILLS["model"])
    picture.text(645, 94, "one shared encoder", bold=True)
    picture.rectangle(480, 108, 330, 40, PAPER)
    picture.text(645, 133, "dense block: attention, FFN", 13)
    picture.rectangle(480, 160, 330, 174, PAPER)
    picture.text(645, 180, "sparse block: a router chooses experts", 13)
    picture.box(
        492,
        192,
        148,
        130,
        "expert",
        "merge",
        "router sees attributes,",
        "modality or task;",
        "weights of experts",
        "are added up",
    )
    picture.box(
        650,
        192,
        148,
        130,
        "expert",
        "dispatch",
        "router sees tokens;",
        "tokens are sent",
        "to their experts,",
        "with capacity",
    )
    picture.rectangle(480, 342, 330, 36, PAPER)
    picture.text(645, 365, "... more blocks, output projection", 13)
    picture.arrow((420, 143), (460, 143))
    picture.arrow((420, 229), (460, 229))

    picture.box(868, 96, 188, 92, "loss", "similarity", "scaled cosine of inputs", "with candidates")
    picture.box(868, 230, 188, 92, "loss", "loss", "cross entropy over", "candidates, balance")
    picture.arrow((828, 143), (866, 143))
    picture.arrow((962, 188), (962, 228))

    picture.rectangle(24, 420, 1032, 116, FILLS["ranks"])
    picture.text(540, 444, "many ranks", bold=True)
    ranks = (
        ("data ranks", "a task per micro-batch each;", "gradients averaged (ZeRO)"),
        ("expert ranks", "experts are shared out;", "weights or tokens travel"),
        ("tensor ranks", "linears are cut, and rows", "of the residual stream"),
        ("checkpoints", "of any layout go on", "in any other"),
    )
    for number, (title, *lines) in enumerate(ranks):
        picture.box(40 + 254 * number, 456, 238, 68, "data", title, *lines)
    ET.indent(picture.root)
    return ET.tostring(picture.root, encoding="unicode") + "\n"


if __name__ == "__main__":
    PATH.parent.mkdir(parents=True, exist_ok=True)
    PATH.write_text(draw(), encoding="utf-8")
