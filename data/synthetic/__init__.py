"""A small made world for trying everything: coloured shapes, pairs, moving ones, sentences about them.

`python -m data.synthetic --out DIR` writes it.

    scenes.py   what can be there, how it is drawn, what can be said about it
    world.py    the five data sets and their splits
"""

from data.synthetic.world import WorldSize, write_demo_world

__all__ = ["WorldSize", "write_demo_world"]
