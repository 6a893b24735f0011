"""Which figures there are of how experts are used.

Legend: N decisions, M modalities, E experts, T tasks, S buckets of steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.report.downsample import fewer
from analysis.report.figures import Axes, Figure, bars, curves, keys, lines, table_map, time_map
from analysis.report.metrics import Use
from analysis.report.reading import RunFiles
from run.metrics.alarms import DEAD

ALL = 0.9995
"""Success rates from here on are shown as 100 %, and so as no figure."""
LATE = 10
"""The last 1 / LATE of the picture over time says which experts are dead at the end."""
NAMED = 8
MOST_CELLS = 200_000
"""Of all pictures over time of expert load."""


def experts(runs: Sequence[RunFiles], axes: Axes) -> list[Figure]:
    sparse = [run for run in runs if run.is_sparse]
    if not sparse:
        return []
    success = lines(runs, lambda run: run.metrics.below("success") if run.is_sparse else {})
    dead = lines(runs, lambda run: keys(run, {"dead experts": "dead_experts"}) if run.is_sparse else {})
    largest = lines(runs, lambda run: keys(run, {"largest share": "expert_load_max"}))
    found = [
        curves("Success rate by modality", "share of asked pairs that found a slot", success, runs, axes),
        curves("Dead experts", "over all decisions", dead, runs, axes),
        curves("Largest share that an expert took", "share of asked pairs, over all decisions", largest, runs, axes),
    ]
    for run in sparse:
        found += _over_time(run, f": {run.name}" if len(runs) > 1 else "", MOST_CELLS // len(sparse))
        for use in (run.use, run.experts):
            if use is not None:
                counted = use.about.partition(",")[0]
                found += _by_task(use, f", {counted}: {run.name}" if len(runs) > 1 else f", {counted}")
    return [figure for figure in found if figure]


def decisions_of(run: RunFiles, number: int) -> list[str]:
    """Names of the decisions, or numbers where nothing tells them."""
    uses = [use.decisions for use in (run.use, run.experts) if use is not None]
    found = next((names for names in (*uses, run.decisions) if len(names) == number), None)
    return list(found) if found else [f"decision {index}" for index in range(number)]


def _over_time(run: RunFiles, of: str, most_cells: int) -> list[Figure]:
    found, last = [], run.metrics.last_step
    steps, load_SNE = run.metrics.over_time.get("expert_load", ([], np.zeros(0)))
    if load_SNE.ndim == 3:
        steps, load_SNE = fewer(steps, load_SNE, most_cells // load_SNE[0].size)
        names = decisions_of(run, load_SNE.shape[1])
        experts = [str(expert) for expert in range(load_SNE.shape[2])]
        values_NES = load_SNE.transpose(1, 2, 0)
        title = f"Expert load over time{of}"
        found.append(
            time_map(title, _load_said(values_NES, names), steps, last, values_NES, experts, "expert", Decision=names)
        )
    steps, entropy_SN = run.metrics.over_time.get("router_entropy", ([], np.zeros(0)))
    if entropy_SN.ndim == 2:
        names = decisions_of(run, entropy_SN.shape[1])
        said = f"In nats, the mean over tokens; {_range(entropy_SN[-1])} at the end. Zero: each token is sure of its expert."
        found.append(time_map(f"Router entropy{of}", said, steps, last, entropy_SN.T[None], names, "decision"))
    maps = {
        key.partition("/")[2]: value
        for key, value in run.metrics.over_time.items()
        if key.startswith("success_by_decision/")
    }
    maps = {
        name: value for name, value in maps.items() if value[1].ndim == 2 and np.nanmin(value[1], initial=1.0) < ALL
    }
    if maps:
        steps, values_MNS = _on_all_steps(list(maps.values()))
        said = f"Share of asked pairs that found a slot; the lowest mean of a decision is {np.nanmin(np.nanmean(values_MNS, axis=2)):.1%}."
        names = decisions_of(run, values_MNS.shape[1])
        found.append(
            time_map(
                f"Success rate by decision{of}",
                said,
                steps,
                last,
                values_MNS,
                names,
                "decision",
                from_zero=False,
                Modality=list(maps),
            )
        )
    return found


def _on_all_steps(columns: Sequence[tuple[Sequence[int], np.ndarray]]) -> tuple[list[int], np.ndarray]:
    """(steps, values [S, N]) of several -> all steps, values [M, N, S] with NaN where one has none: a modality that was not drawn."""
    steps = sorted(set().union(*(column_steps for column_steps, _ in columns)))
    values_MNS = np.full((len(columns), max(values.shape[1] for _, values in columns), len(steps)), np.nan)
    for values_NS, (column_steps, column_SN) in zip(values_MNS, columns, strict=True):
        values_NS[: column_SN.shape[1], np.searchsorted(steps, column_steps)] = column_SN.T
    return steps, values_MNS


def _load_said(values_NES: np.ndarray, names: Sequence[str]) -> str:
    late = max(1, values_NES.shape[2] // LATE)
    late_NE = np.nan_to_num(values_NES[:, :, -late:]).mean(axis=2)
    dead_NE = late_NE < DEAD / late_NE.shape[1]
    dead = [
        f"{name}: {', '.join(map(str, np.flatnonzero(row)))}"
        for name, row in zip(names, dead_NE, strict=True)
        if row.any()
    ]
    said = "Share of the asked (token, expert) pairs that each expert took. "
    if not dead:
        return said + "No expert is dead at the end."
    more = f"; and in {len(dead) - NAMED} more decisions" if len(dead) > NAMED else ""
    return said + f"Dead at the end (below {DEAD:.0%} of an equal share): {'; '.join(dead[:NAMED])}{more}."


def _range(values: np.ndarray) -> str:
    return f"{np.nanmin(values):.2f} to {np.nanmax(values):.2f}" if np.isfinite(values).any() else "unknown"


def _by_task(use: Use, of: str) -> list[Figure]:
    experts = [str(expert) for expert in range(use.num_experts)]
    tasks, names = list(use.tasks), list(use.decisions)
    there = [m for m in range(len(use.modalities)) if use.total("asked")[:, m].any()]
    if not there:
        return []
    modalities = [use.modalities[m] for m in there]
    taken_TNME = np.stack([use.tasks[task]["taken"][:, there] for task in tasks])
    asked_TNM = np.stack([use.tasks[task]["asked"][:, there] for task in tasks])
    weight_TNME = np.stack([use.tasks[task]["weight"][:, there] for task in tasks])
    with np.errstate(divide="ignore", invalid="ignore"):
        share_NMTE = np.moveaxis(taken_TNME / asked_TNM[..., None], 0, 2)
        all_NTE = np.moveaxis(taken_TNME.sum(axis=2) / asked_TNM.sum(axis=2)[..., None], 0, 1)
        gate_NMTE = np.moveaxis(weight_TNME / taken_TNME, 0, 2)
        gates_NTE = np.moveaxis(weight_TNME.sum(axis=2) / taken_TNME.sum(axis=2), 0, 1)
        taken_NME = taken_TNME.sum(axis=0)
        mix_NME = taken_NME / taken_NME.sum(axis=1, keepdims=True)
        success_TN = taken_TNME.sum(axis=(2, 3)) / asked_TNM.sum(axis=2)
    of_all = ["all", *modalities]
    shares = np.concatenate([all_NTE[:, None], share_NMTE], axis=1)
    gates = np.concatenate([gates_NTE[:, None], gate_NMTE], axis=1)
    found = [
        table_map(
            f"Expert use by task{of}",
            f"Share of a task's asked pairs that each expert took, {use.about}.",
            shares, tasks, experts, "expert", Decision=names, Modality=of_all,
        ),
        table_map(
            f"Gate weights by task{of}",
            f"Mean weight of the gate for what each expert took, {use.about}.",
            gates, tasks, experts, "expert", Decision=names, Modality=of_all,
        ),
        bars(
            f"Modalities by expert{of}",
            f"What each expert took, by modality, {use.about}. {_specialists(mix_NME, modalities, names)}",
            mix_NME, modalities, experts, "expert", is_stacked=True, Decision=names,
        ),
    ]  # fmt: skip
    if np.nanmin(success_TN, initial=1.0) < ALL:
        said = f"Share of a task's asked pairs that found a slot, {use.about}."
        found.append(
            table_map(f"Success rate by task{of}", said, success_TN, tasks, names, "decision", from_zero=False)
        )
    return found


def _specialists(mix_NME: np.ndarray, modalities: Sequence[str], names: Sequence[str]) -> str:
    """LIMoE's figure in one sentence: how many experts see one modality almost alone."""
    if len(modalities) < 2:
        return f"All of it is {modalities[0]}."
    parts = [f"{int((mix_NME[:, m] >= 0.9).sum())} {name}" for m, name in enumerate(modalities)]
    return f"Of {mix_NME.shape[0] * mix_NME.shape[2]} experts in all decisions these have nine tenths of one modality: {', '.join(parts)}."
