"""The picture in the documentation is the one that its script draws."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from scripts.draw_architecture import HEIGHT, PATH, WIDTH, draw


def test_the_picture_is_what_the_script_draws_and_stays_in_its_frame():
    text = PATH.read_text()
    assert text == draw(), "run scripts/draw_architecture.py"
    boxes = [node for node in ET.fromstring(text).iter() if node.tag.endswith("rect")]
    assert len(boxes) > 15
    for box in boxes:
        x, y, width, height = (float(box.get(key)) for key in ("x", "y", "width", "height"))
        assert x >= 0 and y >= 0 and x + width <= WIDTH and y + height <= HEIGHT
