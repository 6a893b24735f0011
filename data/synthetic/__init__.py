"""A small made world for trying everything: coloured shapes, pairs of them, moving ones, and sentences about them.

    python -m data.synthetic --out DIR

    scenes.py   what can be there, how it is drawn, what can be said about it
    world.py    the five data sets and their splits
"""

from data.synthetic.world import WorldSize, write_demo_world

__all__ = ["WorldSize", "write_demo_world"]
