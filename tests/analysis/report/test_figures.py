"""Numbers to figures: what is drawn, in how many numbers, and what is said of it."""

from __future__ import annotations

import array
import dataclasses

import numpy as np
import vl_convert

from analysis.report import specs
from analysis.report.experts import experts
from analysis.report.figures import MOST_OF_FIGURE, Axes, Line, areas, bars, curves, figure_markup, table_map, time_map
from analysis.report.interference import interference
from analysis.report.reading import read_files
from analysis.report.training import _evaluated, gib_of, is_evaluation, learning, optimisation, speed
from tests.analysis.report.synthetic import HOSTILE


def line(name: str, values: list[float], run: int = 0) -> Line:
    return Line(name, run, (array.array("q", range(1, len(values) + 1)), array.array("d", values)))


def test_curves_share_their_steps_and_say_first_and_last(made):
    axes = Axes()
    runs = [read_files(made["sparse"])]
    figure = curves("Loss", "nats", [line("a", [2.0, 1.0]), line("b", [3.0, 0.5])], runs, axes)
    assert figure is not None and axes.lists == [[1, 2]]
    assert [series["axis"] for series in figure.content["series"]] == [0, 0]
    assert figure.content["series"][0] == {"name": "a", "run": 0, "axis": 0, "mean": [2, 1]}
    assert figure.summary == "First to last, nats: a 2 to 1; b 3 to 0.5."
    assert curves("Loss", "nats", [], runs, axes) is None


def test_long_curves_keep_their_extremes_within_the_limit_of_a_figure(made):
    values = [0.0] * 5000
    values[1234] = 9.0
    figure = curves("x", "", [line(str(i), values) for i in range(10)], [read_files(made["sparse"])], Axes())
    assert figure is not None
    series = figure.content["series"]
    assert sum(len(one["mean"]) for one in series) <= MOST_OF_FIGURE
    assert max(series[0]["high"]) == 9 and min(series[0]["low"]) == 0


def test_parts_of_a_whole_are_told_as_shares(made):
    runs = [read_files(made["sparse"])]
    figure = areas("Time", "s", [line("forward", [1.0, 1.0]), line("backward", [3.0, 3.0])], runs, Axes())
    assert figure is not None and "backward 75%, forward 25%" in figure.summary and figure.content["choices"] == []


def test_maps_have_one_matrix_for_each_choice():
    values = np.arange(12.0).reshape(2, 3, 2)
    figure = time_map("t", "", [10, 20], 30, values, ["0", "1", "2"], "expert", Decision=["a", "b"])
    assert figure.content["choices"] == [{"label": "Decision", "options": ["a", "b"]}]
    assert figure.content["data"] == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert figure.content["steps"] == [10, 20, 30] and figure.content["domain"] == [0.0, 11.0]
    nothing = table_map("t", "", np.full((1, 1), np.nan), ["a"], ["b"], "expert", from_zero=False)
    assert nothing.content["data"] == [[None]] and nothing.content["domain"] == [0.0, 1.0]
    stacked = bars("t", "", np.ones((2, 3)), ["text", "image"], ["0", "1", "2"], "expert", is_stacked=True)
    assert stacked.content["stacked"] and stacked.content["data"] == [[1] * 6]


def test_a_sparse_run_has_figures_of_experts_and_a_dense_one_none(made):
    sparse, dense = read_files(made["sparse"]), read_files(made["dense"])
    titles = {figure.title for figure in experts([sparse], Axes())}
    assert titles >= {
        "Expert load over time",
        "Router entropy",
        "Expert use by task, while training",
        "Modalities by expert, while training",
        "Success rate by modality",
    }
    assert experts([dense], Axes()) == []
    assert not any(
        "router" in str(series) for figure in optimisation([dense], Axes()) for series in figure.content["series"]
    )
    of_both = {figure.title for figure in experts([sparse, dense], Axes())}
    assert "Expert load over time: sparse" in of_both and "Expert load over time: dense" not in of_both


def test_dead_experts_and_specialists_are_named(made):
    found = {figure.title: figure for figure in experts([read_files(made["sparse"])], Axes())}
    load = found["Expert load over time"]
    assert load.content["choices"][0]["options"] == ["0 attention", "0 ffn", "1 attention", "1 ffn"]
    assert len(load.content["data"]) == 4
    use = found["Expert use by task, while training"].content
    assert (
        use["rows"][-1] == HOSTILE and len(use["data"]) == 4 * 3
    )  # decisions, and all, text, image: there is no video
    shares = np.array(use["data"], dtype=float).reshape(4, 3, 3, 4).sum(axis=-1)
    np.testing.assert_allclose(shares, 1.0, atol=0.01)
    mix = np.array(found["Modalities by expert, while training"].content["data"]).reshape(4, 2, 4).sum(axis=1)
    np.testing.assert_allclose(mix, 1.0, atol=0.01)


def test_a_modality_that_was_seldom_drawn_stands_beside_the_others(made):
    """It has fewer records, which are not those of the others' places."""
    run = read_files(made["sparse"])
    over_time = {
        key: value for key, value in run.metrics.over_time.items() if not key.startswith("success_by_decision")
    }
    of_text = np.array([[0.5, 0.6], [0.7, 0.8], [0.9, 1.0]])  # at three steps of two decisions
    over_time["success_by_decision/text"] = (array.array("q", [10, 20, 30]), of_text)
    over_time["success_by_decision/video"] = (array.array("q", [20]), np.array([[0.2, 0.4]]))
    run = dataclasses.replace(run, metrics=dataclasses.replace(run.metrics, over_time=over_time))
    (figure,) = [f for f in experts([run], Axes()) if f.title == "Success rate by decision"]
    assert figure.content["choices"] == [{"label": "Modality", "options": ["text", "video"]}]
    assert figure.content["steps"][:3] == [10, 20, 30]
    assert figure.content["data"] == [[0.5, 0.7, 0.9, 0.6, 0.8, 1], [None, 0.2, None, None, 0.4, None]]
    assert "the lowest mean of a decision is 20.0%" in figure.summary


def test_training_has_its_figures(made):
    runs = [read_files(made["sparse"])]
    titles = [figure.title for figure in (*learning(runs, Axes()), *speed(runs, Axes()), *optimisation(runs, Axes()))]
    for title in (
        "Loss by task",
        "Evaluation while training",
        "Time of a step by phase",
        "Model FLOPs utilisation",
        "Peak memory",
        "Learning rate",
    ):
        assert title in titles
    assert (
        "Memory of the first rank, GiB" in titles
        and "Memory of the first rank by family, GiB" in titles
        and "Gradient norms by family" in titles
    )


def test_keys_of_evaluations():
    assert is_evaluation("val/a/accuracy") and is_evaluation("val/a/b/cider")
    for key in ("val/a/samples", "loss/a/b", "lr", "loss/a", "success/text", "memory/peak_gib"):
        assert not is_evaluation(key)


def test_main_figures_of_evaluations_come_first_whatever_their_options(made):
    run = read_files(made["sparse"])
    column = (array.array("q", [1]), array.array("d", [0.5]))
    columns = dict.fromkeys(("val/captions/bleu_1", "val/captions/cider", "val/shapes/accuracy"), column)
    rows = {"captions, 500 samples at most, beam 1": {"figure": "cider"}, "shapes": {"figure": "accuracy"}}
    kept = dataclasses.replace(run.evaluations[0], rows=rows)
    metrics = dataclasses.replace(run.metrics, columns=columns)
    found = _evaluated(dataclasses.replace(run, metrics=metrics, evaluations=(kept,)))
    assert list(found) == ["val/captions/cider", "val/shapes/accuracy", "val/captions/bleu_1"]


def test_only_finite_numbers_are_memory():
    assert gib_of({"weights": 1, "peak": "2", "total": float("nan"), "more": 10**400}) == {"weights": 1.0}
    assert gib_of([1]) == {} and gib_of(None) == {}


def test_interference_names_the_most_harmful_influence(made):
    run = read_files(made["sparse"])
    figure = interference(run, "")
    assert figure is not None and figure.content["choices"] == [
        {"label": "Layer", "options": ["layer 0, ffn.down", "layer 1, ffn.down"]}
    ]
    assert "The lowest: " in figure.summary and "Checkpoint of step 400" in figure.summary
    assert len(figure.content["data"][0]["data"]["values"]) == 9


def test_rows_that_say_nothing_are_told_and_checkpoints_can_be_chosen(made):
    run = read_files(made["sparse"])
    layers = [layer | {"determined": [True, False, True]} for layer in run.interference["layers"]]
    run.interference["layers"] = layers
    run.interference["over_training"] = [run.interference | {"step": 100}, {"step": 50, "layers": []}]
    figure = interference(run, "")
    assert figure is not None and "cannot be told from chance: layer 0, ffn.down: captions" in figure.summary
    assert "on captions in" not in figure.summary
    assert (
        figure.content["choices"][0] == {"label": "Step", "options": ["400", "100"]}
        and len(figure.content["data"]) == 4
    )
    run.interference["tasks"] = ["one"]
    assert interference(run, "") is None


def test_each_kind_is_a_specification_that_vega_takes():
    for kind, make in specs.KINDS.items():
        spec = make()
        for layer in spec.get("layer", [spec]):
            layer["data"]["values"] = []
        assert vl_convert.vegalite_to_vega(spec, vl_version="6.4")["marks"], kind


def test_a_figure_has_heading_summary_and_table(made):
    figure = curves("A <b>", "", [line("a", [1.0])], [read_files(made["sparse"])], Axes())
    assert figure is not None
    text = figure_markup(figure, 3)
    assert 'id="figure-3-title">A &lt;b&gt;</h3>' in text and 'data-figure="3"' in text
    assert '<p class="summary">First to last: a 1.</p>' in text and "<summary>Numbers" in text
