"""What TensorBoard itself reads of a run is what metrics.jsonl says, also after a resume that goes back."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from run.metrics.expert_use import decision_names
from run.sinks.drawing import heat_map
from run.sinks.tensorboard import FOLDER, TensorBoard
from tests.run.sinks.made import DENSE, loaded, record, with_metrics


def read(folder: Path) -> EventAccumulator:
    everything = {kind: 0 for kind in ("scalars", "images", "histograms", "tensors", "compressedHistograms")}
    return EventAccumulator(str(folder / FOLDER), size_guidance=everything).Reload()


def numbers(found: EventAccumulator) -> dict[tuple[str, int], float]:
    return {(tag, event.step): event.value for tag in found.Tags()["scalars"] for event in found.Scalars(tag)}


def expected(lines: list[dict]) -> dict[tuple[str, int], float]:
    """Numbers of metrics.jsonl as TensorBoard can hold them."""
    return {
        (key, line["step"]): math.nan if value is None else float(np.float32(value))
        for line in lines
        for key, value in line.items()
        if key != "step" and not isinstance(value, list)
    }


def test_numbers_are_those_of_the_json_lines_after_a_resume_that_goes_back(config):
    run = loaded(config)
    first, second = [record(run, step) for step in range(1, 7)], [record(run, step, 0.5) for step in range(4, 8)]
    sink = TensorBoard(run, 0)
    with_metrics(run, first)
    for made in first:
        sink.write(made)  # and no close: it was killed
    resumed = TensorBoard(run, 3)
    for made in second:
        resumed.write(made)
    resumed.close()
    lines = with_metrics(run, second, 3)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 7]
    found = read(run.folder)
    np.testing.assert_equal(numbers(found), expected(lines))
    by_tag = [(tag, event.step) for tag in found.Tags()["scalars"] for event in found.Scalars(tag)]
    assert len(by_tag) == len(set(by_tag)), "a step stands twice"


def test_lists_are_histograms_and_heat_maps_and_alarms_are_texts(config):
    run = loaded(config)
    sink = TensorBoard(run, 0)
    made = record(run, 6)
    sink.write(made)
    sink.close()
    found = read(run.folder)
    assert set(found.Tags()["histograms"]) == {"expert_load", "router_entropy", "success_by_decision/image"}
    (entropy,) = found.Histograms("router_entropy")
    value = entropy.histogram_value
    rows = len(decision_names(run.model))
    assert rows == 2 and (value.num, value.min, value.max, value.sum) == (2, 0.25, 0.5, 0.75)
    assert found.Tags()["images"] == ["expert_load"]
    (picture,) = found.Images("expert_load")
    pixels = np.asarray(Image.open(io.BytesIO(picture.encoded_image_string)))
    assert (pixels == heat_map(made["expert_load"], decision_names(run.model))).all() and picture.step == 6
    (text,) = [event for tag in found.Tags()["tensors"] for event in found.Tensors(tag)]
    assert text.tensor_proto.string_val[0].decode() == "\n\n".join(made["alarms"]) and text.step == 6


def test_a_long_run_has_few_pictures(config):
    """800 records: every fourth has pictures."""
    run = loaded(config, "steps=800")
    sink = TensorBoard(run, 0)
    for step in (1, 2, 3, 4, 8, 9):
        sink.write(record(run, step))
    sink.close()
    found = read(run.folder)
    assert [event.step for event in found.Images("expert_load")] == [4, 8]
    assert [event.step for event in found.Scalars("lr")] == [1, 2, 3, 4, 8, 9]


def test_a_dense_run_has_numbers_alone(config):
    run = loaded(config, DENSE)
    sink = TensorBoard(run, 0)
    sink.write(record(run, 5))
    sink.close()
    tags = read(run.folder).Tags()
    assert set(tags["scalars"]) == record(run, 5).keys() - {"step"}
    assert not tags["images"] and not tags["histograms"] and not tags["tensors"]


def test_what_is_no_number_is_drawn_without(config):
    run = loaded(config)
    sink = TensorBoard(run, 0)
    sink.write(record(run, 5) | {"router_entropy": [math.nan, 0.5], "success_by_decision/image": [math.nan, math.nan]})
    sink.close()
    found = read(run.folder)
    assert found.Histograms("router_entropy")[0].histogram_value.num == 1
    assert "success_by_decision/image" not in found.Tags()["histograms"]
