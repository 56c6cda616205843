"""Scores by number of clicks, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from GSMedSegLib.atomic import atomic_path
from GSMedSegLib.challenge import CLICK_ROUNDS
from GSMedSegLib.predictor import STRATEGIES
from Testing.benchmarks.scores import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = ("#0b5cad", "#d1495b", "#8a8a8a", "#2a9d5c", "#b8860b", "#7b4fa3", "#3aa6b9")
"""Of adaptive, reference and the methods, which can be told apart in grey, too, by their marks."""

MARKS = "os^vDP*"


def draw_curves(path: Path, summaries: Mapping[str, Summary]) -> None:
    """Writes a PNG: Dice and surface Dice, over all data sets and by modality.

    Args:
        path: of the picture.
        summaries: of strategies and methods by name, measured on the same objects.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    first = next(iter(summaries.values()))
    columns = ["all data sets", *first.modalities]
    with style.context(["default", {"font.size": 9}]):
        figure = Figure(figsize=(2.6 * len(columns), 5.6), layout="constrained")
        axes = figure.subplots(2, len(columns), sharex=True, sharey=True, squeeze=False)
        for column, title in enumerate(columns):
            for n, (name, summary) in enumerate(summaries.items()):
                scores = summary.modalities.get(title, summary.mean)
                _plot(axes[0, column], scores.dice, name, n)
                _plot(axes[1, column], scores.nsd, name, n)
            axes[0, column].set_title(title)
            axes[1, column].set_xlabel("clicks")
        axes[0, 0].set_ylabel("Dice")
        axes[1, 0].set_ylabel("surface Dice, 2 mm")
        axes[0, 0].set_ylim(0, 1)
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=7)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})


def _plot(axes: Axes, values: Sequence[float] | None, name: str, number: int) -> None:
    axes.grid(axis="y", alpha=0.3)
    if values is None:
        return
    width, size = (2.2, 5.0) if name in STRATEGIES else (1.1, 3.5)
    axes.plot(
        range(1, CLICK_ROUNDS + 1),
        values,
        label=name,
        color=COLORS[number % len(COLORS)],
        marker=MARKS[number % len(MARKS)],
        linewidth=width,
        markersize=size,
    )
