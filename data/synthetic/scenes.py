"""Objects of the made world: which there are, how they look, and sentences about them.

Legend: T frames, H height, W width, C colour channels. Lengths are in pixels, x to the right, y down.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

SIDE = 32
"""Pixels of a square frame. The world is a torus: what leaves on one side enters on the other."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 35),
    "orange": (245, 125, 10),
    "yellow": (240, 225, 30),
    "green": (30, 170, 50),
    "blue": (40, 80, 235),
    "purple": (140, 40, 190),
    "pink": (250, 150, 195),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
DIRECTION = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
MOTIONS = ("moving left", "moving right", "moving up", "moving down", "growing", "shrinking")
REVERSE = dict(zip(MOTIONS, (MOTIONS[i] for i in (1, 0, 3, 2, 5, 4)), strict=True))
VELOCITY = {"moving left": (-1, 0), "moving right": (1, 0), "moving up": (0, -1), "moving down": (0, 1)}


@dataclasses.dataclass(frozen=True, order=True)
class Thing:
    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def a(self) -> str:
        """With its article."""
        return f"{'an' if self.colour[0] in 'aeiou' else 'a'} {self}"


@dataclasses.dataclass(frozen=True)
class Pair:
    """`first` stands `relation` ("left of", ...) `second`."""

    first: Thing
    relation: str
    second: Thing

    def reversed(self) -> Pair:
        return Pair(self.second, OPPOSITE[self.relation], self.first)


def things(held_out: bool) -> list[Thing]:
    """The things of training (42), or the 6 held out; both sets have all shapes, and training all colours."""
    pairs = itertools.product(enumerate(COLOURS), enumerate(SHAPES))
    return [Thing(colour, shape) for (i, colour), (j, shape) in pairs if ((i - j) % len(COLOURS) == 0) == held_out]


def pairs(firsts: list[Thing], seconds: list[Thing]) -> list[Pair]:
    """Every scene of one of `firsts` and one of `seconds` that differ in colour and shape, once."""
    scenes: list[Pair] = []
    for first, second in itertools.product(firsts, seconds):
        # A left of B and B right of A are one scene.
        twice = first in seconds and second in firsts and second < first
        if first.colour != second.colour and first.shape != second.shape and not twice:
            scenes += [Pair(first, relation, second) for relation in OPPOSITE]
    return scenes


def background(rng: np.random.Generator) -> np.ndarray:
    """A dark, slightly tinted and noisy ground [H, W, C], float32 0..255."""
    ground_C = rng.uniform(15, 75) + rng.uniform(-10, 10, size=3)
    return ground_C.astype(np.float32) + 5 * rng.standard_normal((SIDE, SIDE, 3), dtype=np.float32)


def draw(
    frames_THWC: np.ndarray,
    thing: Thing,
    centres_T2: np.ndarray,
    radii_T: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """Paint the thing into the frames, with a centre (x, y) and radius for each; colour and tilt vary."""
    tilt = rng.uniform(-0.2, 0.2)
    paint_C = np.array(COLOURS[thing.colour]) * rng.uniform(0.88, 1.0) + rng.uniform(-8, 8, size=3)
    grid = np.arange(SIDE, dtype=np.float32) + 0.5
    x_TW, y_TH = (_wrapped(grid - centres_T2[:, axis, None].astype(np.float32)) for axis in (0, 1))
    sine, cosine = np.float32(np.sin(tilt)), np.float32(np.cos(tilt))
    x_THW = x_TW[:, None, :] * cosine + y_TH[:, :, None] * sine
    y_THW = y_TH[:, :, None] * cosine - x_TW[:, None, :] * sine
    outside_THW = _distance(thing.shape, x_THW, y_THW, radii_T.astype(np.float32)[:, None, None])
    cover_THW1 = np.clip(0.5 - outside_THW, 0, 1)[..., None]
    frames_THWC += cover_THW1 * (paint_C.astype(np.float32) - frames_THWC)


def _wrapped(difference: np.ndarray) -> np.ndarray:
    return (difference + SIDE / 2) % SIDE - SIDE / 2


def _distance(shape: str, x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Distance from the outline, negative inside; corners are those of the prolonged edges."""
    if shape == "circle":
        return np.hypot(x, y) - radius
    if shape == "ring":
        return np.abs(np.hypot(x, y) - 0.75 * radius) - 0.25 * radius
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.86 * radius
    if shape == "cross":
        bar = np.maximum(np.abs(x) - 0.3 * radius, np.abs(y) - radius)
        return np.minimum(bar, np.maximum(np.abs(y) - 0.3 * radius, np.abs(x) - radius))
    if shape == "triangle":
        slope = np.sqrt(0.75) * np.abs(x) - 0.5 * (y + 0.3 * radius) - 0.35 * radius
        return np.maximum(slope, y - 0.75 * radius)
    if shape == "star":
        # Fold the plane into one tenth: the outline there is one line from a tip to an inner corner.
        tenth = np.pi / 5
        angle = np.abs((np.arctan2(x, -y) + tenth) % (2 * tenth) - tenth)
        along, aside = np.hypot(x, y) * np.cos(angle), np.hypot(x, y) * np.sin(angle)
        tip, inner = 1.15 * radius, 0.5 * radius
        edge_x, edge_y = inner * np.cos(tenth) - tip, inner * np.sin(tenth)
        return ((along - tip) * edge_y - aside * edge_x) / np.hypot(edge_x, edge_y)
    raise ValueError(f"unknown shape {shape!r}; there are {', '.join(SHAPES)}")


def pair_captions(pair: Pair) -> list[str]:
    """Five ways to say it, from both ends."""
    a, b = pair, pair.reversed()
    return [
        f"{a.first.a} {a.relation} {a.second.a}",
        f"{b.first.a} {b.relation} {b.second.a}",
        f"the {a.first} is {a.relation} the {a.second}",
        f"the {b.first} is {b.relation} the {b.second}",
        f"{a.relation} the {a.second} is {a.first.a}",
    ]


def motion_captions(thing: Thing, motion: str) -> list[str]:
    return [f"{thing.a} {motion}", f"the {thing} is {motion}", f"there is {thing.a} {motion}"]


NUM_SENTENCES = 6


def sentence(template: int, pair: Pair, mover: Thing, motion: str) -> tuple[str, list[Thing]]:
    """A sentence that says things twice, so that hidden words follow from the rest; and the things in it."""
    a, b, relation, opposite = pair.first, pair.second, pair.relation, OPPOSITE[pair.relation]
    both = [a, b]
    texts: list[tuple[str, list[Thing]]] = [
        (f"the {a} is {relation} the {b} so the {b} is {opposite} the {a} .", both),
        (f"the {a} is {relation} the {b} and not {opposite} the {b} .", both),
        (f"{a.a} {relation} {b.a} : the {a.shape} is {a.colour} and the {b.shape} is {b.colour} .", both),
        (f"there is {a.a} and {b.a} : the {b.colour} {b.shape} and the {a.colour} {a.shape} .", both),
        (f"{relation} the {b} is {a.a} so {opposite} the {a} is {b.a} .", both),
        (f"the {mover} is {motion} and not {REVERSE[motion]} : it is {mover.a} {motion} .", [mover]),
    ]
    return texts[template]
